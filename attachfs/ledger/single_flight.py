"""One flight per key, cancel-safe: concurrent callers share one piece of work and its outcome.

Lives here and only here: who waits for what. A flight runs in a nursery of its owner's, so that a caller
that goes away does not take the others' answer with it; when the last caller has gone, the flight is
cancelled. Leaving and removal from the table never await.
"""

from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

import trio

from attachfs.background import TaskStarter
from attachfs.errors import Unexpected

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class _RangeRequest(Generic[V]):
    def __init__(self) -> None:
        self.landed = trio.Event()
        self.scope = trio.CancelScope()
        self.waiting = 0
        self.done = False
        self.values: list[V] = []  # one, once the flight has landed well
        self.error: Exception | None = None


class SingleFlight(Generic[K, V]):
    """A table of flights.

    Args:
        nursery: where flights run; it must outlive every caller.
    """

    def __init__(self, nursery: TaskStarter) -> None:
        self._nursery = nursery
        self._flights: dict[K, _RangeRequest[V]] = {}

    def __len__(self) -> int:
        return len(self._flights)

    async def do(self, key: K, work: Callable[[], Awaitable[V]]) -> V:
        """Return what `work` returns, or what a flight of the same `key` already under way will.

        Raises:
            Exception: whatever the flight raised, to each of its callers.
        """
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _RangeRequest()
            self._nursery.start_soon(self._fly, key, flight, work)
        flight.waiting += 1
        try:
            await flight.landed.wait()
        finally:
            flight.waiting -= 1
            if not flight.waiting and not flight.done:
                # Nobody waits any more. Out of the table first, so that a new caller starts anew.
                if self._flights.get(key) is flight:
                    del self._flights[key]
                flight.scope.cancel()
        if flight.error is not None:
            # A fresh traceback for each caller; the shared exception would grow with every one.
            raise flight.error.with_traceback(None)
        if not flight.values:
            raise Unexpected("the work this request was waiting for was cancelled")
        return flight.values[0]

    async def _fly(self, key: K, flight: _RangeRequest[V], work: Callable[[], Awaitable[V]]) -> None:
        try:
            with flight.scope:
                try:
                    flight.values.append(await work())
                except Exception as error:  # noqa: BLE001 - carried to the callers, whatever it is
                    flight.error = error
        finally:
            flight.done = True
            if self._flights.get(key) is flight:
                del self._flights[key]
            flight.landed.set()
