"""Warnings that are logged once until the trouble is over."""

import logging
import threading


class WarnOnce:
    """What is wrong but can be lived with: the first of each kind is a warning, the rest are counted.

    Thread-safe.
    """

    def __init__(self, log: logging.Logger, what: str) -> None:
        self._log = log
        self._what = what
        self._counts: dict[str, int] = {}
        self._lock = threading.Lock()

    def warn(self, kind: str, text: str) -> None:
        """Warn if this is the first of its kind."""
        with self._lock:
            count = self._counts.get(kind, 0) + 1
            self._counts[kind] = count
        self._log.log(logging.WARNING if count == 1 else logging.DEBUG, "%s", text)

    def counts(self) -> dict[str, int]:
        """Return how often each kind was met."""
        with self._lock:
            return dict(self._counts)

    def flush(self) -> None:
        """Tell how often what was met more than once was met."""
        for kind, count in self.counts().items():
            if count > 1:
                self._log.warning("trouble with %s (%s) occurred %d times in all", self._what, kind, count)
