"""Where an answer ends: what a peer appends to it, at once or later, is never the answer to anything else."""
# ruff: noqa: ARG001 - a test runs on the clock it takes

import logging
import re
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
import trio
import trustme
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from attachfs.errors import AttachfsError, NotFound
from attachfs.service.auth import NoAuth
from attachfs.service.client import Client, open_http
from attachfs.service.http1 import UnsolicitedError
from attachfs.service.pool import Http1Pool
from tests.services.http_in_process import FILE, file_ref, raw_server

QUIET = 0.05
FORGED = {
    "record": b'HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n{"forged": 11}',
    "bytes": b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged",
    "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nforged\r\n0\r\n\r\n",
    "404": b'HTTP/1.1 404 No\r\nContent-Type: application/json\r\nContent-Length: 13\r\n\r\n{"code": "no"}'[
        :-1
    ],
    "403": b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n",
    "204": b"HTTP/1.1 204 No\r\n\r\n",
    "half a head": b"HTTP/1.1 404 No\r\nContent-Le",
    "a byte": b"\n",
}


def honest(path: str, way: str = "length") -> bytes:
    """Return the true answer for a path: its body names the path."""
    body = b'{"path": "%s"}' % path.encode()
    match way:
        case "chunks":
            return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (
                len(body),
                body,
            )
        case "early":
            return b"HTTP/1.1 103 Early Hints\r\n\r\n" + honest(path)
        case "part":
            head = b"HTTP/1.1 206 Part\r\nContent-Range: bytes 0-%d/%d\r\n" % (len(body) - 1, len(body))
            return head + b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
        case "204" | "304":
            return b"HTTP/1.1 %s X\r\n\r\n" % way.encode()
        case "403" | "404" | "500":
            return b"HTTP/1.1 %s X\r\nContent-Length: %d\r\n\r\n%s" % (way.encode(), len(body), body)
        case _:
            return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


def body_of(path: str) -> bytes:
    return b'{"path": "%s"}' % path.encode()


# -- a peer in memory, on a clock that jumps -----------------------------------------------------------


class Lie(NamedTuple):
    """What comes behind an answer, and how many seconds after it."""

    data: bytes
    after: float


class Answer(NamedTuple):
    way: str
    latency: float
    lies: list[Lie]


