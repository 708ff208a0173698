"""Objects of a shared store by digest: get as a stream, has, put.

Owns: which answers mean "not there", and which mean trouble. Where an object lives and how a request for
it is signed, an `Address` knows.
"""

import math
import os
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Literal, NamedTuple, Protocol

import httpx
import trio

from attachfs.errors import causes_of
from attachfs.model import Digest

CONNECT = 0.5  # seconds to connect, TLS included
FIRST_BYTE = 2.0  # seconds from the request to the answer's first byte
_STALL = 1.0  # seconds between two pieces of a body
_WRITE = 30.0  # seconds for which an upload may stand still
_DRAINED = 10_000  # buffered pieces that ending a body may have to skip
_PIECE = 256 * 1024  # bytes read from the disk at a time for an upload

EMPTY_SHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

Kind = Literal["refused", "unreachable", "slow", "broken", "wrong"]


class Missing(Exception):
    """The store answers that it has no such object."""


class StoreError(Exception):
    """The store could not be used. `kind` is counted, `reason` is logged; neither holds a secret."""

    def __init__(self, kind: Kind, reason: str) -> None:
        super().__init__(reason)
        self.kind: Kind = kind
        self.reason = reason


class Listed(NamedTuple):
    """An object of a listing; `size` in bytes."""

    digest: Digest
    size: int


class Address(Protocol):
    """Where objects live in a store, and what a request for one must carry."""

    name: str  # shown to people: no credentials in it

    def url(self, digest: Digest) -> str:
        """Return an object's URL."""
        ...

    async def headers(
        self, method: str, url: str, payload_sha256: str, more: Mapping[str, str]
    ) -> dict[str, str]:
        """Return `more` with what authorises the request.

        Raises:
            Trouble: there are no credentials to do so.
        """
        ...

    def put_headers(self, digest: Digest, *, overwrite: bool) -> dict[str, str]:
        """Return what a PUT of an object carries besides."""
        ...

    def listing_url(self, after: str) -> str | None:
        """Return the URL of a page of the listing; None: this store cannot list."""
        ...

    def parse_listing(self, body: bytes) -> tuple[list[Listed], str]:
        """Return a page's objects, and what the next page begins after, "" at the end.

        Raises:
            ValueError: that is no listing.
        """
        ...


class ObjectStream:
    """An object's bytes as they come, never more than announced. Close it."""

    def __init__(self, response: httpx.Response, size: int) -> None:
        self._response = response
        self._pieces = response.aiter_raw()
        self._remaining = size

    async def next(self) -> bytes:
        """Return the next piece, b"" at the end.

        Raises:
            Trouble: it stands still, broke off, or has another length.
        """
        try:
            with trio.fail_after(_STALL):
                piece = await anext(self._pieces, b"")
        except trio.TooSlowError:
            raise StoreError("slow", f"the body stalled for {_STALL:g} s") from None
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise store_error_of(error) from error
        self._remaining -= len(piece)
        if self._remaining < 0 or (not piece and self._remaining):
            raise StoreError("broken", "the object has another length than the ledger records")
        return piece

    async def aclose(self) -> None:
        """End the transfer. Cannot be cancelled for long."""
        # The library's iterators are nested, and dropping them half-way leaves the inner ones to the garbage
        # collector. A read that is cancelled at once ends them all, in order.
        with trio.CancelScope(shield=True) as scope, suppress(httpx.HTTPError, httpx.StreamError):
            scope.cancel()
            for _ in range(_DRAINED):
                if await anext(self._pieces, None) is None:
                    break
        with trio.move_on_after(CONNECT, shield=True):
            await self._response.aclose()


