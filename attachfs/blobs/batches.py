"""Work that one thread does for several tasks at a time.

A change of thread costs the interpreter's lock twice, and a commit of the pins costs a sync of the disk: ten
small blobs that are stored in one go cost one of each. Nobody waits for a batch to fill: what comes while one
is done is the next.

Owns: which items are done together, and that every task that waits gets its item's outcome.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import trio

T = TypeVar("T")
R = TypeVar("R")

_MOST = 16  # items: the first of a batch waits for the last


class _Item(Generic[T, R]):
    """What is to be done for one task, and what came of it."""

    __slots__ = ("outcome", "task", "what")

    def __init__(self, what: T, task: trio.lowlevel.Task) -> None:
        self.what = what
        self.task = task
        self.outcome: R | Exception | None = None


class Batches(Generic[T, R]):
    """Items that are done in batches.

    Args:
        work: does some in a thread; returns for each what came of it, or what it failed with. One batch at a
            time.
        name: of that thread.
    """

    def __init__(self, work: Callable[[Sequence[T]], Sequence[R | Exception]], name: str) -> None:
        self._work = work
        self._name = name
        self._waiting: deque[_Item[T, R]] = deque()
        self._busy = False

    async def do(self, what: T) -> R:
        """Have an item done. Once that has begun it cannot be cancelled, as a thread cannot.

        Raises:
            Exception: what it failed with.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        item: _Item[T, R] = _Item(what, trio.lowlevel.current_task())
        self._waiting.append(item)
        if not self._busy:
            try:
                self._begin()
            except BaseException:
                self._waiting.remove(item)
                raise
        await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED)
        outcome = item.outcome
        if isinstance(outcome, Exception):
            raise outcome
        assert outcome is not None
        return outcome

    def _begin(self) -> None:
        """Start with what waits. Raises RuntimeError: no thread is to be had."""
        batch = [self._waiting[number] for number in range(min(len(self._waiting), _MOST))]
        run_in_loop = trio.lowlevel.current_trio_token().run_sync_soon

        def work() -> Sequence[R | Exception]:
            try:
                return self._work([item.what for item in batch])
            except Exception as error:  # noqa: BLE001 - each task is told
                return [error] * len(batch)

        # Not `to_thread`: a task would have to wait in it for all others.
        trio.lowlevel.start_thread_soon(
            work, lambda outcome: run_in_loop(self._end, batch, outcome.unwrap()), self._name
        )
        self._busy = True
        for _ in batch:
            self._waiting.popleft()

    def _end(self, batch: Sequence[_Item[T, R]], outcomes: Sequence[R | Exception]) -> None:
        for item, outcome in zip(batch, outcomes, strict=True):
            item.outcome = outcome
            trio.lowlevel.reschedule(item.task)
        self._busy = False
        if not self._waiting:
            return
        try:
            self._begin()
        except RuntimeError as error:
            for item in self._waiting:
                item.outcome = error
                trio.lowlevel.reschedule(item.task)
            self._waiting.clear()
