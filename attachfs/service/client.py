"""The service's client: what can be asked, and what comes back. Built on service/transport.py.

Owns: the service's addresses, how listings are paged, how a blob is streamed and
resumed. Records come back as received; model.py parses them.
"""

import math
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

import httpx
import trio

from attachfs import model
from attachfs.errors import NotFound
from attachfs.model import NO_FILTERS, AssetRef, AttachmentRef, Digest, EventRef
from attachfs.service.attempt import unread, whole
from attachfs.service.auth import Auth
from attachfs.service.blob_stream import BlobBody, Chunk, Transfer, brings_just
from attachfs.service.connections import open_http
from attachfs.service.messages import Request, ServiceStats
from attachfs.service.pages import parse_page
from attachfs.service.transport import Transport
from attachfs.service.watch import watch

__all__ = ["BlobBody", "Chunk", "Client", "Page", "open_http"]

_PAGE_LIMIT = 32 * 2**20  # bytes; the largest page of 500 records seen is about a megabyte
_PAGE_AT_ONCE = 128 * 1024  # bytes; larger pages are parsed in a thread, beside the event loop
_RECORD_LIMIT = 2**20  # bytes; one record, or one /info
_LISTING_STATUSES = frozenset({200, 206})  # 206: there is more than the server's own limit
_WHOLE = frozenset({200})
# 200: the range was ignored. 416: the service thinks that there is nothing there.
_PART = frozenset({200, 206, 416})

# Short, about nothing that anybody may have removed, and asked of the ledger, not of what stands before it.
_PROBE = Request("probe", "/archivist/v2/assets", "page_size=1", accept=_LISTING_STATUSES)

_NO_PARTS = 300.0  # seconds for which it is believed that the service does not send parts


class Page(NamedTuple):
    """One page of a listing: its records, and the next page's token ("" at the end)."""

    records: list[dict[str, Any]]
    next_token: str


