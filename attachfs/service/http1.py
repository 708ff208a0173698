"""HTTP/1.1 as a strict client speaks it: one request on a connection, and all that may come for it.

Owns: where an answer ends. The head is parsed by llhttp, and what its rules leave open is refused: folded
lines, two lengths, a length beside chunks, any transfer coding but "chunked", more than a bounded head. The
body is counted here, so that it is known to the byte what came behind it.

The framing rule: a connection on which anything is left over when an answer has ended, in our buffers or on
the socket, is never used again. If it had been used before, the answer itself may be what somebody had left
there for it, and is not believed either.
"""

import re
import ssl
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple

import httptools
import httpx
import trio

from attachfs.service.wire import Wire

_HEAD_LIMIT = 64 * 1024  # bytes of a head, and of the chunks' trailer
_HEADERS_LIMIT = 100
_INFORMATIONAL_LIMIT = 8  # answers before the answer
_CHUNK_LINE_LIMIT = 256  # bytes of a chunk's size and its extensions
_CHUNKS_IN_A_ROW = 256  # that may be taken out of what has come before others get their turn
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[\t -~\x80-\xff]*)?")
_FIELD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_TRAILER = re.compile(_FIELD.pattern + rb":[\t -~\x80-\xff]*")
_LENGTH = re.compile(rb"[0-9]{1,18}")
_VALUE = re.compile(rb"[\t -~\x80-\xff]*")
# No line is folded, and none ends otherwise than lines do.
_LINES = re.compile(rb"(?:[^ \t\r\n\0][^\r\n\0]*\r\n)+\r\n")
_TARGET = re.compile(rb"[!-~]+")
_WITHOUT_BODY = frozenset({204, 304})
_SCRATCH = bytearray(192 * 1024)  # what one receive brings; emptied before anything else can run
_SCRATCH_VIEW = memoryview(_SCRATCH)
_BARE_LINE_END = re.compile(rb"(?<!\r)\n")

NETWORK_ERRORS = (OSError, ssl.SSLError, trio.BrokenResourceError, trio.ClosedResourceError)


class UnsolicitedError(httpx.RemoteProtocolError):
    """Bytes came that belong to no answer, or to an answer that cannot be told from one."""


class Head(NamedTuple):
    """An answer's head. `length`: of the body, None if it ends with the connection or with its last chunk."""

    status: int
    version: bytes
    headers: list[tuple[bytes, bytes]]
    length: int | None
    chunked: bool
    keep_alive: bool


class _Fields:
    """What llhttp reports of a head."""

    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.complete = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))
        if len(self.headers) > _HEADERS_LIMIT:
            raise httptools.HttpParserError("too many headers")

    def on_headers_complete(self) -> None:
        self.complete = True


def parse_head(raw: bytes, *, head_only: bool = False) -> Head:
    """Return the head in `raw`, which ends with an empty line.

    Raises:
        httpx.RemoteProtocolError: it is not HTTP/1, or leaves open where its body ends.
    """
    fields = _Fields()
    parser = httptools.HttpResponseParser(fields)
    try:
        parser.feed_data(raw)
    except httptools.HttpParserUpgrade as error:
        raise httpx.RemoteProtocolError("an unrequested upgrade to another protocol") from error
    except httptools.HttpParserError as error:
        raise httpx.RemoteProtocolError("not an answer in HTTP/1.1") from error
    version = parser.get_http_version()
    if not fields.complete or version not in ("1.0", "1.1") or not _LINES.fullmatch(raw):
        raise httpx.RemoteProtocolError("not an answer in HTTP/1.1")
    status = parser.get_status_code()
    lengths: list[bytes] = []
    codings: list[bytes] = []
    options: list[bytes] = []
    wanted = {b"content-length": lengths, b"transfer-encoding": codings, b"connection": options}
    for name, value in fields.headers:
        if (values := wanted.get(name.lower())) is not None:
            values.append(value.strip().lower())
    if (codings and (lengths or codings != [b"chunked"] or version == "1.0")) or len(lengths) > 1:
        raise httpx.RemoteProtocolError("the headers do not say where the body ends")
    if lengths and not _LENGTH.fullmatch(lengths[0]):
        raise httpx.RemoteProtocolError("the announced length is malformed")
    length = int(lengths[0]) if lengths else None
    if head_only or status in _WITHOUT_BODY or 100 <= status < 200:
        length, codings = 0, []
    keep_alive = version == "1.1" and not any(b"close" in option for option in options)
    return Head(status, version.encode(), fields.headers, length, bool(codings), keep_alive)


