"""Whether the service is out of reach, so that not everybody has to find out for themselves.

Three states: *well*; *failing*, from the first request that failed, or was silent for too long, until any
answer comes; *open*, once that has lasted for some seconds (one, if many failed) and concerns more than one
question. While it is open requests fail at once. A background task asks on (watch.py); no user's request is
the one that finds out. Refused connections, silence and a gateway's 502, 503 and 504 count alike.
"""

import logging
import time
from collections.abc import Callable

from attachfs.errors import Unreachable

log = logging.getLogger("attachfs.api")

_LASTING = 3.0  # seconds without any answer, since the first failed request was sent
# Failures that come fast, as refused connections and 503 do, show sooner that it is not a single request:
# many programs would ask many times in three seconds.
_MANY = 8
_MANY_LASTING = 1.0  # seconds
_FIRST_PAUSE = 1.0  # seconds between probes, doubling while the circuit is open
# After the service has come back, everything is well within this, a probe's own time and a request's.
_LAST_PAUSE = 6.0


class CircuitBreaker:
    """Opens when nothing answers any more; any answer closes it.

    One question that fails, however often, never opens it: it may be about one object. The probes are a
    question of their own, so a service that is really away needs no second user to be noticed.

    Args:
        clock: seconds, the event loop's.
        wall: seconds since 1970, for messages.
    """

    def __init__(self, clock: Callable[[], float], wall: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._wall = wall
        self._questions: set[str] = set()  # two at most, of those that failed
        self._failures = 0  # since the last answer
        self._pause = _FIRST_PAUSE
        self._probe_at = 0.0
        self.watched = False  # somebody probes: without, an open circuit would stay open, and is never heeded
        self.failing_since: float | None = None  # when the first request that failed was sent, by the clock
        self.open_since: float | None = None  # seconds since 1970
        self.reason = ""

    def check(self, what: str) -> None:
        """Let a request pass, unless the service is known to be out of reach.

        Raises:
            Unreachable: it is.
        """
        if self.open_since is not None and self.watched:
            raise Unreachable(
                f"{what}: no request: the ledger has been out of reach since {self._since()} ({self.reason})"
            )

    def note_answer(self) -> None:
        """Note that the service answered, whatever it said."""
        if self.failing_since is None:
            return
        if self.open_since is not None:
            log.info("the ledger answers again; it had been out of reach since %s", self._since())
        self.failing_since = self.open_since = None
        self._pause = _FIRST_PAUSE
        self._questions.clear()
        self._failures = 0

    def note_failure(self, what: str, reason: str, sent: float) -> None:
        """Note that a request which was sent at `sent` was not answered, or only by a gateway."""
        now = self._clock()
        self.reason = reason
        if self.failing_since is None:
            self.failing_since = sent
            self._probe_at = now + self._pause if now - sent < self._pause else now
        if len(self._questions) < 2:
            self._questions.add(what)
        self._failures += 1
        lasting = _MANY_LASTING if self._failures >= _MANY else _LASTING
        if self.open_since is None and now - self.failing_since >= lasting and len(self._questions) > 1:
            self.open_since = self._wall()
            log.warning("the ledger is out of reach (%s); requests fail at once until it answers", reason)

    def probed(self) -> None:
        """Note that a probe was made: the next is due after a pause."""
        if self.open_since is not None:
            self._pause = min(_LAST_PAUSE, 2 * self._pause)
        self._probe_at = self._clock() + self._pause

    @property
    def probe_is_due(self) -> bool:
        """Whether it is time to ask whether the service is back."""
        return self.failing_since is not None and self._clock() >= self._probe_at

    def _since(self) -> str:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.open_since))
