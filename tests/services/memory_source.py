"""Records, listings and blobs as `ledger/` and `blobs/` ask for them, without HTTP."""

import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import trio
from trio.testing import wait_all_tasks_blocked

from attachfs.blobs.source import Chunks, Part
from attachfs.errors import NotFound
from attachfs.model import AssetRef, AttachmentRef, Digest, EventRef, Realm

T = TypeVar("T")


def uuid(number: int) -> str:
    """Return a canonical UUID made from a number."""
    return f"{number:08x}-0000-4000-8000-{number:012x}"


def asset_ref(number: int = 1, realm: Realm = "assets") -> AssetRef:
    return AssetRef(realm, uuid(number))


def event_ref(number: int = 1, event: int = 2, realm: Realm = "assets") -> EventRef:
    return EventRef(realm, uuid(number), uuid(event))


def file_ref(attachment: int = 3, *, asset: int = 1, event: int | None = None) -> AttachmentRef:
    return AttachmentRef("assets", uuid(asset), None if event is None else uuid(event), uuid(attachment))


def attribute(attachment: int, digest: str = "", alg: str = "SHA256", **more: object) -> dict[str, Any]:
    """Return an attribute's value that carries an attachment."""
    value: dict[str, Any] = {
        "arc_attribute_type": "arc_attachment",
        "arc_blob_identity": f"blobs/{uuid(attachment)}",
        **more,
    }
    if digest:
        value |= {"arc_blob_hash_alg": alg, "arc_blob_hash_value": digest}
    return value


def asset_record(
    ref: AssetRef, attributes: Mapping[str, object] | None = None, **more: object
) -> dict[str, object]:
    return {"identity": ref.path, "attributes": dict(attributes or {}), **more}


def event_record(
    ref: EventRef, attributes: Mapping[str, object] | None = None, **more: object
) -> dict[str, object]:
    return {"identity": ref.path, "event_attributes": dict(attributes or {}), **more}


def info_body(ref: AttachmentRef, data: bytes = b"evidence", **more: object) -> bytes:
    """Return the `/info` of an attachment whose bytes are `data`; `more` overrides its fields."""
    fields: dict[str, object] = {
        "identity": f"blobs/{ref.attachment}",
        "hash": {"alg": "SHA256", "value": hashlib.sha256(data).hexdigest()},
        "size": len(data),
        "mime_type": "text/plain",
        "timestamp_accepted": "2023-01-01T00:00:00Z",
        "scanned_status": "SCANNED_OK",
        "scanned_bad_reason": "",
    }
    return json.dumps(fields | more).encode()


def as_json(record: Mapping[str, object]) -> bytes:
    return json.dumps(record).encode()


class FakePage(NamedTuple):
    records: list[dict[str, object]]
    next_token: str = ""


