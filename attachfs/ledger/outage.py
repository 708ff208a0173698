"""Whether the service answers, as seen by requests for metadata, and how old what is served meanwhile is."""

import logging
import math
import time
from collections.abc import Callable
from typing import TypedDict

from attachfs.errors import AttachfsError, RateLimited, TimedOut, Unreachable

log = logging.getLogger(__name__)

# The question was not answered. A 401, 403 or 404 is an answer, and so is one that cannot be read.
NO_ANSWER = (Unreachable, TimedOut, RateLimited)
_PROBES = 8  # refreshes under way at once while the service is silent
_PROBE_EVERY = 1.0  # seconds between the ends of failed probes and new ones


class OutageStats(TypedDict):
    """An outage as `status` shows it: since when (seconds since 1970), why, how old what is served is."""

    since: float | None
    reason: str
    oldest_s: float | None


class Outage:
    """The time during which the service does not answer, from the first request that shows it.

    It begins when something known is served because a request failed or took longer than the soft timeout,
    and ends with the next answer. Meanwhile a few background refreshes find out when it is over.

    Args:
        clock: seconds, monotonic; the ledger's.
        wall: seconds since 1970, for people.
    """

    def __init__(self, clock: Callable[[], float], wall: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._wall = wall
        self._since: float | None = None
        self._reason = ""
        self._oldest = math.inf
        self._probes = 0
        self._next_probe = 0.0

    @property
    def active(self) -> bool:
        """Whether the service is known not to answer: what is known is served without waiting for it."""
        return self._since is not None

    def begin(self, reason: str) -> None:
        """Note that something known is served instead of an answer."""
        if self._since is None:
            self._since = self._clock()
            self._reason = reason
            log.warning("service unreachable: serving stale metadata (%s)", reason)

    def served(self, learned: float) -> None:
        """Note that something was served that was learned at a time on the ledger's clock."""
        if learned > -math.inf:  # else its parts have told how old they are
            self._oldest = min(self._oldest, learned)

    def answered(self) -> None:
        """Note that the service answered a request."""
        self._oldest = math.inf
        if self._since is not None:
            log.warning("the service answers again after %.0f s: metadata is current", self.seconds())
            self._since = None
            self._next_probe = 0.0

    def may_probe(self) -> bool:
        """Whether another background refresh may be started."""
        return self._probes < _PROBES and self._clock() >= self._next_probe

    def probe_begins(self) -> None:
        """Count a background refresh."""
        self._probes += 1

    def probe_ends(self, error: AttachfsError | None) -> None:
        """Count its end; after a failure the next one has to wait a little."""
        self._probes -= 1
        if error is not None and self._since is not None:
            self._next_probe = self._clock() + _PROBE_EVERY
            self._reason = error.reason

    def seconds(self) -> float:
        """Return for how long the service has not answered."""
        return 0.0 if self._since is None else self._clock() - self._since

    def stats(self) -> OutageStats:
        """Return since when (seconds since 1970), why, and how old the oldest thing served meanwhile is."""
        if self._since is None:
            return {"since": None, "reason": "", "oldest_s": None}
        now = self._clock()
        return {
            "since": round(self._wall() - (now - self._since), 3),
            "reason": self._reason,
            "oldest_s": round(max(0.0, now - self._oldest), 1),
        }
