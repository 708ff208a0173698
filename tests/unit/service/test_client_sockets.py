"""The client over real sockets, against servers that misbehave. Time is made up; the network is not."""
# ruff: noqa: ARG001 - a test runs on the clock it takes

import errno
import gc
import logging
import random
import socket
import ssl
import sys
import traceback
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import httpx
import pytest
import trio
import trustme
from trio.testing import MockClock, wait_all_tasks_blocked

import attachfs
from attachfs.errors import AttachfsError, BadAnswer, TimedOut, TooManyFiles, Unreachable
from attachfs.service import connections
from attachfs.service.auth import NoAuth
from attachfs.service.client import Client, open_http
from attachfs.service.http1 import request_bytes
from attachfs.service.pool import ClockJumps, Http1Pool
from attachfs.service.wire import Wire, connect
from tests.services.http_in_process import (
    FILE,
    TOKEN,
    FakeAuth,
    file_ref,
    open_blob,
    raw_server,
    real_client,
)

DATA = bytes(range(256)) * 4000  # about a megabyte
SIZE = len(DATA)
GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


@pytest.fixture(autouse=True)
def _no_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "uniform", lambda low, _high: low)


Writer = Callable[[trio.SocketStream], Awaitable[None]]


@pytest.fixture
def clock(mock_clock: MockClock) -> MockClock:
    """Stands still unless a test jumps: sockets take real time, and no timeout may pass meanwhile."""
    return mock_clock


def says(*parts: bytes, close: bool = True, reset: bool = False) -> Writer:
    async def write(stream: trio.SocketStream) -> None:
        for data in parts:
            await stream.send_all(data)
        if reset:
            # A linger time of nothing makes closing a reset.
            stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, bytes([1, 0, 0, 0, 0, 0, 0, 0]))
        if close:
            await stream.aclose()

    return write


def forever(start: bytes, piece: bytes) -> Writer:
    async def write(stream: trio.SocketStream) -> None:
        await stream.send_all(start)
        while True:
            await stream.send_all(piece)

    return write


