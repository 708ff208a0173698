"""Bytes from the shared store: right ones are taken; all others cost a miss, and little time, once."""

import hashlib
import math
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from attachfs.errors import AccessDenied, BadAnswer
from attachfs.model import Digest
from attachfs.shared_cache.breaker import FIRST_PAUSE
from attachfs.shared_cache.http_address import HttpAddress
from attachfs.shared_cache.objects import FIRST_BYTE, ObjectStore
from attachfs.shared_cache.policy import SharedCache
from attachfs.shared_cache.source import HEDGE, SharedCacheSource
from tests.services.memory_source import FakeBytes, file_ref

REF = file_ref()
DATA = bytes(range(256)) * 1000
DIGEST = Digest("sha256", hashlib.sha256(DATA).hexdigest())
Answer = Callable[[httpx.Request], Awaitable[httpx.Response]]


class Pieces(httpx.AsyncByteStream):
    """A body that a test lets come as it likes."""

    def __init__(self, *pieces: bytes, then: Callable[[], Awaitable[None]] | None = None) -> None:
        self._pieces = pieces
        self._then = then
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            await trio.lowlevel.checkpoint()
            yield piece
        if self._then is not None:
            await self._then()

    async def aclose(self) -> None:
        self.closed = True


class World:
    """A store whose answers the test gives, before a service."""

    def __init__(self) -> None:
        self.requests: list[httpx.Request] = []
        self.answer: Answer = self.missing
        self.service = FakeBytes()
        self.service.contents[REF] = DATA
        http = httpx.AsyncClient(transport=httpx.MockTransport(self._handle))
        self.shared = SharedCache(
            ObjectStore(http, HttpAddress("https://store.example/cas/")), trio.current_time
        )
        self.source = SharedCacheSource(self.service, self.shared)

    async def _handle(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return await self.answer(request)

    async def missing(self, _: httpx.Request) -> httpx.Response:
        return httpx.Response(404)

    def sends(self, body: bytes | Pieces, **headers: str) -> None:
        async def answer(_: httpx.Request) -> httpx.Response:
            if isinstance(body, bytes):
                length = {"Content-Length": str(len(body))}
                return httpx.Response(200, stream=Pieces(body), headers=length | headers)
            return httpx.Response(200, stream=body, headers=headers)

        self.answer = answer

    def hangs(self) -> None:
        async def answer(_: httpx.Request) -> httpx.Response:
            await trio.sleep(math.inf)
            raise AssertionError

        self.answer = answer

    def fails(self, status: int) -> None:
        async def answer(_: httpx.Request) -> httpx.Response:
            return httpx.Response(status, headers={"Location": "https://elsewhere.example/"})

        self.answer = answer

    async def read(self, digest: Digest | None = DIGEST, start: int = 0) -> bytes:
        """Return what a download keeps, as a receiver does: a chunk that discards begins anew."""
        kept = DATA[:start]
        async with self.source.download(REF, len(DATA), start=start, digest=digest) as chunks:
            async for chunk in chunks:
                if chunk.discards:
                    kept = b""
                assert len(kept) >= chunk.offset
                kept = kept[: chunk.offset] + chunk.data
        return kept

    @property
    def asked_service(self) -> int:
        return len(self.service.transfers)


@pytest.fixture
def world() -> World:
    return World()


async def test_a_right_object_is_taken_and_the_service_is_not_asked(world: World) -> None:
    world.sends(DATA)
    assert await world.read() == DATA
    assert world.asked_service == 0
    assert (world.shared.hits, world.shared.bytes) == (1, len(DATA))
    assert str(world.requests[0].url) == f"https://store.example/cas/{DIGEST.hex}"
    assert world.requests[0].headers["accept-encoding"] == "identity"
    assert "authorization" not in world.requests[0].headers


async def test_what_is_served_before_it_is_verified_never_comes_from_the_store(world: World) -> None:
    world.sends(DATA)
    assert await world.read(digest=None) == DATA
    async with world.source.part(REF, len(DATA), start=0, stop=1000):
        pass
    assert world.requests == []


async def test_a_miss_is_counted_and_the_service_is_asked(world: World) -> None:
    assert await world.read() == DATA
    assert (world.asked_service, world.shared.misses, world.shared.errors) == (1, 1, {})


WRONG = {
    "one bit": b"\x01" + DATA[1:],
    "short": DATA[:-1],
    "long": DATA + b"x",
    "empty": b"",
    "another blob": bytes(len(DATA)),
}


@pytest.mark.parametrize("body", WRONG.values(), ids=WRONG.keys())
@pytest.mark.parametrize("framing", ["announced", "chunked"])
async def test_wrong_bytes_are_voided_and_the_service_sends_all(
    world: World,
    body: bytes,
    framing: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    world.sends(body if framing == "announced" else Pieces(body))
    assert await world.read() == DATA
    assert world.asked_service == 1
    assert world.shared.hits == 0
    assert sum(world.shared.errors.values()) == 1
    world.requests.clear()
    if world.shared.wrong:
        assert "holds something else" in caplog.text
        assert await world.read() == DATA
        assert world.requests == [], "what was wrong is not asked for again for a while"


@pytest.mark.parametrize("status", [204, 206, 301, 302, 307, 400, 401, 403, 429, 500, 503])
async def test_any_other_answer_is_a_counted_error_and_no_readers_business(world: World, status: int) -> None:
    world.fails(status)
    assert await world.read() == DATA
    assert (world.shared.misses, world.shared.errors) == (0, {"refused": 1})
    assert len(world.requests) == 1, "no redirect is followed"


async def test_an_encoded_object_is_not_taken(world: World) -> None:
    world.sends(Pieces(DATA), **{"Content-Encoding": "gzip"})
    assert await world.read() == DATA
    assert world.shared.errors == {"broken": 1}


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (httpx.ConnectError("refused"), "unreachable"),
        (httpx.ConnectTimeout("slow"), "slow"),
        (httpx.ReadError("reset"), "broken"),
        (httpx.RemoteProtocolError("no HTTP"), "broken"),
    ],
)
async def test_a_store_that_cannot_be_reached_is_a_counted_error(
    world: World, error: Exception, kind: str
) -> None:
    async def answer(_: httpx.Request) -> httpx.Response:
        raise error

    world.answer = answer
    assert await world.read() == DATA
    assert world.shared.errors == {kind: 1}


