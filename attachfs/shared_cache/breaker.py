"""When a store that fails is left alone, and for how long."""

import logging
from collections.abc import Callable

log = logging.getLogger(__name__)

FAILURES = 3  # in a row
FIRST_PAUSE = 30.0  # seconds, doubling
LAST_PAUSE = 600.0


class StoreBreaker:
    """Three failures in a row, or one that cost time, turn the store off for a while; then one probe decides.

    Args:
        name: of what it turns off, for the log.
        clock: seconds, monotonic.
    """

    def __init__(self, name: str, clock: Callable[[], float]) -> None:
        self._name = name
        self._clock = clock
        self._failures = 0
        self._pause = 0.0  # seconds; 0: the store is used
        self._until = 0.0
        self._probing = False

    @property
    def is_open(self) -> bool:
        """Whether the store is left alone."""
        return self._pause > 0

    def admit(self) -> bool:
        """Whether a request may be made now. Then say how it went: `succeeded`, `failed` or `dropped`."""
        if not self._pause:
            return True
        if self._probing or self._clock() < self._until:
            return False
        self._probing = True
        return True

    def succeeded(self) -> None:
        """Note an answer, a miss included."""
        if self._pause:
            log.warning("the shared cache %s answers again", self._name)
        self._failures, self._pause, self._probing = 0, 0.0, False

    def failed(self, reason: str, *, cost_time: bool = False) -> None:
        """Note a failure; one that cost a reader time counts as many."""
        self._failures += FAILURES if cost_time else 1
        if self._pause and not self._probing:
            return  # a request that was under way when the store was turned off
        if self._pause or self._failures >= FAILURES:
            if not self._pause:
                log.warning(
                    "the shared cache %s is not used for %g s: %s; blobs come from the service",
                    self._name,
                    FIRST_PAUSE,
                    reason,
                )
            self._pause = min(max(FIRST_PAUSE, 2 * self._pause), LAST_PAUSE)
            self._until = self._clock() + self._pause
            self._probing = False

    def dropped(self) -> None:
        """Note that a request ended without telling anything: its reader has gone."""
        self._probing = False
