"""The one guard for all background work."""

import itertools
import logging

import pytest
import trio
from trio.testing import MockClock

from attachfs.background import Background


class Foreign(Exception):
    pass


async def fail(reason: str) -> None:
    await trio.lowlevel.checkpoint()
    raise Foreign(reason)


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    assert all(record.exc_info for record in caplog.records if record.levelno == logging.ERROR)
    return [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]


async def test_a_failed_task_is_one_line_with_a_traceback_and_the_others_live(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lives = trio.Event()

    async def other() -> None:
        await trio.testing.wait_all_tasks_blocked()
        lives.set()

    async with trio.open_nursery() as nursery:
        tasks = Background(nursery)
        tasks.part("reading ahead", "programs wait").start_soon(fail, "no such codec")
        tasks.start_soon(other)
    assert lives.is_set()
    assert errors(caplog) == ["reading ahead failed (Foreign: no such codec): programs wait"]


async def test_a_failed_loop_starts_again_each_time_after_a_longer_pause(
    caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    started: list[float] = []

    async def loop() -> None:
        started.append(round(autojump_clock.current_time(), 3))
        if len(started) < 10:
            raise Foreign("again")

    async with trio.open_nursery() as nursery:
        Background(nursery).keep_running("writing down", loop)
    pauses = [after - before for before, after in itertools.pairwise(started)]
    assert pauses == pytest.approx([1, 2, 4, 8, 16, 32, 60, 60, 60], abs=0.01)
    assert errors(caplog) == ["writing down failed (Foreign: again): it starts again"] * 9


async def test_a_loop_that_has_run_well_for_long_starts_again_soon(autojump_clock: MockClock) -> None:
    started: list[float] = []

    async def loop() -> None:
        started.append(autojump_clock.current_time())
        if len(started) == 4:
            return
        await trio.sleep(0 if len(started) < 3 else 61)
        raise Foreign("late")

    async with trio.open_nursery() as nursery:
        Background(nursery).keep_running("writing down", loop)
    assert started[3] - started[2] == pytest.approx(62, abs=0.01)


async def test_what_fails_while_it_is_cancelled_is_logged_and_the_cancellation_passes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def stubborn() -> None:
        async with trio.open_nursery() as inner:
            inner.start_soon(trio.sleep_forever)
            try:
                await trio.sleep_forever()
            finally:
                raise Foreign("while ending")

    with trio.move_on_after(5) as scope:
        async with trio.open_nursery() as nursery:
            Background(nursery, "a download", "it is lost").start_soon(stubborn)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    assert errors(caplog) == ["a download failed (Foreign: while ending): it is lost"]
