"""`BulkLedger`: a ledger of any size, computed from indices: a hundred thousand assets cost no memory.

Asset `n`, event `e` of it and attachment `a` of that have UUIDs in which these numbers stand, and content
that is made from them on reading. What the first event attaches is also attached to the asset. Read-only.
"""

import functools
import hashlib
import io
import itertools
import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from attachfs.demo.query import Query
from attachfs.demo.records import Blob, Page, Refused, Source

_AT = "2026-01-01T00:00:00Z"
_ASSET, _EVENT, _BLOB = "a55e7000", "e7e47000", "b10b0000"
_BLOCK = 1 << 20
_ANCHORED = 16 << 10  # up to this size, listings record the hash, which costs a reading
_DIGESTS = 4096  # digests that are remembered; each costs a reading


class BulkLedger:
    """A computed ledger, the public view of which is empty.

    Args:
        assets: how many assets there are.
        events: how many events each has.
        attachments: how many attachments each event has.
        size: of each attachment, in bytes; from 32 on, no two are the same.
    """

    def __init__(self, assets: int, events: int = 1, attachments: int = 1, size: int = 4096) -> None:
        self._assets = assets
        self._events = events
        self._attachments = attachments
        self._size = size
        self._digest = functools.lru_cache(_DIGESTS)(self._compute_digest)

    def asset_id(self, asset: int) -> str:
        """Return an asset's UUID."""
        return f"{_ASSET}-0000-4000-8000-{asset:012x}"

    def event_id(self, asset: int, event: int) -> str:
        """Return an event's UUID."""
        return f"{_EVENT}-0000-4000-8{event:03x}-{asset:012x}"

    def blob_id(self, asset: int, event: int, attachment: int) -> str:
        """Return an attachment's UUID."""
        return f"{_BLOB}-{attachment:04x}-4000-8{event:03x}-{asset:012x}"

    def content(self, blob: str) -> bytes:
        """Return an attachment's bytes, all at once."""
        return b"".join(_pieces(blob, self._size))

    def list_assets(self, query: Query, offset: int, limit: int) -> Page:
        """Return assets, in the order of their numbers. Filters look at every asset: they are slow."""
        if not query.admits_tracked("TRACKED"):
            return Page([], False, 0)
        if not query.conditions:
            stop = min(offset + limit, self._assets)
            return Page(
                [self._asset(number) for number in range(offset, stop)], stop < self._assets, self._assets
            )
        return _scan((self._asset(number) for number in range(self._assets)), query, offset, limit)

    def list_events(
        self, asset: str | None, query: Query, offset: int, limit: int, *, public: bool = False
    ) -> Page | None:
        """Return events, asset by asset. Filters look at every event: they are slow."""
        first, total = 0, self._assets * self._events
        if asset is not None:
            number = None if public else self._number(asset)
            if number is None:
                return None
            first, total = number * self._events, self._events
        if query.conditions:
            return _scan((self._event(first + index) for index in range(total)), query, offset, limit)
        stop = min(offset + limit, total)
        return Page([self._event(first + index) for index in range(offset, stop)], stop < total, total)

    def asset(self, asset: str, *, public: bool = False) -> bytes | None:
        """Return an asset's record."""
        number = None if public else self._number(asset)
        return None if number is None else self._asset(number)

    def event(self, asset: str, event: str, *, public: bool = False) -> bytes | None:
        """Return an event's record."""
        place = None if public else self._place(asset, event)
        return None if place is None else self._event(place[0] * self._events + place[1])

    def find_attachment(
        self, asset: str, event: str | None, blob: str, *, public: bool = False
    ) -> Blob | None:
        """Return an attachment, if it is there."""
        found = None if public else self._parse_blob(blob)
        if found is None or found[0] != self._number(asset):
            return None
        its_event = self._place(asset, event) if event is not None else (found[0], 0)
        return self.blob(blob) if its_event == found[:2] else None

    def massif(self, tenant: str, number: int) -> None:
        """Return nothing: there is no transparency log."""

    def seal(self, tenant: str, number: int) -> None:
        """Return nothing: there is no transparency log."""

    def blob(self, blob: str) -> Blob | None:
        """Return a blob."""
        if self._parse_blob(blob) is None:
            return None
        source = Source(self._size, functools.partial(_open, blob, self._size))
        return Blob(
            blob, self._digest(blob), self._size, "application/octet-stream", _AT, source, "SCANNED_OK"
        )

    def create_asset(self, attributes: dict[str, Any], **_options: Any) -> str:
        """Refuse."""
        raise Refused(f"the computed ledger is read-only ({len(attributes)} attributes refused)")

    def create_event(
        self,
        asset: str,
        event_attributes: dict[str, Any],
        asset_attributes: dict[str, Any] | None = None,
        **_options: Any,
    ) -> str | None:
        """Refuse."""
        given = len(event_attributes) + len(asset_attributes or {})
        raise Refused(f"the computed ledger is read-only ({given} attributes refused for {asset})")

    def add_blob(self, content: bytes | BinaryIO) -> Blob:
        """Refuse."""
        del content
        raise Refused("the computed ledger is read-only")

    def _number(self, asset: str) -> int | None:
        number = _hexadecimal(asset[-12:])
        return number if number < self._assets and self.asset_id(number) == asset else None

    def _place(self, asset: str, event: str) -> tuple[int, int] | None:
        number, its = self._number(asset), _hexadecimal(event[20:23])
        if number is None or its >= self._events or self.event_id(number, its) != event:
            return None
        return number, its

    def _parse_blob(self, blob: str) -> tuple[int, int, int] | None:
        asset, event, attachment = (_hexadecimal(part) for part in (blob[-12:], blob[20:23], blob[9:13]))
        if asset >= self._assets or event >= self._events or attachment >= self._attachments:
            return None
        found = asset, event, attachment
        return found if self.blob_id(*found) == blob else None

    def _asset(self, number: int) -> bytes:
        attached = self._attached(number, 0) if self._events else ""
        return (
            f'{{"identity":"assets/{self.asset_id(number)}","behaviours":["RecordEvidence"],'
            f'"attributes":{{"arc_display_name":"Asset {number:06}","arc_display_type":"Bulk"{attached}}},'
            f'"confirmation_status":"CONFIRMED","tracked":"TRACKED","owner":"","at_time":"{_AT}",'
            f'"proof_mechanism":"MERKLE_LOG","public":false,"tenant_identity":""}}'
        ).encode()

    def _event(self, index: int) -> bytes:
        number, event = divmod(index, self._events)
        asset = self.asset_id(number)
        return (
            f'{{"identity":"assets/{asset}/events/{self.event_id(number, event)}",'
            f'"asset_identity":"assets/{asset}","operation":"Record","behaviour":"RecordEvidence",'
            f'"event_attributes":{{"arc_display_type":"Event {event}"{self._attached(number, event)}}},'
            f'"asset_attributes":{{}},"timestamp_declared":"{_AT}","timestamp_accepted":"{_AT}",'
            f'"timestamp_committed":"{_AT}","confirmation_status":"CONFIRMED"}}'
        ).encode()

    def _attached(self, number: int, event: int) -> str:
        parts = []
        for attachment in range(self._attachments):
            blob = self.blob_id(number, event, attachment)
            anchor = ""
            if self._size <= _ANCHORED:
                digest = self._compute_digest(blob)
                anchor = f'"arc_blob_hash_alg":"SHA256","arc_blob_hash_value":"{digest}",'
            parts.append(
                f',"attachment {attachment}":{{"arc_attribute_type":"arc_attachment",'
                f'"arc_blob_identity":"blobs/{blob}",{anchor}'
                f'"arc_file_name":"{number:06}-{event}-{attachment}.bin"}}'
            )
        return "".join(parts)

    def _compute_digest(self, blob: str) -> str:
        digest = hashlib.sha256()
        for piece in _pieces(blob, self._size):
            digest.update(piece)
        return digest.hexdigest()