class ObjectStore:
    """A store's objects.

    Args:
        http: connections of its own; it must neither follow redirects nor carry the ledger's credentials.
        address: where objects live.
    """

    def __init__(self, http: httpx.AsyncClient, address: Address) -> None:
        self._http = http
        self.address = address

    @property
    def name(self) -> str:
        """The store as people know it."""
        return self.address.name

    async def open(self, digest: Digest, size: int) -> ObjectStream:
        """Return an object's bytes; the answer has begun.

        Raises:
            Missing, Trouble: there is none, or it cannot be had.
        """
        response = await self._send("GET", digest)
        try:
            self._check(response)
            _check_size(response, size)
        except BaseException:
            with trio.move_on_after(CONNECT, shield=True):
                await response.aclose()
            raise
        return ObjectStream(response, size)

    async def has(self, digest: Digest) -> int | None:
        """Return an object's size in bytes, -1 if the store does not say, None if there is none.

        Raises:
            Trouble: it cannot be found out.
        """
        response = await self._send("HEAD", digest)
        await response.aclose()
        try:
            self._check(response)
        except Missing:
            return None
        length = response.headers.get("content-length", "")
        return int(length[:18]) if length.isascii() and length.isdigit() else -1

    async def put(
        self, digest: Digest, size: int, read: Callable[[int, int], bytes], *, overwrite: bool = False
    ) -> bool:
        """Store an object; return whether it was not there yet.

        Args:
            digest: SHA-256 of the bytes.
            size: their number.
            read: `read(length, offset)` returns them; called in threads.
            overwrite: replace what is there.

        Raises:
            Trouble: the store does not take it.
        """

        async def pieces() -> AsyncIterator[bytes]:
            for offset in range(0, size, _PIECE):
                yield await trio.to_thread.run_sync(read, min(_PIECE, size - offset), offset)

        more = {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
        more |= self.address.put_headers(digest, overwrite=overwrite)
        response = await self._send("PUT", digest, more, pieces())
        await response.aclose()
        if response.status_code in (409, 412):  # another was first
            return False
        if response.status_code not in (200, 201, 204):
            raise _refusal(response)
        return True

    @asynccontextmanager
    async def listed(self) -> AsyncIterator[AsyncIterator[Listed]]:
        """Yield all objects, page by page.

        Raises (while iterating):
            Trouble: a page cannot be had, or the store cannot list.
        """

        async def objects() -> AsyncIterator[Listed]:
            after = ""
            while True:
                url = self.address.listing_url(after)
                if url is None:
                    raise StoreError("refused", "a plain HTTP store cannot list what it has")
                headers = await self.address.headers(
                    "GET", url, EMPTY_SHA256, {"Accept-Encoding": "identity"}
                )
                response = await self._exchange("GET", url, headers, None)
                try:
                    self._check(response)
                    with trio.fail_after(_WRITE):
                        found, after = self.address.parse_listing(await response.aread())
                except (ValueError, trio.TooSlowError, httpx.HTTPError) as error:
                    raise StoreError("broken", "the listing cannot be read") from error
                finally:
                    await response.aclose()
                for one in found:
                    yield one
                if not after:
                    return

        pages = objects()
        try:
            yield pages
        finally:
            await pages.aclose()  # type: ignore[attr-defined]  # a generator, as is written above

    async def _send(
        self,
        method: str,
        digest: Digest,
        more: Mapping[str, str] | None = None,
        content: AsyncIterator[bytes] | None = None,
    ) -> httpx.Response:
        url = self.address.url(digest)
        payload = EMPTY_SHA256 if content is None else digest.hex
        headers = await self.address.headers(
            method, url, payload, {"Accept-Encoding": "identity", **(more or {})}
        )
        return await self._exchange(method, url, headers, content)

    async def _exchange(
        self, method: str, url: str, headers: dict[str, str], content: AsyncIterator[bytes] | None
    ) -> httpx.Response:
        limit = _WRITE if content is not None else FIRST_BYTE
        timeout = httpx.Timeout(limit, connect=CONNECT)
        request = self._http.build_request(method, url, headers=headers, content=content, timeout=timeout)
        try:
            # One deadline for all of it: a drip of interim answers is no answer.
            with trio.fail_after(limit if content is None else math.inf):  # an upload's bound is its progress
                return await self._http.send(request, stream=True)
        except trio.TooSlowError:
            raise StoreError("slow", f"no answer within {limit:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            raise store_error_of(error) from error

    def _check(self, response: httpx.Response) -> None:
        if response.status_code in (404, 410):
            raise Missing
        if response.status_code != 200:
            raise _refusal(response)


def _check_size(response: httpx.Response, size: int) -> None:
    if response.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise StoreError("broken", "the object was sent encoded, which was not requested")
    length = response.headers.get("content-length", "")
    if length.isascii() and length.isdigit() and int(length[:18]) != size:
        raise StoreError("wrong", f"the object has {length[:18]} bytes, the ledger records {size}")


def _refusal(response: httpx.Response) -> StoreError:
    status = response.status_code
    if 300 <= status < 400:
        return StoreError("refused", f"it answers with a redirect ({status}), which is not followed")
    return StoreError("refused", f"it answers {status}")


def store_error_of(error: Exception) -> StoreError:
    """Return what an exception of the library means; its text, which may quote headers, stays out."""
    if isinstance(error, httpx.ConnectTimeout):
        return StoreError("slow", f"no connection within {CONNECT:g} s")
    if isinstance(error, httpx.TimeoutException):
        return StoreError("slow", "no answer in time")
    for cause in causes_of(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return StoreError("unreachable", "its certificate is refused: see --shared-cache-ca-file")
        if isinstance(cause, OSError) and cause.errno:
            return StoreError("unreachable", os.strerror(cause.errno))
    if isinstance(error, httpx.ConnectError | httpx.ProxyError | httpx.UnsupportedProtocol):
        return StoreError("unreachable", "it cannot be connected to")
    return StoreError("broken", "the answer broke off or is not HTTP")
