"""Blobs that were fetched ahead: opened without the disk being looked at, and never kept for long."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from attachfs.blobs.staging import Staging
from attachfs.errors import IntegrityError
from tests.services.memory_source import file_ref
from tests.unit.blobs.world import World, descriptors

FILE = file_ref(3)
DATA = b"evidence" * 1000


@pytest.fixture
def world(tmp_path: Path, nursery: trio.Nursery) -> Iterator[World]:
    world = World(tmp_path, nursery, 64 * 2**20)
    yield world
    world.close()


async def test_what_was_fetched_ahead_opens_without_a_thread(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.serve(FILE, DATA)
    await world.blobs.prefetch(FILE)

    async def refused(*_: object) -> None:
        raise AssertionError("a thread was asked")

    with monkeypatch.context() as patch:
        patch.setattr(Staging, "in_thread", refused)
        blob = await world.blobs.open(FILE)
        assert bytes(blob.read_nowait(0, blob.size) or b"") == DATA
        blob.close()
    assert await world.read(FILE) == DATA  # a second time as any other
    assert world.gets == 1


async def test_what_was_changed_on_the_disk_meanwhile_is_fetched_anew(world: World) -> None:
    world.serve(FILE, DATA)
    await world.blobs.prefetch(FILE)
    (path,) = (world.cache.root / "blobs" / "sha256").glob("*/*")
    path.write_bytes(b"E" + DATA[1:])
    os.utime(path)
    assert await world.read(FILE) == DATA
    assert world.gets == 2


async def test_what_is_recorded_otherwise_by_now_does_not_open(world: World) -> None:
    world.serve(FILE, DATA)
    await world.blobs.prefetch(FILE)
    world.serve(FILE, DATA[::-1])
    with pytest.raises(IntegrityError, match="the record has changed"):
        await world.blobs.open(FILE)


async def test_what_nobody_comes_for_is_closed(world: World, autojump_clock: MockClock) -> None:
    world.serve(FILE, DATA)
    await world.read(FILE)
    before = descriptors()
    await world.blobs.prefetch(FILE)
    assert descriptors() > before
    await trio.sleep(3)
    assert descriptors() == before
    assert autojump_clock.current_time() < 60
    assert await world.read(FILE) == DATA
