"""Requests as they go out: their addresses, their headers, and the short way for those to the ledger itself.

Owns: what a request says besides what is asked.
"""

import re
from collections.abc import Awaitable
from typing import Any
from urllib.parse import urlsplit

import httpx

from attachfs.errors import BadAnswer
from attachfs.service import connections
from attachfs.service.attempt import RequestState
from attachfs.service.http1 import request_bytes
from attachfs.service.messages import Request

_LONGEST_URL = 16 * 1024  # characters; servers refuse longer ones, and no page token needs them
# Nothing in it would be quoted, resolved or cut off, whoever reads it as an address.
_PLAIN_TARGET = re.compile(r"(?:/[A-Za-z0-9_~-][A-Za-z0-9_.~-]*)+(?:\?[A-Za-z0-9_.~&=%-]*)?")
_PREPARED = 16  # requests without their targets that are kept


class Outgoing:
    """Requests below one base URL.

    Args:
        http: the connections.
        base: the ledger's address, without a slash at its end.
    """

    def __init__(self, http: httpx.AsyncClient, base: str) -> None:
        self._http = http
        self._base = base
        url, parts = httpx.URL(base), urlsplit(base)
        self._peer = (
            url.scheme,
            url.raw_host.decode("ascii"),
            url.port or (443 if url.scheme == "https" else 80),
        )
        self._path = parts.path if base.endswith(parts.netloc + parts.path) else "?"
        self._prepared: dict[tuple[object, ...], bytes] = {}

    def url_of(self, request: Request) -> httpx.URL:
        """Return a request's whole address. Raises BadAnswer: it is beyond reason."""
        return httpx.URL(self._base + self._below(request))

    def send(
        self, state: RequestState, url: httpx.URL | None, extensions: dict[str, Any]
    ) -> Awaitable[connections.Answer]:
        """Send a request; return what waits for the answer, its body not read yet.

        Args:
            state: what is asked.
            url: where a redirect led; None: below the base URL.
            extensions: what the transport has to know.

        Raises:
            http_body.LIBRARY_ERRORS, ValueError, RuntimeError: it cannot be sent.
            BadAnswer: the address is beyond reason.
        """
        if url is None:
            target = self._path + self._below(state.request)
            # An address that needs no quoting, and headers that were sent before: to take them apart and put
            # them together again would be a tenth of what a small request costs.
            if isinstance(self._http, connections.Http) and _PLAIN_TARGET.fullmatch(target):
                pool = self._http.router.pool_for(*self._peer)
                if pool is not None:
                    payload = b"GET " + target.encode() + self._behind_target(state)
                    return pool.exchange(self._peer, payload, extensions)
            url = self.url_of(state.request)
        request = httpx.Request("GET", url, headers=_headers(state), extensions=extensions)
        return connections.transport_of(self._http, request)(request)

    def _below(self, request: Request) -> str:
        """Return a request's address below the base URL."""
        below = request.path + (f"?{request.query}" if request.query else "")
        if len(self._base) + len(below) > _LONGEST_URL:
            path = urlsplit(self._base).path + request.path
            raise BadAnswer(f"{path}: the next page's token is absurdly long")
        return below

    def _behind_target(self, state: RequestState) -> bytes:
        """Return all that follows the target of a request below the base URL."""
        key = (state.request.bulk, state.request.headers, state.header)
        prepared = self._prepared.get(key)
        if prepared is None:
            whole = request_bytes(httpx.Request("GET", f"{self._base}/", headers=_headers(state)))
            prepared = whole[whole.index(b" HTTP/1.1\r\n") :]
            if len(self._prepared) >= _PREPARED:
                self._prepared.clear()  # of tokens, only the latest is used
            self._prepared[key] = prepared
        return prepared


def _headers(state: RequestState) -> dict[str, str]:
    """Return what a request says besides its address."""
    headers = {
        "Accept": "*/*" if state.request.bulk else "application/json",
        "Accept-Encoding": "identity",
        "User-Agent": connections.USER_AGENT,
        "DataTrails-User-Agent": connections.USER_AGENT,
        **dict(state.request.headers),
    }
    if state.header is not None:
        headers["Authorization"] = state.header
    return headers