HEAD = b"HTTP/1.1 200 OK\r\n"
FAULTS: dict[str, tuple[Writer, type[AttachfsError]]] = {
    "closes without a word": (says(), BadAnswer),
    "resets without a word": (says(reset=True), BadAnswer),
    "closes within the status": (says(b"HTTP/1.1 2"), BadAnswer),
    "closes within the headers": (says(HEAD + b"Content-Le"), BadAnswer),
    "speaks something else": (says(b"220 smtp.ledger.test ESMTP\r\n"), BadAnswer),
    "speaks TLS on the plain port": (says(b"\x15\x03\x03\x00\x02\x02\x28"), BadAnswer),
    "sends headers for ever": (forever(HEAD, b"X-More: " + b"x" * 4096 + b"\r\n"), BadAnswer),
    "sends one header for ever": (forever(HEAD + b"X: ", b"x" * 65536), BadAnswer),
    "sends a header that is none": (says(HEAD + b"no colon\r\n\r\n"), BadAnswer),
    "announces a negative length": (says(HEAD + b"Content-Length: -1\r\n\r\n{}"), BadAnswer),
    "announces two lengths": (says(HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}"), BadAnswer),
    "announces a length that is none": (says(HEAD + b"Content-Length: 0x2\r\n\r\n{}"), BadAnswer),
    "sends less than announced": (says(HEAD + b"Content-Length: 9\r\n\r\n{}"), BadAnswer),
    "resets within the body": (says(HEAD + b"Content-Length: 9\r\n\r\n{}", reset=True), BadAnswer),
    "cuts its chunks": (says(HEAD + b"Transfer-Encoding: chunked\r\n\r\n9\r\n{}"), BadAnswer),
    "ends its chunks too early": (says(HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n"), BadAnswer),
    "sends chunks that are none": (says(HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}"), BadAnswer),
    "encodes twice": (says(HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"), BadAnswer),
    "sends a body for ever": (forever(HEAD + b"\r\n", bytes(65536)), BadAnswer),
    "sends an endless error": (forever(b"HTTP/1.1 400 No\r\n\r\n", bytes(65536)), BadAnswer),
}


@pytest.mark.parametrize("name", FAULTS)
async def test_a_record_from_a_server_that_misbehaves_is_an_error_and_the_next_is_good(
    name: str, clock: MockClock
) -> None:
    write, error = FAULTS[name]
    healed = False

    async def answer(stream: trio.SocketStream, _head: bytes) -> None:
        await (stream.send_all(GOOD) if healed else write(stream))

    clock.rate = 10  # so that retries pause for less; and no timeout may pass meanwhile
    async with raw_server(answer) as url, real_client(url, FakeAuth(TOKEN), timeout=600) as client:
        with pytest.raises(error) as caught:
            await client.info(FILE)
        assert TOKEN not in "".join(traceback.format_exception(caught.value))
        healed = True
        assert await client.info(FILE) == b"{}"
        assert client.transport.limiter.in_flight == 0


@pytest.mark.parametrize(
    "start",
    [b"", b"HTTP/1.1 2", HEAD, HEAD + b"Content-Length: 9\r\n\r\n", HEAD + b"Content-Length: 9\r\n\r\n{}"],
    ids=["at once", "within the status", "within the headers", "after the headers", "within the body"],
)
async def test_a_record_that_stalls_ends_with_the_timeout(start: bytes, clock: MockClock) -> None:
    stalled = trio.Event()

    async def answer(stream: trio.SocketStream, _head: bytes) -> None:
        await stream.send_all(start)
        stalled.set()
        await trio.sleep_forever()

    async with (
        raw_server(answer) as url,
        real_client(url, timeout=60) as client,
        trio.open_nursery() as nursery,
    ):

        async def jump() -> None:
            await stalled.wait()
            await wait_all_tasks_blocked(0.01)
            clock.jump(61)

        nursery.start_soon(jump)
        with pytest.raises(TimedOut):
            await client.info(FILE)


async def test_informational_answers_for_ever_are_not_waited_for(clock: MockClock) -> None:
    clock.rate = 10
    write = forever(b"", b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")

    async def answer(stream: trio.SocketStream, _head: bytes) -> None:
        await write(stream)

    async with raw_server(answer) as url, real_client(url, timeout=600) as client:
        with pytest.raises(BadAnswer):
            await client.info(FILE)


@pytest.mark.parametrize("extra", [b"}", b"\r\n", b"x" * 70_000])
async def test_bytes_beyond_the_announced_length_spoil_nothing(extra: bytes, clock: MockClock) -> None:
    async def answer(stream: trio.SocketStream, _head: bytes) -> None:
        await stream.send_all(GOOD + extra)

    clock.rate = 10
    async with raw_server(answer) as url, real_client(url) as client:
        for _ in range(5):
            assert await client.info(FILE) == b"{}"


async def test_a_connection_closed_while_idle_is_not_seen(clock: MockClock) -> None:
    connections = 0

    async def answer(stream: trio.SocketStream, _head: bytes) -> None:
        nonlocal connections
        connections += 1
        await stream.send_all(GOOD)
        await stream.aclose()

    async with raw_server(answer) as url, real_client(url) as client:
        for _ in range(5):
            assert await client.info(FILE) == b"{}"
    assert connections == 5


async def test_a_connection_is_used_again_after_answers_of_every_kind(clock: MockClock) -> None:
    connections = set()

    async def answer(stream: trio.SocketStream, _head: bytes) -> None:
        connections.add(stream)
        for status in (b"404 No", b"403 No", b"200 OK"):
            body = b'{"message": "no"}'
            await stream.send_all(b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body))
            break

    async with raw_server(answer) as url, real_client(url, quiet=0) as client:
        for _ in range(5):
            with pytest.raises(AttachfsError, match="404"):
                await client.info(FILE)
    assert len(connections) == 1


async def test_a_record_s_way_to_the_socket_is_short(
    clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each frame costs something at each of a request's task switches; and somebody has to read them all."""
    frames: list[str] = []
    ours = Path(attachfs.__file__).parent  # not all that is below a checkout of that name
    send = socket.socket.send

    class Counting(socket.socket):
        def send(self, data: Any, *flags: int) -> int:
            frame: FrameType | None = sys._getframe(1)
            while frame is not None:
                file = Path(frame.f_code.co_filename)
                if file.is_relative_to(ours):
                    frames.append(f"{file.name}:{frame.f_code.co_name}")
                frame = frame.f_back
            return send(self, data, *flags)

    async def answer(stream: trio.SocketStream, _head: bytes) -> None:
        await stream.send_all(GOOD)

    monkeypatch.setattr("attachfs.service.wire.socket.socket", Counting)
    async with raw_server(answer) as url, real_client(url, FakeAuth(TOKEN)) as client:
        await client.info(FILE)
    assert frames == [
        "wire.py:send",
        "pool.py:exchange",
        "transport.py:_attempt",
        "transport.py:perform",
    ]


@pytest.mark.parametrize("path", ["", "/a/prefix", "/needs quoting", "/a/../b"])
async def test_a_request_reads_as_the_library_would_write_it(clock: MockClock, path: str) -> None:
    """Whichever way it was put together."""
    heads: list[bytes] = []

    async def answer(stream: trio.SocketStream, head: bytes) -> None:
        heads.append(head + b"\r\n\r\n")
        await stream.send_all(GOOD)

    async with raw_server(answer) as url:
        for auth in (NoAuth(), FakeAuth(TOKEN)):
            async with real_client(url + path, auth) as client:
                await client.info(FILE)
                async with client.download(FILE, 2, start=1) as chunks:
                    await anext(chunks)
    request = httpx.Request("GET", f"{url}{path}/archivist/v2/attachments/{FILE.path}/info")
    said = {
        "Accept": "application/json",
        "Accept-Encoding": "identity",
        "User-Agent": connections.USER_AGENT,
        "DataTrails-User-Agent": connections.USER_AGENT,
    }
    for number, token in ((0, {}), (2, {"Authorization": f"Bearer {TOKEN}"})):
        assert heads[number] == request_bytes(httpx.Request("GET", request.url, headers={**said, **token}))
    for number, token in ((1, {}), (3, {"Authorization": f"Bearer {TOKEN}"})):
        part = {**said, "Accept": "*/*", "Range": "bytes=1-", **token}
        assert heads[number] == request_bytes(
            httpx.Request("GET", str(request.url).removesuffix("/info"), headers=part)
        )


async def test_a_small_answer_costs_one_receive(clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that brings less than it could have brought has found the end of what there was."""
    received: list[str] = []

    class Counting(socket.socket):
        def recv(self, *args: Any) -> bytes:
            received.append("recv")
            return super().recv(*args)

        def recv_into(self, *args: Any) -> int:
            received.append("recv_into")
            return super().recv_into(*args)

    async def answer(stream: trio.SocketStream, _head: bytes) -> None:
        await stream.send_all(GOOD)

    monkeypatch.setattr("attachfs.service.wire.socket.socket", Counting)
    async with raw_server(answer) as url, real_client(url, quiet=0) as client:
        await client.info(FILE)
        del received[:]
        await client.info(FILE)
    assert received == ["recv", "recv_into"]  # whether it was left alone meanwhile, and the answer


# -- silence -------------------------------------------------------------------------------------------


async def test_an_idle_connection_that_swallows_a_request_costs_two_seconds(clock: MockClock) -> None:
    """As a NAT does that has forgotten it, or a network that was left. The others are dropped too."""
    seen: list[trio.SocketStream] = []
    together = trio.Event()
    dead: set[trio.SocketStream] = set()

    async def answer(stream: trio.SocketStream, _head: bytes) -> None:
        if stream in dead:
            await trio.sleep_forever()
        seen.append(stream)
        if len(seen) == 3:
            together.set()
        await together.wait()
        await stream.send_all(GOOD)

    async with raw_server(answer) as url, open_http(quiet=0) as http:
        client = Client(http, url, NoAuth(), timeout=60)
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(client.info, FILE)
        dead.update(seen)
        clock.rate = 20
        began = clock.current_time()
        for _ in range(5):
            assert await client.info(FILE) == b"{}"
        assert 2 <= clock.current_time() - began < 20
        assert len(set(seen) - dead) == 1


async def test_a_process_that_stood_still_itself_does_not_blame_the_service(
    clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """As on a machine that gives it no processor for a while: the answers are there, and unread."""
    together, sent = trio.Event(), 0

    async def answer(stream: trio.SocketStream, _head: bytes) -> None:
        nonlocal sent
        sent += 1
        if sent == 10:
            together.set()
        await together.wait()
        await stream.send_all(GOOD)

    async with (
        raw_server(answer) as url,
        open_http(quiet=0) as http,
        trio.open_nursery() as background,
    ):
        client = Client(http, url, NoAuth(), timeout=60)
        background.start_soon(client.watch)
        for reused in (False, True):
            together, sent = trio.Event(), 0
            async with trio.open_nursery() as nursery:
                for number in range(9):
                    nursery.start_soon(client.info, file_ref(number))
                while sent < 9:
                    await trio.lowlevel.checkpoint()
                await wait_all_tasks_blocked()
                if reused:
                    clock.jump(5)  # nothing of this process ran meanwhile
                nursery.start_soon(client.info, file_ref(9))  # and with it all are answered
        background.cancel_scope.cancel()
    assert not [record for record in caplog.records if "out of reach" in record.getMessage()]
    assert client.transport.circuit.failing_since is None


async def test_after_a_suspend_no_idle_connection_is_used(clock: MockClock) -> None:
    seen: list[trio.SocketStream] = []
    monotonic, boottime, wall = [0.0], [0.0], [0.0]
    hands = (lambda: monotonic[0], lambda: boottime[0], lambda: wall[0])

    async def answer(stream: trio.SocketStream, _head: bytes) -> None:
        seen.append(stream)
        await stream.send_all(GOOD)

    async with (
        raw_server(answer) as url,
        Http1Pool(ssl.create_default_context(), quiet=0, clock=hands[0], jumps=ClockJumps(*hands)) as pool,
    ):

        async def get() -> None:
            response = await pool.handle_async_request(httpx.Request("GET", url))
            await response.aread()

        for steps, connections in (
            ((5.0, 5.0, 5.0), 1),  # time passed
            ((1.0, 9.0, 9.0), 2),  # the machine slept
            ((1.0, 1.0, 1.5), 2),  # the clock was set a little
            ((1.0, 1.0, 99.0), 3),  # a virtual machine was stopped, and its clock set
            ((1.0, 1.0, -99.0), 4),
        ):
            for hand, step in zip((monotonic, boottime, wall), steps, strict=True):
                hand[0] += step
            if connections == 1:
                await get()
            await get()
            assert len(set(seen)) == connections


async def test_a_record_that_stands_still_is_asked_for_again_after_ten_seconds(clock: MockClock) -> None:
    asked = 0

    async def answer(stream: trio.SocketStream, _head: bytes) -> None:
        nonlocal asked
        asked += 1
        if asked == 1:
            await stream.send_all(GOOD[:-1])
            await trio.sleep_forever()
        await stream.send_all(GOOD)

    clock.rate = 50
    async with raw_server(answer) as url, real_client(url, timeout=600) as client:
        assert await client.info(FILE) == b"{}"
        assert 10 <= clock.current_time() < 100


async def test_a_blob_that_stands_still_is_taken_up_again_on_a_new_connection(clock: MockClock) -> None:
    starts: list[int] = []
    streams = set()

    async def answer(stream: trio.SocketStream, head: bytes) -> None:
        streams.add(stream)
        start = start_of(head)
        starts.append(start)
        status = (
            b"206 Part\r\nContent-Range: bytes %d-%d/%d" % (start, SIZE - 1, SIZE) if start else b"200 OK"
        )
        await stream.send_all(b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n" % (status, SIZE - start))
        if len(starts) < 3:
            await stream.send_all(DATA[start : start + 300_000])
            await trio.sleep_forever()
        await stream.send_all(DATA[start:])

    clock.rate = 50
    async with raw_server(answer) as url, real_client(url, timeout=600) as client:
        assert await fetch(client) == DATA
        assert clock.current_time() < 200
    assert starts == [0, 300_000, 600_000]
    assert len(streams) == 3


async def test_without_descriptors_idle_connections_are_given_up_first(clock: MockClock) -> None:
    refusals = 1
    made = 0

    async def answer(stream: trio.SocketStream, _head: bytes) -> None:
        await stream.send_all(GOOD)

    async def scarce(*args: Any) -> Wire:
        nonlocal refusals, made
        made += 1
        if made > 1 and refusals:
            refusals -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return await connect(*args)

    async with raw_server(answer) as url, open_http(quiet=600) as http:
        http.router.pool._connect = scarce
        client = Client(http, url, NoAuth())
        await client.info(FILE)
        assert http.router.pool.idle == 1
        await client.info(FILE)
        assert http.router.pool.idle == 1
        http.router.pool.drop_idle()
        refusals = 5
        problem = await problem_of(client)
        assert type(problem) is TooManyFiles
        assert "raise the limit (ulimit -n)" in problem.reason
        assert client.transport.circuit.failing_since is None, "the service has nothing to do with it"


# -- blobs ---------------------------------------------------------------------------------------------


def start_of(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        if line.lower().startswith(b"range: bytes="):
            return int(line[13:].rstrip(b"-"))
    return 0


async def fetch(client: Client) -> bytes:
    got = bytearray()
    async with client.download(FILE, SIZE) as chunks:
        async for chunk in chunks:
            if chunk.offset == 0:
                got.clear()
            assert chunk.offset == len(got)
            got += chunk.data
    return bytes(got)


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("reset", [True, False])
async def test_a_blob_that_breaks_off_arrives_whole_all_the_same(
    clock: MockClock, *, ranges: bool, reset: bool
) -> None:
    cuts = [SIZE // 3, SIZE // 2]

    async def answer(stream: trio.SocketStream, head: bytes) -> None:
        start = start_of(head) if ranges else 0
        status = b"206 Partial Content" if start else b"200 OK"
        headers = b"HTTP/1.1 %s\r\nContent-Length: %d\r\n" % (status, SIZE - start)
        if start:
            headers += b"Content-Range: bytes %d-%d/%d\r\n" % (start, SIZE - 1, SIZE)
        end = cuts.pop(0) if cuts else SIZE
        await stream.send_all(headers + b"\r\n" + DATA[start:end])
        if end < SIZE:
            await wait_all_tasks_blocked(0.02)  # let it arrive before the reset takes it back
            await says(reset=reset)(stream)

    clock.rate = 10
    async with raw_server(answer) as url, real_client(url, timeout=600) as client:
        assert await fetch(client) == DATA


async def test_a_blob_cut_at_the_close_of_its_connection_just_ends(clock: MockClock) -> None:
    """Without a length nothing tells that it was cut but the record, which the caller has."""

    async def answer(stream: trio.SocketStream, _head: bytes) -> None:
        await says(HEAD + b"\r\n" + DATA[:1000])(stream)

    async with raw_server(answer) as url, real_client(url) as client:
        assert await fetch(client) == DATA[:1000]


@pytest.mark.parametrize("sent", [0, 1, SIZE // 2, SIZE - 1], ids=["none", "one", "half", "but one"])
async def test_a_blob_that_stalls_ends_with_the_timeout(sent: int, clock: MockClock) -> None:
    stalled = trio.Event()

    async def answer(stream: trio.SocketStream, _head: bytes) -> None:
        await stream.send_all(HEAD + b"Content-Length: %d\r\n\r\n" % SIZE + DATA[:sent])
        stalled.set()
        await trio.sleep_forever()

    async with (
        raw_server(answer) as url,
        real_client(url, timeout=60) as client,
        trio.open_nursery() as nursery,
    ):

        async def jump() -> None:
            await stalled.wait()
            await wait_all_tasks_blocked(0.05)
            clock.jump(61)

        nursery.start_soon(jump)
        with pytest.raises(TimedOut, match=f"after {sent} bytes"):
            await fetch(client)
        assert client.transport.limiter.in_flight == 0


async def test_a_cancelled_blob_leaves_neither_connection_nor_iterator_behind(clock: MockClock) -> None:
    async def answer(stream: trio.SocketStream, _head: bytes) -> None:
        await stream.send_all(HEAD + b"Content-Length: %d\r\n\r\n" % SIZE + DATA[:70_000])
        await trio.sleep_forever()

    async with raw_server(answer) as url, open_http() as http:
        client = Client(http, url, NoAuth())
        for _ in range(3):
            async with open_blob(client, FILE) as body:
                assert await anext(body)
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(fetch, client)
            await wait_all_tasks_blocked(0.05)
            nursery.cancel_scope.cancel()
        assert client.transport.limiter.in_flight == 0
        assert not http.router.pool.idle
    gc.collect()  # an iterator left to the collector would warn, and warnings are errors


async def test_a_long_blob_is_exactly_what_was_announced_however_it_comes(clock: MockClock) -> None:
    """Together with its headers or after them, with bytes of nobody behind it, one request after another."""
    connections = set()

    async def answer(stream: trio.SocketStream, _head: bytes) -> None:
        connections.add(stream)
        together = len(connections) % 2 * 50_000
        await stream.send_all(HEAD + b"Content-Length: %d\r\n\r\n" % SIZE + DATA[:together])
        await wait_all_tasks_blocked(0.02)
        await stream.send_all(DATA[together:] + b"HTTP/1.1 200 OK\r\n")

    async with raw_server(answer) as url, real_client(url) as client:
        for _ in range(4):
            assert await fetch(client) == DATA
        assert client.transport.limiter.in_flight == 0
    assert len(connections) == 4  # what comes unasked ends a connection, and so does reading from it


async def test_a_chunked_blob_comes_whole(clock: MockClock) -> None:
    async def answer(stream: trio.SocketStream, _head: bytes) -> None:
        head = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
        await stream.send_all(head + b"%x\r\n" % SIZE + DATA[:1000])
        await wait_all_tasks_blocked(0.02)
        await stream.send_all(DATA[1000:] + b"\r\n0\r\n\r\n")

    async with raw_server(answer) as url, real_client(url) as client:
        assert await fetch(client) == DATA


# -- connections that are used again -------------------------------------------------------------------


async def test_connections_that_the_service_has_ended_do_not_stay(clock: MockClock) -> None:
    there: list[trio.SocketStream] = []
    together = trio.Event()

    async def answer(stream: trio.SocketStream, _head: bytes) -> None:
        there.append(stream)
        if len(there) == 5:
            together.set()
        await together.wait()
        await stream.send_all(GOOD)

    async with raw_server(answer) as url, open_http(quiet=0) as http:
        client = Client(http, url, NoAuth())
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(client.info, FILE)
        assert http.router.pool.idle == 5
        for stream in there:
            await stream.aclose()
        await wait_all_tasks_blocked(0.02)
        assert await client.info(FILE) == b"{}"
        assert http.router.pool.idle == 1


async def test_connections_that_nobody_uses_any_more_are_closed(clock: MockClock) -> None:
    now = [0.0]
    count = 0
    together = trio.Event()

    async def answer(stream: trio.SocketStream, _head: bytes) -> None:
        nonlocal count
        count += 1
        if count == 5:
            together.set()
        await together.wait()
        await stream.send_all(GOOD)

    async with (
        raw_server(answer) as url,
        Http1Pool(ssl.create_default_context(), clock=lambda: now[0]) as pool,
    ):

        async def get() -> None:
            response = await pool.handle_async_request(httpx.Request("GET", url))
            assert await response.aread() == b"{}"

        async with trio.open_nursery() as burst:
            for _ in range(5):
                burst.start_soon(get)
        for now[0], left in ((20.0, 5), (40.0, 1)):
            await get()
            assert pool.idle == left


# -- connecting ----------------------------------------------------------------------------------------


async def problem_of(client: Client) -> AttachfsError:
    with pytest.raises(AttachfsError) as caught:
        await client.info(FILE)
    return caught.value


async def test_a_refused_connection_says_so(clock: MockClock) -> None:
    with trio.socket.socket() as unused:
        await unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    clock.rate = 10
    async with real_client(url) as client:
        problem = await problem_of(client)
    assert type(problem) is Unreachable
    assert problem.reason.endswith("cannot connect: Connection refused")


async def test_a_name_that_is_not_known_says_so(clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    async def unknown(*_args: object, **_kwargs: object) -> None:
        raise trio.socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr("trio.socket.getaddrinfo", unknown)
    clock.rate = 10
    async with real_client("http://nowhere.test") as client:
        problem = await problem_of(client)
    assert type(problem) is Unreachable
    assert problem.reason.endswith("the host's name is not known: Name or service not known")


class Tls:
    """A certificate authority, and servers with good and bad certificates."""

    def __init__(self, directory: Path) -> None:
        self.ca = trustme.CA()
        self.ca_file = directory / "ca.pem"
        self.ca.cert_pem.write_to_path(self.ca_file)

    async def serve(self, stack: AsyncExitStack, *names: str) -> str:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.ca.issue_cert(*names).configure_cert(context)

        async def answer(stream: trio.SSLStream[trio.SocketStream]) -> None:
            try:
                async with stream:
                    while await stream.receive_some():
                        await stream.send_all(GOOD)
            except (trio.BrokenResourceError, ssl.SSLError):
                pass  # the client did not like the certificate

        nursery = await stack.enter_async_context(trio.open_nursery())
        listeners = await trio.open_ssl_over_tcp_listeners(
            0, context, host="127.0.0.1", https_compatible=True
        )
        nursery.start_soon(partial(trio.serve_listeners, answer, listeners))
        stack.callback(nursery.cancel_scope.cancel)
        listener = listeners[0].transport_listener
        assert isinstance(listener, trio.SocketListener)
        return f"https://127.0.0.1:{listener.socket.getsockname()[1]}"


async def test_a_certificate_of_the_given_authority_is_trusted_and_others_are_not(
    clock: MockClock, tmp_path: Path
) -> None:
    tls = Tls(tmp_path)
    async with AsyncExitStack() as stack:
        url = await tls.serve(stack, "127.0.0.1")
        async with open_http(ca_file=tls.ca_file) as http:
            assert await Client(http, url, NoAuth()).info(FILE) == b"{}"
        async with open_http() as http:
            client = Client(http, url, NoAuth())
            problem = await problem_of(client)
            assert type(problem) is Unreachable
            assert "TLS: the certificate is refused: " in problem.reason
            assert "unable to get local issuer certificate" in problem.reason
            assert client.transport.stats.of("info").requests == 1, "no retry mends a certificate"


async def test_a_certificate_for_another_host_is_refused(clock: MockClock, tmp_path: Path) -> None:
    tls = Tls(tmp_path)
    async with AsyncExitStack() as stack:
        url = await tls.serve(stack, "other.test")
        http = await stack.enter_async_context(open_http(ca_file=tls.ca_file))
        problem = await problem_of(Client(http, url, NoAuth()))
    assert type(problem) is Unreachable
    assert "IP address mismatch" in problem.reason


async def test_a_plain_server_on_the_tls_port_is_tls_trouble(clock: MockClock) -> None:
    async def answer(stream: trio.SocketStream, _head: bytes) -> None:
        await stream.send_all(GOOD)

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    clock.rate = 10
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(partial(trio.serve_listeners, serve, listeners))
        url = f"https://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        async with real_client(url) as client:
            problem = await problem_of(client)
        nursery.cancel_scope.cancel()
    assert type(problem) is Unreachable
    assert "TLS: " in problem.reason


# -- secrets -------------------------------------------------------------------------------------------


async def test_at_debug_level_no_library_logs_the_token_or_a_query(
    clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    async def answer(stream: trio.SocketStream, head: bytes) -> None:
        assert TOKEN.encode() in head
        body = b'{"assets": []}'
        await stream.send_all(HEAD + b"Content-Length: %d\r\n\r\n%s" % (len(body), body))

    async with raw_server(answer) as url, real_client(url, FakeAuth(TOKEN)) as client:
        await client.assets_page("page-token-7")
        await client.info(FILE)
    assert "/archivist/v2/assets" in caplog.text
    assert TOKEN not in caplog.text
    assert "page-token-7" not in caplog.text
    assert "page_size" not in caplog.text
