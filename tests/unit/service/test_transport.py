"""One request and all that can happen to it: told by a service in process, on a clock that jumps."""
# ruff: noqa: ARG001 - a test runs on the clock it takes

import itertools
import json
import logging
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from attachfs.errors import (
    AccessDenied,
    AttachfsError,
    BadAnswer,
    NotFound,
    RateLimited,
    TimedOut,
    Unreachable,
    UsageError,
)
from attachfs.model import AssetRef, AttachmentRef
from attachfs.service import connections
from attachfs.service.auth import Auth, NoAuth
from attachfs.service.client import Client, open_http
from attachfs.service.messages import redirect_target
from attachfs.service.transparency_log import LogClient
from tests.services.http_in_process import (
    ASSET,
    FILE,
    ONE,
    TOKEN,
    TWO,
    FakeAuth,
    Pieces,
    Service,
    client_of,
    file_ref,
    open_blob,
)

PUBLIC = AttachmentRef("publicassets", ONE, None, TWO)
OK = httpx.Response(200, json={"size": 1})


@pytest.fixture
def clock(autojump_clock: MockClock) -> MockClock:
    return autojump_clock


async def outcome(client: Client, ref: AttachmentRef = FILE) -> bytes | AttachfsError:
    """Return what asking for an `/info` ends with; no message may hold the token."""
    try:
        return await client.info(ref)
    except AttachfsError as error:
        if TOKEN in "".join(traceback.format_exception(error)):
            pytest.fail("the token is told")
        return error


# -- every status --------------------------------------------------------------------------------------

STATUSES: dict[int, tuple[type[AttachfsError] | None, int]] = {
    200: (None, 1),
    **dict.fromkeys((201, 204, 206, 299, 304, 300, 305, 400, 402, 409, 410, 416, 451), (BadAnswer, 1)),
    **dict.fromkeys((501, 505, 599, 999), (BadAnswer, 1)),
    401: (AccessDenied, 1),
    403: (AccessDenied, 1),
    404: (NotFound, 1),
    **dict.fromkeys((408, 500, 502, 503, 504), (BadAnswer, 4)),
    **dict.fromkeys((301, 302, 303, 307, 308), (BadAnswer, 1)),
}


@pytest.mark.parametrize("status", STATUSES)
async def test_each_status_has_its_error_and_its_number_of_requests(status: int, clock: MockClock) -> None:
    error, requests = STATUSES[status]
    service = Service(httpx.Response(status, content=b"{}"))
    async with client_of(service) as client:
        result = await outcome(client)
    assert type(result) is (error or bytes)
    assert len(service.requests) == requests


async def test_only_what_was_asked_for_is_accepted_in_listings_too(clock: MockClock) -> None:
    page = {"assets": [{"identity": "x"}], "next_page_token": "t"}
    for status, accepted in ((200, True), (206, True), (204, False), (203, False)):
        async with client_of(Service(httpx.Response(status, json=page))) as client:
            if accepted:
                assert await client.assets_page() == ([{"identity": "x"}], "t")
            else:
                with pytest.raises(BadAnswer, match=str(status)):
                    await client.assets_page()


