"""A service under a test's control: answers in process, or raw bytes over a real socket."""

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import httpx
import trio

from attachfs.model import AssetRef, AttachmentRef, EventRef, Realm
from attachfs.service.auth import Auth, NoAuth
from attachfs.service.client import BlobBody, Client, open_http

ONE = "11111111-1111-4111-8111-111111111111"
TWO = "22222222-2222-4222-8222-222222222222"
ASSET = AssetRef("assets", ONE)
EVENT = EventRef("assets", ONE, TWO)
FILE = AttachmentRef("assets", ONE, None, TWO)
TOKEN = "eyJ0b3AiOiJzZWNyZXQifQ.eyJzdWIiOiJtZSJ9.c2lnbmF0dXJl"


def file_ref(number: int, realm: Realm = "assets") -> AttachmentRef:
    return AttachmentRef(realm, ONE, None, f"{number:08x}-0000-4000-8000-000000000000")


Handler = Callable[[httpx.Request], httpx.Response | Awaitable[httpx.Response]]


class Service:
    """Answers from a handler, or from a list of responses and exceptions, the last one for ever."""

    def __init__(self, *script: httpx.Response | Exception | Handler) -> None:
        self.script = list(script)
        self.requests: list[httpx.Request] = []
        self.times: list[float] = []

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        self.times.append(trio.current_time())
        step = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        await trio.lowlevel.checkpoint()
        if isinstance(step, Exception):
            raise step
        answer = step if isinstance(step, httpx.Response) else step(request)
        if inspect.isawaitable(answer):
            answer = await answer
        # A response can be read once only, and one made from content counts as read already.
        made_from_content = isinstance(answer.stream, httpx.ByteStream)
        stream = Pieces(answer.content) if made_from_content else answer.stream
        return httpx.Response(answer.status_code, headers=answer.headers, stream=stream)

    @property
    def paths(self) -> list[str]:
        return [request.url.path for request in self.requests]


class FakeAuth:
    """Credentials that count what they are asked."""

    def __init__(self, *tokens: str) -> None:
        self.tokens = list(tokens)
        self.renewals = 0

    async def header(self) -> str | None:
        return f"Bearer {self.tokens[0]}"

    async def renew(self, stale: str | None) -> bool:
        await trio.lowlevel.checkpoint()
        if stale != f"Bearer {self.tokens[0]}":
            return True
        self.renewals += 1
        if len(self.tokens) > 1:
            self.tokens.pop(0)
            return True
        return False


@asynccontextmanager
async def open_blob(
    client: Client, ref: AttachmentRef, *, offset: int = 0, size: int | None = None
) -> AsyncIterator[BlobBody]:
    """Return one body of a blob, as a download opens them one after another."""
    body = await client._open_blob(ref, offset, size)
    try:
        yield body
    finally:
        await body.aclose()


@asynccontextmanager
async def client_of(
    handler: Callable[[httpx.Request], Coroutine[None, None, httpx.Response]],
    auth: Auth | None = None,
    url: str = "https://ledger.test",
    **options: Any,
) -> AsyncIterator[Client]:
    """Return a client whose requests go to `handler`."""
    async with httpx.AsyncClient(transport=httpx.MockTransport(handler)) as http:
        yield Client(http, url, auth or NoAuth(), **options)


class Pieces(httpx.AsyncByteStream):
    """A body of pieces; an exception among them is raised, a number is slept for."""

    def __init__(self, *pieces: bytes | Exception | float) -> None:
        self.pieces = pieces
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self.pieces:
            if isinstance(piece, Exception):
                raise piece
            if isinstance(piece, float):
                await trio.sleep(piece)
            else:
                await trio.lowlevel.checkpoint()
                yield piece

    async def aclose(self) -> None:
        self.closed = True


Dialogue = Callable[[trio.SocketStream, bytes], Awaitable[None]]


@asynccontextmanager
async def raw_server(answer: Dialogue) -> AsyncIterator[str]:
    """Serve on a real socket; `answer` gets each request's head and writes what it likes."""

    async def serve(stream: trio.SocketStream) -> None:
        buffer = b""
        try:
            async with stream:
                while True:
                    while b"\r\n\r\n" not in buffer:
                        if not (data := await stream.receive_some()):
                            return
                        buffer += data
                    head, _, buffer = buffer.partition(b"\r\n\r\n")
                    await answer(stream, head)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client went away

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        yield f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def real_client(
    url: str, auth: Auth | None = None, *, quiet: float = 0.05, **options: Any
) -> AsyncIterator[Client]:
    """Return a client over real sockets, which are used again after `quiet` seconds."""
    async with open_http(quiet=quiet) as http:
        yield Client(http, url, auth or NoAuth(), **options)
