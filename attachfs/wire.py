"""HTTP as such: the connection pool, raw bodies, and the one translation of httpx's exceptions into ours.

Lives here and only here: what a library's failure means, and which of the service's words may be shown.
Nothing here knows the ledger; `transport.py` and `auth.py` build on it.
"""

import base64
import http.cookiejar
import logging
import os
import re
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import quote as percent
from urllib.parse import quote_plus

import httpx
import msgspec
import stamina.instrumentation
import trio

from attachfs import __version__
from attachfs.errors import AttachfsError, BadAnswer, TimedOut, Unreachable, UsageError, causes_of

USER_AGENT = f"attachfs/{__version__} (+python httpx)"

# An idle connection is kept this long (seconds): a person's next `ls` finds it open, and most load
# balancers keep theirs for a minute.
_KEEPALIVE = 30
# Connecting takes a few round trips; a host that has not answered by then (seconds) is not there, and
# waiting longer would leave no time for other attempts.
_CONNECT = 10.0
_CLOSING = 2  # seconds that closing a response may take, whatever is cancelled
_ERROR_BODY = 8 * 1024  # bytes of an error's body that are read, so that its connection can be used again
_ERROR_BODY_TIME = 1  # seconds spent on it
_EXCERPT = 200  # characters of foreign text in a message
_TELLING = 8  # characters of base64 that would tell something of a secret
_DRAINED = 10_000  # buffered pieces that ending a body may have to skip


def open_http(
    *,
    ca_file: Path | str | None = None,
    max_connections: int = 32,
    http2: bool = False,
    user_agent: str = USER_AGENT,
) -> httpx.AsyncClient:
    """Return the connection pool: the system's trust store (or `ca_file`), the environment's proxies.

    The pool itself sets no bound on connections: the transport's limiter does. A pool at its bound makes
    requests queue inside, and a request cancelled there can leave its connection behind for ever.

    HTTP/1.1 unless `http2`. Measured against one server over TLS, 32 at a time, 50 ms away: 400 records take
    0.9 s with either; 256 MiB of blobs take 1.0 s with HTTP/1.1 and 3.5 s with HTTP/2. And a server that
    ends a connection in good order (after a thousand requests, say) breaks off what is in flight on it
    with HTTP/2.

    Raises:
        UsageError: `ca_file` or a proxy variable cannot be used.
    """
    # At debug level these print headers, at info level whole URLs: neither may reach a log.
    for library in ("httpx", "httpcore", "hpack", "h2"):
        logging.getLogger(library).setLevel(logging.WARNING)
    stamina.instrumentation.set_on_retry_hooks([])  # what is retried is counted, not logged
    try:
        context = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
    except (OSError, ssl.SSLError) as error:
        raise UsageError(
            f"--ca-file {ca_file}: cannot be read as PEM certificates ({type(error).__name__}); "
            f"give a file with 'BEGIN CERTIFICATE' blocks"
        ) from error
    # No cookies: nothing the service sets is kept, sent on, or sent to public assets.
    jar = http.cookiejar.CookieJar(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
    try:
        return httpx.AsyncClient(
            verify=context,
            http2=http2,
            trust_env=True,
            follow_redirects=False,
            cookies=jar,
            limits=httpx.Limits(
                max_connections=None,
                max_keepalive_connections=max_connections + 4,  # and a few for tokens
                keepalive_expiry=_KEEPALIVE,
            ),
            headers={"User-Agent": user_agent, "DataTrails-User-Agent": user_agent},
        )
    except (ValueError, httpx.InvalidURL, ImportError) as error:
        raise UsageError(
            "the proxy in the environment (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY) cannot be used: "
            "it must look like http://host:port"
        ) from error


def timeouts(timeout: float) -> httpx.Timeout:
    """Return httpx's own timeouts below a deadline of `timeout` seconds, which the caller enforces.

    All attempts to connect fit before the deadline: 'cannot connect' is told, and not that time is up.
    """
    return httpx.Timeout(timeout, connect=min(_CONNECT, timeout / 6), pool=timeout)


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


def is_certificate_trouble(error: BaseException) -> bool:
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
    shown = text.encode("unicode_escape").decode("ascii")
    return shown if len(shown) <= _EXCERPT else shown[:_EXCERPT] + "…"


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


async def excerpt(body: "RawBody", secret: str | None) -> str:
    """Return ': ' and what the service said of an error, or '' where that is nothing a person can read.

    Also reads a short body to its end, so that the connection can be used again.
    """
    raw, ended = b"", False
    with trio.move_on_after(_ERROR_BODY_TIME):
        try:
            while len(raw) < _ERROR_BODY and not ended:
                piece = await body.next()
                raw += piece
                ended = not piece
        except AttachfsError:
            pass  # the status tells enough
    text = raw.decode("utf-8", "replace").strip()
    if secret and not ended:
        text = text[: -3 * len(secret)]  # the end may be half a secret, which is not known for one
    if not text or body.encoded or text.startswith("<"):
        return ""
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError, ValueError):
        value = None
    if isinstance(value, dict):
        said = [value.get(key) for key in ("error", "message", "description", "error_description")]
        text = " ".join(word for word in said if isinstance(word, str) and word)
    return f": {quote(text, secret)}" if text else ""


# -- bodies --------------------------------------------------------------------------------------------


class RawBody:
    """A response's body as it comes over the wire, undecoded.

    Args:
        response: opened with `stream=True`.
        what: what it is, for messages.
    """

    def __init__(self, response: httpx.Response, what: str) -> None:
        self._response = response
        self._what = what
        self._pieces: AsyncIterator[bytes] | None = None
        self._ended = False
        length = response.headers.get("content-length", "")
        self.length = int(length) if re.fullmatch("[0-9]{1,18}", length, re.ASCII) else None
        self.received = 0
        self.broken = False  # it ended before its end: asking again may help

    @property
    def encoded(self) -> str:
        """The content coding, "" for none. It was not asked for, and is never undone."""
        coding: str = self._response.headers.get("content-encoding", "").strip().lower()
        return "" if coding == "identity" else coding

    async def next(self) -> bytes:
        """Return the next piece, b"" at the end.

        Raises:
            BadAnswer: the body broke off, or its length is not what was announced.
            TimedOut: the library's own timeout for one read has passed.
        """
        if self._pieces is None:
            # Without a chunk size: pieces are passed on as they are read, which is three times as fast.
            self._pieces = self._response.aiter_raw()
        try:
            while not self._ended:
                piece = await anext(self._pieces, None)
                if piece is None:
                    self._ended = True
                elif piece:  # an empty one ends nothing
                    self.received += len(piece)
                    return piece
        except LIBRARY_ERRORS as error:
            self._ended = self.broken = True
            raise translate(error, self._what) from error
        if self.length is not None and self.received != self.length:
            self.broken = True
            raise BadAnswer(f"{self._what}: {self.length} bytes were announced, {self.received} came")
        return b""

    async def read(self, limit: int) -> bytes:
        """Return the whole body.

        Raises:
            BadAnswer: it is longer than `limit` bytes, or broke off.
        """
        pieces: list[bytes] = []
        while (self.length or 0) <= limit and self.received <= limit:
            if not (piece := await self.next()):
                return b"".join(pieces)
            pieces.append(piece)
        raise BadAnswer(f"{self._what}: the answer is longer than {limit} bytes")

    async def aclose(self) -> None:
        """Give the connection back, or close it if the body is not at its end. Cannot be cancelled."""
        if self._pieces is not None and not self._ended:
            self._ended = True
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
            await self._response.aclose()
