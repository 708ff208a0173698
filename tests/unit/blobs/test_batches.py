"""Work that is done for several tasks at a time: what is done together, and who is told what."""

import threading
from collections.abc import Sequence
from typing import Any

import pytest
import trio
import trio.testing

from attachfs.blobs.batches import Batches
from attachfs.errors import NoSpace

_WITHIN = 30  # seconds


class Work:
    """Doubles numbers, but fails with those below 0, once it may; remembers what it did together."""

    def __init__(self) -> None:
        self.done: list[list[int]] = []
        self.threads: list[threading.Thread] = []
        self.may = threading.Semaphore(0)
        self.batches: Batches[int, int] = Batches(self, "attachfs-test")

    def __call__(self, numbers: Sequence[int]) -> Sequence[int | Exception]:
        assert self.may.acquire(timeout=_WITHIN)
        self.done.append(list(numbers))
        self.threads.append(threading.current_thread())
        return [2 * number if number >= 0 else NoSpace(f"no room for {number}") for number in numbers]


async def test_what_comes_while_a_batch_is_done_is_the_next() -> None:
    work = Work()
    outcomes: dict[int, int] = {}

    async def do(number: int) -> None:
        outcomes[number] = await work.batches.do(number)

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(do, number)
        await trio.testing.wait_all_tasks_blocked()
        work.may.release(3)
    first, *later = work.done
    assert len(first) == 1  # nobody waits for a batch to fill
    assert [len(batch) for batch in later] == [16, 3]  # nor long for the last of one
    assert outcomes == {number: 2 * number for number in range(20)}
    assert threading.main_thread() not in work.threads


async def test_each_fails_by_itself() -> None:
    work = Work()
    failed: list[str] = []

    async def do(number: int) -> None:
        try:
            assert await work.batches.do(number) == 2 * number
        except NoSpace as error:
            failed.append(error.reason)

    async with trio.open_nursery() as nursery:
        for number in (1, -2, 3, -4):
            nursery.start_soon(do, number)
        await trio.testing.wait_all_tasks_blocked()
        work.may.release(2)
    assert sorted(failed) == ["no room for -2", "no room for -4"]


async def test_a_bug_in_the_work_is_told_to_all_and_the_next_batch_is_done() -> None:
    calls: list[int] = []

    def work(numbers: Sequence[int]) -> Sequence[int | Exception]:
        calls.append(len(numbers))
        if len(calls) == 1:
            raise ZeroDivisionError
        return numbers

    batches: Batches[int, int] = Batches(work, "attachfs-test")
    with pytest.raises(ZeroDivisionError):
        await batches.do(1)
    assert await batches.do(2) == 2


async def test_what_has_begun_is_not_cancelled_and_what_was_cancelled_does_not_begin() -> None:
    work = Work()
    with trio.CancelScope() as scope:
        scope.cancel()
        await work.batches.do(1)
    assert scope.cancelled_caught
    outcomes = []
    scope = trio.CancelScope()

    async def do() -> None:
        with scope:
            outcomes.append(await work.batches.do(2))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(do)
        await trio.testing.wait_all_tasks_blocked()
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert not outcomes
        work.may.release()
    assert outcomes == [4]
    assert work.done == [[2]]


async def test_no_thread_is_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    work = Work()
    real = trio.lowlevel.start_thread_soon
    failed = []

    def refused(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    async def do(number: int) -> None:
        try:
            await work.batches.do(number)
        except RuntimeError:
            failed.append(number)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(do, 1)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(do, 2)
        nursery.start_soon(do, 3)
        await trio.testing.wait_all_tasks_blocked()
        monkeypatch.setattr(trio.lowlevel, "start_thread_soon", refused)
        work.may.release()
    assert sorted(failed) == [2, 3]
    with pytest.raises(RuntimeError):
        await work.batches.do(4)
    monkeypatch.setattr(trio.lowlevel, "start_thread_soon", real)
    work.may.release()
    assert await work.batches.do(5) == 10
    assert work.done == [[1], [5]]
