"""How many requests are in flight at once.

Owns: slots, and who gets one next. Only waiting for one is async.
"""

from collections import deque

import trio


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
    __slots__ = ("acquired", "event")

    def __init__(self) -> None:
        self.event = trio.Event()
        self.acquired = False


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
    def queued(self) -> int:
        """Requests that wait for a slot."""
        return len(self._queues[False]) + len(self._queues[True])

    @property
    def bulk_limit(self) -> int:
        """How many slots blobs may hold."""
        return max(1, self.limit - max(2, self.limit // 4))

    def try_acquire(self, *, bulk: bool) -> Slot | None:
        """Return a slot if one is free and nobody waits for it, else None."""
        if self._queues[bulk] or not self._fits(bulk=bulk):
            return None
        self._held[bulk] += 1
        return Slot(self, bulk=bulk)

    async def acquire(self, *, bulk: bool) -> Slot:
        """Wait for a slot, first come first served within metadata and within blobs."""
        if (slot := self.try_acquire(bulk=bulk)) is not None:
            return slot
        waiter = _Waiter()
        self._queues[bulk].append(waiter)
        try:
            await waiter.event.wait()
        except BaseException:
            if waiter.acquired:  # the grant and the cancellation crossed
                self.put_back(bulk=bulk)
            else:
                self._queues[bulk].remove(waiter)
            raise
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
            waiter.acquired = True
            self._held[bulk] += 1
            waiter.event.set()