@pytest.mark.parametrize(
    ("failure", "error", "requests"),
    [
        (httpx.ConnectError("refused"), Unreachable, 4),
        (httpx.ConnectTimeout("slow"), Unreachable, 4),
        (httpx.ProxyError("no"), Unreachable, 4),
        (httpx.UnsupportedProtocol("no"), Unreachable, 4),
        (httpx.ReadTimeout("slow"), TimedOut, 1),
        (httpx.PoolTimeout("full"), TimedOut, 1),
        (httpx.ReadError("reset"), BadAnswer, 4),
        (httpx.WriteError("reset"), BadAnswer, 4),
        (httpx.RemoteProtocolError("Server disconnected without sending a response."), BadAnswer, 4),
        (httpx.LocalProtocolError(f"Illegal header value b'Bearer {TOKEN}'"), BadAnswer, 1),
        (httpx.InvalidURL("odd"), BadAnswer, 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
async def test_the_library_s_exceptions_are_translated_once(
    failure: Exception, error: type[AttachfsError], requests: int, clock: MockClock
) -> None:
    service = Service(failure)
    async with client_of(service, FakeAuth(TOKEN)) as client:
        result = await outcome(client)
    assert type(result) is error
    assert f"/archivist/v2/attachments/assets/{ONE}/{TWO}/info" in str(result)
    assert len(service.requests) == requests


@pytest.mark.parametrize(
    "passing",
    [
        httpx.Response(503),
        httpx.Response(500),
        httpx.ConnectError("refused"),
        httpx.ReadError("reset"),
        httpx.Response(200, headers={"Content-Length": "9"}, stream=Pieces(b"four", httpx.ReadError("cut"))),
        httpx.Response(200, headers={"Content-Length": "9"}, stream=Pieces(b"four")),
    ],
    ids=["503", "500", "refused", "reset", "cut", "short"],
)
async def test_what_passes_by_itself_is_not_seen(
    passing: httpx.Response | Exception, clock: MockClock
) -> None:
    service = Service(passing, OK)
    async with client_of(service) as client:
        assert await client.info(FILE) == b'{"size":1}'
        counters = client.transport.stats.of("info")
    assert (counters.requests, counters.retries, counters.errors, counters.in_flight) == (2, 1, 0, 0)
    assert counters.bytes >= 10


async def test_retries_are_spread_and_end_within_the_timeout(clock: MockClock) -> None:
    service = Service(httpx.Response(500))
    async with client_of(service, timeout=60) as client:
        await outcome(client)
        pauses = [after - before for before, after in itertools.pairwise(service.times)]
        assert all(low <= pause <= low + 1 for pause, low in zip(pauses, (0.1, 0.2, 0.4), strict=True))
        service.times.clear()
    began = clock.current_time()
    async with client_of(service, timeout=0.1) as client:
        result = await outcome(client)
    assert isinstance(result, BadAnswer), "the service's own failure says more than the time that ran out"
    assert clock.current_time() - began <= 0.1


async def test_a_stalled_answer_ends_after_the_timeout(clock: MockClock) -> None:
    for stall in (
        lambda _request: trio.sleep_forever(),
        httpx.Response(200, stream=Pieces(b"{", float("inf"))),
        httpx.Response(404, headers={"Content-Type": "application/json"}, stream=Pieces(b"{", float("inf"))),
    ):
        began = clock.current_time()
        async with client_of(Service(stall), timeout=7) as client:
            result = await outcome(client)
            assert client.transport.limiter.in_flight == 0
        if isinstance(stall, httpx.Response) and stall.status_code == 404:
            assert type(result) is NotFound, "a refusal needs no body"
            assert clock.current_time() - began == 1
        else:
            assert type(result) is TimedOut
            assert "within 7 s" in result.reason
            assert clock.current_time() - began == 7


async def test_a_snail_of_a_record_ends_after_the_timeout(clock: MockClock) -> None:
    pieces = Pieces(*(piece for _ in range(1000) for piece in (b"x", 0.5)))
    async with client_of(Service(httpx.Response(200, stream=pieces)), timeout=7) as client:
        assert type(await outcome(client)) is TimedOut
    assert clock.current_time() == 7
    assert pieces.closed


async def test_a_503_that_asks_for_patience_gets_it(clock: MockClock) -> None:
    service = Service(httpx.Response(503, headers={"Retry-After": "20"}), OK)
    async with client_of(service) as client:
        assert await client.info(FILE)
    assert 20 <= clock.current_time() <= 22
    began = clock.current_time()
    async with client_of(Service(httpx.Response(503, headers={"Retry-After": "90"})), timeout=60) as client:
        assert type(await outcome(client)) is BadAnswer
    assert clock.current_time() == began, "what cannot end well in time ends at once"


# -- bodies --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coding", ["gzip", "br", "deflate", "identity, gzip", "x-unknown"])
async def test_an_encoded_body_is_refused_unread(coding: str, clock: MockClock) -> None:
    bomb = Pieces(b"\x1f\x8b" + b"\0" * 1000)
    service = Service(httpx.Response(200, headers={"Content-Encoding": coding}, stream=bomb))
    async with client_of(service) as client:
        result = await outcome(client)
    assert type(result) is BadAnswer
    assert "is encoded" in result.reason
    assert bomb.closed
    assert service.requests[0].headers["Accept-Encoding"] == "identity"


async def test_identity_is_no_encoding(clock: MockClock) -> None:
    async with client_of(
        Service(httpx.Response(200, headers={"Content-Encoding": "Identity"}, content=b"{}"))
    ) as c:
        assert await c.info(FILE) == b"{}"


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize(
    ("limit", "ask"),
    [
        (2**20, lambda client: client.info(FILE)),
        (2**20, lambda client: client.asset(ASSET)),
        (32 * 2**20, lambda client: client.assets_page()),
    ],
    ids=["info", "asset", "page"],
)
async def test_a_body_beyond_all_bounds_is_given_up_early(
    clock: MockClock, *, announced: bool, limit: int, ask: Callable[[Client], Any]
) -> None:
    piece = bytes(2**18)
    endless = Pieces(*[piece] * (2 * limit // len(piece)))
    headers = {"Content-Length": str(2 * limit)} if announced else {}
    service = Service(httpx.Response(200, headers=headers, stream=endless))
    async with client_of(service) as client:
        with pytest.raises(BadAnswer, match=f"longer than {limit} bytes"):
            await ask(client)
        kinds = client.transport.stats.as_dict().values()
        assert sum(kind["bytes"] for kind in kinds) <= (0 if announced else limit + len(piece))
    assert endless.closed
    assert len(service.requests) == 1


# -- credentials ---------------------------------------------------------------------------------------


async def test_credentials_go_with_assets_and_never_with_public_ones(clock: MockClock) -> None:
    service = Service(OK)
    async with client_of(service, FakeAuth(TOKEN)) as client:
        await client.info(FILE)
        await client.info(PUBLIC)
        await client.asset(AssetRef("publicassets", ONE))
    headers = [request.headers.get("Authorization") for request in service.requests]
    assert headers == [f"Bearer {TOKEN}", None, None]


async def test_a_401_is_renewed_once_and_repeated_once(clock: MockClock) -> None:
    def check(request: httpx.Request) -> httpx.Response:
        good = request.headers["Authorization"] == "Bearer new"
        return httpx.Response(200, content=b"{}") if good else httpx.Response(401)

    auth, service = FakeAuth("old", "new"), Service(check)
    async with client_of(service, auth) as client:
        assert await client.info(FILE) == b"{}"
    assert (auth.renewals, len(service.requests)) == (1, 2)


async def test_a_401_again_is_access_denied(clock: MockClock) -> None:
    auth, service = FakeAuth("old", "new", "newer"), Service(httpx.Response(401, json={"error": "expired"}))
    async with client_of(service, auth) as client:
        result = await outcome(client)
    assert type(result) is AccessDenied
    assert result.reason.endswith("(401): expired")
    assert (auth.renewals, len(service.requests)) == (1, 2)


async def test_a_401_without_credentials_says_so(clock: MockClock) -> None:
    async with client_of(Service(httpx.Response(401)), NoAuth()) as client:
        result = await outcome(client)
    assert type(result) is AccessDenied
    assert "wants credentials, and none are sent" in result.reason


async def test_fifty_readers_of_an_expired_token_renew_it_once(clock: MockClock) -> None:
    def check(request: httpx.Request) -> httpx.Response:
        good = request.headers["Authorization"] == "Bearer new"
        return httpx.Response(200, content=b"{}") if good else httpx.Response(401)

    auth, service = FakeAuth("old", "new", "newer"), Service(check)
    async with client_of(service, auth) as client, trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(client.info, file_ref(number))
    assert auth.renewals == 1
    assert len(service.requests) <= 100


async def test_what_the_service_echoes_is_not_told_if_it_is_the_token(clock: MockClock) -> None:
    for body in (f"your header was Bearer {TOKEN}", json.dumps({"message": f"{TOKEN} is bad"})):
        async with client_of(Service(httpx.Response(400, text=body)), FakeAuth(TOKEN)) as client:
            result = await outcome(client)
        assert "[hidden]" in str(result)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b'{"code": 5, "message": "no such thing", "details": []}', ": no such thing"),
        (b'{"error": "quota", "description": "used up"}', ": quota used up"),
        (b"plain words", ": plain words"),
        (b"line\n\x1b[31mred\xff", ": line\\n\\x1b[31mred\ufffd"),
        (b"x" * 5000, ": " + "x" * 200 + "…"),
        (b"<html><body>Bad gateway</body></html>", ""),
        (b"", ""),
        (b"[" * 100_000, ": " + "[" * 200 + "…"),
    ],
)
async def test_the_service_s_own_words_are_told_short_and_printable(
    body: bytes, told: str, clock: MockClock
) -> None:
    async with client_of(Service(httpx.Response(400, content=body))) as client:
        result = await outcome(client)
    assert str(result) == f"/archivist/v2/attachments/assets/{ONE}/{TWO}/info: the service answered 400{told}"


async def test_no_query_and_no_page_token_is_told(clock: MockClock) -> None:
    async with client_of(Service(httpx.Response(400))) as client:
        with pytest.raises(BadAnswer) as caught:
            await client.assets_page("secret-page-token", {"attributes.arc_display_name": "private"})
    assert caught.value.reason == "/archivist/v2/assets: the service answered 400"


async def test_requests_say_who_asks(clock: MockClock) -> None:
    service = Service(OK)
    async with client_of(service) as client:
        await client.info(FILE)
    headers = service.requests[0].headers
    assert headers["User-Agent"] == headers["DataTrails-User-Agent"] == connections.USER_AGENT
    assert headers["User-Agent"].startswith("attachfs/")


# -- redirects -----------------------------------------------------------------------------------------


def to(location: str, status: int = 302) -> httpx.Response:
    return httpx.Response(status, headers={"Location": location})


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_within_the_origin_keeps_the_credentials(status: int, clock: MockClock) -> None:
    service = Service(to("/elsewhere?x=1", status), to("https://ledger.test:443/third", status), OK)
    async with client_of(service, FakeAuth(TOKEN)) as client:
        assert await client.info(FILE)
    assert service.paths[1:] == ["/elsewhere", "/third"]
    assert all(request.headers["Authorization"] == f"Bearer {TOKEN}" for request in service.requests)


@pytest.mark.parametrize(
    "location",
    ["https://other.test/x", "https://ledger.test:8443/x", "//other.test/x", "https://ledger.test.evil/x"],
)
async def test_a_redirect_to_another_origin_loses_them_for_good(location: str, clock: MockClock) -> None:
    service = Service(to(location), to("https://ledger.test/back"), OK)
    async with client_of(service, FakeAuth(TOKEN)) as client:
        assert await client.info(FILE)
    assert [request.headers.get("Authorization") for request in service.requests] == [
        f"Bearer {TOKEN}",
        None,
        None,
    ]


async def test_the_downgrade_of_https_is_refused_and_http_to_https_loses_the_credentials(
    clock: MockClock,
) -> None:
    service = Service(to("http://ledger.test/x"), OK)
    async with client_of(service, FakeAuth(TOKEN)) as client:
        result = await outcome(client)
    assert type(result) is BadAnswer
    assert "from https to http" in result.reason
    assert len(service.requests) == 1
    service = Service(to("https://ledger.test/x"), OK)
    async with client_of(service, FakeAuth(TOKEN), url="http://ledger.test") as client:
        assert await client.info(FILE)
    assert "Authorization" not in service.requests[1].headers


@pytest.mark.parametrize(
    "location",
    [
        "",
        "ftp://ledger.test/x",
        "javascript:alert(1)",
        "https://user:pass@ledger.test/x",
        "https://",
        "https:///x",
        "https://ledger.test\\@evil.test/x",
        "https://led ger.test/x",
        "http://xn--a/x",
        "https://xn--a.test/x",
        "//xn--ls8h--.test/",
        "https://ledger.test:99999/x",
        "https://[::1/x",
        "https://ledger.test/\tx",
        "https://lédger.test/x",
        "x" * 20_000,
    ],
)
def test_a_location_that_is_no_plain_address_is_refused(location: str) -> None:
    with pytest.raises(BadAnswer, match="redirected"):
        redirect_target(httpx.URL("https://ledger.test/a/b"), location, "/a/b")


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("c", "https://ledger.test/a/c"),
        ("/c?d=e%2F", "https://ledger.test/c?d=e%2F"),
        ("//other.test/c", "https://other.test/c"),
        ("https://other.test:8443/c#f", "https://other.test:8443/c"),
        ("../../c", "https://ledger.test/c"),
    ],
)
def test_other_locations_are_followed(location: str, target: str) -> None:
    assert str(redirect_target(httpx.URL("https://ledger.test/a/b"), location, "/a/b")) == target