class Client:
    """The service, as attachfs uses it.

    Args:
        http: the connection pool (see `open_http`); whoever made it closes it.
        base_url: the ledger's address, possibly with a path.
        auth: the credentials. Requests for public assets never carry them.
        timeout: seconds: for a record with all retries; for a blob without progress.
        max_connections: requests in flight at once.
        page_size: records asked for at a time.
        clock: seconds, the event loop's.
        wall: seconds since 1970.
    """

    def __init__(
        self,
        http: httpx.AsyncClient,
        base_url: str,
        auth: Auth,
        *,
        timeout: float = 60,
        max_connections: int = 32,
        page_size: int = 500,
        clock: Callable[[], float] = trio.current_time,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.transport = Transport(
            http, base_url, auth, timeout=timeout, max_connections=max_connections, clock=clock, wall=wall
        )
        self._timeout = timeout
        self._page_size = page_size
        self._clock = clock
        # Parts are for somebody's convenience: they never take more than half of the places for blobs.
        self._parts = trio.Semaphore(max(1, self.transport.limiter.bulk_limit // 2))
        self._no_parts_until = -math.inf

    def stats(self) -> ServiceStats:
        """Return counters, limits and the circuit's state, ready for JSON."""
        transport = self.transport
        circuit = transport.circuit
        return {
            "requests": transport.stats.as_dict(),
            "max_connections": transport.limiter.maximum,
            "connections_allowed": transport.limiter.limit,
            "in_flight": transport.limiter.in_flight,
            "waiting": transport.limiter.queued,
            "rate_limited_for_s": round(transport.gate.remaining, 1),
            "unsolicited": transport.unsolicited,
            "unreachable_since": circuit.open_since,
            "unreachable_reason": circuit.reason if circuit.open_since is not None else "",
        }

    def authenticate(self, auth: Auth) -> None:
        """Use other credentials from now on."""
        self.transport.authenticate(auth)

    async def watch(self) -> None:
        """Notice when the service is silent, and when it is back, for as long as this runs."""
        await watch(self.transport, _PROBE)

    def set_timeouts(self, timeout: float) -> None:
        """Change the timeout of what is asked from now on."""
        self._timeout = timeout
        self.transport.set_timeout(timeout)

    # -- records ----------------------------------------------------------------------------------------

    async def assets_page(self, token: str = "", filters: Mapping[str, str] = NO_FILTERS) -> Page:
        """Return one page of all assets. The filters must be the same from page to page."""
        request = Request(
            "assets", "/archivist/v2/assets", self._query(token, filters), accept=_LISTING_STATUSES
        )
        return await self._page(request, "assets")

    async def events_page(
        self, asset: AssetRef | None, token: str = "", filters: Mapping[str, str] = NO_FILTERS
    ) -> Page:
        """Return one page of an asset's events, or of all assets' events (None)."""
        path = "/archivist/v2/assets/-/events" if asset is None else f"{_record_path(asset)}/events"
        request = Request(
            "events",
            path,
            self._query(token, filters),
            accept=_LISTING_STATUSES,
            credentials=asset is None or _with_credentials(asset),
        )
        return await self._page(request, "events")

    # Not async themselves: what they return is awaited, which is a task switch's cost less for each request.

    def asset(self, ref: AssetRef) -> Coroutine[Any, Any, bytes]:
        """Return an asset's record as received."""
        return self._record("asset", ref, _record_path(ref))

    def event(self, ref: EventRef) -> Coroutine[Any, Any, bytes]:
        """Return an event's record as received."""
        return self._record("event", ref, _record_path(ref))

    def info(self, ref: AttachmentRef) -> Coroutine[Any, Any, bytes]:
        """Return an attachment's `/info` as received."""
        return self._record("info", ref, f"{_attachment_path(ref)}/info")

    def _record(
        self, kind: str, ref: AssetRef | EventRef | AttachmentRef, path: str
    ) -> Coroutine[Any, Any, bytes]:
        request = Request(kind, path, credentials=_with_credentials(ref))
        return self.transport.perform(request, whole(_RECORD_LIMIT))

    async def _page(self, request: Request, key: str) -> Page:
        raw = await self.transport.perform(request, whole(_PAGE_LIMIT))
        if len(raw) > _PAGE_AT_ONCE:
            return Page(*await trio.to_thread.run_sync(parse_page, raw, key, request.path))
        return Page(*parse_page(raw, key, request.path))

    def _query(self, token: str, filters: Mapping[str, str]) -> str:
        fields = {**filters, "page_size": str(self._page_size)}
        if token:
            fields["page_token"] = token
        return urlencode(fields, quote_via=quote, safe="", errors="surrogatepass")

    # -- blobs ------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def download(
        self, ref: AttachmentRef, size: int, /, *, start: int = 0, digest: Digest | None = None
    ) -> AsyncIterator[Transfer]:
        """Stream an attachment's bytes from `start` on, taking up by itself what breaks off.

        The chunks follow each other, but for one whose offset is 0 after others: the service sent the
        whole again. Fewer bytes than `size` may come, never more; comparing them is the caller's part.

        Raises (while iterating):
            BadAnswer: it broke off too often without a byte in between, or more than `size` bytes came.
            TimedOut: no progress within the timeout.
        """
        del digest  # whoever asked compares

        transfer = Transfer(
            lambda offset, time_limit: self._open_blob(ref, offset, size, time_limit), size, start
        )
        try:
            yield transfer
        finally:
            await transfer.aclose()

    @asynccontextmanager
    async def part(
        self, ref: AttachmentRef, size: int, /, *, start: int, stop: int
    ) -> AsyncIterator[BlobBody | None]:
        """Stream the bytes in [start, stop) of an attachment of `size` bytes.

        None: the service does not send parts. It is not asked again for a while.

        Raises (while iterating too):
            BadAnswer, TimedOut: it did not come whole.
        """
        async with self._parts:
            if self._clock() < self._no_parts_until:
                yield None
                return
            answer = await self.transport.perform(
                self._blob_request(ref, f"bytes={start}-{stop - 1}"), unread
            )
            try:
                if brings_just(answer, start, stop, size):
                    yield BlobBody(answer, _attachment_path(ref), start, size, self._timeout, self._clock)
                    return
            finally:
                await answer.aclose()
            self._no_parts_until = self._clock() + _NO_PARTS
            yield None

    async def _open_blob(
        self, ref: AttachmentRef, offset: int, size: int | None, time_limit: float | None = None
    ) -> BlobBody:
        request = self._blob_request(ref, f"bytes={offset}-" if offset else "")
        answer = await self.transport.perform(request, unread, time_limit)
        try:
            return BlobBody(answer, _attachment_path(ref), offset, size, self._timeout, self._clock)
        except BaseException:
            await answer.aclose()
            raise

    def _blob_request(self, ref: AttachmentRef, wanted: str) -> Request:
        return Request(
            "blob",
            _attachment_path(ref),
            headers=(("Range", wanted),) if wanted else (),
            accept=_PART if wanted else _WHOLE,
            credentials=_with_credentials(ref),
            bulk=True,
        )


# -- addresses -----------------------------------------------------------------------------------------


def _with_credentials(ref: AssetRef | EventRef | AttachmentRef) -> bool:
    return ref.realm == "assets"


def _record_path(ref: AssetRef | EventRef) -> str:
    _check(ref)
    return f"/archivist/v2/{ref.path}"


def _attachment_path(ref: AttachmentRef) -> str:
    _check(ref)
    return f"/archivist/v2/attachments/{ref.path}"


def _check(ref: AssetRef | EventRef | AttachmentRef) -> None:
    """Refuse to build an address from anything but UUIDs, wherever the reference came from."""
    realm, *ids = ref
    if realm not in ("assets", "publicassets") or not all(one is None or model.is_uuid(one) for one in ids):
        raise NotFound("no such name can be in the ledger")