class FakeSource:
    """The service as the ledger view sees it: answers from tables, each request on record.

    What is not in a table is NotFound; an exception in one is raised. Answers wait for `gate` if it is set.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[str, object]] = []
        self.infos: dict[AttachmentRef, bytes | Exception] = {}
        self.records: dict[AssetRef | EventRef, bytes | Exception] = {}
        self.asset_pages: dict[str, FakePage | Exception] = {}
        self.event_pages: dict[tuple[AssetRef | None, str], FakePage | Exception] = {}
        self.gate: trio.Event | None = None
        self.cancelled = 0

    def count(self, kind: str) -> int:
        """Return how many requests of a kind (asset, event, info, assets, events) were made."""
        return sum(call[0] == kind for call in self.calls)

    async def assets_page(self, token: str = "", filters: Mapping[str, str] = {}) -> FakePage:
        answer = self.asset_pages.get(token, NotFound(f"no page {token!r}"))
        if filters:
            answer = _filtered(list(self.asset_pages.values()), filters)
        return await self._answer("assets", filters or token, answer)

    async def events_page(
        self,
        asset: AssetRef | None,
        token: str = "",
        filters: Mapping[str, str] = {},
    ) -> FakePage:
        answer = self.event_pages.get((asset, token), NotFound(f"no page {token!r}"))
        if filters:
            answer = _filtered([page for key, page in self.event_pages.items() if key[0] == asset], filters)
        return await self._answer("events", (asset, filters or token), answer)

    async def asset(self, ref: AssetRef) -> bytes:
        return await self._answer("asset", ref, self.records.get(ref, NotFound(ref.path)))

    async def event(self, ref: EventRef) -> bytes:
        return await self._answer("event", ref, self.records.get(ref, NotFound(ref.path)))

    async def info(self, ref: AttachmentRef) -> bytes:
        return await self._answer("info", ref, self.infos.get(ref, NotFound(ref.path)))

    async def _answer(self, kind: str, what: object, answer: T | Exception) -> T:
        self.calls.append((kind, what))
        try:
            if self.gate is not None:
                await self.gate.wait()
            else:
                await trio.lowlevel.checkpoint()
        except trio.Cancelled:
            self.cancelled += 1
            raise
        if isinstance(answer, Exception):
            raise answer
        return answer


def _filtered(pages: list[FakePage | Exception], filters: Mapping[str, str]) -> FakePage | Exception:
    """Return one page of the records that pass: attributes are compared, of times the text."""

    def passes(record: dict[str, Any]) -> bool:
        for key, value in filters.items():
            if key.startswith("attributes."):
                if record["attributes"].get(key.removeprefix("attributes.")) != value:
                    return False
            elif (record["timestamp_accepted"] >= value) != key.endswith("_since"):
                return False
        return True

    found: list[dict[str, object]] = []
    for page in pages:
        if isinstance(page, Exception):
            return page
        found += filter(passes, page.records)
    return FakePage(found)


class Piece(NamedTuple):
    """A chunk."""

    offset: int
    data: bytes
    discards: bool = False


class Fed(Generic[T]):
    """The body of one GET: the test sends its pieces, or an exception, and ends it."""

    def __init__(self, etag: str | None = None) -> None:
        self.etag = etag
        self.ended = False  # received to its end, failed, or cancelled
        self._send, self._receive = trio.open_memory_channel[T | Exception](1000)

    def end(self) -> None:
        """Say that the body is complete."""
        self._send.close()

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:
        try:
            item = await self._receive.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None
        if isinstance(item, Exception):
            raise item
        return item

    def close(self) -> None:
        self.ended = True
        self._send.close()
        self._receive.close()


class Transfer(Fed[Piece]):
    """One GET of a blob, from `start` on."""

    def __init__(self, ref: AttachmentRef, size: int, start: int = 0) -> None:
        super().__init__()
        self.ref = ref
        self.size = size
        self.start = start

    def put(self, *items: Piece | bytes | Exception, offset: int = 0) -> "Transfer":
        """Make pieces available: those given, and bytes as pieces that follow each other from `offset`."""
        for item in items:
            if isinstance(item, bytes):
                self._send.send_nowait(Piece(offset, item))
                offset += len(item)
            else:
                self._send.send_nowait(item)
        return self


class PartAsked(Fed[bytes]):
    """One GET of a part."""

    def __init__(self, start: int, stop: int, etag: str | None) -> None:
        super().__init__(etag)
        self.start = start
        self.stop = stop

    def put(self, *items: bytes | Exception) -> "PartAsked":
        for item in items:
            self._send.send_nowait(item)
        return self


class FakeBytes:
    """Where blobs come from. Those in `contents` arrive whole; for others the test feeds each `Transfer`.

    `parts`: what parts are taken from, by themselves; None: only whole blobs can be had; "held": the test
    feeds each `PartAsked`. An exception is raised.
    """

    def __init__(self) -> None:
        self.contents: dict[AttachmentRef, bytes | Exception] = {}
        self.transfers: list[Transfer] = []
        self.digests: list[Digest | None] = []  # what each download was told of the whole
        self.parts: bytes | Exception | Literal["held"] | None = None
        self.asked: list[PartAsked] = []
        self.etag: str | None = None  # of the parts
        self._begun, self._next = trio.open_memory_channel[Transfer](1000)

    @property
    def live(self) -> int:
        return sum(not transfer.ended for transfer in self.transfers)

    async def next(self) -> Transfer:
        """Wait for the next GET, and until it waits for its first piece."""
        transfer = await self._next.receive()
        await wait_all_tasks_blocked()
        return transfer

    @asynccontextmanager
    async def download(
        self, ref: AttachmentRef, size: int, /, *, start: int = 0, digest: Digest | None = None
    ) -> AsyncIterator[Chunks]:
        self.digests.append(digest)
        transfer = Transfer(ref, size, start)
        self.transfers.append(transfer)
        self._begun.send_nowait(transfer)
        content = self.contents.get(ref)
        if content is not None:
            transfer.put(content).end()
        try:
            yield transfer
        finally:
            transfer.close()

    @asynccontextmanager
    async def part(
        self, _ref: AttachmentRef, _size: int, /, *, start: int, stop: int
    ) -> AsyncIterator[Part | None]:
        asked = PartAsked(start, stop, self.etag)
        self.asked.append(asked)
        await trio.lowlevel.checkpoint()
        if isinstance(self.parts, Exception):
            raise self.parts
        if isinstance(self.parts, bytes):
            asked.put(self.parts[start:stop]).end()
        try:
            yield None if self.parts is None else asked
        finally:
            asked.close()