class MemoryWire:
    """A connection whose other end answers as it is told."""

    def __init__(self, script: "Script") -> None:
        self.script = script
        self.buffer = bytearray()
        self.arrived = trio.Event()
        self.closed = False

    async def send(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        path = data.split(b" ", 2)[1].decode()
        method = data.split(b" ", 1)[0]
        self.script.nursery.start_soon(self._answer, method, path, self.script.next())

    async def _answer(self, method: bytes, path: str, answer: Answer) -> None:
        await trio.sleep(answer.latency)
        data = honest(path, answer.way)
        if method == b"HEAD":
            heads = 2 if answer.way == "early" else 1
            data = b"".join(head + b"\r\n\r\n" for head in data.split(b"\r\n\r\n")[:heads])
        at_once = b"".join(lie.data for lie in answer.lies if not lie.after)
        self.deliver(data + at_once)
        for lie in answer.lies:
            if lie.after:
                await trio.sleep(lie.after)
                self.deliver(lie.data)

    def deliver(self, data: bytes) -> None:
        self.buffer += data
        self.arrived.set()

    async def receive_into(self, buffer: memoryview) -> int:
        piece = await self.receive(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)

    async def receive(self, limit: int) -> bytes:
        await trio.lowlevel.checkpoint()
        while not self.buffer:
            self.arrived = trio.Event()
            await self.arrived.wait()
        piece = bytes(self.buffer[:limit])
        del self.buffer[:limit]
        return piece

    def unread(self) -> bytes | None:
        return bytes(self.buffer[:1]) or None

    def close(self) -> None:
        self.closed = True


class Script:
    """The peer's answers in turn, then honest ones."""

    def __init__(self, nursery: trio.Nursery, answers: list[Answer]) -> None:
        self.nursery = nursery
        self.answers = list(answers)
        self.connections: list[MemoryWire] = []

    def next(self) -> Answer:
        return self.answers.pop(0) if self.answers else Answer("length", 0.001, [])

    async def connect(self, _host: str, _port: int, _context: object) -> MemoryWire:
        await trio.lowlevel.checkpoint()
        self.connections.append(MemoryWire(self))
        return self.connections[-1]


@asynccontextmanager
async def pool_of(answers: list[Answer]) -> AsyncIterator[tuple[Http1Pool, Script]]:
    async with trio.open_nursery() as nursery:
        script = Script(nursery, answers)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        async with Http1Pool(context, quiet=QUIET, clock=trio.current_time, connect=script.connect) as pool:
            yield pool, script
        nursery.cancel_scope.cancel()


async def get(pool: Http1Pool, path: str, method: str = "GET", attempts: int = 3) -> httpx.Response:
    """Ask as the transport does: what is not believed is asked again."""
    for attempt in range(attempts):
        try:
            response = await pool.handle_async_request(httpx.Request(method, f"http://ledger.test{path}"))
            await response.aread()
            return response
        except UnsolicitedError:
            if attempt == attempts - 1:
                raise
    raise AssertionError


WAYS = ("length", "chunks", "early", "part", "204", "304", "403", "404", "500")
lies = st.builds(
    Lie,
    st.lists(st.sampled_from(sorted(FORGED)), min_size=1, max_size=3).map(
        lambda names: b"".join(FORGED[name] for name in names)
    ),
    st.sampled_from([0.0, 0.0, 0.001, 0.01, 0.03, 0.045]),
)
answers = st.builds(
    Answer,
    st.sampled_from(WAYS),
    st.sampled_from([0.0, 0.001, 0.02, 0.05]),
    st.lists(lies, max_size=1),
)
steps = st.tuples(
    st.sampled_from([0.0, 0.001, 0.029, 0.031, 0.06, 1.0]), st.sampled_from(["GET", "GET", "HEAD"])
)


@seed(20261125)
@settings(
    max_examples=1_000,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],
)
@given(st.lists(st.tuples(answers, steps), min_size=2, max_size=8), st.integers(1, 3))
@pytest.mark.slow
def test_no_schedule_of_a_lying_peer_makes_one_answer_another_s(
    schedule: list[tuple[Answer, tuple[float, str]]], workers: int
) -> None:
    """A lie comes at most 45 ms behind an answer, which is within the pause that a connection has to make."""
    script_answers = [answer for answer, _ in schedule]

    async def main() -> None:
        with trio.fail_after(1000):
            await run()

    async def run() -> None:
        async with pool_of(script_answers) as (pool, _script), trio.open_nursery() as nursery:

            async def worker(number: int) -> None:
                for index, (_, (pause, method)) in enumerate(schedule):
                    await trio.sleep(pause)
                    path = f"/{number}/{index}"
                    response = await get(pool, path, method)
                    if response.status_code in (204, 304) or method == "HEAD":
                        assert response.content == b""
                    else:
                        assert response.content == body_of(path), (response.status_code, response.content)

            for number in range(workers):
                nursery.start_soon(worker, number)

    trio.run(main, clock=MockClock(autojump_threshold=0))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", FORGED)
@pytest.mark.parametrize("after", [0.0, 0.03])
async def test_what_comes_behind_an_answer_closes_its_connection(
    way: str, name: str, after: float, autojump_clock: MockClock
) -> None:
    async with pool_of([Answer(way, 0.001, [Lie(FORGED[name], after)])]) as (pool, script):
        first = await get(pool, "/first")
        assert first.content == (b"" if way in ("204", "304") else body_of("/first"))
        for path in ("/second", "/third"):
            assert (await get(pool, path)).content == body_of(path)
            await trio.sleep(1.1)  # by then the oldest connection is looked at, whoever is used
        assert pool.unsolicited == 1
        assert script.connections[0].closed
        # And from now on each request has a connection of its own.
        assert (await get(pool, "/fourth")).content == body_of("/fourth")
        assert all(one.closed for one in script.connections)


