"""Credentials: one renewal however many wait, nothing shown, and a clear word about what to do."""
# ruff: noqa: ARG001 - a test runs on the clock it takes

import base64
import json
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import httpx
import pytest
import trio
from trio.testing import MockClock

from attachfs.errors import (
    AccessDenied,
    AttachfsError,
    BadAnswer,
    RateLimited,
    TimedOut,
    Unreachable,
    UsageError,
)
from attachfs.service.auth import (
    Auth,
    ClientCredentials,
    NoAuth,
    Secret,
    TokenFile,
    jwt_expiry,
)
from tests.services.http_in_process import TOKEN, Service

SECRET = "correct-horse-battery-staple"


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "bearer-token.txt"
    write(path, TOKEN)
    return path


def write(path: Path, content: str | bytes, mode: int = 0o600) -> None:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    path.chmod(mode)


async def problem_of(auth: Auth) -> AttachfsError:
    with pytest.raises(AttachfsError) as caught:
        await auth.header()
    told = "".join(traceback.format_exception(caught.value))
    assert TOKEN not in told
    assert SECRET not in told
    return caught.value


async def test_no_credentials_send_no_header() -> None:
    auth = NoAuth()
    assert await auth.header() is None
    assert not await auth.renew(None)


# -- the token file ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        TOKEN,
        f"{TOKEN}\n",
        f"\n  {TOKEN} \r\n",
        f"Bearer {TOKEN}\n",
        f"Authorization: Bearer {TOKEN}\n",
        f"authorization:bearer {TOKEN}",
    ],
)
async def test_a_token_is_read_bare_or_as_a_whole_header_line(token_file: Path, content: str) -> None:
    write(token_file, content)
    assert await TokenFile(token_file).header() == f"Bearer {TOKEN}"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "is empty"),
        (" \n\n", "is empty"),
        (f"{TOKEN}\n{TOKEN}\n", "more than one line"),
        (f"{TOKEN}\nX-Evil: yes", "more than one line"),
        (f"{TOKEN}\0", "control characters"),
        (f"{TOKEN} {TOKEN}", "holds no bearer token"),
        (f"Basic {TOKEN}", "holds no bearer token"),
        (f"{TOKEN};", "holds no bearer token"),
        (f"{TOKEN}é", "plain ASCII"),
        (b"\xff\xfe\x00" + TOKEN.encode(), "UTF-16"),
        (TOKEN * 1000, "too long"),
    ],
)
async def test_what_is_no_token_is_refused_without_quoting_it(
    token_file: Path, content: str | bytes, says: str
) -> None:
    write(token_file, content)
    problem = await problem_of(TokenFile(token_file))
    assert type(problem) is UsageError
    assert says in problem.reason
    assert str(token_file) in problem.reason


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
async def test_a_token_that_others_can_read_is_refused(token_file: Path, mode: int) -> None:
    token_file.chmod(mode)
    problem = await problem_of(TokenFile(token_file))
    assert type(problem) is UsageError
    assert f"chmod 600 {token_file}" in problem.reason


async def test_files_that_systemd_guards_may_look_readable_by_the_group(
    token_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token_file.chmod(0o440)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(token_file.parent))
    assert await TokenFile(token_file).header() == f"Bearer {TOKEN}"


