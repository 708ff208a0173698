"""Connections to the service: how many, for how long, through which proxy.

Lives here and only here: that each request in flight has a lane, a connection pool of its own. A pool looks
at all its connections, and asks the kernel about each idle one, whenever a request comes or goes: with 32
in one pool, a copy of small files spent a sixth of its time on that.
"""

import http.cookiejar
import logging
import ssl
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import getproxies

import httpx
import stamina.instrumentation
import trio

from attachfs import __version__
from attachfs.errors import UsageError

USER_AGENT = f"attachfs/{__version__} (+python httpx)"

# An idle connection is kept this long (seconds): a person's next `ls` finds it open, and most load
# balancers keep theirs for a minute.
_KEEPALIVE = 30
# Connecting takes a few round trips; a host that has not answered by then (seconds) is not there, and
# waiting longer would leave no time for other attempts.
_CONNECT = 10.0
_CLOSING = 2  # seconds that closing idle connections may take


def open_http(
    *,
    ca_file: Path | str | None = None,
    max_connections: int = 32,
    http2: bool = False,
    user_agent: str = USER_AGENT,
) -> httpx.AsyncClient:
    """Return the connections: the system's trust store (or `ca_file`), the environment's proxies.

    Nothing here bounds how many: the transport's limiter does. A pool at its bound makes requests queue
    inside, and a request cancelled there can leave its connection behind for ever.

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
    limits = httpx.Limits(
        max_connections=None,
        max_keepalive_connections=max_connections + 4,  # and a few for tokens
        keepalive_expiry=_KEEPALIVE,
    )

    def lane() -> httpx.AsyncBaseTransport:
        return httpx.AsyncHTTPTransport(verify=context, limits=limits)

    # Which hosts a proxy is for, the library knows: then it has its pools. With HTTP/2 one connection is for
    # many requests.
    lanes = None if http2 or _has_proxy() else PerRequestPools(lane)
    try:
        return Http(
            lanes,
            verify=context,
            http2=http2,
            trust_env=True,
            follow_redirects=False,
            cookies=jar,
            limits=limits,
            headers={"User-Agent": user_agent, "DataTrails-User-Agent": user_agent},
        )
    except (ValueError, httpx.InvalidURL, ImportError) as error:
        raise UsageError(
            "the proxy in the environment (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY) cannot be used: "
            "it must look like http://host:port"
        ) from error


class Http(httpx.AsyncClient):
    """A client whose requests may also be handed to its lanes directly."""

    def __init__(self, lanes: "PerRequestPools | None", **options: Any) -> None:
        super().__init__(transport=lanes, **options)
        self.lanes = lanes


async def exchange(
    http: httpx.AsyncClient, url: httpx.URL, headers: dict[str, str], patience: httpx.Timeout
) -> httpx.Response:
    """Send a GET request and return the response, its body not read yet.

    Everything that the library's client would do besides (its own headers, cookies, authentication,
    redirects) is either not wanted or done by the caller, and costs a tenth of a small request's time.

    Raises:
        httpx.HTTPError, httpx.InvalidURL: there is no response.
    """
    request = httpx.Request("GET", url, headers=headers, extensions={"timeout": patience.as_dict()})
    if isinstance(http, Http) and http.lanes is not None:
        return await http.lanes.handle_async_request(request)
    return await http.send(request, stream=True, auth=None, follow_redirects=False)


def timeouts(timeout: float) -> httpx.Timeout:
    """Return httpx's own timeouts below a deadline of `timeout` seconds, which the caller enforces.

    All attempts to connect fit before the deadline: 'cannot connect' is told, and not that time is up.
    """
    return httpx.Timeout(timeout, connect=min(_CONNECT, timeout / 6), pool=timeout)


def _has_proxy() -> bool:
    return bool(getproxies().keys() & {"http", "https", "all"})


async def connect(http: httpx.AsyncClient, url: str, done: trio.Event) -> None:
    """Open a connection for the first request that comes, and never mind the answer.

    The shortest request there is, without credentials: what can be had without them does not matter.
    `done` is set when it is over, however it ends.
    """
    try:
        with suppress(httpx.HTTPError, httpx.InvalidURL):
            await http.head(url, timeout=timeouts(_CONNECT))
    finally:
        done.set()


class _Idle(NamedTuple):
    lane: httpx.AsyncBaseTransport
    since: float
    stream: Any  # httpcore's AsyncNetworkStream: the connection; None: not known

    def is_over(self, now: float) -> bool:
        """Whether nobody will use it any more: it is old, or the service has ended its connection."""
        if self.since < now - _KEEPALIVE:
            return True
        # Nothing comes unasked on an idle connection but its end.
        socket = None if self.stream is None else self.stream.get_extra_info("socket")
        return socket is not None and (socket.fileno() < 0 or socket.is_readable())


class PerRequestPools(httpx.AsyncBaseTransport):
    """A lane for each request in flight; the one that was in use last is used next.

    Args:
        make: returns a new lane: a transport with its own pool.
        clock: seconds, monotonic.
    """

    def __init__(
        self, make: Callable[[], httpx.AsyncBaseTransport], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._make = make
        self._clock = clock
        self._idle: deque[_Idle] = deque()  # longest idle first

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request on a lane; the lane is free again when the response is closed."""
        await self._close_old()
        lane = self._idle.pop().lane if self._idle else self._make()
        try:
            response = await lane.handle_async_request(request)
        except BaseException:
            self._put_back(lane, None)
            raise
        assert isinstance(response.stream, httpx.AsyncByteStream)
        connection = response.extensions.get("network_stream")
        response.stream = _Stream(response.stream, lambda: self._put_back(lane, connection))
        return response

    async def aclose(self) -> None:
        """Close the lanes that are idle; one in use ends with its response."""
        while self._idle:
            await self._idle.pop().lane.aclose()

    def _put_back(self, lane: httpx.AsyncBaseTransport, connection: Any) -> None:
        self._idle.append(_Idle(lane, self._clock(), connection))

    async def _close_old(self) -> None:
        """Close what a burst has left behind: connections that nobody will use any more."""
        with trio.move_on_after(_CLOSING, shield=True):
            while self._idle and self._idle[0].is_over(self._clock()):
                await self._idle.popleft().lane.aclose()


class _Stream(httpx.AsyncByteStream):
    """A response's body that tells when it is closed."""

    def __init__(self, stream: httpx.AsyncByteStream, closed: Callable[[], None]) -> None:
        self._stream = stream
        self._closed: Callable[[], None] | None = closed

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._stream.__aiter__()

    async def aclose(self) -> None:
        try:
            await self._stream.aclose()
        finally:
            closed, self._closed = self._closed, None
            if closed is not None:
                closed()