async def test_a_connection_that_was_quiet_is_used_again_and_one_that_was_not_is_not(
    autojump_clock: MockClock,
) -> None:
    async with pool_of([]) as (pool, script):
        for pause, connections in ((0.0, 1), (0.0, 2), (0.06, 2), (0.06, 2)):
            await trio.sleep(pause)
            await get(pool, "/x")
            assert len(script.connections) == connections


async def test_a_second_answer_to_the_same_request_on_a_used_connection_leaves_neither_believed(
    autojump_clock: MockClock,
) -> None:
    """The first of the two may have been on its way since before the request."""
    twice = Answer("404", 0.0, [Lie(honest("/second"), 0.0)])
    async with pool_of([Answer("length", 0.0, []), twice]) as (pool, script):
        await get(pool, "/first")
        await trio.sleep(0.06)
        assert (await get(pool, "/second")).status_code == 200
        assert (pool.unsolicited, len(script.connections)) == (1, 2)


async def test_an_answer_before_the_request_is_none(autojump_clock: MockClock) -> None:
    async with pool_of([]) as (pool, script):
        connect = pool._connect

        async def greeted(*args: object) -> MemoryWire:
            wire: MemoryWire = await connect(*args)
            wire.deliver(FORGED["record"])
            return wire

        pool._connect = greeted
        with pytest.raises(UnsolicitedError):
            await get(pool, "/x")
        assert all(wire.closed for wire in script.connections)