async def test_redirects_that_circle_are_given_up(clock: MockClock) -> None:
    service = Service(to("/round"))
    async with client_of(service) as client:
        result = await outcome(client)
    assert type(result) is BadAnswer
    assert "more than 3 redirects" in result.reason
    assert len(service.requests) == 4


@pytest.mark.parametrize(("status", "error"), [(404, BadAnswer), (401, AccessDenied), (403, AccessDenied)])
async def test_another_host_s_404_does_not_mean_that_the_ledger_has_nothing(
    status: int, error: type[AttachfsError], clock: MockClock
) -> None:
    auth = FakeAuth(TOKEN, "other")
    async with client_of(Service(to("https://other.test/x"), httpx.Response(status)), auth) as client:
        assert type(await outcome(client)) is error
    assert auth.renewals == 0


# -- limits and outages --------------------------------------------------------------------------------


async def test_a_429_stops_everybody_for_as_long_as_it_says(clock: MockClock) -> None:
    limited = httpx.Response(429, headers={"Archivist-Rate-Limit-Reset": "5.5"})
    service = Service(limited, OK)
    clock.autojump_threshold = float("inf")
    async with client_of(service, max_connections=8) as client, trio.open_nursery() as nursery:
        nursery.start_soon(client.info, file_ref(0))
        await wait_all_tasks_blocked()
        for number in range(1, 5):
            nursery.start_soon(client.info, file_ref(number))
        await wait_all_tasks_blocked()
        clock.autojump_threshold = 0
        assert len(service.requests) == 1
        assert client.stats()["rate_limited_for_s"] > 0
        assert client.transport.limiter.limit == 4
    assert len(service.requests) == 6
    assert all(5.5 <= at <= 5.5 * 1.1 for at in service.times[1:])
    assert clock.current_time() < 7


