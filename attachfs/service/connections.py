"""How requests travel: over connections of our own, or through the environment's proxy.

Owns: what is trusted over TLS, and which transport a request takes. Proxies and whatever is not a plain GET
or HEAD go through httpx's own, with a connection for each request: what stands behind an answer cannot be
seen there.
"""

import http.cookiejar
import logging
import os
import ssl
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import trio

from attachfs import __version__
from attachfs.errors import UsageError
from attachfs.service.http1 import Http1Answer
from attachfs.service.pool import CONNECT, QUIET, Http1Pool
from attachfs.service.proxies import Proxies

Answer = httpx.Response | Http1Answer
USER_AGENT = f"attachfs/{__version__} (+python httpx)"

_HOSTS = 64  # of which it is remembered how they are reached


class Router(httpx.AsyncBaseTransport):
    """Chooses how a request travels.

    Args:
        pool: for GET and HEAD without a proxy.
        context: what TLS trusts.
        proxies: which hosts need one.
    """

    def __init__(self, pool: Http1Pool, context: ssl.SSLContext, proxies: Proxies) -> None:
        self.pool = pool
        self._context = context
        self._proxies = proxies
        self._known: dict[tuple[str, str, int | None], str | None] = {}  # the proxy of each host
        self._others: dict[str | None, httpx.AsyncBaseTransport] = {}

    def transport_for(self, request: httpx.Request) -> httpx.AsyncBaseTransport:
        """Return what sends this request.

        Raises:
            httpx.UnsupportedProtocol: a proxy is needed that cannot be used.
        """
        url = request.url
        proxy = self._proxy_for(url.scheme, url.raw_host.decode("ascii"), url.port)
        if proxy is None and request.method in ("GET", "HEAD"):
            return self.pool
        if proxy not in self._others:
            self._others[proxy] = httpx.AsyncHTTPTransport(
                verify=self._context,
                trust_env=False,
                # What stands behind an answer cannot be seen there. So no connection is used twice.
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
                proxy=None if proxy is None else self._as_proxy(proxy),
            )
        return self._others[proxy]

    def pool_for(self, scheme: str, host: str, port: int | None) -> Http1Pool | None:
        """Return the pool, if GET and HEAD to a host go through it; None: there is a proxy.

        Raises:
            httpx.UnsupportedProtocol: a proxy is needed that cannot be used.
        """
        return self.pool if self._proxy_for(scheme, host, port) is None else None

    def _proxy_for(self, scheme: str, host: str, port: int | None) -> str | None:
        key = (scheme, host, port)
        if key not in self._known:
            if len(self._known) >= _HOSTS:
                self._known.clear()
            try:
                self._known[key] = self._proxies.url_for(scheme, host, port)
            except UsageError as error:
                raise httpx.UnsupportedProtocol(error.reason) from error
        return self._known[key]

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request."""
        return await self.transport_for(request).handle_async_request(request)

    def _as_proxy(self, url: str) -> httpx.Proxy:
        return httpx.Proxy(url, ssl_context=self._context if url.startswith("https:") else None)

    async def aclose(self) -> None:
        """Close all that is idle."""
        await self.pool.aclose()
        for other in self._others.values():
            await other.aclose()


class Http(httpx.AsyncClient):
    """The connections. A client whose requests may also be handed to its transport directly."""

    def __init__(self, router: Router, **options: Any) -> None:
        super().__init__(transport=router, **options)
        self.router = router


def open_http(
    *,
    url: str = "",
    ca_file: Path | str | None = None,
    max_connections: int = 32,
    quiet: float = QUIET,
    environ: Mapping[str, str] = os.environ,
    user_agent: str = USER_AGENT,
) -> Http:
    """Return the connections: the system's trust store (or `ca_file`), the environment's proxies.

    Args:
        url: the ledger's address, whose proxy is looked at now rather than at the first request.
        ca_file: PEM certificates to trust instead of the system's.
        max_connections: requests in flight at once. Twice as many connections are kept, see `QUIET`.
        quiet: seconds for which nothing may have arrived before a connection is used again.
        environ: where proxies are named.
        user_agent: what requests for tokens call themselves.

    Raises:
        UsageError: `ca_file` or the proxy for `url` cannot be used.
    """
    # At debug level these print headers, at info level whole URLs: neither may reach a log.
    for library in ("httpx", "httpcore"):
        logging.getLogger(library).setLevel(logging.WARNING)
    context = _trust(ca_file)
    proxies = Proxies(environ)
    if url:
        with suppress(httpx.InvalidURL, UnicodeError):
            target = httpx.URL(url)
            proxies.url_for(target.scheme, target.raw_host.decode("ascii"), target.port)
    # No cookies: nothing the service sets is kept, sent on, or sent to public assets.
    jar = http.cookiejar.CookieJar(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
    return Http(
        Router(Http1Pool(context, max_idle=2 * max_connections + 2, quiet=quiet), context, proxies),
        verify=context,
        trust_env=False,
        follow_redirects=False,
        cookies=jar,
        headers={"User-Agent": user_agent, "DataTrails-User-Agent": user_agent},
    )


def _trust(ca_file: Path | str | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cadata=None if ca_file is None else _certificates(ca_file))
    except OSError as error:  # ssl.SSLError is one
        raise UsageError(
            f"TLS cannot be set up ({error.strerror or type(error).__name__}): check SSLKEYLOGFILE and "
            f"OPENSSL_CONF in the environment"
        ) from error
    context.set_alpn_protocols(["http/1.1"])
    return context


def _certificates(file: Path | str) -> str:
    """Return the certificates in a file, once they have been found to be some."""
    try:
        text = Path(file).read_bytes().decode("ascii", "replace").replace("\ufffd", "?")
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"--ca-file {file}: cannot be read as PEM certificates ({type(error).__name__}); "
            f"give a file with 'BEGIN CERTIFICATE' blocks"
        ) from error
    return text


def transport_of(
    http: httpx.AsyncClient, request: httpx.Request
) -> Callable[[httpx.Request], Awaitable[httpx.Response]]:
    """Return what sends a request and returns the response, its body not read yet.

    Everything that the library's client would do besides (its own headers, cookies, authentication,
    redirects) is either not wanted or done by the caller, and costs a tenth of a small request's time.

    Raises:
        httpx.HTTPError: nothing can send it.
    """
    if isinstance(http, Http):
        return http.router.transport_for(request).handle_async_request
    return partial(http.send, stream=True, auth=None, follow_redirects=False)


def timeouts(timeout: float) -> httpx.Timeout:
    """Return httpx's own timeouts below a deadline of `timeout` seconds, which the caller enforces.

    All attempts to connect fit before the deadline: 'cannot connect' is told, and not that time is up.
    """
    return httpx.Timeout(timeout, connect=min(CONNECT, timeout / 6), pool=timeout)


async def connect(http: httpx.AsyncClient, url: str, done: trio.Event) -> None:
    """Open a connection for the first request that comes, and never mind the answer.

    The shortest request there is, without credentials: what can be had without them does not matter.
    `done` is set when it is over, however it ends.
    """
    try:
        with suppress(httpx.HTTPError, httpx.InvalidURL, UnicodeError), trio.move_on_after(CONNECT):
            await http.head(url, timeout=timeouts(CONNECT))
    finally:
        done.set()
