"""HTTP as such: raw bodies, and the one translation of httpx's exceptions into ours.

Owns: what a library's failure means, and which of the service's words may be shown.
Nothing here knows the ledger; `service/transport.py` and `service/auth.py` build on it.
"""

import base64
import os
import re
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from urllib.parse import quote as percent
from urllib.parse import quote_plus

import httpx
import msgspec
import trio

from attachfs.errors import AttachfsError, BadAnswer, TimedOut, Unreachable, causes_of
from attachfs.service.http1 import Body, Http1Answer
from attachfs.text import excerpt as printable_excerpt

_CLOSING = 2  # seconds that closing a response may take, whatever is cancelled
_TELLING = 8  # characters of base64 that would tell something of a secret
_DRAINED = 10_000  # buffered pieces that ending a body may have to skip


# -- what failed ---------------------------------------------------------------------------------------

LIBRARY_ERRORS = (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError)


def translate(error: Exception, what: str) -> AttachfsError:
    """Return what one of `LIBRARY_ERRORS` means, naming `what`.

    The library's own text is quoted for failures to connect only: others may quote headers.
    """
    if isinstance(error, httpx.ConnectTimeout):
        return Unreachable(f"{what}: cannot connect: no answer")
    if isinstance(error, httpx.ConnectError | httpx.ProxyError | httpx.UnsupportedProtocol):
        return Unreachable(f"{what}: cannot connect: {_root(error)}")
    if isinstance(error, httpx.TimeoutException):
        return TimedOut(f"{what}: no answer in time")
    if isinstance(error, httpx.RemoteProtocolError):
        return BadAnswer(f"{what}: the answer broke off or is not HTTP")
    if isinstance(error, httpx.NetworkError):
        return BadAnswer(f"{what}: the connection broke")
    return BadAnswer(f"{what}: the exchange failed ({type(error).__name__})")


def without_header(error: Exception) -> Exception | None:
    """Return an exception whose text cannot hold a header, as a traceback may be logged; else None."""
    return None if isinstance(error, httpx.LocalProtocolError) else error


def is_certificate_error(error: BaseException) -> bool:
    """Whether a failure to connect is about the certificate, which no retry mends."""
    return any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes_of(error))


def _root(error: BaseException) -> str:
    """Say in a few words why a connection could not be made."""
    for cause in causes_of(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"TLS: the certificate is refused: {quote(cause.verify_message)}"
        if isinstance(cause, ssl.SSLError):
            return f"TLS: {quote(cause.reason or 'the handshake failed')}"
        if isinstance(cause, socket.gaierror):
            return f"the host's name is not known: {quote(cause.strerror or '')}"
        if isinstance(cause, OSError) and cause.errno:
            return os.strerror(cause.errno)
    if isinstance(error, httpx.ProxyError):
        return "the proxy refuses"
    return "the connection ended" if isinstance(error, httpx.ConnectError) else type(error).__name__


# -- foreign text --------------------------------------------------------------------------------------


def quote(text: str, secret: str | None = None) -> str:
    """Make foreign text fit for a message: one line, printable, bounded, without `secret`."""
    if secret:
        hidden = {spelling for part in (secret, secret.rpartition(" ")[2]) for spelling in _spellings(part)}
        longest_first = sorted(hidden, key=len, reverse=True)
        text = re.sub("|".join(map(re.escape, longest_first)), "[hidden]", text, flags=re.IGNORECASE)
    return printable_excerpt(text)


def _spellings(secret: str) -> Iterator[str]:
    """Yield what a service that gives back what it got may make of a secret."""
    yield secret
    yield percent(secret)
    yield percent(secret, safe="")
    yield quote_plus(secret)
    yield msgspec.json.encode(secret).decode()[1:-1]
    for shift in range(3):  # what stands before it moves the groups of three
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            # The characters at the ends depend on what is beside them.
            inner = encode(bytes(shift) + secret.encode())[4:-4].decode()
            if len(inner) >= _TELLING:
                yield inner


# -- bodies --------------------------------------------------------------------------------------------


class RawBody:
    """A response's body as it comes over the wire, undecoded.

    Args:
        response: opened with `stream=True`.
        what: what it is, for messages.
    """

    def __init__(self, response: httpx.Response | Http1Answer, what: str) -> None:
        self._response = response
        self._headers: Mapping[str, str] = response.headers
        self._what = what
        self._pieces: AsyncIterator[bytes] | None = None
        self._exhausted = False  # the library has nothing more, and has let go of the connection
        self._own = response.stream if isinstance(response.stream, Body) else None
        length = self._headers.get("content-length", "")
        self.length = int(length) if re.fullmatch("[0-9]{1,18}", length, re.ASCII) else None
        self.received = 0
        self.broken = False  # it ended before its end: asking again may help

    @property
    def encoded(self) -> str:
        """The content coding, "" for none. It was not asked for, and is never undone."""
        coding = self._headers.get("content-encoding", "").strip().lower()
        return "" if coding == "identity" else coding

    async def next(self) -> bytes:
        """Return the next piece, b"" at the end.

        Raises:
            BadAnswer: the body broke off, or its length is not what was announced.
            TimedOut: the library's own timeout for one read has passed.
        """
        try:
            piece = await (self._next() if self._own is None else self._own.next())
        except LIBRARY_ERRORS as error:
            self._exhausted = self.broken = True
            raise translate(error, self._what) from error
        if piece:
            self.received += len(piece)
        elif self.length is not None and self.received != self.length:
            self.broken = True
            raise BadAnswer(f"{self._what}: {self.length} bytes were announced, {self.received} came")
        return piece

    async def _next(self) -> bytes:
        if self._pieces is None:
            assert isinstance(self._response, httpx.Response)
            # Without a chunk size: pieces are passed on as they are read, which is three times as fast.
            self._pieces = self._response.aiter_raw()
        while not self._exhausted:
            piece = await anext(self._pieces, None)
            if piece is None:
                self._exhausted = True
            elif piece:  # an empty one ends nothing
                return piece
        return b""

    async def read(self, limit: int, progress: Callable[[], None] = lambda: None) -> bytes:
        """Return the whole body; call `progress` after each piece of it.

        Raises:
            BadAnswer: it is longer than `limit` bytes, or broke off.
        """
        pieces: list[bytes] = []
        while (self.length or 0) <= limit and self.received <= limit:
            if not (piece := await self.next()):
                return b"".join(pieces)
            pieces.append(piece)
            progress()
        raise BadAnswer(f"{self._what}: the answer is longer than {limit} bytes")

    async def aclose(self) -> None:
        """Give the connection back, or close it if the body is not at its end. Cannot be cancelled."""
        if self._own is not None:
            self._own.end()
            return
        if self._pieces is not None and not self._exhausted:
            self._exhausted = True
            # The library's iterators are nested, and dropping them half-way leaves the inner ones to the
            # garbage collector. A read that is cancelled at once ends them all, in order.
            with trio.CancelScope(shield=True) as scope:
                scope.cancel()
                try:
                    for _ in range(_DRAINED):
                        if await anext(self._pieces, None) is None:
                            break
                except LIBRARY_ERRORS:
                    pass
        with trio.move_on_after(_CLOSING, shield=True):
            if isinstance(self._response, httpx.Response):
                await self._response.aclose()