def request_bytes(request: httpx.Request) -> bytes:
    """Return a request without a body, as it is sent.

    Raises:
        httpx.LocalProtocolError: something in it would end a line. The message does not quote it.
    """
    target = request.url.raw_path
    method = request.method.encode()
    if not _TARGET.fullmatch(target) or method not in (b"GET", b"HEAD"):
        raise httpx.LocalProtocolError("not a request that can be sent")
    lines = [method + b" " + target + b" HTTP/1.1"]
    for name, value in request.headers.raw:
        if not _FIELD.fullmatch(name) or not _VALUE.fullmatch(value):
            raise httpx.LocalProtocolError("a header holds forbidden characters")
        lines.append(name + b": " + value)
    return b"\r\n".join([*lines, b"", b""])


class Connection:
    """A connection to one host, with at most one request on it.

    Args:
        wire: the bytes.
        origin: scheme, host and port.
    """

    def __init__(self, wire: Wire, origin: tuple[str, str, int]) -> None:
        self.wire = wire
        self.origin = origin
        self.used = False  # it has brought an answer before
        self.idle_since = 0.0

    async def receive_head(self, *, head_only: bool) -> tuple[Head, bytes]:
        """Return the answer's head, and what came together with it.

        Raises:
            httpx.RemoteProtocolError: what came is not the head of an answer.
            NETWORK_ERRORS: the connection broke.
        """
        rest = b""
        for _ in range(_INFORMATIONAL_LIMIT + 1):
            raw, rest = await self._next_head(rest)
            head = parse_head(raw, head_only=head_only)
            if head.status >= 200:
                return head, rest
            if head.status == 101:
                raise httpx.RemoteProtocolError("an unrequested upgrade to another protocol")
        raise httpx.RemoteProtocolError("too many informational answers")

    async def _next_head(self, data: bytes) -> tuple[bytes, bytes]:
        while (end := data.find(b"\r\n\r\n")) < 0:
            if not b"HTTP/1.".startswith(data[:7]) or _BARE_LINE_END.search(data):
                raise httpx.RemoteProtocolError("not an answer in HTTP/1.1")
            if len(data) > _HEAD_LIMIT:
                break
            count = await self.wire.receive_into(_SCRATCH_VIEW)
            if not count:
                raise httpx.RemoteProtocolError("the connection ended before the answer")
            if not data and 0 <= (end := _SCRATCH.find(b"\r\n\r\n", 0, count)) <= _HEAD_LIMIT:
                # As it nearly always comes: the head whole, and some of the body, which is copied once.
                return bytes(_SCRATCH_VIEW[: end + 4]), bytes(_SCRATCH_VIEW[end + 4 : count])
            data += _SCRATCH_VIEW[:count]
        if not 0 <= end <= _HEAD_LIMIT:
            raise httpx.RemoteProtocolError("the head is too long")
        return data[: end + 4], data[end + 4 :]


