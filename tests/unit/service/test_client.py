"""What can be asked of the service, and how a blob comes: streamed, resumed, begun anew, or given up."""
# ruff: noqa: ARG001 - a test runs on the clock it takes

import gc
import re
from collections.abc import Awaitable, Callable

import httpx
import pytest
import trio
from trio.testing import MockClock

from attachfs.errors import (
    AccessDenied,
    AttachfsError,
    BadAnswer,
    NotFound,
    TimedOut,
    Unreachable,
    UsageError,
)
from attachfs.model import AssetRef, AttachmentRef, EventRef
from attachfs.service.auth import NoAuth
from attachfs.service.blob_stream import StalledError
from attachfs.service.client import BlobBody, Chunk, Client
from tests.services.http_in_process import (
    ASSET,
    EVENT,
    FILE,
    ONE,
    TOKEN,
    TWO,
    FakeAuth,
    Pieces,
    Service,
    client_of,
    open_blob,
)

DATA = bytes(range(256)) * 400  # a bit more than 100 KB
SIZE = len(DATA)
THIRD = "33333333-3333-4333-8333-333333333333"


@pytest.fixture
def clock(autojump_clock: MockClock) -> MockClock:
    return autojump_clock


# -- addresses -----------------------------------------------------------------------------------------


async def test_everything_is_asked_for_where_the_service_has_it(clock: MockClock) -> None:
    service = Service(httpx.Response(200, json={"assets": [], "events": []}))
    public = AssetRef("publicassets", ONE)
    on_event = AttachmentRef("assets", ONE, TWO, THIRD)
    async with client_of(service) as client:
        await client.assets_page()
        await client.events_page(None)
        await client.events_page(ASSET)
        await client.events_page(public)
        await client.asset(ASSET)
        await client.asset(public)
        await client.event(EVENT)
        await client.info(FILE)
        await client.info(on_event)
        async with open_blob(client, on_event):
            pass
    v2 = "/archivist/v2"
    assert service.paths == [
        f"{v2}/assets",
        f"{v2}/assets/-/events",
        f"{v2}/assets/{ONE}/events",
        f"{v2}/publicassets/{ONE}/events",
        f"{v2}/assets/{ONE}",
        f"{v2}/publicassets/{ONE}",
        f"{v2}/assets/{ONE}/events/{TWO}",
        f"{v2}/attachments/assets/{ONE}/{TWO}/info",
        f"{v2}/attachments/assets/{ONE}/events/{TWO}/{THIRD}/info",
        f"{v2}/attachments/assets/{ONE}/events/{TWO}/{THIRD}",
    ]


@pytest.mark.parametrize("url", ["https://ledger.test/base/path", "https://ledger.test/base/path/"])
async def test_the_base_address_may_carry_a_path(url: str, clock: MockClock) -> None:
    service = Service(httpx.Response(404))
    async with client_of(service, url=url) as client:
        with pytest.raises(NotFound, match=f"^/base/path/archivist/v2/assets/{ONE}: "):
            await client.asset(ASSET)
    assert service.paths == [f"/base/path/archivist/v2/assets/{ONE}"]


@pytest.mark.parametrize(
    "bad",
    ["../etc", "", "%2e%2e", ONE.upper().replace("1", "A"), f"{ONE}/x", f"{ONE}?x", f"{ONE}\n", "\uff11" * 8],
)
async def test_what_is_no_uuid_never_becomes_an_address(bad: str, clock: MockClock) -> None:
    service = Service(httpx.Response(200, json={}))
    async with client_of(service) as client:
        asks: tuple[Callable[[], Awaitable[object]], ...] = (
            lambda: client.asset(AssetRef("assets", bad)),
            lambda: client.event(EventRef("assets", ONE, bad)),
            lambda: client.events_page(AssetRef("assets", bad)),
            lambda: client.info(AttachmentRef("assets", ONE, None, bad)),
            lambda: client.info(AttachmentRef("assets", ONE, bad, TWO)),
            lambda: client.info(AttachmentRef("evil", ONE, None, TWO)),  # type: ignore[arg-type]
        )
        for ask in asks:
            with pytest.raises(NotFound):
                await ask()
    assert service.requests == []


