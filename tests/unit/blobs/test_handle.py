"""Reading ahead of a program that goes through a blob on the disk: when, how far, and when not."""

from typing import cast

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from attachfs.blobs.handle import _AHEAD, _HANDS, _IN_ORDER, _STEP, _DiskReadahead
from attachfs.cache.disk_cache import CachedBlob
from attachfs.errors import Unexpected

READ = 128 * 1024
SIZE = 4 * _AHEAD


class Disk:
    """Stands for a cached blob: notes what is read of it, in whichever thread."""

    def __init__(self, error: Exception | None = None) -> None:
        self.size = SIZE
        self.error = error
        self.read: list[int] = []

    def pread(self, length: int, offset: int) -> bytes:
        assert length == _STEP
        self.read.append(offset)
        if self.error is not None:
            raise self.error
        return b""


def ahead_of(disk: Disk, nursery: trio.Nursery) -> _DiskReadahead:
    return _DiskReadahead(cast("CachedBlob", disk), nursery)


async def settled() -> None:
    """Wait until nothing is read any more: threads do not count as blocked for long."""
    for _ in range(3 * _AHEAD // _STEP):
        await wait_all_tasks_blocked()
        await trio.to_thread.run_sync(lambda: None)


def go(ahead: _DiskReadahead, start: int, reads: int, *, missed: bool = False) -> None:
    for number in range(reads):
        offset = start + number * READ
        ahead.note(offset, offset + READ, missed=missed)


async def test_who_reads_in_order_and_had_to_wait_once_is_read_ahead_of(nursery: trio.Nursery) -> None:
    disk = Disk()
    ahead = ahead_of(disk, nursery)
    go(ahead, 0, 1, missed=True)
    await settled()
    assert disk.read == [], "one read is no order"
    go(ahead, READ, _IN_ORDER)
    await settled()
    position = (_IN_ORDER + 1) * READ
    assert min(disk.read) <= position
    assert len(disk.read) == len(set(disk.read)), "nothing is read twice"
    assert position + _AHEAD - _STEP <= max(disk.read) + _STEP <= position + _AHEAD + _STEP


async def test_who_reads_in_order_goes_on_being_read_ahead_for(nursery: trio.Nursery) -> None:
    disk = Disk()
    ahead = ahead_of(disk, nursery)
    go(ahead, 0, _IN_ORDER + 1, missed=True)
    await settled()
    before = max(disk.read)
    go(ahead, (_IN_ORDER + 1) * READ, 2 * _STEP // READ)
    await settled()
    assert before < max(disk.read) <= before + 3 * _STEP


async def test_what_is_in_memory_is_not_read_ahead(nursery: trio.Nursery) -> None:
    disk = Disk()
    go(ahead_of(disk, nursery), 0, 100)
    await settled()
    assert disk.read == []


async def test_nothing_is_read_ahead_for_who_reads_all_over_the_file(nursery: trio.Nursery) -> None:
    disk = Disk()
    ahead = ahead_of(disk, nursery)
    for number in range(50):
        go(ahead, number * 7 * _STEP % SIZE, 1, missed=True)
    await settled()
    assert disk.read == []


async def test_a_jump_or_the_end_of_reading_ends_it(nursery: trio.Nursery) -> None:
    for end in ("jump", "stop"):
        disk = Disk()
        ahead = ahead_of(disk, nursery)
        go(ahead, 0, _IN_ORDER + 1, missed=True)
        if end == "jump":
            go(ahead, 3 * _AHEAD, 1)
        else:
            ahead.stop()
        await settled()
        assert len(disk.read) <= _HANDS, end


@pytest.mark.parametrize("error", [Unexpected("closed")])
async def test_a_disk_in_trouble_is_for_the_reader_to_hear_of(
    nursery: trio.Nursery, error: Exception
) -> None:
    disk = Disk(error)
    go(ahead_of(disk, nursery), 0, _IN_ORDER + 1, missed=True)
    await settled()
    assert 1 <= len(disk.read) <= _HANDS
