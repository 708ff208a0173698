"""One flight per key, cancel-safe: concurrent callers share one piece of work and its outcome.

Owns: who waits for what. A flight runs in a nursery of its owner's, so that a caller that goes away does not
take the others' answer with it; when the last caller has gone, the flight is cancelled, unless it is to go on
in the background. Leaving and removal from the table never await.
"""

from collections.abc import Awaitable, Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

import trio

from attachfs.background import TaskStarter
from attachfs.errors import Unexpected

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Flight(Generic[V]):
    """A piece of work under way. `background`: it goes on although nobody waits for it."""

    __slots__ = ("background", "completed", "error", "scope", "values", "waiting")

    def __init__(self) -> None:
        self.completed = trio.Event()
        self.scope = trio.CancelScope()
        self.waiting = 0
        self.background = False
        self.values: list[V] = []  # one, once the flight has ended well
        self.error: Exception | None = None

    def result(self) -> V:
        """Return the outcome of a flight that is completed.

        Raises:
            Exception: whatever the work raised, to each of its callers.
        """
        if self.error is not None:
            # A fresh traceback for each caller; the shared exception would grow with every one.
            raise self.error.with_traceback(None)
        if not self.values:
            raise Unexpected("the work this request was waiting for was cancelled")
        return self.values[0]


class SingleFlight(Generic[K, V]):
    """A table of flights.

    Args:
        nursery: where flights run; it must outlive every caller.
    """

    def __init__(self, nursery: TaskStarter) -> None:
        self._nursery = nursery
        self._flights: dict[K, Flight[V]] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def __contains__(self, key: K) -> bool:
        return key in self._flights

    async def do(self, key: K, work: Callable[[], Awaitable[V]]) -> V:
        """Return what `work` returns, or what a flight of the same `key` already under way will.

        Raises:
            Exception: whatever the flight raised, to each of its callers.
        """
        with self.acquire(key, work) as flight:
            await flight.completed.wait()
        return flight.result()

    @contextmanager
    def acquire(self, key: K, work: Callable[[], Awaitable[V]]) -> Iterator[Flight[V]]:
        """Start `work` unless a flight of this `key` is under way, and be one of its callers meanwhile."""
        flight = self._flights.get(key) or self._start(key, work)
        flight.waiting += 1
        try:
            yield flight
        finally:
            flight.waiting -= 1
            if not flight.waiting and not flight.background and not flight.completed.is_set():
                # Nobody waits any more. Out of the table first, so that a new caller starts anew.
                if self._flights.get(key) is flight:
                    del self._flights[key]
                flight.scope.cancel()

    def start(self, key: K, work: Callable[[], Awaitable[V]]) -> None:
        """Start `work` in the background, unless a flight of this `key` is under way."""
        (self._flights.get(key) or self._start(key, work)).background = True

    def clear(self) -> None:
        """Let new callers start anew. Flights under way go on for those who wait for them."""
        self._flights.clear()

    def _start(self, key: K, work: Callable[[], Awaitable[V]]) -> Flight[V]:
        flight = self._flights[key] = Flight()
        self._nursery.start_soon(self._fly, key, flight, work)
        return flight

    async def _fly(self, key: K, flight: Flight[V], work: Callable[[], Awaitable[V]]) -> None:
        try:
            with flight.scope:
                try:
                    flight.values.append(await work())
                except Exception as error:  # noqa: BLE001 - carried to the callers, whatever it is
                    flight.error = error
        finally:
            if self._flights.get(key) is flight:
                del self._flights[key]
            flight.completed.set()