async def test_pages_are_asked_for_with_quoted_tokens_and_filters(clock: MockClock) -> None:
    service = Service(httpx.Response(200, json={"assets": [], "next_page_token": ""}))
    token, filters = "a+/=&b#c d\n", {"attributes.arc_display_name": "Tür & Tor=*", "tracked": "NOT_TRACKED"}
    async with client_of(service, page_size=7) as client:
        await client.assets_page(token, filters)
        await client.assets_page()
    assert dict(service.requests[0].url.params) == {**filters, "page_size": "7", "page_token": token}
    assert dict(service.requests[1].url.params) == {"page_size": "7"}
    assert service.requests[0].url.fragment == ""


async def test_a_page_token_beyond_reason_is_not_sent(clock: MockClock) -> None:
    service = Service(httpx.Response(200, json={"assets": []}))
    async with client_of(service) as client:
        with pytest.raises(BadAnswer, match="absurdly long"):
            await client.assets_page("x" * 20_000)
    assert service.requests == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"{}",
        b"[]",
        b'{"assets": 5}',
        b'{"assets": [1]}',
        b'{"assets": []',
        b'{"assets": [NaN]}',
        b"[" * 100_000,
        b'{"assets": [], "next_page_token": 5}',
        b"\xff",
        b"<html>",
    ],
)
async def test_a_page_that_cannot_be_read_is_never_an_empty_one(body: bytes, clock: MockClock) -> None:
    async with client_of(Service(httpx.Response(200, content=body))) as client:
        with pytest.raises(BadAnswer):
            await client.assets_page()


# -- one body ------------------------------------------------------------------------------------------


def ranged(request: httpx.Request, data: bytes = DATA, etag: str = '"v1"') -> httpx.Response:
    """Answer as a service does that honours ranges."""
    asked = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
    if asked is None:
        headers = {"Content-Length": str(len(data)), "ETag": etag}
        return httpx.Response(200, headers=headers, stream=Pieces(data))
    start = int(asked[1])
    headers = {
        "Content-Length": str(len(data) - start),
        "Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}",
        "ETag": etag,
    }
    return httpx.Response(206, headers=headers, stream=Pieces(data[start:]))


def whole(*pieces: bytes | Exception | float, **headers: str) -> httpx.Response:
    return httpx.Response(200, headers=headers, stream=Pieces(*pieces))


def part(range_: str | None, *pieces: bytes | Exception | float, **headers: str) -> httpx.Response:
    if range_ is not None:
        headers["Content-Range"] = range_
    return httpx.Response(206, headers=headers, stream=Pieces(*pieces))


def alternately(piece: bytes, pause: float) -> tuple[bytes | float, ...]:
    return tuple(step for _ in range(1000) for step in (piece, pause))


async def read(body: BlobBody) -> bytes:
    return b"".join([piece async for piece in body])


async def test_a_blob_is_streamed_and_everything_given_back(clock: MockClock) -> None:
    service = Service(ranged)
    async with client_of(service) as client:
        async with open_blob(client, FILE) as body:
            assert (body.offset, body.length, body.etag) == (0, SIZE, '"v1"')
            assert client.transport.stats.of("blob").in_flight == 1
            assert await read(body) == DATA
        counters = client.transport.stats.of("blob")
        assert (counters.requests, counters.bytes, counters.in_flight) == (1, SIZE, 0)
        assert client.transport.limiter.in_flight == 0
    assert "Range" not in service.requests[0].headers


async def test_a_blob_from_an_offset_on_starts_there_if_the_service_can(clock: MockClock) -> None:
    async with client_of(Service(ranged)) as client, open_blob(client, FILE, offset=1000, size=SIZE) as body:
        assert (body.offset, body.length) == (1000, SIZE - 1000)
        assert await read(body) == DATA[1000:]


async def test_a_200_to_a_range_is_the_whole(clock: MockClock) -> None:
    service = Service(whole(DATA))
    async with client_of(service) as client, open_blob(client, FILE, offset=1000, size=SIZE) as body:
        assert (body.offset, body.length) == (0, None)
        assert await read(body) == DATA
    assert service.requests[0].headers["Range"] == "bytes=1000-"


