"""Fetches what is unknown or out of date, and serves what was known while the service does not answer."""

from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

import trio

from attachfs.errors import AttachfsError
from attachfs.ledger.backend import Backend
from attachfs.ledger.outage import NO_ANSWER
from attachfs.ledger.single_flight import SingleFlight

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
R = TypeVar("R")


class Refresher(Generic[K, V]):
    """Requests of one kind: one at a time for each key, whoever asks, and never waited for in vain.

    Args:
        backend: where requests run, the soft timeout, and whether the service answers.
    """

    def __init__(self, backend: Backend) -> None:
        self._flights: SingleFlight[K, V] = SingleFlight(backend.nursery)
        self._lifetimes = backend.lifetimes
        self._outage = backend.outage

    async def get(
        self,
        key: K,
        fetch: Callable[[], Awaitable[V]],
        fallback: Callable[[], Awaitable[V | None]],
        unwrap: Callable[[V], R],
    ) -> R:
        """Return what the service answers, or a fallback if there is one and the service is silent.

        Args:
            key: what is asked for.
            fetch: asks the service, and tells the outage of an answer.
            fallback: returns what is known already, None if nothing is; it may look on the disk.
            unwrap: makes what is returned of either. Here rather than by the caller, for whom it would cost
                a frame of its own at each of a request's task switches.

        Raises:
            AttachfsError: as `fetch` did, and there is no fallback; as `unwrap` did.
        """
        if self._outage.active:  # nobody else has to find out: a few probes do
            cached = await fallback()
            if cached is not None:
                self._probe(key, fetch)
                return unwrap(cached)
        with self._flights.acquire(key, fetch) as flight:
            with trio.move_on_after(self._lifetimes.soft_timeout):
                await flight.completed.wait()
            if not flight.completed.is_set():
                cached = await fallback()
                # The disk was asked meanwhile, and the answer may have come: then it is the better one.
                if cached is not None and not flight.completed.is_set():
                    flight.background = True  # its answer is kept, and ends the outage
                    self._outage.begin(f"no answer within {self._lifetimes.soft_timeout:g} s")
                    return unwrap(cached)
            # Nothing else to serve: the caller's own deadline bounds this.
            await flight.completed.wait()
        try:
            cached = flight.result()
        except NO_ANSWER as error:
            cached = await fallback()
            if cached is None:
                raise
            self._outage.begin(error.reason)
        return unwrap(cached)

    def start(self, key: K, fetch: Callable[[], Awaitable[V]]) -> bool:
        """Ask although nobody waits yet: whoever comes shares the answer. False: the service is silent.

        No task waits for this, as in `get`: what comes of silence, whoever waits for an answer decides.
        """
        if self._outage.active:
            return False
        self._flights.start(key, fetch)
        return True

    def clear(self) -> None:
        """Let requests under way answer nobody but those who wait for them."""
        self._flights.clear()

    def _probe(self, key: K, fetch: Callable[[], Awaitable[V]]) -> None:
        """Ask in the background, as one of a few."""
        if key in self._flights or not self._outage.may_probe():
            return
        self._outage.probe_begins()

        async def work() -> V:
            failure: AttachfsError | None = None
            try:
                return await fetch()
            except AttachfsError as error:
                failure = error
                raise
            finally:
                self._outage.probe_ends(failure)

        self._flights.start(key, work)
