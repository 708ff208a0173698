"""A shared store in memory, which may be in any mood, and blobs to put there."""

import hashlib
import math
import random
from collections.abc import AsyncIterator

import httpx
import trio

from attachfs.model import Digest
from attachfs.shared_cache.http_address import HttpAddress
from attachfs.shared_cache.objects import ObjectStore
from attachfs.shared_cache.policy import SharedCache
from attachfs.shared_cache.source import SharedCacheSource
from tests.services.memory_source import FakeBytes, file_ref

BLOBS = {file_ref(n): random.Random(n).randbytes(20_000 + n) for n in range(50)}


def digest_of(data: bytes) -> Digest:
    return Digest("sha256", hashlib.sha256(data).hexdigest())


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

    MOODS = ("well", "lies", "short", "refuses", "hangs", "stalls", "slow", "gone", "resets", "full")

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.mood = "well"
        self.asked = 0

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked += 1
        name = request.url.path.rpartition("/")[2]
        await self._fail()
        if request.method == "PUT" and self.mood in ("full", "refuses"):
            await request.aread()
            return httpx.Response(507 if self.mood == "full" else 503)
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
