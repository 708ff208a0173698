"""Concurrent callers share one flight, and none of them can take it from the others."""

from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from attachfs.errors import BadAnswer, Unexpected
from attachfs.ledger.single_flight import SingleFlight


class Work:
    """Work that ends when the test says so."""

    def __init__(self) -> None:
        self.begun = 0
        self.cancelled = 0
        self.go = trio.Event()
        self.error: Exception | None = None

    async def __call__(self) -> str:
        self.begun += 1
        number = self.begun
        try:
            await self.go.wait()
        except trio.Cancelled:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        return f"answer {number}"


class Caller:
    """A caller in a task of its own, who can be cancelled."""

    def __init__(
        self, nursery: trio.Nursery, flights: SingleFlight[str, str], work: Callable[[], Awaitable[str]]
    ) -> None:
        self.scope = trio.CancelScope()
        self.answers: list[str] = []
        self.error: Exception | None = None
        nursery.start_soon(self._call, flights, work)

    async def _call(self, flights: SingleFlight[str, str], work: Callable[[], Awaitable[str]]) -> None:
        with self.scope:
            try:
                self.answers.append(await flights.do("key", work))
            except Exception as error:  # noqa: BLE001 - looked at by the test
                self.error = error


@pytest.fixture
def flights(nursery: trio.Nursery) -> SingleFlight[str, str]:
    return SingleFlight(nursery)


async def test_many_callers_share_one_flight(nursery: trio.Nursery, flights: SingleFlight[str, str]) -> None:
    work = Work()
    callers = [Caller(nursery, flights, work) for _ in range(100)]
    await wait_all_tasks_blocked()
    assert (work.begun, len(flights)) == (1, 1)
    work.go.set()
    await wait_all_tasks_blocked()
    assert [caller.answers for caller in callers] == [["answer 1"]] * 100
    assert len(flights) == 0


async def test_other_keys_fly_on_their_own(nursery: trio.Nursery, flights: SingleFlight[str, str]) -> None:
    work = Work()
    nursery.start_soon(flights.do, "a", work)
    nursery.start_soon(flights.do, "b", work)
    await wait_all_tasks_blocked()
    assert (work.begun, len(flights)) == (2, 2)
    work.go.set()


async def test_an_answer_is_not_kept(flights: SingleFlight[str, str]) -> None:
    work = Work()
    work.go.set()
    assert [await flights.do("key", work) for _ in range(2)] == ["answer 1", "answer 2"]


async def test_none_is_an_answer(nursery: trio.Nursery) -> None:
    flights: SingleFlight[str, None] = SingleFlight(nursery)
    assert await flights.do("key", trio.lowlevel.checkpoint) is None  # type: ignore[func-returns-value]


async def test_an_error_comes_to_every_caller(nursery: trio.Nursery, flights: SingleFlight[str, str]) -> None:
    work = Work()
    work.error = BadAnswer("no")
    callers = [Caller(nursery, flights, work) for _ in range(3)]
    await wait_all_tasks_blocked()
    work.go.set()
    await wait_all_tasks_blocked()
    assert [caller.error for caller in callers] == [work.error] * 3
    assert len(flights) == 0


async def test_an_errors_traceback_does_not_grow(flights: SingleFlight[str, str]) -> None:
    work = Work()
    work.error = BadAnswer("no")
    work.go.set()
    depths = []
    for _ in range(3):
        with pytest.raises(BadAnswer) as caught:
            await flights.do("key", work)
        depths.append(len(caught.traceback))
    assert len(set(depths)) == 1


async def test_a_caller_that_leaves_does_not_take_the_flight_along(
    nursery: trio.Nursery, flights: SingleFlight[str, str]
) -> None:
    work = Work()
    first, second = Caller(nursery, flights, work), Caller(nursery, flights, work)
    await wait_all_tasks_blocked()
    first.scope.cancel()
    await wait_all_tasks_blocked()
    third = Caller(nursery, flights, work)
    await wait_all_tasks_blocked()
    work.go.set()
    await wait_all_tasks_blocked()
    assert (first.answers, second.answers, third.answers) == ([], ["answer 1"], ["answer 1"])
    assert (work.begun, work.cancelled) == (1, 0)


async def test_the_last_one_that_leaves_cancels_the_flight(
    nursery: trio.Nursery, flights: SingleFlight[str, str]
) -> None:
    work = Work()
    callers = [Caller(nursery, flights, work) for _ in range(3)]
    await wait_all_tasks_blocked()
    for caller in callers:
        caller.scope.cancel()
    await wait_all_tasks_blocked()
    assert (work.begun, work.cancelled, len(flights)) == (1, 1, 0)


async def test_a_caller_after_the_last_has_left_starts_anew(
    nursery: trio.Nursery, flights: SingleFlight[str, str]
) -> None:
    """Even while the cancelled flight is still in the air, and its end does not touch the new one."""
    stopping = trio.Event()

    async def stubborn() -> str:
        try:
            await trio.Event().wait()
        finally:
            with trio.CancelScope(shield=True):
                await stopping.wait()
        return "never"

    first = Caller(nursery, flights, stubborn)
    await wait_all_tasks_blocked()
    first.scope.cancel()
    await wait_all_tasks_blocked()
    work = Work()
    second = Caller(nursery, flights, work)
    await wait_all_tasks_blocked()
    stopping.set()
    await wait_all_tasks_blocked()
    third = Caller(nursery, flights, work)
    await wait_all_tasks_blocked()
    assert (work.begun, len(flights)) == (1, 1)
    work.go.set()
    await wait_all_tasks_blocked()
    assert second.answers == third.answers == ["answer 1"]


async def test_a_caller_that_is_cancelled_before_it_calls_leaves_nothing(
    flights: SingleFlight[str, str],
) -> None:
    work = Work()
    with trio.move_on_after(0):
        await flights.do("key", work)
    await wait_all_tasks_blocked()
    assert len(flights) == 0
    assert work.begun == work.cancelled


async def test_leaving_as_the_flight_lands_leaves_nothing(
    nursery: trio.Nursery, flights: SingleFlight[str, str]
) -> None:
    work = Work()
    caller = Caller(nursery, flights, work)
    await wait_all_tasks_blocked()
    work.go.set()
    caller.scope.cancel()
    await wait_all_tasks_blocked()
    assert len(flights) == 0
    assert (await flights.do("key", work)).startswith("answer")


async def test_work_that_is_cancelled_from_outside_is_told() -> None:
    async with trio.open_nursery() as owners:
        own: SingleFlight[str, str] = SingleFlight(owners)

        async with trio.open_nursery() as callers:
            caller = Caller(callers, own, Work())
            await wait_all_tasks_blocked()
            next(iter(own._flights.values())).scope.cancel()
    assert isinstance(caller.error, Unexpected)
    assert len(own) == 0
