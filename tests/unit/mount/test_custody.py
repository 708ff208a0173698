"""A mount's custody log: what is written when, and what becomes of opens while it cannot be."""

import contextlib
import errno
import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from attachfs.custody.writer import CustodyLog
from attachfs.errors import IntegrityError, Unexpected, UsageError
from attachfs.fuse.observer import Opened
from attachfs.mount.custody import CustodyRecorder

FILE = Opened(1000, os.getpid(), "assets/a/b", "sha256:00", 3, None)
REFUSED = FILE._replace(error=IntegrityError("differs"), digest="", size=None)


class Broken(CustodyLog):
    """A log that fails on request, and counts its syncs."""

    failing: OSError | None = None
    failing_sync: OSError | None = None
    failing_for = ""
    syncs = 0

    def __init__(self, path: Path) -> None:
        self.synced = trio.Event()
        super().__init__(path)

    def append(self, fields: dict[str, Any]) -> None:
        if self.failing is not None:
            raise self.failing
        if fields["path"] == self.failing_for:
            raise OSError(errno.EIO, "I/O error")
        super().append(fields)

    def sync(self) -> None:
        if self.failing_sync is not None:
            raise self.failing_sync
        super().sync()
        self.syncs += 1
        with contextlib.suppress(RuntimeError):  # at the end: not in a thread of trio's
            trio.from_thread.run_sync(self.synced.set)


class World:
    def __init__(self, path: Path, *, optional: bool = False) -> None:
        self.path = path
        self.made: list[Broken] = []
        self.recorder = CustodyRecorder(path, Path("/mnt"), optional=optional, open_log=self._open)

    def _open(self, path: Path) -> Broken:
        self.made.append(Broken(path))
        return self.made[-1]

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path.read_text().splitlines()]


async def test_each_open_is_a_line_with_who_what_and_the_result(tmp_path: Path) -> None:
    world = World(tmp_path / "log")
    world.recorder.begin("https://ledger.example")
    await world.recorder.opened(FILE)
    await world.recorder.opened(REFUSED)
    world.recorder.end()
    mount, opened, refused, unmount = world.lines()
    assert (mount["event"], mount["url"], unmount["event"]) == ("mount", "https://ledger.example", "unmount")
    assert (opened["uid"], opened["path"], opened["size"]) == (1000, "/mnt/assets/a/b", 3)
    assert opened["command"]
    assert (opened["result"], refused["result"]) == ("ok", "EBADMSG")


async def test_while_it_cannot_be_written_opens_fail_and_the_reason_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(tmp_path / "log")
    world.recorder.begin("u")
    world.made[0].failing = OSError(errno.ENOSPC, "No space left on device")
    for _ in range(3):
        with pytest.raises(Unexpected, match="No space left"):
            await world.recorder.opened(FILE)
    await world.recorder.opened(REFUSED)  # its own error is the one that is told
    told = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(told) == 1
    assert "do not open" in told[0].message
    world.made[0].failing = None
    await world.recorder.opened(FILE)
    assert "written again" in caplog.records[-1].message


async def test_opens_that_wait_are_written_together_and_each_fails_for_itself(tmp_path: Path) -> None:
    world = World(tmp_path / "log")
    world.recorder.begin("u")
    log, turns, outcomes = world.made[0], 0, []
    whole = world.recorder._note_all

    def note_all(batch: Any) -> OSError | None:
        nonlocal turns
        turns += 1
        return whole(batch)

    world.recorder._note_all = note_all  # type: ignore[method-assign]
    log.failing_for = "/mnt/7"

    async def open_one(number: int) -> None:
        try:
            await world.recorder.opened(FILE._replace(path=str(number)))
            outcomes.append((number, "ok"))
        except Unexpected:
            outcomes.append((number, "failed"))

    async with trio.open_nursery() as nursery:
        for number in range(16):
            nursery.start_soon(open_one, number)
    assert sorted(outcomes) == [(number, "failed" if number == 7 else "ok") for number in range(16)]
    assert turns <= 3
    assert len(world.lines()) == 1 + 15


async def test_an_open_cancelled_before_its_line_leaves_the_others_theirs(tmp_path: Path) -> None:
    world = World(tmp_path / "log")
    world.recorder.begin("u")
    with trio.CancelScope() as scope:
        scope.cancel()
        await world.recorder.opened(FILE)
    assert scope.cancelled_caught
    await world.recorder.opened(FILE)
    assert len(world.lines()) in (2, 3)


async def test_an_optional_log_keeps_nobody_from_opening(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(tmp_path / "log", optional=True)
    world.recorder.begin("u")
    world.made[0].failing = OSError(errno.EIO, "I/O error")
    await world.recorder.opened(FILE)
    assert "opens go on without it" in caplog.text


def test_a_log_that_cannot_be_opened_is_told_before_mounting(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(UsageError, match="--custody-log-optional"):
        World(tmp_path / "none" / "log").recorder.begin("u")
    World(tmp_path / "none" / "log", optional=True).recorder.begin("u")
    assert "No such file" in caplog.text


async def test_lines_reach_the_disk_together_within_half_a_second(
    tmp_path: Path, mock_clock: trio.testing.MockClock
) -> None:
    world = World(tmp_path / "log")
    world.recorder.begin("u")
    for _ in range(20):
        await world.recorder.opened(FILE)
    log = world.made[0]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.recorder.keep_synced)
        await trio.testing.wait_all_tasks_blocked()
        assert log.syncs == 0
        mock_clock.jump(0.5)
        await log.synced.wait()
        assert log.syncs == 1
        mock_clock.jump(10)
        await trio.testing.wait_all_tasks_blocked()
        assert log.syncs == 1  # nothing new: nothing to do
        nursery.cancel_scope.cancel()


async def test_what_could_not_be_brought_to_the_disk_keeps_files_from_opening(tmp_path: Path) -> None:
    world = World(tmp_path / "log")
    world.recorder.begin("u")
    log = world.made[0]
    log.failing_sync = OSError(errno.EIO, "I/O error")
    await world.recorder.opened(FILE)
    await world.recorder.sync()
    with pytest.raises(Unexpected, match="I/O error"):
        await world.recorder.opened(FILE)
    log.failing_sync = None
    await world.recorder.opened(FILE)


async def test_after_a_rename_rotating_makes_the_new_file_at_once(tmp_path: Path) -> None:
    world = World(tmp_path / "log")
    world.recorder.begin("u")
    world.path.rename(tmp_path / "log.1")
    await world.recorder.rotate()
    assert world.path.exists()
    await world.recorder.opened(FILE)
    assert [line["seq"] for line in world.lines()] == [2]