@pytest.mark.parametrize(
    "answer",
    [
        part(None, DATA[1000:]),
        part("garbage", DATA[1000:]),
        part(f"bytes 0-{SIZE - 1}/{SIZE}", DATA),
        part(f"bytes 999-{SIZE - 1}/{SIZE}", DATA[999:]),
        part(f"bytes 1000-999/{SIZE}", b""),
        part(f"bytes 1000-{SIZE}/{SIZE}", DATA[1000:]),
        part(f"bytes 1000-{SIZE}/{SIZE + 1}", DATA[1000:] + b"x"),
        part(f"bytes 1000-{SIZE - 1}/{SIZE - 5}", DATA[1000:]),
        part(f"bytes 1000-{SIZE + 9}/*", DATA[1000:]),
        part(f"bytes 1000-{'9' * 30}/*", DATA[1000:]),
        part(f"items 1000-{SIZE - 1}/{SIZE}", DATA[1000:]),
        part(f"bytes 1000-{SIZE - 1}/{SIZE}", DATA[1000:], **{"Content-Length": "5"}),
        part(f"bytes 1000-{SIZE - 1}/{SIZE}", DATA[1000:], **{"Content-Encoding": "gzip"}),
        httpx.Response(206, headers={"Content-Type": "multipart/byteranges; boundary=x"}, content=b"--x"),
        httpx.Response(416),
    ],
)
async def test_another_part_than_was_asked_for_is_refused(answer: httpx.Response, clock: MockClock) -> None:
    async with client_of(Service(answer)) as client:
        with pytest.raises(BadAnswer):
            async with open_blob(client, FILE, offset=1000, size=SIZE):
                pass
        assert client.transport.limiter.in_flight == 0


async def test_a_part_that_nobody_asked_for_is_refused(clock: MockClock) -> None:
    async with client_of(Service(part(f"bytes 0-{SIZE - 1}/{SIZE}", DATA))) as client:
        with pytest.raises(BadAnswer, match="206"):
            async with open_blob(client, FILE, size=SIZE):
                pass


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (whole(DATA, httpx.RemoteProtocolError("cut")), f"after {SIZE} bytes"),
        (whole(DATA, httpx.ReadError("reset")), f"after {SIZE} bytes"),
        (whole(DATA, **{"Content-Length": str(SIZE + 1)}), f"{SIZE + 1} bytes were announced"),
        (whole(DATA, **{"Content-Length": str(SIZE - 1)}), f"{SIZE - 1} bytes were announced"),
        (whole(DATA, **{"Content-Encoding": "gzip"}), "encoded"),
    ],
)
async def test_a_body_that_is_not_what_was_announced_is_an_error_that_says_how_far_it_came(
    answer: httpx.Response, says: str, clock: MockClock
) -> None:
    async with client_of(Service(answer)) as client:
        with pytest.raises(BadAnswer, match=says):
            async with open_blob(client, FILE) as body:
                await read(body)


async def test_more_than_is_recorded_is_never_handed_out(clock: MockClock) -> None:
    endless = Pieces(*[DATA] * 100)
    async with client_of(Service(httpx.Response(200, stream=endless))) as client:
        async with open_blob(client, FILE, size=SIZE) as body:
            assert await anext(body) == DATA
            with pytest.raises(BadAnswer, match=f"more bytes came than the {SIZE} of the record"):
                await anext(body)
        assert endless.closed
    async with client_of(Service(whole(DATA + b"x", **{"Content-Length": str(SIZE + 1)}))) as client:
        with pytest.raises(BadAnswer, match="the record says"):
            async with open_blob(client, FILE, size=SIZE):
                pass


@pytest.mark.parametrize(
    "pieces",
    [
        (float("inf"),),
        (b"x", float("inf")),
        alternately(b"x", 0.5),
        alternately(b"x" * 4000, 2.0),
    ],
    ids=["at once", "after a byte", "a snail", "a slow snail"],
)
async def test_a_body_that_is_too_slow_is_stalled(
    pieces: tuple[bytes | float, ...], clock: MockClock
) -> None:
    async with client_of(Service(whole(*pieces)), timeout=7) as client:
        async with open_blob(client, FILE) as body:
            with pytest.raises(TimedOut, match="within 7 s"):
                await read(body)
        assert clock.current_time() == 7
        assert client.transport.limiter.in_flight == 0


async def test_slow_but_steady_is_not_stalled_and_neither_is_a_slow_reader(clock: MockClock) -> None:
    steady = alternately(b"x" * 20_000, 5.0)[:40]
    async with client_of(Service(whole(*steady)), timeout=7) as client, open_blob(client, FILE) as body:
        async for piece in body:
            assert piece
            await trio.sleep(30)
    assert clock.current_time() == 20 * 35


async def test_what_is_given_up_half_way_leaves_nothing_behind(clock: MockClock) -> None:
    pieces = Pieces(*[DATA] * 10)
    async with client_of(Service(httpx.Response(200, stream=pieces))) as client:
        async with open_blob(client, FILE) as body:
            async for _ in body:
                break
        assert pieces.closed
        assert client.transport.limiter.in_flight == 0
        with trio.move_on_after(1) as scope:
            async with open_blob(client, FILE) as body:
                async for _ in body:
                    await trio.sleep(10)
        assert scope.cancelled_caught
        assert client.transport.limiter.in_flight == 0
    gc.collect()  # an iterator left to the collector would warn, and warnings are errors


