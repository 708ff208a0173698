"""Slots: how many, and who gets one next."""

from functools import partial

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from attachfs.service.concurrency import Limiter

# -- slots ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("maximum", "bulk"), [(1, 1), (2, 1), (3, 1), (4, 2), (8, 6), (32, 24), (100, 75), (0, 1)]
)
async def test_blobs_never_get_the_last_slots(maximum: int, bulk: int) -> None:
    limiter = Limiter(maximum)
    assert limiter.bulk_limit == bulk
    for _ in range(bulk):
        await limiter.acquire(bulk=True)
    with trio.move_on_after(0) as scope:
        await limiter.acquire(bulk=True)
    assert scope.cancelled_caught
    if maximum > 1:
        with trio.fail_after(0):
            await limiter.acquire(bulk=False)


async def test_metadata_goes_first_and_each_kind_in_its_order() -> None:
    limiter, order = Limiter(1), list[str]()
    slot = await limiter.acquire(bulk=True)

    async def ask(name: str, *, bulk: bool) -> None:
        mine = await limiter.acquire(bulk=bulk)
        order.append(name)
        mine.release()

    async with trio.open_nursery() as nursery:
        for name, bulk in [("blob 1", True), ("blob 2", True), ("info 1", False), ("info 2", False)]:
            nursery.start_soon(partial(ask, name, bulk=bulk))
            await wait_all_tasks_blocked()
        assert limiter.queued == 4
        assert slot.release()
        assert not slot.release()
    assert order == ["info 1", "info 2", "blob 1", "blob 2"]
    assert (limiter.in_flight, limiter.queued) == (0, 0)


async def test_blobs_have_their_share_while_much_metadata_waits() -> None:
    limiter = Limiter(16)
    assert limiter.bulk_limit == 12
    order = list[bool]()

    async def ask(*, bulk: bool) -> None:
        await limiter.acquire(bulk=bulk)
        order.append(bulk)

    slots = [await limiter.acquire(bulk=False) for _ in range(16)]
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(partial(ask, bulk=False))
        await wait_all_tasks_blocked()
        for _ in range(20):
            nursery.start_soon(partial(ask, bulk=True))
        for slot in slots:
            await wait_all_tasks_blocked()
            slot.release()
        await wait_all_tasks_blocked()
        assert (order.count(True), order.count(False)) == (6, 10)
        assert all(order[:6]), "and they need not wait until all metadata is there"
        nursery.cancel_scope.cancel()


async def test_a_cancelled_wait_leaves_no_trace_even_if_it_was_just_granted() -> None:
    limiter = Limiter(1)
    slot = await limiter.acquire(bulk=False)

    async def ask(*, bulk: bool) -> None:
        (await limiter.acquire(bulk=bulk)).release()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(ask, bulk=False))
        nursery.start_soon(partial(ask, bulk=True))
        await wait_all_tasks_blocked()
        slot.release()  # grants one
        nursery.cancel_scope.cancel()  # and at the same moment both are cancelled
    assert (limiter.in_flight, limiter.queued) == (0, 0)
    with trio.fail_after(0):
        await limiter.acquire(bulk=False)


def test_the_bound_halves_and_grows_back_by_one_for_as_many_successes_as_it_has_slots() -> None:
    limiter = Limiter(8)
    limiter.halve()
    assert limiter.limit == 4
    for _ in range(3):
        limiter.succeeded()
    assert limiter.limit == 4
    limiter.succeeded()
    assert limiter.limit == 5
    for _ in range(5 + 6 + 7 + 100):
        limiter.succeeded()
    assert limiter.limit == 8
    for _ in range(10):
        limiter.halve()
    assert limiter.limit == 2


async def test_a_growing_bound_wakes_who_waits() -> None:
    limiter = Limiter(4)
    limiter.halve()
    slots = [await limiter.acquire(bulk=False) for _ in range(2)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(limiter.acquire, bulk=False))
        await wait_all_tasks_blocked()
        limiter.succeeded()
        limiter.succeeded()
    assert limiter.in_flight == 3
    assert len(slots) == 2
