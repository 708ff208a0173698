"""When an outage is no longer asked about by everybody."""

import time
from collections.abc import Callable

from attachfs.errors import Unreachable
from attachfs.service.concurrency import log

_MANY = 5  # consecutive failures that open the circuit
_SOME = 3  # or so many of them, if they go on for some time
_LONG = 10.0  # seconds
_TIMEOUTS = 2  # or so many that each took all the time there was
_FIRST_COOLING = 1.0  # seconds until a probe is let through, doubling
_LAST_COOLING = 15.0


class CallPermit:
    """One request's leave to be sent. Say how it went, then release it."""

    __slots__ = ("_circuit", "_what", "began", "probe")

    def __init__(self, circuit: "CircuitBreaker", what: str, *, began: float, probe: bool) -> None:
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


class CircuitBreaker:
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
        self._probe: CallPermit | None = None
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

    def admit(self, what: str) -> CallPermit:
        """Return leave to send a request; while the circuit is open, to one probe at a time.

        Raises:
            Unreachable: the circuit is open.
        """
        self.check(what)
        permit = CallPermit(self, what, began=self._clock(), probe=self.open_since is not None)
        if permit.probe:
            self._probe = permit
        return permit

    def note_success(self, permit: CallPermit) -> None:
        """Close the circuit, and forget the failures."""
        if self.open_since is not None:
            log.info("the ledger answers again; it was out of reach since %s", self._since())
        self.open_since = None
        self._cooling = _FIRST_COOLING
        self._failures = self._connecting = self._timeouts = 0
        self._objects.clear()
        self.note_end(permit)

    def note_failure(
        self, permit: CallPermit, what: str, reason: str, *, connecting: bool, timeout: bool
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

    def note_end(self, permit: CallPermit) -> None:
        """Let another be the probe."""
        if self._probe is permit:
            self._probe = None

    def _since(self) -> str:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.open_since))