async def test_a_store_that_breaks_off_in_the_middle_costs_no_byte(world: World) -> None:
    async def breaks() -> None:
        raise httpx.ReadError("reset")

    world.sends(Pieces(DATA[:1000], then=breaks))
    assert await world.read() == DATA
    assert world.shared.errors == {"broken": 1}


# -- time ----------------------------------------------------------------------------------------------


async def test_a_silent_store_costs_a_quarter_of_a_second_a_few_times_and_then_nothing(
    world: World, autojump_clock: MockClock
) -> None:
    del autojump_clock
    world.hangs()
    took = []
    for _ in range(6):
        began = trio.current_time()
        assert await world.read() == DATA
        took.append(trio.current_time() - began)
    assert took[:3] == pytest.approx([HEDGE] * 3)
    assert took[3:] == [0.0] * 3
    assert len(world.requests) == 3


async def test_a_silent_store_beside_a_silent_service_is_given_up_after_two_seconds(
    world: World, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    del autojump_clock
    world.hangs()
    world.service.contents.clear()
    done = trio.Event()

    async def read() -> None:
        assert await world.read() == DATA
        done.set()

    nursery.start_soon(read)
    transfer = await world.service.next()
    await trio.sleep(FIRST_BYTE + 1)
    assert not done.is_set()
    transfer.put(DATA).end()
    await done.wait()
    assert world.shared.errors == {"slow": 1}
    assert world.shared.reads.is_open, "what cost that much once is not tried twice"


async def test_a_body_that_stands_still_costs_a_second_once(world: World, autojump_clock: MockClock) -> None:
    del autojump_clock

    async def stalls() -> None:
        await trio.sleep(math.inf)

    body = Pieces(DATA[:1000], then=stalls)
    world.sends(body)
    began = trio.current_time()
    assert await world.read() == DATA
    assert trio.current_time() - began <= 2.5
    assert body.closed
    began = trio.current_time()
    assert await world.read() == DATA
    assert trio.current_time() == began
    assert len(world.requests) == 1


async def test_a_dripping_body_is_given_up_in_time(world: World, autojump_clock: MockClock) -> None:
    del autojump_clock

    class Drip(Pieces):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            for index in range(len(DATA)):
                await trio.sleep(0.5)
                yield DATA[index : index + 1]

    world.sends(Drip())
    began = trio.current_time()
    assert await world.read() == DATA
    assert trio.current_time() - began <= 2.5


async def test_after_three_failures_the_store_is_left_alone_and_one_probe_decides(
    world: World, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    del autojump_clock
    world.fails(503)
    for _ in range(5):
        await world.read()
    assert len(world.requests) == 3
    await trio.sleep(FIRST_PAUSE)
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(world.read)
    assert len(world.requests) == 4, "one probe"
    await trio.sleep(FIRST_PAUSE)
    await world.read()
    assert len(world.requests) == 4, "the pause has doubled"
    world.sends(DATA)
    await trio.sleep(FIRST_PAUSE)
    await world.read()
    assert world.shared.hits == 1
    told = [record.getMessage() for record in caplog.records]
    assert sum("is not used for" in line for line in told) == 1
    assert sum("answers again" in line for line in told) == 1


async def test_a_probe_whose_reader_goes_away_does_not_keep_the_store_off_for_ever(
    world: World, autojump_clock: MockClock
) -> None:
    del autojump_clock
    world.fails(503)
    for _ in range(3):
        await world.read()
    await trio.sleep(FIRST_PAUSE)
    world.hangs()
    with trio.move_on_after(HEDGE / 2):
        await world.read()
    world.sends(DATA)
    await world.read()
    assert world.shared.hits == 1


# -- the service's part --------------------------------------------------------------------------------


async def test_the_services_own_error_is_the_readers(world: World) -> None:
    world.service.contents[REF] = AccessDenied("no")
    with pytest.raises(AccessDenied):
        await world.read()


async def test_a_store_may_still_bring_what_the_service_fails_at(
    world: World, autojump_clock: MockClock
) -> None:
    del autojump_clock
    world.service.contents[REF] = BadAnswer("500")

    async def late(_: httpx.Request) -> httpx.Response:
        await trio.sleep(1)
        return httpx.Response(200, stream=Pieces(DATA))

    world.answer = late
    assert await world.read() == DATA


async def test_what_another_machine_adds_meanwhile_is_taken_while_the_service_keeps_us_waiting(
    world: World, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    del autojump_clock
    world.service.contents.clear()
    kept: list[bytes] = []

    async def read() -> None:
        kept.append(await world.read())

    nursery.start_soon(read)
    await world.service.next()  # the service is asked, and says nothing yet
    await trio.sleep(1)
    world.sends(DATA)
    await trio.sleep(2)
    assert kept == [DATA]
    assert (world.shared.hits, world.shared.misses, world.service.live) == (1, 1, 0)


async def test_bytes_kept_of_the_store_that_were_never_verified_are_not_built_on(
    world: World, autojump_clock: MockClock
) -> None:
    del autojump_clock

    async def stalls() -> None:
        await trio.sleep(math.inf)

    world.sends(Pieces(b"forged" + DATA[6:1000], then=stalls))
    with trio.move_on_after(0.5):
        await world.read()
    assert await world.read(start=1000) == DATA
    assert [transfer.start for transfer in world.service.transfers] == [0]
    # What came from the service alone is built on.
    assert await world.read(start=1000) == DATA
    assert [transfer.start for transfer in world.service.transfers] == [0, 1000]


async def test_a_reader_that_goes_away_leaves_nothing_open(world: World, nursery: trio.Nursery) -> None:
    stall = trio.Event()
    body = Pieces(DATA[:1000], then=stall.wait)
    world.sends(body)
    scope = trio.CancelScope()

    async def read() -> None:
        with scope:
            await world.read()

    nursery.start_soon(read)
    await wait_all_tasks_blocked()
    scope.cancel()
    await wait_all_tasks_blocked()
    assert body.closed
    assert world.service.live == 0
