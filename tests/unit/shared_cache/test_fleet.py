"""Many workstations and one store: each blob is downloaded once, and a store in any state costs no byte."""

import hashlib
import math
import random
from collections.abc import AsyncIterator

import httpx
import pytest
import trio
from trio.testing import MockClock

from attachfs.model import AttachmentRef, Digest
from attachfs.shared_cache.http_address import HttpAddress
from attachfs.shared_cache.objects import ObjectStore
from attachfs.shared_cache.policy import SharedCache
from attachfs.shared_cache.source import SharedCacheSource
from attachfs.shared_cache.uploads import add
from tests.services.memory_source import FakeBytes, file_ref

BLOBS = {file_ref(n): random.Random(n).randbytes(20_000 + n) for n in range(50)}


def digest_of(data: bytes) -> Digest:
    return Digest("sha256", hashlib.sha256(data).hexdigest())


class Reader:
    """Reads bytes as an open file does."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __call__(self, length: int, offset: int) -> bytes:
        return self._data[offset : offset + length]


class Body(httpx.AsyncByteStream):
    """Bytes, and perhaps silence instead of the end."""

    def __init__(self, data: bytes, *, silent: bool = False) -> None:
        self._data = data
        self._silent = silent

    async def __aiter__(self) -> AsyncIterator[bytes]:
        await trio.lowlevel.checkpoint()
        yield self._data
        if self._silent:
            await trio.sleep(math.inf)


class Store:
    """A store in memory, with moods."""

    MOODS = ("well", "lies", "short", "refuses", "hangs", "stalls", "slow", "gone", "resets")

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.mood = "well"
        self.asked = 0

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked += 1
        name = request.url.path.rpartition("/")[2]
        await self._fail()
        if request.method == "PUT":
            self.objects[name] = await request.aread()
            return httpx.Response(201)
        if self.mood == "refuses":
            return httpx.Response(503)
        if name not in self.objects:
            return httpx.Response(404)
        return self._sent(self.objects[name], head=request.method == "HEAD")

    async def _fail(self) -> None:
        match self.mood:
            case "hangs":
                await trio.sleep(math.inf)
            case "gone":
                raise httpx.ConnectError("refused")
            case "resets":
                raise httpx.ReadError("reset")
            case "slow":
                await trio.sleep(1.9)

    def _sent(self, data: bytes, *, head: bool) -> httpx.Response:
        match self.mood:
            case "lies":
                data = bytes(len(data))
            case "short":
                return httpx.Response(200, stream=Body(data[:-1]))
            case "stalls":
                return httpx.Response(200, stream=Body(data[:100], silent=True))
        length = {"Content-Length": str(len(data))}
        return httpx.Response(200, stream=Body(b"" if head else data), headers=length)

    def workstation(self, service: FakeBytes) -> tuple[SharedCacheSource, SharedCache]:
        http = httpx.AsyncClient(transport=httpx.MockTransport(self))
        objects = ObjectStore(http, HttpAddress("https://store.example/cas/"))
        shared = SharedCache(objects, trio.current_time)
        return SharedCacheSource(service, shared), shared


async def read(source: SharedCacheSource, ref: AttachmentRef, data: bytes) -> bytes:
    kept = b""
    async with source.download(ref, len(data), digest=digest_of(data)) as chunks:
        async for chunk in chunks:
            kept = (b"" if chunk.discards else kept)[: chunk.offset] + chunk.data
    return kept


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