# -- a transfer ----------------------------------------------------------------------------------------


async def download(client: Client, size: int = SIZE, start: int = 0) -> tuple[bytes, list[int]]:
    """Return what a consumer of chunks has in the end, and where it was told to start over."""
    got, jumps = bytearray(DATA[:start]), []
    async with client.download(FILE, size, start=start) as chunks:
        async for chunk in chunks:
            assert isinstance(chunk, Chunk)
            if chunk.offset != len(got):
                jumps.append(len(got))
                assert chunk.offset == 0
                got.clear()
            got += chunk.data
    return bytes(got), jumps


CUT = httpx.ReadError("reset")


async def test_a_transfer_in_one_piece(clock: MockClock) -> None:
    service = Service(ranged)
    async with client_of(service) as client:
        assert await download(client) == (DATA, [])
        assert await download(client, start=5000) == (DATA, [])
        assert await download(client, start=SIZE) == (DATA, [])
    assert [request.headers.get("Range") for request in service.requests] == [None, "bytes=5000-"]


async def test_what_breaks_off_is_resumed_where_it_stopped(clock: MockClock) -> None:
    def breaking(request: httpx.Request) -> httpx.Response:
        answer = ranged(request)
        assert isinstance(answer.stream, Pieces)
        (data,) = answer.stream.pieces
        assert isinstance(data, bytes)
        if len(data) > 20_000:
            answer.stream.pieces = (data[:20_000], CUT)
        return answer

    service = Service(breaking)
    async with client_of(service) as client:
        assert await download(client) == (DATA, [])
        assert client.transport.limiter.in_flight == 0
    ranges = [request.headers.get("Range") for request in service.requests]
    assert ranges == [None, *(f"bytes={at}-" for at in range(20_000, SIZE, 20_000))]


async def test_a_service_without_ranges_sends_it_all_again(clock: MockClock) -> None:
    service = Service(whole(DATA[:50_000], CUT), whole(DATA))
    async with client_of(service) as client:
        assert await download(client) == (DATA, [50_000])


async def test_a_416_begins_anew_without_a_range(clock: MockClock) -> None:
    service = Service(whole(DATA[:50_000], CUT), httpx.Response(416), whole(DATA))
    async with client_of(service) as client:
        assert await download(client) == (DATA, [50_000])
    assert [r.headers.get("Range") for r in service.requests] == [None, "bytes=50000-", None]


async def test_another_version_is_never_mixed_with_the_first(clock: MockClock) -> None:
    service = Service(
        whole(DATA[:50_000], CUT, ETag='"v1"'),
        lambda request: ranged(request, b"y" * SIZE, etag='"v2"'),
    )
    async with client_of(service) as client:
        assert await download(client) == (b"y" * SIZE, [50_000])
    assert [r.headers.get("Range") for r in service.requests] == [None, "bytes=50000-", None]


async def test_a_part_of_the_rest_is_followed_by_the_rest_of_it(clock: MockClock) -> None:
    def in_parts(request: httpx.Request) -> httpx.Response:
        if "Range" not in request.headers:
            return whole(DATA[:10_000], CUT)
        start = int(request.headers["Range"][6:-1])
        end = min(start + 30_000, SIZE)
        return part(f"bytes {start}-{end - 1}/{SIZE}", DATA[start:end])

    async with client_of(Service(in_parts)) as client:
        assert await download(client) == (DATA, [])


async def test_a_short_body_in_good_form_simply_ends(clock: MockClock) -> None:
    service = Service(whole(DATA[:500], **{"Content-Length": "500"}))
    async with client_of(service) as client:
        assert await download(client) == (DATA[:500], [])
    assert len(service.requests) == 1, "the caller compares; asking again would bring the same"


async def test_an_empty_blob_is_asked_for_all_the_same(clock: MockClock) -> None:
    service = Service(whole(**{"Content-Length": "0"}))
    async with client_of(service) as client:
        assert await download(client, 0) == (b"", [])
    assert len(service.requests) == 1


