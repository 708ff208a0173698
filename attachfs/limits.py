"""How much is asked of the service, and when: slots, the gate that 429 closes, the circuit that outages open.

Lives here and only here: the state that all requests share. Everything is decided synchronously; only
waiting for a slot or at the gate is async. Times are on the event loop's clock, in seconds.
"""

import logging
import math
import random
import re
import time
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import trio

from attachfs.errors import RateLimited, Unreachable

log = logging.getLogger("attachfs.api")

_SANE_WAIT = 3600.0  # seconds; a wait asked for beyond that is a mistake, and ignored
_LONGEST_WAIT = 300.0  # seconds for which nothing at all is asked; then one round finds out
_FIRST_FLOOR = 0.5  # seconds to wait where nothing usable is said, doubling from round to round
_HIGHEST_FLOOR = 30.0
_SPREAD = 0.1  # of the wait, at random on top, so that many mounts do not return together

_MANY = 5  # consecutive failures that open the circuit
_SOME = 3  # or so many of them, if they go on for some time
_LONG = 10.0  # seconds
_TIMEOUTS = 2  # or so many that each took all the time there was
_FIRST_COOLING = 1.0  # seconds until a probe is let through, doubling
_LAST_COOLING = 15.0


# -- slots ---------------------------------------------------------------------------------------------


class Slot:
    """The right to one request in flight. Release it exactly when the response is closed."""

    __slots__ = ("_bulk", "_limiter")

    def __init__(self, limiter: "Limiter", *, bulk: bool) -> None:
        self._limiter: Limiter | None = limiter
        self._bulk = bulk

    def release(self) -> bool:
        """Give the slot back, and return True; a second call does nothing, and returns False."""
        limiter, self._limiter = self._limiter, None
        if limiter is None:
            return False
        limiter.put_back(bulk=self._bulk)
        return True


class _Waiter:
    __slots__ = ("event", "granted")

    def __init__(self) -> None:
        self.event = trio.Event()
        self.granted = False