class _Content(io.RawIOBase):
    """A blob's bytes as a file: one block, which begins with its digest, repeated."""

    def __init__(self, blob: str, size: int) -> None:
        self._block = _block(blob, size)
        self._size = size
        self._at = 0

    def read(self, size: int | None = -1, /) -> bytes:
        start = self._at
        wanted = self._size - start if size is None or size < 0 else size
        inside = start % len(self._block) if self._block else 0
        piece = self._block[inside : inside + min(wanted, self._size - start)]
        self._at += len(piece)
        return piece

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = base + offset
        return self._at


def _open(blob: str, size: int) -> Any:
    return _Content(blob, size)


@functools.lru_cache(8)
def _block(blob: str, size: int) -> bytes:
    seed = hashlib.sha256(blob.encode()).digest()
    length = min(size, _BLOCK)
    return (seed * (length // len(seed) + 1))[:length]


def _pieces(blob: str, size: int) -> Iterator[bytes]:
    file = _Content(blob, size)
    return iter(lambda: file.read(_BLOCK), b"")


def _hexadecimal(text: str) -> int:
    """Return a number, or one that is too large for anything where the text is none."""
    try:
        return int(text, 16)
    except ValueError:
        return 1 << 62


def _scan(records: Iterator[bytes], query: Query, offset: int, limit: int) -> Page:
    found = [record for record in records if query.matches(json.loads(record))]
    return Page(
        list(itertools.islice(found, offset, offset + limit)), offset + limit < len(found), len(found)
    )