@pytest.mark.parametrize(
    "script",
    [
        [whole(CUT)],
        [whole(b"x" * 1000, CUT)],
        [whole(DATA[:50_000], CUT)],
        [whole(DATA[:50_000], CUT), part(f"bytes 50000-{SIZE - 1}/{SIZE}", CUT)],
        [whole(DATA[:50_000], CUT), httpx.Response(416), whole(DATA[:50_000], CUT)],
    ],
    ids=["no byte", "few bytes", "always to the same place", "never more", "in a circle"],
)
async def test_what_breaks_off_three_more_times_without_progress_is_given_up(
    script: list[httpx.Response], clock: MockClock
) -> None:
    service = Service(*script)
    async with client_of(service) as client:
        with pytest.raises(BadAnswer, match="connection broke"):
            await download(client)
        assert client.transport.limiter.in_flight == 0
    assert len(service.requests) == 4
    assert clock.current_time() < 10


async def test_more_than_the_record_stops_the_transfer_for_good(clock: MockClock) -> None:
    service = Service(whole(DATA, b"x"))
    async with client_of(service) as client:
        with pytest.raises(BadAnswer, match="more bytes"):
            await download(client)
    assert len(service.requests) == 1


async def test_a_stall_is_not_resumed_as_the_time_is_used_up(clock: MockClock) -> None:
    service = Service(whole(DATA[:50_000], float("inf")))
    async with client_of(service, timeout=7) as client:
        with pytest.raises(TimedOut, match="after 50000 bytes"):
            await download(client)
    assert (len(service.requests), clock.current_time()) == (1, 7)


@pytest.mark.parametrize(
    ("then", "error"),
    [
        (httpx.Response(404), NotFound),
        (httpx.Response(403), AccessDenied),
        (httpx.Response(500), BadAnswer),
        (httpx.ConnectError("refused"), Unreachable),
        (lambda _request: trio.sleep_forever(), TimedOut),
    ],
)
async def test_a_resumption_that_fails_tells_why(
    then: httpx.Response | Exception | Callable[[httpx.Request], httpx.Response],
    error: type[AttachfsError],
    clock: MockClock,
) -> None:
    service = Service(whole(DATA[:50_000], 3.0, CUT), then)
    async with client_of(service, timeout=7) as client:
        with pytest.raises(error):
            await download(client)
        assert client.transport.limiter.in_flight == 0
    assert clock.current_time() < 7 + 0.5 + 0.1, "the timeout covers the resumption too"


async def test_a_token_that_expires_in_mid_body_is_renewed_for_the_rest(clock: MockClock) -> None:
    def check(request: httpx.Request) -> httpx.Response:
        if request.headers["Authorization"] == "Bearer old":
            return whole(DATA[:50_000], CUT) if len(service.requests) == 1 else httpx.Response(401)
        return ranged(request)

    auth, service = FakeAuth("old", "new"), Service(check)
    async with client_of(service, auth) as client:
        assert await download(client) == (DATA, [])
    assert auth.renewals == 1


async def test_a_transfer_given_up_half_way_leaves_nothing_behind(clock: MockClock) -> None:
    pieces = Pieces(DATA[:100], float("inf"))
    async with client_of(Service(httpx.Response(200, stream=pieces))) as client:
        with trio.move_on_after(1):
            await download(client)
        assert pieces.closed
        assert client.transport.limiter.in_flight == 0
        async with client.download(FILE, SIZE) as chunks:
            assert await anext(chunks)
        assert client.transport.limiter.in_flight == 0
    gc.collect()


# -- figures -------------------------------------------------------------------------------------------


async def test_figures_count_by_kind_and_hold_no_secret(clock: MockClock) -> None:
    async def answer(request: httpx.Request) -> httpx.Response:
        await trio.sleep(2 if request.url.path.endswith("info") else 1)
        return httpx.Response(404 if "events" in request.url.path else 200, content=b"{}")

    async with client_of(Service(answer), FakeAuth(TOKEN)) as client:
        await client.info(FILE)
        await client.info(FILE)
        await client.asset(ASSET)
        with pytest.raises(NotFound):
            await client.event(EVENT)
        stats = client.stats()
    info, event = stats["requests"]["info"], stats["requests"]["event"]
    assert info == {
        "requests": 2,
        "retries": 0,
        "errors": 0,
        "bytes": 4,
        "latency_sum": 4,
        "latency_max": 2,
        "in_flight": 0,
        "statuses": {"200": 2},
        "latencies": [0] * 8 + [2] + [0] * 4,
    }
    assert (event["requests"], event["errors"]) == (1, 1)
    assert TOKEN not in str(stats)


