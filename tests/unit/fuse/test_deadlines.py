"""Nobody waits for ever: deadlines, and callers who have been killed."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from attachfs.errors import Interrupted, TimedOut
from attachfs.fuse import deadlines
from attachfs.fuse.deadlines import RequestDeadlines, has_fatal_signal


def mask(*signals: int) -> str:
    return f"{sum(1 << (number - 1) for number in signals):016x}"


def status(**masks: str) -> str:
    names = ("SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt")
    lines = [f"{name}:\t{masks.get(name, mask())}" for name in names]
    return "\n".join(
        ["Name:\tcat", "State:\tD (disk sleep)", "SigQ:\t1/127000", *lines, "Cpus_allowed:\tff", ""]
    )


class TestPendingSignals:
    @pytest.mark.parametrize("where", ["SigPnd", "ShdPnd"])
    @pytest.mark.parametrize(
        "number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGSEGV]
    )
    def test_a_pending_signal_that_ends_the_process_is_fatal(self, where: str, number: int) -> None:
        assert has_fatal_signal(status(**{where: mask(number)}))

    def test_no_signal_is_pending(self) -> None:
        assert not has_fatal_signal(status())

    @pytest.mark.parametrize("kept", ["SigBlk", "SigIgn", "SigCgt"])
    def test_a_signal_that_is_blocked_ignored_or_caught_is_not_fatal(self, kept: str) -> None:
        masks = {"ShdPnd": mask(signal.SIGTERM), kept: mask(signal.SIGTERM, signal.SIGUSR1)}
        assert not has_fatal_signal(status(**masks))
        assert has_fatal_signal(status(**{**masks, "SigPnd": mask(signal.SIGKILL)}))

    def test_another_one_that_is_kept_does_not_matter(self) -> None:
        assert has_fatal_signal(status(ShdPnd=mask(signal.SIGINT), SigCgt=mask(signal.SIGTERM)))

    @pytest.mark.parametrize(
        "number", [signal.SIGCHLD, signal.SIGCONT, signal.SIGWINCH, signal.SIGURG, signal.SIGTSTP]
    )
    def test_a_signal_whose_default_ends_no_process_is_not_fatal(self, number: int) -> None:
        assert not has_fatal_signal(status(ShdPnd=mask(number)))

    @pytest.mark.parametrize("text", ["", "no colon here", "Name:\tSigPnd: 100"])
    def test_a_status_text_without_signal_masks_holds_no_fatal_signal(self, text: str) -> None:
        assert not has_fatal_signal(text)

    def test_a_process_called_like_a_mask_does_not_confuse(self) -> None:
        assert not has_fatal_signal("Name:\tShdPnd:0000000000000100\n" + status())

    @pytest.mark.parametrize("text", ["SigPnd:\tjunk", "SigPnd", "\0\xff"])
    def test_an_unreadable_status_kills_nobody(self, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
        monkeypatch.setattr(Path, "read_text", lambda *_, **__: text)
        assert not deadlines._was_killed(1)

    def test_pending_signals_of_a_live_process_are_read(self) -> None:
        assert not deadlines._was_killed(os.getpid())

    def test_a_process_that_is_gone_counts_as_killed(self) -> None:
        assert not deadlines._was_killed(2**22 + 1)


class TestDeadlines:
    async def test_a_request_in_time_is_answered(self, autojump_clock: MockClock) -> None:
        room = RequestDeadlines()
        with room.wait(0, 10):
            await trio.sleep(9.9)
            assert len(room) == 1
        assert len(room) == 0
        assert autojump_clock.rate == 0

    async def test_a_request_that_takes_too_long_times_out(self, autojump_clock: MockClock) -> None:
        room = RequestDeadlines()
        start = autojump_clock.current_time()
        with pytest.raises(TimedOut, match="10 s"), room.wait(0, 10):
            await trio.sleep(60)
        assert autojump_clock.current_time() - start == pytest.approx(10)
        assert len(room) == 0

    async def test_an_error_inside_is_told_as_it_is(self) -> None:
        room = RequestDeadlines()
        with pytest.raises(KeyError), room.wait(0, 10):
            raise KeyError
        assert len(room) == 0

    async def test_a_cancellation_from_outside_is_not_a_timeout(self, autojump_clock: MockClock) -> None:
        room = RequestDeadlines()
        with trio.move_on_after(1) as outer, room.wait(0, 10):
            await trio.sleep(60)
        assert outer.cancelled_caught
        assert len(room) == 0
        assert autojump_clock.rate == 0

    async def test_a_wait_without_a_timeout_may_last_for_ever(self, autojump_clock: MockClock) -> None:
        with RequestDeadlines().wait(1):
            await trio.sleep(10**6)
        assert autojump_clock.rate == 0


class Killed:
    """The processes that have been killed, and who was asked after."""

    def __init__(self) -> None:
        self.pids: set[int] = set()
        self.asked: list[int] = []

    def __call__(self, pid: int) -> bool:
        self.asked.append(pid)
        return pid in self.pids


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> Killed:
    fake = Killed()
    monkeypatch.setattr(deadlines, "_was_killed", fake)
    return fake


@pytest.fixture
async def room(nursery: trio.Nursery) -> RequestDeadlines:
    room = RequestDeadlines()
    nursery.start_soon(room.watch)
    return room


class TestKilledCallers:
    async def test_a_killed_caller_is_answered_soon(
        self, room: RequestDeadlines, killed: Killed, autojump_clock: MockClock
    ) -> None:
        killed.pids.add(7)
        start = autojump_clock.current_time()
        with pytest.raises(Interrupted), room.wait(7):
            await trio.sleep_forever()
        assert autojump_clock.current_time() - start < 1

    async def test_the_other_callers_wait_on_when_one_is_killed(
        self, room: RequestDeadlines, killed: Killed, nursery: trio.Nursery, autojump_clock: MockClock
    ) -> None:
        done: list[int] = []

        async def other(pid: int) -> None:
            with room.wait(pid, 60):
                await trio.sleep(30)
            done.append(pid)

        nursery.start_soon(other, 8)
        nursery.start_soon(other, 0)
        killed.pids |= {7, 0}
        with pytest.raises(Interrupted), room.wait(7, 60):
            await trio.sleep_forever()
        await trio.sleep(31)
        assert sorted(done) == [0, 8]
        assert 0 not in killed.asked
        assert autojump_clock.rate == 0

    async def test_a_caller_who_waits_twice_is_released_from_both(
        self, room: RequestDeadlines, killed: Killed, autojump_clock: MockClock
    ) -> None:
        released: list[type[BaseException]] = []

        async def wait() -> None:
            with pytest.raises(Interrupted) as caught, room.wait(7):
                await trio.sleep_forever()
            released.append(caught.type)

        killed.pids.add(7)
        async with trio.open_nursery() as callers:
            callers.start_soon(wait)
            callers.start_soon(wait)
        assert len(released) == 2
        assert autojump_clock.rate == 0

    async def test_a_caller_who_does_not_wait_long_is_never_looked_at(
        self, room: RequestDeadlines, killed: Killed, autojump_clock: MockClock
    ) -> None:
        for _ in range(50):
            with room.wait(7, 60):
                await trio.sleep(0.01)
        await trio.sleep(1)
        assert killed.asked == []
        assert autojump_clock.rate == 0

    async def test_the_watch_sleeps_while_nobody_waits(
        self, room: RequestDeadlines, killed: Killed, autojump_clock: MockClock
    ) -> None:
        with room.wait(7, 60):
            await trio.sleep(1)
        await trio.sleep(1)
        assert killed.asked
        await wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().seconds_to_next_deadline > 10**6
        killed.pids.add(7)
        with pytest.raises(Interrupted), room.wait(7):
            await trio.sleep_forever()
        assert autojump_clock.rate == 0

    async def test_the_status_is_that_of_the_caller(
        self, monkeypatch: pytest.MonkeyPatch, room: RequestDeadlines, autojump_clock: MockClock
    ) -> None:
        asked: list[str] = []
        read: Callable[[str], bool] = lambda text: not asked.append(text)  # type: ignore[func-returns-value]  # noqa: E731
        monkeypatch.setattr(deadlines, "has_fatal_signal", read)
        with pytest.raises(Interrupted), room.wait(os.getpid()):
            await trio.sleep_forever()
        assert f"Pid:\t{os.getpid()}\n" in asked[0]
        assert autojump_clock.rate == 0