class Limiter:
    """Bounds the requests in flight; blobs never get the last slots.

    A blob can hold its slot for minutes, a record takes a round trip. So a quarter of the slots, and two
    at the least, are for metadata alone, and metadata goes first: hundreds of slow downloads cannot keep
    `ls` waiting. The bound halves on 429 (to two at the least, so that the above stays true) and grows
    back by one for as many successes as it has slots.

    Args:
        maximum: the bound when all is well.
    """

    def __init__(self, maximum: int) -> None:
        self.maximum = max(1, maximum)
        self.limit = self.maximum
        self._held = {False: 0, True: 0}  # bulk or not → slots out
        self._queues: dict[bool, deque[_Waiter]] = {False: deque(), True: deque()}
        self._successes = 0

    @property
    def in_flight(self) -> int:
        """Slots that are out."""
        return self._held[False] + self._held[True]

    @property
    def waiting(self) -> int:
        """Requests that wait for a slot."""
        return len(self._queues[False]) + len(self._queues[True])

    @property
    def bulk_limit(self) -> int:
        """How many slots blobs may hold."""
        return max(1, self.limit - max(2, self.limit // 4))

    async def acquire(self, *, bulk: bool) -> Slot:
        """Wait for a slot, first come first served within metadata and within blobs."""
        if self._queues[bulk] or not self._fits(bulk=bulk):
            waiter = _Waiter()
            self._queues[bulk].append(waiter)
            try:
                await waiter.event.wait()
            except BaseException:
                if waiter.granted:  # the grant and the cancellation crossed
                    self.put_back(bulk=bulk)
                else:
                    self._queues[bulk].remove(waiter)
                raise
        else:
            self._held[bulk] += 1
        return Slot(self, bulk=bulk)

    def put_back(self, *, bulk: bool) -> None:
        """Take a slot back, and hand it on."""
        self._held[bulk] -= 1
        self._wake()

    def halve(self) -> None:
        """Lower the bound: the service is being asked too much."""
        self.limit = max(min(2, self.maximum), self.limit // 2)
        self._successes = 0

    def succeeded(self) -> None:
        """Count a success towards a higher bound."""
        if self.limit < self.maximum:
            self._successes += 1
            if self._successes >= self.limit:
                self._successes = 0
                self.limit += 1
                self._wake()

    def _fits(self, *, bulk: bool) -> bool:
        return self.in_flight < self.limit and (not bulk or self._held[True] < self.bulk_limit)

    def _wake(self) -> None:
        while True:
            # Metadata first, but for half of the blobs' share: who copies files waits for both.
            order = (True, False) if self._held[True] < self.bulk_limit // 2 else (False, True)
            bulk = next((kind for kind in order if self._queues[kind] and self._fits(bulk=kind)), None)
            if bulk is None:
                return
            waiter = self._queues[bulk].popleft()
            waiter.granted = True
            self._held[bulk] += 1
            waiter.event.set()


# -- the gate ------------------------------------------------------------------------------------------


def asked_wait(headers: Mapping[str, str], wall: float) -> float | None:
    """Return the seconds a 429 or 503 asks to wait, the longer if it says two, None if nothing usable.

    Args:
        headers: the response's, with lower-case or case-insensitive keys.
        wall: seconds since 1970, for a date that comes without the service's own.
    """
    said = (
        _sane_seconds(headers.get("archivist-rate-limit-reset")),
        _sane_seconds(headers.get("retry-after")),
        _until_date(headers.get("retry-after"), headers.get("date"), wall),
    )
    return max((wait for wait in said if wait is not None), default=None)


def _sane_seconds(text: str | None) -> float | None:
    if text is None or not re.fullmatch(
        r"\s*\d{1,20}(?:\.\d{0,20})?(?:[eE][+-]?\d{1,3})?\s*", text, re.ASCII
    ):
        return None
    seconds = float(text)
    return seconds if math.isfinite(seconds) and seconds <= _SANE_WAIT else None


def _until_date(text: str | None, server_date: str | None, wall: float) -> float | None:
    until = _timestamp(text)
    if until is None:
        return None
    # The service's clock, where it tells it: ours may be a year off.
    now = _timestamp(server_date)
    wait = max(0.0, until - (wall if now is None else now))
    return wait if wait <= _SANE_WAIT else None


def _timestamp(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        moment: datetime = parsedate_to_datetime(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


class Gate:
    """Shut while the service asks for patience; every request waits at it.

    Args:
        clock: seconds, the event loop's.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._reopens = -math.inf
        self._shut_at = -math.inf
        self._rounds = 0  # 429s in a row, counting those of one burst once

    @property
    def remaining(self) -> float:
        """Seconds until it opens, 0 if it is open."""
        return max(0.0, self._reopens - self._clock())

    def shut(self, asked: float | None, began: float) -> bool:
        """Shut for as long as asked for; return whether this 429 is news.

        Args:
            asked: seconds, None where nothing usable was said.
            began: when the request was sent. One sent before the gate was shut last tells nothing new,
                and counts for its wait only.
        """
        news = began > self._shut_at
        if news:
            self._rounds += 1
            self._shut_at = self._clock()
        floor = min(_HIGHEST_FLOOR, _FIRST_FLOOR * 2 ** min(self._rounds - 1, 10))
        wait = min(_LONGEST_WAIT, max(asked or 0.0, floor))
        wait *= 1 + random.uniform(0, _SPREAD)  # noqa: S311 - spread, not secrecy
        self._reopens = max(self._reopens, self._clock() + wait)
        return news

    def succeeded(self, began: float) -> None:
        """Note that a request sent after the last 429 was served."""
        if began > self._shut_at:
            self._rounds = 0

    async def passed(self, what: str, deadline: float) -> None:
        """Wait until it is open.

        Raises:
            RateLimited: it will not be before `deadline`.
        """
        while (remaining := self.remaining) > 0:
            if self._reopens >= deadline:
                raise RateLimited(
                    f"{what}: the service limits the rate and asks to wait {math.ceil(remaining)} s"
                )
            await trio.sleep(remaining)


# -- the circuit ---------------------------------------------------------------------------------------


class Permit:
    """One request's leave to be sent. Say how it went, then release it."""

    __slots__ = ("_circuit", "_what", "began", "probe")

    def __init__(self, circuit: "Circuit", what: str, *, began: float, probe: bool) -> None:
        self._circuit = circuit
        self._what = what
        self.began = began
        self.probe = probe

    def succeeded(self) -> None:
        """Note that the service answered."""
        self._circuit.note_success(self)

    def failed(self, reason: str, *, connecting: bool = False, timeout: bool = False) -> None:
        """Note that it did not, or that a gateway did in its place."""
        self._circuit.note_failure(self, self._what, reason, connecting=connecting, timeout=timeout)

    def release(self) -> None:
        """Let another be the probe, if this one ended without telling anything."""
        self._circuit.note_end(self)


class Circuit:
    """Opens after repeated failures, so that requests fail at once; a probe from time to time closes it.

    Failures to connect count wherever they happen. Others (a gateway's 502, 503, 504, silence, a dropped
    connection) may be about one object, so they count only if several objects fail. A success in between
    resets the count.

    Args:
        clock: seconds, the event loop's.
        wall: seconds since 1970, for messages.
    """

    def __init__(self, clock: Callable[[], float], wall: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._wall = wall
        self._failures = 0
        self._connecting = 0
        self._timeouts = 0
        self._objects: set[str] = set()
        self._first = 0.0  # when the first failed request of this row was sent
        self._cooling = _FIRST_COOLING
        self._probe_at = 0.0
        self._probe: Permit | None = None
        self.open_since: float | None = None  # seconds since 1970
        self.reason = ""

    def check(self, what: str) -> None:
        """Raise what `admit` would, without being admitted.

        Raises:
            Unreachable: the circuit is open.
        """
        if self.open_since is not None and (self._probe is not None or self._clock() < self._probe_at):
            raise Unreachable(
                f"{what}: not asked: the ledger is out of reach since {self._since()} ({self.reason})"
            )

    def admit(self, what: str) -> Permit:
        """Return leave to send a request; while the circuit is open, to one probe at a time.

        Raises:
            Unreachable: the circuit is open.
        """
        self.check(what)
        permit = Permit(self, what, began=self._clock(), probe=self.open_since is not None)
        if permit.probe:
            self._probe = permit
        return permit

    def note_success(self, permit: Permit) -> None:
        """Close the circuit, and forget the failures."""
        if self.open_since is not None:
            log.info("the ledger answers again; it was out of reach since %s", self._since())
        self.open_since = None
        self._cooling = _FIRST_COOLING
        self._failures = self._connecting = self._timeouts = 0
        self._objects.clear()
        self.note_end(permit)

    def note_failure(
        self, permit: Permit, what: str, reason: str, *, connecting: bool, timeout: bool
    ) -> None:
        """Count a failure, and open the circuit if it is one too many."""
        if self.open_since is not None:
            if permit is self._probe:
                self._cooling = min(_LAST_COOLING, 2 * self._cooling)
                self._probe_at = self._clock() + self._cooling
                self.reason = reason
            self.note_end(permit)
            return
        if not self._failures:
            self._first = permit.began
        self._failures += 1
        self._connecting += connecting
        self._timeouts += timeout
        if len(self._objects) < _MANY:
            self._objects.add(what)
        at_once = self._failures >= _MANY and max(self._connecting, len(self._objects)) >= _SOME
        in_time = (
            self._clock() - self._first >= _LONG
            and (self._failures >= _SOME or self._timeouts >= _TIMEOUTS)
            and max(self._connecting, len(self._objects)) >= _TIMEOUTS
        )
        if at_once or in_time:
            self.open_since = self._wall()
            self.reason = reason
            self._probe_at = self._clock() + self._cooling
            log.warning("the ledger is out of reach (%s); requests fail at once until it answers", reason)

    def note_end(self, permit: Permit) -> None:
        """Let another be the probe."""
        if self._probe is permit:
            self._probe = None

    def _since(self) -> str:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.open_since))