async def test_a_client_needs_a_usable_address(clock: MockClock) -> None:
    async with httpx.AsyncClient() as http:
        with pytest.raises(UsageError):
            Client(http, "not an address", NoAuth())


# -- one part of a blob by itself ----------------------------------------------------------------------


def some(start: int, stop: int, *, total: int | str = SIZE, **headers: str) -> httpx.Response:
    return part(f"bytes {start}-{stop - 1}/{total}", DATA[start:stop], **headers)


async def read_part(client: Client, start: int = 1000, stop: int = 2000) -> bytes | None:
    async with client.part(FILE, SIZE, start=start, stop=stop) as body:
        return None if body is None else await read(body)


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (0, SIZE), (1000, 2000), (SIZE - 1, SIZE)])
async def test_a_part_is_had_by_itself(clock: MockClock, start: int, stop: int) -> None:
    service = Service(some(start, stop, ETag='"v1"'))
    async with client_of(service) as client:
        async with client.part(FILE, SIZE, start=start, stop=stop) as body:
            assert body is not None
            assert body.etag == '"v1"'
            assert await read(body) == DATA[start:stop]
        assert client.transport.limiter.in_flight == 0
    assert [request.headers.get("Range") for request in service.requests] == [f"bytes={start}-{stop - 1}"]


@pytest.mark.parametrize(
    "answer",
    [
        whole(DATA),
        httpx.Response(416),
        some(1000, 2000, total="*"),
        some(1000, 2000, total=SIZE + 1),
        some(1000, 1999),
        some(999, 2000),
        some(1000, SIZE),
        some(1000, 2000, **{"Content-Length": "999"}),
        part(None, DATA[1000:2000]),
        part(f"items 1000-1999/{SIZE}", DATA[1000:2000]),
        part(f"bytes 01000-1999/{SIZE}", DATA[1000:2000]),
        httpx.Response(206, headers={"Content-Type": "multipart/byteranges; boundary=x"}, content=b"--x"),
    ],
)
async def test_nothing_but_just_that_part_is_taken_for_it_and_a_service_without_is_left_alone_for_a_while(
    clock: MockClock, answer: httpx.Response
) -> None:
    service = Service(answer, some(1000, 2000))
    async with client_of(service) as client:
        assert await read_part(client) is None
        assert await read_part(client) is None
        assert client.transport.limiter.in_flight == 0
        assert len(service.requests) == 1
        clock.jump(301)
        assert await read_part(client) == DATA[1000:2000]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (httpx.Response(404), NotFound),
        (httpx.Response(403), AccessDenied),
        (httpx.Response(500), BadAnswer),
        (httpx.ConnectError("no"), Unreachable),
        (part(f"bytes 1000-1999/{SIZE}", DATA[1000:1500]), BadAnswer),
        (part(f"bytes 1000-1999/{SIZE}", DATA[1000:1500], httpx.ReadError("cut")), BadAnswer),
        (part(f"bytes 1000-1999/{SIZE}", DATA[1000:2000], **{"Content-Encoding": "gzip"}), BadAnswer),
        (part(f"bytes 1000-1999/{SIZE}", 1000.0), StalledError),
    ],
)
async def test_what_goes_wrong_with_a_part_says_nothing_about_parts(
    clock: MockClock, answer: httpx.Response | Exception, error: type[AttachfsError]
) -> None:
    service = Service(answer)
    async with client_of(service) as client:
        with pytest.raises(error):
            await read_part(client)
        assert client.transport.limiter.in_flight == 0
        service.script = [some(1000, 2000)]
        clock.jump(60)
        assert await read_part(client) == DATA[1000:2000]


async def test_parts_leave_places_for_whole_blobs(clock: MockClock) -> None:
    held = trio.Event()

    async def hold(request: httpx.Request) -> httpx.Response:
        if "Range" in request.headers:
            await held.wait()
            return some(1000, 2000)
        return whole(DATA)

    async with client_of(Service(hold), max_connections=8) as client:
        assert client.transport.limiter.bulk_limit == 6
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(read_part, client)
            with trio.move_on_after(1):
                await trio.sleep_forever()
            assert client.transport.limiter.in_flight == 3
            async with open_blob(client, FILE, size=SIZE) as body:
                assert await read(body) == DATA
            held.set()


async def test_a_stream_tells_its_version(clock: MockClock) -> None:
    async with client_of(Service(ranged)) as client, client.download(FILE, SIZE) as chunks:
        assert chunks.etag is None
        await anext(chunks)
        assert chunks.etag == '"v1"'