class Body(httpx.AsyncByteStream):
    """An answer's body, as it comes.

    Args:
        connection: where from.
        head: the answer's head.
        first: what came together with the head.
        done: called once, with whether the connection may be used again, and with what was left over.
    """

    def __init__(
        self,
        connection: Connection,
        head: Head,
        first: bytes,
        done: Callable[[Connection, bool, bool], None],
    ) -> None:
        self._connection = connection
        self._wire = connection.wire
        self._done: Callable[[Connection, bool, bool], None] | None = done
        self._keep_alive = head.keep_alive
        self._chunked = head.chunked
        self._until_close = head.length is None and not head.chunked
        self._body_remaining = head.length or 0  # bytes of the body, or of this chunk, that are still to come
        self._buffer = first
        self._between = head.chunked  # before a chunk's size line
        self._first_chunk = True
        self._in_a_row = 0
        if not self._chunked and not self._until_close and len(first) >= self._body_remaining:
            self._check_end(first[self._body_remaining :])
            self._buffer = first[: self._body_remaining]

    async def next(self) -> bytes:
        """Return the next piece, b"" at the end.

        Raises:
            httpx.RemoteProtocolError: it ended before its end, or its chunks are none.
            UnsolicitedError: the connection was used before, and something came behind the body.
            httpx.ReadError: the connection broke.
        """
        try:
            if self._chunked:
                return await self._next_chunked()
            piece = self._buffer or (await self._more() if self._body_remaining or self._until_close else b"")
        except NETWORK_ERRORS as error:
            self._end(reusable=False)
            raise httpx.ReadError("the connection broke") from error
        except httpx.RemoteProtocolError:
            self._end(reusable=False)
            raise
        self._buffer = b""
        if self._until_close:
            if not piece:
                self._end(reusable=False)
            return piece
        self._body_remaining -= len(piece)
        if not self._body_remaining and self._done is not None:
            self._check_end(b"")
        return piece

    async def _more(self) -> bytes:
        piece = await self._wire.receive(self._body_remaining or 2**20)
        if not piece and not self._until_close:
            raise httpx.RemoteProtocolError("the connection ended before the body")
        return piece

    async def _next_chunked(self) -> bytes:
        if self._done is None:
            return b""
        self._in_a_row += 1
        if self._in_a_row >= _CHUNKS_IN_A_ROW:  # of a byte each, what one receive brings has many thousands
            self._in_a_row = 0
            await trio.lowlevel.checkpoint()
        if self._between:
            self._body_remaining = await self._chunk_size()
            self._between = False
            if not self._body_remaining:
                for _ in range(_HEADERS_LIMIT):
                    trailer = await self._line(_HEAD_LIMIT)
                    if not trailer:
                        break
                    if not _TRAILER.fullmatch(trailer):  # what it says means nothing to anybody
                        raise httpx.RemoteProtocolError("the trailer is malformed")
                else:
                    raise httpx.RemoteProtocolError("the trailer is too long")
                unread, self._buffer = self._buffer, b""
                self._check_end(unread)
                return b""
        if not self._buffer:
            self._buffer = await self._more()
        piece, self._buffer = self._buffer[: self._body_remaining], self._buffer[self._body_remaining :]
        self._body_remaining -= len(piece)
        self._between = not self._body_remaining
        return piece

    async def _chunk_size(self) -> int:
        if not self._first_chunk and await self._line(_CHUNK_LINE_LIMIT):
            raise httpx.RemoteProtocolError("a chunk is longer than it says")
        self._first_chunk = False
        found = _CHUNK_SIZE.fullmatch(await self._line(_CHUNK_LINE_LIMIT))
        if found is None:
            raise httpx.RemoteProtocolError("a chunk's size is malformed")
        return int(found[1], 16)

    async def _line(self, limit: int) -> bytes:
        """Return the next line of what stands around the chunks, without its end."""
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > limit:
                break
            more = await self._wire.receive(2**16)
            if not more:
                raise httpx.RemoteProtocolError("the connection ended before the body")
            self._buffer += more
        line, self._buffer = self._buffer[:end], self._buffer[end + 1 :]
        if not 0 <= end <= limit or not line.endswith(b"\r"):
            raise httpx.RemoteProtocolError("a chunk's line is malformed")
        return line[:-1]

    def _check_end(self, behind: bytes) -> None:
        """Apply the framing rule: all of the body has come."""
        unread = behind or self._wire.unread()
        used = self._connection.used
        self._connection.used = True
        self._end(reusable=self._keep_alive and unread is None, has_unread=bool(unread))
        if unread and used:
            raise UnsolicitedError("bytes followed the answer")

    def _end(self, *, reusable: bool, has_unread: bool = False) -> None:
        done, self._done = self._done, None
        if done is not None:
            done(self._connection, reusable, has_unread)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the pieces."""
        while piece := await self.next():
            yield piece

    def end(self) -> None:
        """Close the connection, if the body is not at its end; a second call does nothing."""
        self._end(reusable=False)

    async def aclose(self) -> None:
        """Do as `end` does."""
        self.end()


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


class Http1Answer:
    """An answer whose body has not been read: of `httpx.Response`, what is used of it.

    Args:
        head: the answer's head.
        stream: its body.
    """

    __slots__ = ("head", "headers", "status_code", "stream")

    def __init__(self, head: Head, stream: Body) -> None:
        self.head = head
        self.status_code = head.status
        self.stream = stream
        self.headers = headers = dict[str, str]()  # by names in lower case; of several lines, one
        for raw_name, raw_value in head.headers:
            name, value = raw_name.decode("latin-1").lower(), _text(raw_value)
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