async def test_a_429_that_outlasts_the_timeout_is_told_at_once_with_the_wait(clock: MockClock) -> None:
    service = Service(httpx.Response(429, headers={"Retry-After": "120"}))
    async with client_of(service, timeout=60) as client:
        result = await outcome(client)
        assert type(result) is RateLimited
        assert "asks to wait 1" in result.reason
        assert type(await outcome(client)) is RateLimited
    assert len(service.requests) == 1
    assert clock.current_time() == 0


async def test_endless_429s_end_within_the_timeout_and_without_a_storm(clock: MockClock) -> None:
    service = Service(httpx.Response(429, headers={"Retry-After": "0"}))
    async with client_of(service, timeout=60) as client:
        assert type(await outcome(client)) is RateLimited
    assert clock.current_time() <= 60
    assert len(service.requests) <= 8


async def test_a_burst_of_429s_halves_the_concurrency_once(
    caplog: pytest.LogCaptureFixture, clock: MockClock
) -> None:
    async def limited(_request: httpx.Request) -> httpx.Response:
        await trio.sleep(1)
        return OK if len(service.requests) > 32 else httpx.Response(429, headers={"Retry-After": "3"})

    service = Service(limited)
    async with client_of(service, max_connections=32) as client:
        async with trio.open_nursery() as nursery:
            for number in range(32):
                nursery.start_soon(client.info, file_ref(number))
        assert 16 <= client.transport.limiter.limit <= 18
        for number in range(400):
            await client.info(file_ref(number))
        assert client.transport.limiter.limit == 32
    assert len([record for record in caplog.records if "limits the rate" in record.message]) == 1