async def test_a_missing_token_file_is_told_with_the_remedy(tmp_path: Path) -> None:
    problem = await problem_of(TokenFile(tmp_path / "missing"))
    assert type(problem) is UsageError
    assert "does not exist" in problem.reason
    assert "attachfs login" in problem.reason


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["directory", "fifo"])
async def test_what_is_no_file_is_refused_and_never_waited_for(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    path = tmp_path / "odd"
    make(path)
    problem = await problem_of(TokenFile(path))
    assert type(problem) is UsageError
    assert "is not a file" in problem.reason


async def test_a_changed_file_is_read_again_within_a_second(token_file: Path, mock_clock: MockClock) -> None:
    auth = TokenFile(token_file)
    assert await auth.header() == f"Bearer {TOKEN}"
    write(token_file, "another-token")
    assert await auth.header() == f"Bearer {TOKEN}"
    mock_clock.jump(1)
    assert await auth.header() == "Bearer another-token"


async def test_after_a_401_the_file_is_read_at_once(token_file: Path, mock_clock: MockClock) -> None:
    auth = TokenFile(token_file)
    stale = await auth.header()
    assert not await auth.renew(stale)
    write(token_file, "another-token")
    assert await auth.renew(stale)
    assert await auth.header() == "Bearer another-token"


async def test_a_401_to_a_token_that_was_replaced_meanwhile_needs_no_reading(
    token_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    auth = TokenFile(token_file)
    await auth.header()
    monkeypatch.setattr("attachfs.service.auth.read_private", None)
    assert await auth.renew("Bearer older")


@pytest.mark.parametrize(
    "spoil",
    [
        Path.unlink,
        lambda path: path.chmod(0o644),
        lambda path: write(path, "two\nlines"),
    ],
    ids=["gone", "open", "garbage"],
)
async def test_a_file_spoilt_during_a_mount_denies_access_until_it_is_mended(
    token_file: Path, autojump_clock: MockClock, spoil: Callable[[Path], None]
) -> None:
    auth = TokenFile(token_file)
    await auth.header()
    spoil(token_file)
    autojump_clock.jump(1)
    problem = await problem_of(auth)
    assert type(problem) is AccessDenied
    assert str(token_file) in problem.reason
    write(token_file, "mended")
    autojump_clock.jump(1.1)
    assert await auth.header() == "Bearer mended"


async def test_a_file_caught_while_it_is_rewritten_denies_nothing(
    token_file: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    auth = TokenFile(token_file)
    await auth.header()
    token_file.write_bytes(b"")
    autojump_clock.jump(1)
    real_sleep = trio.sleep

    async def written_meanwhile(seconds: float) -> None:
        write(token_file, "new")
        await real_sleep(seconds)

    monkeypatch.setattr(trio, "sleep", written_meanwhile)
    assert await auth.header() == "Bearer new"


# -- client credentials --------------------------------------------------------------------------------


def granted(token: str = TOKEN, **fields: Any) -> httpx.Response:
    return httpx.Response(200, json={"access_token": token, "token_type": "Bearer", **fields})


def credentials(service: Service, secret: Path | str = SECRET, **options: Any) -> ClientCredentials:
    http = httpx.AsyncClient(transport=httpx.MockTransport(service))
    return ClientCredentials("app-id", secret, "https://ledger.test/", http, **options)


def jwt(**claims: Any) -> str:
    parts = [
        base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in ({}, claims)
    ]
    return ".".join([*parts, "c2ln"])


async def test_a_token_is_fetched_with_a_form_and_used_until_it_is_about_to_end(
    mock_clock: MockClock,
) -> None:
    service = Service(granted("first", expires_in=660), granted("second", expires_in=660))
    auth = credentials(service)
    assert await auth.header() == "Bearer first"
    assert await auth.header() == "Bearer first"
    mock_clock.jump(599)
    assert await auth.header() == "Bearer first"
    mock_clock.jump(1.5)
    assert await auth.header() == "Bearer second"
    request = service.requests[0]
    assert (request.method, request.url.path) == ("POST", "/archivist/iam/v1/appidp/token")
    assert parse_qs(request.content.decode()) == {
        "grant_type": ["client_credentials"],
        "client_id": ["app-id"],
        "client_secret": [SECRET],
    }
    assert len(service.requests) == 2


@pytest.mark.parametrize(
    ("fields", "good_for"),
    [
        ({"expires_in": 660}, 600),
        ({"expires_in": 100}, 90),
        ({"expires_in": "100"}, 90),
        ({"access_token": jwt(exp=1_000_660)}, 600),
        ({"access_token": jwt(exp=1_000_660), "expires_in": -1}, 600),
        ({"access_token": jwt(exp=1_000_660), "expires_in": True}, 600),
        ({"access_token": jwt(exp=1_000_660), "expires_in": None}, 600),
    ],
)
async def test_the_end_is_known_from_the_answer_or_from_the_token(
    mock_clock: MockClock, fields: dict[str, Any], good_for: float
) -> None:
    service = Service(granted(**fields), granted("second"))
    auth = credentials(service, wall=lambda: 1_000_000)
    await auth.header()
    mock_clock.jump(good_for - 0.5)
    await auth.header()
    assert len(service.requests) == 1
    mock_clock.jump(1)
    assert await auth.header() == "Bearer second"


async def test_fifty_that_wait_share_one_renewal(autojump_clock: MockClock) -> None:
    async def slowly(_request: httpx.Request) -> httpx.Response:
        await trio.sleep(1)
        return granted(f"token-{len(service.requests)}", expires_in=660)

    service = Service(slowly)
    auth = credentials(service)
    headers: list[str] = []
    renewed: list[bool] = []

    async def ask() -> None:
        headers.append(await auth.header())

    async def renew() -> None:
        renewed.append(await auth.renew("Bearer token-1"))

    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(ask)
    assert set(headers) == {"Bearer token-1"}
    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(renew)
    assert renewed == [True] * 50
    assert await auth.header() == "Bearer token-2"
    assert len(service.requests) == 2


async def test_a_fresh_token_that_is_refused_too_is_not_renewed_over_and_over(mock_clock: MockClock) -> None:
    service = Service(*(granted(f"token-{n}") for n in range(9)))
    auth = credentials(service)
    assert await auth.renew(await auth.header())
    assert not await auth.renew(await auth.header())
    mock_clock.jump(1)
    assert await auth.renew(await auth.header())
    assert len(service.requests) == 3


async def test_a_renewal_whose_task_is_cancelled_is_done_by_the_next(autojump_clock: MockClock) -> None:
    async def slowly(_request: httpx.Request) -> httpx.Response:
        await trio.sleep(5)
        return granted()

    auth = credentials(Service(slowly))
    with trio.move_on_after(1):
        await auth.header()
    assert await auth.header() == f"Bearer {TOKEN}"


async def test_the_token_at_hand_is_used_on_while_no_other_can_be_had(autojump_clock: MockClock) -> None:
    service = Service(granted("first", expires_in=1000), httpx.ConnectError("down"))
    auth = credentials(service)
    await auth.header()
    autojump_clock.jump(950)
    assert await auth.header() == "Bearer first"
    asked = len(service.requests)
    assert await auth.header() == "Bearer first"
    assert len(service.requests) == asked, "a failure is not repeated at once"
    autojump_clock.jump(60)
    assert type(await problem_of(auth)) is Unreachable


@pytest.mark.parametrize(
    ("answer", "error", "says", "requests"),
    [
        (httpx.Response(401, json={"error": "invalid_client"}), AccessDenied, "secret is wrong (401)", 1),
        (httpx.Response(400, json={"error": f"no {SECRET}"}), AccessDenied, "no [hidden]", 1),
        (httpx.Response(401, text="<html>Log in</html>"), Unreachable, "something else answers", 3),
        (httpx.Response(403, json={"message": "Forbidden"}), Unreachable, "something else answers", 3),
        (httpx.Response(400, text="Bad Request"), Unreachable, "something else answers", 3),
        (httpx.Response(403), AccessDenied, "(403)", 1),
        (httpx.Response(404), BadAnswer, "check --url", 1),
        (httpx.Response(429), RateLimited, "(429)", 1),
        (httpx.Response(302, headers={"Location": "http://evil.test/"}), BadAnswer, "answered 302", 1),
        (httpx.Response(503), BadAnswer, "answered 503", 3),
        (httpx.ConnectError("refused"), Unreachable, "cannot connect", 3),
        (httpx.ReadError("reset"), BadAnswer, "the connection broke", 3),
        (httpx.LocalProtocolError(f"Illegal header value {SECRET}"), BadAnswer, "failed", 3),
        (httpx.Response(200, text=f"{{{TOKEN}"), BadAnswer, "no usable token", 1),
        (httpx.Response(200, json=[]), BadAnswer, "no usable token", 1),
        (granted(""), BadAnswer, "no usable token", 1),
        (granted("two\nlines"), BadAnswer, "no usable token", 1),
        (granted(token_type="mac"), BadAnswer, "not a bearer token", 1),
        (httpx.Response(200, content=b"[" * 100_000), BadAnswer, "longer than", 1),
    ],
)
async def test_what_the_token_endpoint_refuses_is_told_clearly(
    autojump_clock: MockClock,
    answer: httpx.Response | Exception,
    error: type[AttachfsError],
    says: str,
    requests: int,
) -> None:
    service = Service(answer)
    problem = await problem_of(credentials(service))
    assert type(problem) is error
    assert says in problem.reason
    assert len(service.requests) == requests


async def test_a_renewal_cancelled_half_way_denies_nobody(autojump_clock: MockClock) -> None:
    async def slow(_request: httpx.Request) -> httpx.Response:
        await trio.sleep(1)
        return granted("second")

    service = Service(granted("first"), slow)
    auth = credentials(service)
    stale = await auth.header()
    autojump_clock.jump(100)
    with trio.move_on_after(0.5) as gone:
        await auth.renew(stale)
    assert gone.cancelled_caught
    assert await auth.renew(stale), "the next caller makes the renewal"
    assert await auth.header() == "Bearer second"


async def test_a_silent_token_endpoint_is_waited_for_no_longer_than_the_timeout(
    autojump_clock: MockClock,
) -> None:
    for timeout, waited in ((5, 5), (600, 30)):
        began = autojump_clock.current_time()
        auth = credentials(Service(lambda _request: trio.sleep_forever()), timeout=timeout)
        problem = await problem_of(auth)
        assert type(problem) is TimedOut
        assert autojump_clock.current_time() - began == waited


async def test_the_secret_is_read_from_its_file_at_each_renewal(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    path = tmp_path / "secret"
    write(path, f"{SECRET}\n")
    service = Service(granted(expires_in=10))
    auth = credentials(service, path)
    await auth.header()
    write(path, "changed")
    mock_clock.jump(10)
    await auth.header()
    assert [parse_qs(r.content.decode())["client_secret"] for r in service.requests] == [
        [SECRET],
        ["changed"],
    ]


async def test_a_secret_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    write(path, SECRET, 0o644)
    problem = await problem_of(credentials(Service(granted()), path))
    assert type(problem) is UsageError
    assert "chmod 600" in problem.reason


async def test_nothing_that_holds_a_secret_shows_it(token_file: Path) -> None:
    file, client = TokenFile(token_file), credentials(Service(granted()))
    await file.header()
    await client.header()
    shown = [repr(thing) + str(thing) for thing in (file, client, Secret(SECRET))]
    shown += [repr(vars(file)), repr(vars(client)), f"{vars(client)}"]
    assert not any(TOKEN in text or SECRET in text for text in shown)


@pytest.mark.parametrize("client_id", ["", "a\nb", "é"])
def test_a_client_id_that_cannot_be_one_is_refused(client_id: str) -> None:
    with pytest.raises(UsageError):
        ClientCredentials(client_id, SECRET, "https://ledger.test", httpx.AsyncClient())


@pytest.mark.parametrize(
    ("token", "expiry"),
    [
        (jwt(exp=1_700_000_000), 1_700_000_000),
        (jwt(exp=1.5), 1.5),
        (jwt(exp="soon"), None),
        (jwt(exp=True), None),
        (jwt(exp=-1), None),
        (jwt(sub="me"), None),
        ("opaque", None),
        ("a.b.c", None),
        ("a.é.c", None),
        ("..", None),
    ],
)
def test_the_expiry_of_a_jwt_is_read_where_there_is_one(token: str, expiry: float | None) -> None:
    assert jwt_expiry(token) == expiry