async def test_the_host_is_named_once(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    liar = Answer("length", 0.0, [Lie(FORGED["404"], 0.0)])
    async with pool_of([liar] * 5) as (pool, _script):
        for _ in range(5):
            await get(pool, "/x")
        assert pool.unsolicited == 5
    (line,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "ledger.test:80 sends bytes that belong to no answer" in line.message


# -- over real sockets ---------------------------------------------------------------------------------


def target_of(head: bytes) -> str:
    return re.sub(r"^https?://[^/]+", "", head.split(b" ", 2)[1].decode())


async def lie_about(stream: trio.abc.Stream, head: bytes, after: float, forged: bytes) -> None:
    await stream.send_all(honest(target_of(head)))
    if after:
        await trio.sleep(after)
    await stream.send_all(forged)


@asynccontextmanager
async def tls_server(
    answer: Callable[[trio.abc.Stream, bytes], object], ca: trustme.CA
) -> AsyncIterator[str]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert("127.0.0.1").configure_cert(context)

    async def serve(stream: trio.SSLStream[trio.SocketStream]) -> None:
        try:
            async with stream:
                while head := await stream.receive_some():
                    await answer(stream, bytes(head))  # type: ignore[misc]
        except (trio.BrokenResourceError, trio.ClosedResourceError, ssl.SSLError):
            pass

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_ssl_over_tcp_listeners(
            0, context, host="127.0.0.1", https_compatible=True
        )
        nursery.start_soon(partial(trio.serve_listeners, serve, listeners))
        listener = listeners[0].transport_listener
        assert isinstance(listener, trio.SocketListener)
        yield f"https://127.0.0.1:{listener.socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("after", [0.0, 0.03])
@pytest.mark.parametrize("way", ["plain", "tls", "proxy"])
async def test_three_forged_answers_behind_each_answer_change_nothing_that_is_read(
    way: str, after: float, tmp_path: Path
) -> None:
    forged = FORGED["record"] + FORGED["404"] + FORGED["bytes"]
    lies = 0
    all_sent = trio.Event()

    async def answer(stream: trio.abc.Stream, head: bytes) -> None:
        nonlocal lies
        try:
            await lie_about(stream, head, after, forged)
        finally:  # also when the client has closed the connection meanwhile
            lies += 1
            if lies == 15:
                all_sent.set()

    ca = trustme.CA()
    ca_file = tmp_path / "ca.pem"
    ca.cert_pem.write_to_path(str(ca_file))
    async with tls_server(answer, ca) if way == "tls" else raw_server(answer) as url:
        address = "http://ledger.test" if way == "proxy" else url
        environ = {"http_proxy": url} if way == "proxy" else {}
        # As in the next test, it counts as quiet for longer than the forged answers take on a busy machine.
        async with open_http(ca_file=ca_file, environ=environ, quiet=60) as http:
            client = Client(http, address, NoAuth())

            async def ask(first: int, count: int = 5) -> None:
                for number in range(first, first + count):
                    ref = file_ref(number)
                    path = f"/archivist/v2/attachments/{ref.path}/info"
                    assert await client.info(ref) == body_of(path)
                    await trio.sleep(0.02)

            async with trio.open_nursery() as nursery:
                for first in (0, 100, 200):
                    nursery.start_soon(ask, first)
            if way != "proxy":
                await all_sent.wait()
                http.router.pool._quiet = 0.0  # the time has passed, and the next request looks
                await ask(300, 1)
            assert bool(http.router.pool.unsolicited) == (way != "proxy")


async def test_session_tickets_of_tls_do_not_end_a_connection(tmp_path: Path) -> None:
    ca = trustme.CA()
    ca_file = tmp_path / "ca.pem"
    ca.cert_pem.write_to_path(str(ca_file))
    peers = set()

    async def answer(stream: trio.abc.Stream, head: bytes) -> None:
        peers.add(stream)
        await stream.send_all(honest(target_of(head)))

    async with tls_server(answer, ca) as url, open_http(ca_file=ca_file, quiet=0) as http:
        client = Client(http, url, NoAuth())
        for _ in range(3):
            await client.info(FILE)
    assert len(peers) == 1


async def test_a_forged_404_that_comes_late_is_no_missing_file() -> None:
    """No connection is used again while something may still be on its way to it.

    It has to be quiet for far longer here than the forged answer takes, even on a busy machine. What comes
    after the next request, on a connection that was quiet for long enough, looks like the answer to it.
    """

    async def answer(stream: trio.abc.Stream, head: bytes) -> None:
        await lie_about(stream, head, 0.03, FORGED["404"])

    async with raw_server(answer) as url, open_http(quiet=60) as http:
        client = Client(http, url, NoAuth())
        for number in range(20):
            try:
                await client.info(file_ref(number))
            except NotFound:
                pytest.fail("the forged 404 was believed")
            except AttachfsError:
                pytest.fail("an honest answer was refused")
            await trio.sleep(number / 400)


@pytest.mark.parametrize("status", [b"401 No", b"403 No", b"404 No"])
@pytest.mark.parametrize("way", ["length", "chunks"])
async def test_a_forged_refusal_whose_body_comes_with_the_true_answer_is_not_believed(
    status: bytes, way: str
) -> None:
    """What shows while an error's body is read, and not with its head, voids the error as well."""
    said = b'{"code": 5, "message": "no"}'
    seen = 0

    async def answer(stream: trio.abc.Stream, head: bytes) -> None:
        nonlocal seen
        seen += 1
        behind = b""
        if seen == 2:
            start = b"HTTP/1.1 %s\r\nContent-Type: application/json\r\n" % status
            length = b"Content-Length: %d\r\n\r\n" % len(said)
            await stream.send_all(
                start + (length if way == "length" else b"Transfer-Encoding: chunked\r\n\r\n")
            )
            await trio.sleep(0.05)
            behind = said if way == "length" else b"%x\r\n%s\r\n0\r\n\r\n" % (len(said), said)
        await stream.send_all(behind + honest(target_of(head)))

    async with raw_server(answer) as url, open_http(quiet=0) as http:
        client = Client(http, url, NoAuth())
        await client.info(FILE)
        ref = file_ref(1)
        assert await client.info(ref) == body_of(f"/archivist/v2/attachments/{ref.path}/info")
        assert http.router.pool.unsolicited == 1