async def test_hundreds_of_slow_downloads_do_not_keep_metadata_waiting(clock: MockClock) -> None:
    async def slow(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/info"):
            return httpx.Response(200, content=b"{}")
        return httpx.Response(200, stream=Pieces(b"x" * 20_000, 9.0, b"x"))

    service = Service(slow)
    done: list[int] = []
    async with client_of(service, max_connections=32) as client, trio.open_nursery() as nursery:

        async def download(number: int) -> None:
            async with open_blob(client, file_ref(number)) as body:
                async for _ in body:
                    pass
            done.append(number)

        clock.autojump_threshold = float("inf")
        for number in range(200):
            nursery.start_soon(download, number)
        await wait_all_tasks_blocked()
        assert client.transport.stats.of("blob").in_flight == 24
        began = clock.current_time()
        for number in range(100):
            await client.info(file_ref(number))
        assert clock.current_time() == began
        clock.autojump_threshold = 0
    # Waiting for a slot is not stalling: all of them come in the end, after far more than the timeout.
    assert len(done) == 200
    assert clock.current_time() > 60


@asynccontextmanager
async def watched(service: Service, auth: Auth | None = None, **options: Any) -> AsyncIterator[Client]:
    async with client_of(service, auth, **options) as client, trio.open_nursery() as nursery:
        nursery.start_soon(client.watch)
        await wait_all_tasks_blocked()
        yield client
        nursery.cancel_scope.cancel()


def since(client: Client) -> float | None:
    return client.transport.circuit.failing_since


def is_down(client: Client) -> bool:
    return client.transport.circuit.open_since is not None


def probes(service: Service) -> list[float]:
    """Return when the background asked whether the service is there."""
    pairs = zip(service.requests, service.times, strict=True)
    return [at for request, at in pairs if request.url.params.get("page_size") == "1"]


async def test_an_outage_makes_requests_fail_at_once_and_ends_by_itself(clock: MockClock) -> None:
    service = Service(httpx.ConnectError("refused"))
    async with watched(service) as client:
        assert since(client) is None
        assert type(await outcome(client)) is Unreachable
        assert since(client) is not None
        await trio.sleep(4)
        assert is_down(client)
        asked, began = len(service.requests), clock.current_time()
        for number in range(100):
            result = await outcome(client, file_ref(number))
            assert type(result) is Unreachable
            assert "out of reach since" in result.reason
        assert (len(service.requests), clock.current_time()) == (asked, began)
        assert client.stats()["unreachable_since"] is not None
        await trio.sleep(300)
        assert len(probes(service)) < 300 / 6 + 10, "one in six seconds"
        service.script[:] = [OK]
        began = clock.current_time()
        while is_down(client):
            await trio.sleep(0.5)
        assert clock.current_time() - began <= 7
        assert isinstance(await outcome(client), bytes)
        assert client.stats()["unreachable_since"] is None


async def test_silence_counts_as_an_outage_and_lets_one_request_wait_and_the_others_fail_at_once(
    clock: MockClock,
) -> None:
    service = Service(lambda _request: trio.sleep_forever())
    async with watched(service, timeout=60) as client, trio.open_nursery() as nursery:
        nursery.start_soon(outcome, client)
        await trio.sleep(2.6)
        assert since(client) == 0
        assert not is_down(client)
        await trio.sleep(2.5)
        assert is_down(client)
        began = clock.current_time()
        assert type(await outcome(client, file_ref(1))) is Unreachable
        assert clock.current_time() == began
        service.script[:] = [OK]
        await trio.sleep(12)
        assert isinstance(await outcome(client, file_ref(1)), bytes)
        nursery.cancel_scope.cancel()


async def test_no_user_s_request_is_the_probe_that_waits(clock: MockClock) -> None:
    """Whoever asks after the first, at any time.

    Promise 39: "A service that falls silent is noticed within seconds; from then on, requests fail at once
    until it answers again, and no program is the one that waits to find out."
    """
    service = Service(lambda _request: trio.sleep_forever())
    async with watched(service, timeout=60) as client:
        assert type(await outcome(client)) is TimedOut
        for _ in range(60):
            began = clock.current_time()
            assert type(await outcome(client)) is Unreachable
            assert clock.current_time() == began
            await trio.sleep(1)


async def test_a_slow_service_is_not_a_silent_one(clock: MockClock) -> None:
    async def slow(_request: httpx.Request) -> httpx.Response:
        await trio.sleep(3.5)
        return OK

    async with watched(Service(slow)) as client:
        for number in range(20):
            assert isinstance(await outcome(client, file_ref(number)), bytes)
            assert not is_down(client)


async def test_a_probe_that_meets_a_portal_s_page_does_not_say_that_all_is_well(clock: MockClock) -> None:
    def portal(request: httpx.Request) -> httpx.Response:
        if request.url.params.get("page_size") == "1":
            return httpx.Response(200, headers={"Content-Type": "text/html"}, content=b"<html>log in</html>")
        return httpx.Response(503)

    async with watched(Service(portal)) as client:
        await outcome(client)
        await outcome(client, file_ref(1))
        await outcome(client, file_ref(2))
        assert since(client) is not None


# -- whose answer it is --------------------------------------------------------------------------------

PAGE = b"<!DOCTYPE html><html><body>404 Not Found</body></html>"
STRANGERS = {
    "a page": ({"Content-Type": "text/html; charset=utf-8"}, PAGE),
    "a page without a type": ({}, PAGE),
    "a router's text": ({"Content-Type": "text/plain"}, b"404 page not found\n"),
    "a page that says it is json": ({"Content-Type": "text/html"}, b"[1]"),
    "a gateway's JSON": (
        {"Content-Type": "application/json"},
        b'{"message": "no Route matched with those values", "request_id": "1"}',
    ),
    "another service's JSON": ({"Content-Type": "application/json"}, b'{"detail": "Not Found"}'),
    "a list": ({"Content-Type": "application/json"}, b"[]"),
    "a page that never ends": ({"Content-Type": "text/html"}, PAGE * 1000),
}
OWN = {
    "code and message": (
        {"Content-Type": "application/json"},
        b'{"code": 5, "message": "no", "details": []}',
    ),
    "error and description": ({"Content-Type": "application/json"}, b'{"error": "no", "description": "x"}'),
    "nothing": ({}, b""),
    "nothing, with a type": ({"Content-Type": "text/html", "Content-Length": "0"}, b""),
    "json without a type": ({}, b'{"code": 5}'),
    "json as text": ({"Content-Type": "text/plain"}, b'{"code": 5}'),
    "a problem": ({"Content-Type": "application/problem+json"}, b'{"title": "no"}'),
    "json that is broken": ({"Content-Type": "application/json"}, b'{"code": '),
}


@pytest.mark.parametrize("status", [401, 403, 404])
@pytest.mark.parametrize("name", STRANGERS)
async def test_a_stranger_s_answer_says_neither_missing_nor_forbidden(
    name: str, status: int, clock: MockClock
) -> None:
    headers, content = STRANGERS[name]
    service = Service(httpx.Response(status, headers=headers, content=content), OK)
    async with client_of(service) as client:
        result = await outcome(client)
        assert type(result) is Unreachable
        assert f"not the ledger answers in its place ({status})" in result.reason
        assert isinstance(await outcome(client), bytes), "it heals at once"


@pytest.mark.parametrize(("status", "error"), [(401, AccessDenied), (403, AccessDenied), (404, NotFound)])
@pytest.mark.parametrize("name", OWN)
async def test_the_service_s_own_refusals_are_obeyed(
    name: str, status: int, error: type[AttachfsError], clock: MockClock
) -> None:
    headers, content = OWN[name]
    service = Service(httpx.Response(status, headers=headers, stream=Pieces(content)))
    async with client_of(service) as client:
        assert type(await outcome(client)) is error


@pytest.mark.parametrize(
    ("kind", "content", "error"),
    [("application/xml", b"<Error>BlobNotFound</Error>", NotFound), ("text/html", PAGE, Unreachable)],
)
async def test_a_page_in_place_of_a_log_s_file_does_not_say_that_it_is_gone(
    kind: str, content: bytes, error: type[AttachfsError], clock: MockClock
) -> None:
    """It would be taken for a log that was rewritten."""
    service = Service(httpx.Response(404, headers={"Content-Type": kind}, content=content))
    async with httpx.AsyncClient(transport=httpx.MockTransport(service)) as http:
        with pytest.raises(AttachfsError) as caught:
            await LogClient(http, "https://logs.test").seal(ONE, 0)
        assert type(caught.value) is error


async def test_a_login_page_in_place_of_a_record_is_no_record(clock: MockClock) -> None:
    page = httpx.Response(200, headers={"Content-Type": "text/html"}, content=PAGE)
    async with client_of(Service(page, OK)) as client:
        assert type(await outcome(client)) is Unreachable
        assert isinstance(await outcome(client), bytes)


async def test_a_redirect_to_a_login_page_is_no_answer(clock: MockClock) -> None:
    page = httpx.Response(200, headers={"Content-Type": "text/html"}, content=PAGE)
    async with client_of(Service(to("http://portal.test/login"), page), url="http://ledger.test") as client:
        assert type(await outcome(client)) is Unreachable


async def test_one_broken_blob_does_not_shut_out_the_others(clock: MockClock) -> None:
    def broken(request: httpx.Request) -> httpx.Response:
        bad = request.url.path.endswith(f"{TWO}/info")
        return httpx.Response(503) if bad else httpx.Response(200, content=b"{}")

    async with client_of(Service(broken)) as client:
        for _ in range(5):
            assert type(await outcome(client)) is BadAnswer
        assert await client.info(file_ref(1)) == b"{}"


async def test_a_token_endpoint_that_is_down_counts_as_an_outage(clock: MockClock) -> None:
    class Down(FakeAuth):
        async def header(self) -> str | None:
            await trio.lowlevel.checkpoint()
            self.renewals += 1
            raise Unreachable("the token endpoint: cannot connect")

    auth = Down()
    async with watched(Service(OK), auth) as client:
        for _ in range(10):
            assert type(await outcome(client)) is Unreachable
            await trio.sleep(0.5)
        assert is_down(client)
        asked = auth.renewals
        for _ in range(20):
            assert type(await outcome(client)) is Unreachable
        assert auth.renewals == asked


async def test_a_cancelled_request_gives_everything_back(clock: MockClock) -> None:
    async def stall(_request: httpx.Request) -> httpx.Response:
        await trio.sleep_forever()
        raise AssertionError

    pieces = Pieces(b"x", float("inf"))
    for service in (Service(stall), Service(httpx.Response(200, stream=pieces))):
        async with client_of(service) as client:
            with trio.move_on_after(1):
                await client.info(FILE)
            assert client.transport.limiter.in_flight == 0
            assert client.transport.stats.of("info").in_flight == 0
    assert pieces.closed


# -- the pool ------------------------------------------------------------------------------------------


async def test_the_pool_refuses_a_ca_file_that_is_none(tmp_path: Any, clock: MockClock) -> None:
    (tmp_path / "empty.pem").write_text("nothing")
    for name in ("missing.pem", "empty.pem"):
        with pytest.raises(UsageError, match=f"--ca-file .*{name}"):
            open_http(ca_file=tmp_path / name)


async def test_the_pool_refuses_a_proxy_that_is_none(
    monkeypatch: pytest.MonkeyPatch, clock: MockClock
) -> None:
    for proxy in ("gopher://x", "socks5://x:1080", "http://", "http://[::1", "http://x:99999", "http://ü"):
        monkeypatch.setenv("HTTPS_PROXY", proxy)
        with pytest.raises(UsageError, match=r"HTTPS_PROXY .*proxy"):
            open_http(url="https://ledger.test")
    monkeypatch.setenv("NO_PROXY", ".test")
    async with open_http(url="https://ledger.test"):
        pass  # a proxy that is not used need not be usable


async def test_the_libraries_loggers_are_kept_from_printing_headers(clock: MockClock) -> None:
    async with open_http():
        for name in ("httpx", "httpcore.http11", "hpack", "h2.connection"):
            assert logging.getLogger(name).getEffectiveLevel() >= logging.WARNING


@pytest.mark.parametrize("url", ["ledger.test", "ftp://ledger.test", "https://", "https://me:pw@ledger.test"])
async def test_a_base_address_that_cannot_be_one_is_refused(url: str, clock: MockClock) -> None:
    async with open_http() as http:
        with pytest.raises(UsageError):
            Client(http, url, NoAuth())
