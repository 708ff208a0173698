"""Many workstations and one store: each blob is downloaded once, and a store in any state costs no byte."""

import contextlib
import hashlib
import random
import time
from collections.abc import Callable
from typing import cast

import pytest
import trio
from trio.testing import MockClock

from attachfs.cache.disk_cache import CachedBlob
from attachfs.model import AttachmentRef
from attachfs.shared_cache.objects import StoreError
from attachfs.shared_cache.policy import SharedCache
from attachfs.shared_cache.source import SharedCacheSource
from attachfs.shared_cache.uploads import Uploader, add
from tests.services.memory_source import FakeBytes
from tests.services.memory_store import BLOBS, Store, digest_of


class Reader:
    """Reads bytes as an open file does."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __call__(self, length: int, offset: int) -> bytes:
        return self._data[offset : offset + length]


async def read(source: SharedCacheSource, ref: AttachmentRef, data: bytes) -> bytes:
    kept = b""
    async with source.download(ref, len(data), digest=digest_of(data)) as chunks:
        async for chunk in chunks:
            kept = (b"" if chunk.discards else kept)[: chunk.offset] + chunk.data
    return kept


async def until(condition: Callable[[], bool]) -> None:
    """Wait for threads to have done their part."""
    ends = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < ends
        await trio.lowlevel.checkpoint()


@pytest.fixture
def service() -> FakeBytes:
    service = FakeBytes()
    service.contents.update(BLOBS)
    return service


async def test_a_hundred_workstations_cause_one_download_of_each_blob(
    service: FakeBytes, mock_clock: MockClock
) -> None:
    del mock_clock  # it stands still: a busy machine does not look like a slow store
    store = Store()
    source, shared = store.workstation(service)
    for ref, data in BLOBS.items():
        assert await read(source, ref, data) == data
        await add(shared, digest_of(data), len(data), Reader(data))

    async def others() -> None:
        mine, _ = store.workstation(service)
        for ref, data in BLOBS.items():
            assert await read(mine, ref, data) == data

    async with trio.open_nursery() as nursery:
        for _ in range(99):
            nursery.start_soon(others)
    assert len(service.transfers) == len(BLOBS)


@pytest.mark.parametrize("seed", range(20))
async def test_a_store_in_any_mood_costs_no_byte_and_little_time(
    seed: int, service: FakeBytes, autojump_clock: MockClock
) -> None:
    del autojump_clock
    rng = random.Random(seed)
    store = Store()
    store.objects.update({digest_of(data).hex: data for data in BLOBS.values()})
    source, shared = store.workstation(service)
    lost = []
    for _ in range(200):
        if rng.random() < 0.1:
            store.mood = rng.choice(Store.MOODS)
            lost.append(0.0)
        if rng.random() < 0.02:
            await trio.sleep(rng.choice((30.0, 60.0, 600.0)))
        ref, data = rng.choice(list(BLOBS.items()))
        began = trio.current_time()
        assert await read(source, ref, data) == data
        took = trio.current_time() - began
        assert took <= 2.5
        if lost:
            lost[-1] += took
    # In each spell of one mood, and at each probe of it, a reader waits for one silence or a few hedges.
    assert max(lost, default=0) <= 2.5 + 6 * 2.5
    assert service.live == 0
    assert shared.reads.is_open or store.asked


@pytest.mark.parametrize("seed", range(5))
async def test_a_store_that_changes_its_mood_under_load_costs_no_byte(
    seed: int, service: FakeBytes, autojump_clock: MockClock
) -> None:
    """Many readers on several workstations, some of which write: one store, gone in the middle, and back."""
    del autojump_clock
    rng = random.Random(seed)
    store = Store()
    reads, took = 0, []

    async def change() -> None:
        while True:
            store.mood = rng.choice(Store.MOODS)
            await trio.sleep(rng.uniform(0.5, 20))

    async def reader(source: SharedCacheSource, shared: SharedCache) -> None:
        nonlocal reads
        for _ in range(40):
            ref, data = rng.choice(list(BLOBS.items()))
            began = trio.current_time()
            assert await read(source, ref, data) == data
            took.append(trio.current_time() - began)
            reads += 1
            if shared.writes.admit():
                with contextlib.suppress(StoreError):
                    with trio.move_on_after(10):
                        await add(shared, digest_of(data), len(data), Reader(data))
                shared.writes.dropped()
            await trio.sleep(rng.uniform(0, 2))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(change)
        async with trio.open_nursery() as readers:
            for _ in range(4):
                source, shared = store.workstation(service)
                for _ in range(6):
                    readers.start_soon(reader, source, shared)
        nursery.cancel_scope.cancel()
    assert reads == 4 * 6 * 40
    assert max(took) <= 2.5
    assert service.live == 0
    for name, data in store.objects.items():
        assert hashlib.sha256(data).hexdigest() == name


async def test_a_store_without_space_is_written_to_no_more_and_read_on(
    service: FakeBytes, mock_clock: MockClock, nursery: trio.Nursery
) -> None:
    del mock_clock  # it stands still: a busy machine does not look like a slow store
    store = Store()
    (ref, data), *_ = BLOBS.items()
    store.objects[digest_of(data).hex] = data
    store.mood = "full"
    source, shared = store.workstation(service)
    blobs = {digest_of(data): data for data in BLOBS.values()}

    class Cached:
        def __init__(self, data: bytes) -> None:
            self.pread = Reader(data)

        def close_soon(self) -> None:
            """Nothing is held."""

    uploader = Uploader(shared, lambda digest, _: cast("CachedBlob", Cached(blobs[digest])))
    for digest in list(blobs)[1:11]:
        uploader.offer(digest, len(blobs[digest]))
    nursery.start_soon(uploader.run)
    await until(lambda: shared.upload_drops == 10)
    stats = shared.stats()
    assert (stats["uploaded"], stats["upload_drops"], stats["writes_off"]) == (0, 10, True)
    assert await read(source, ref, data) == data
    assert (shared.hits, shared.reads.is_open, service.transfers) == (1, False, [])
