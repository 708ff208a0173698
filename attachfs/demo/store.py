"""`Store`: a ledger with its records in memory and its blobs in a directory, by digest. Sync, no HTTP."""

import contextlib
import hashlib
import itertools
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from attachfs.demo.query import Query
from attachfs.demo.records import (
    ISSUER,
    TENANT,
    Blob,
    Page,
    Source,
    bytes_source,
    file_source,
)
from attachfs.demo.sniff import HEAD, sniff
from attachfs.demo.transparency_log import Logs

_PIECE = 1 << 20
_OWNER = "0x601f5A7D3e6dcB55e87bf2F17bC8A27AaCD3511"


@dataclass(slots=True)
class _Event:
    record: dict[str, Any]
    blobs: frozenset[str]
    public_entry: dict[str, Any] | None = None  # its place in the public log


@dataclass(slots=True)
class _Asset:
    record: dict[str, Any]
    blobs: frozenset[str] = frozenset()
    events: dict[str, _Event] = field(default_factory=dict)


class Store:
    """A ledger in memory.

    Args:
        directory: where blobs go; made if missing. Only this store may write there.

    Everything but `add_blob` must be called from one thread.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self._assets: dict[str, _Asset] = {}
        self._blobs: dict[str, Blob] = {}
        self._serial = itertools.count(1)
        self.logs = Logs()

    # Reading: the interface that the application serves.

    def list_assets(self, query: Query, offset: int, limit: int) -> Page:
        """Return the assets that match, oldest first."""
        found = [
            asset.record
            for asset in self._assets.values()
            if query.admits_tracked(asset.record["tracked"]) and query.matches(asset.record)
        ]
        return _page(found, offset, limit, public=False)

    def list_events(
        self, asset: str | None, query: Query, offset: int, limit: int, *, public: bool = False
    ) -> Page | None:
        """Return the events of one asset, or of all, that match, oldest first."""
        if asset is None:
            holders = list(self._assets.values())
        else:
            owner = self._find(asset, public=public)
            if owner is None:
                return None
            holders = [owner]
        found = [
            _seen(event, public=public)
            for owner in holders
            for event in owner.events.values()
            if query.matches(event.record)
        ]
        return _page(found, offset, limit, public=public)

    def asset(self, asset: str, *, public: bool = False) -> bytes | None:
        """Return an asset's record."""
        found = self._find(asset, public=public)
        return None if found is None else _encode(found.record, public=public)

    def event(self, asset: str, event: str, *, public: bool = False) -> bytes | None:
        """Return an event's record."""
        owner = self._find(asset, public=public)
        found = None if owner is None else owner.events.get(event)
        return None if found is None else _encode(_seen(found, public=public), public=public)

    def find_attachment(
        self, asset: str, event: str | None, blob: str, *, public: bool = False
    ) -> Blob | None:
        """Return a blob that is attached there."""
        owner = self._find(asset, public=public)
        if owner is None:
            return None
        if event is None:
            blobs = owner.blobs
        else:
            found = owner.events.get(event)
            blobs = found.blobs if found is not None else frozenset()
        return self._blobs.get(blob) if blob in blobs else None

    def blob(self, blob: str) -> Blob | None:
        """Return a blob."""
        return self._blobs.get(blob)

    # Writing: the interface that the application serves, with more knobs for whoever makes data up.

    def create_asset(
        self,
        attributes: dict[str, Any],
        *,
        behaviours: list[str] | None = None,
        public: bool = False,
        proof_mechanism: str = "MERKLE_LOG",
        asset_id: str | None = None,
        event_id: str | None = None,
        at: str | None = None,
        principal: str | None = None,
    ) -> str:
        """Create an asset, and its first event `NewAsset`, which holds the initial attributes too."""
        asset = asset_id or str(uuid.uuid4())
        at = at or now()
        self._assets[asset] = _Asset(
            {
                "identity": f"assets/{asset}",
                "behaviours": behaviours or ["RecordEvidence"],
                "attributes": {},
                "confirmation_status": "CONFIRMED",
                "tracked": "TRACKED",
                "owner": _OWNER,
                "at_time": at,
                "proof_mechanism": proof_mechanism,
                "public": public,
                "tenant_identity": TENANT,
            }
        )
        self.create_event(
            asset,
            {},
            attributes,
            operation="NewAsset",
            behaviour="AssetCreator",
            event_id=event_id,
            at=at,
            principal=principal,
        )
        return asset

    def create_event(
        self,
        asset: str,
        event_attributes: dict[str, Any],
        asset_attributes: dict[str, Any] | None = None,
        *,
        operation: str = "Record",
        behaviour: str = "RecordEvidence",
        declared: str | None = None,
        event_id: str | None = None,
        at: str | None = None,
        principal: str | None = None,
    ) -> str | None:
        """Create an event. `asset_attributes` become the asset's; `StopTracking` hides it from listings."""
        owner = self._assets.get(asset)
        if owner is None:
            return None
        event = event_id or str(uuid.uuid4())
        at = at or now()
        serial = next(self._serial)
        who = {"issuer": ISSUER, "subject": principal or "demo-application", "email": ""}
        who["display_name"] = principal or "Demo application"
        asset_attributes = asset_attributes or {}
        record = {
            "identity": f"assets/{asset}/events/{event}",
            "asset_identity": f"assets/{asset}",
            "event_attributes": event_attributes,
            "asset_attributes": asset_attributes,
            "operation": operation,
            "behaviour": behaviour,
            "timestamp_declared": declared or at,
            "timestamp_accepted": at,
            "timestamp_committed": at,
            "principal_declared": who,
            "principal_accepted": who,
            "confirmation_status": "CONFIRMED",
            "from": _OWNER,
            "block_number": serial,
            "transaction_index": 0,
            "transaction_id": f"0x{serial:064x}",
            "tenant_identity": TENANT,
        }
        blobs = frozenset(_attached(event_attributes)) | frozenset(_attached(asset_attributes))
        public = None
        if owner.record["proof_mechanism"] == "MERKLE_LOG":
            record["merklelog_entry"] = self.logs.commit(record)
            if owner.record["public"]:
                public = self.logs.commit(_public(record))
        owner.events[event] = _Event(record, blobs, public)
        owner.record["attributes"] = owner.record["attributes"] | asset_attributes
        owner.record["at_time"] = max(at, owner.record["at_time"])
        owner.blobs = frozenset(_attached(owner.record["attributes"]))
        if operation in ("StopTracking", "StartTracking"):
            owner.record["tracked"] = "TRACKED" if operation == "StartTracking" else "NOT_TRACKED"
        return event

    def add_blob(
        self, content: bytes | BinaryIO, *, blob_id: str | None = None, at: str | None = None, scan: str = ""
    ) -> Blob:
        """Store a blob. `scan` is its scan status; without one it is not scanned yet. Safe in a thread."""
        at = at or now()
        digest = hashlib.sha256()
        head = b""
        with tempfile.NamedTemporaryFile(dir=self.directory, prefix="incoming-", delete=False) as file:
            incoming = Path(file.name)
            pieces = [content] if isinstance(content, bytes) else iter(lambda: content.read(_PIECE), b"")
            for piece in pieces:
                head = head or piece[:HEAD]
                digest.update(piece)
                file.write(piece)
        path = self.directory / digest.hexdigest()
        incoming.replace(path)
        blob = Blob(
            id=blob_id or str(uuid.uuid4()),
            digest=digest.hexdigest(),
            size=path.stat().st_size,
            mime_type=sniff(head),
            accepted=at,
            source=file_source(path),
        )
        self._blobs[blob.id] = blob
        if scan:
            self.set_scan(blob.id, scan, at=at)
        return blob

    def set_scan(self, blob: str, status: str, reason: str = "", *, at: str | None = None) -> None:
        """Record a scan's outcome: SCANNED_OK, SCANNED_BAD, or NOT_SCANNED."""
        found = self._blobs[blob]
        found.scanned_status = status
        found.scanned_bad_reason = reason
        found.scanned_timestamp = "" if status == "NOT_SCANNED" else at or now()

    def tamper(self, blob: str, content: bytes | Source) -> None:
        """Make the service hand out other bytes than those that were recorded; the record stays."""
        self._blobs[blob].source = bytes_source(content) if isinstance(content, bytes) else content

    def rewrite(self, asset: str, event: str, **event_attributes: Any) -> None:
        """Change an event's attributes after it was sealed: the log keeps what was there."""
        record = self._assets[asset].events[event].record
        record["event_attributes"] = record["event_attributes"] | event_attributes

    def massif(self, tenant: str, number: int) -> bytes | None:
        """Return a massif of a tenant's transparency log."""
        return self.logs.massif(tenant, number)

    def seal(self, tenant: str, number: int) -> bytes | None:
        """Return the seal of such a massif."""
        return self.logs.seal(tenant, number)

    def heal(self, blob: str) -> None:
        """Make the service hand out the recorded bytes again."""
        self._blobs[blob].source = file_source(self.original(blob))

    def forbid(self, blob: str, *, forbidden: bool = True) -> None:
        """Make the service answer 403 for a blob and for its metadata."""
        self._blobs[blob].forbidden = forbidden

    def override_info(self, blob: str, **fields: Any) -> None:
        """Replace fields of a blob's `/info` as they stand, right or wrong; no fields: replace none."""
        self._blobs[blob].overrides = fields

    def original(self, blob: str) -> Path:
        """Return the file that holds the bytes as they were uploaded, whatever was done to the blob since."""
        return self.directory / self._blobs[blob].digest

    def attachments(self) -> Iterator[tuple[str, Blob]]:
        """Yield every attachment as its path (`assets/<asset>[/events/<event>]/<blob>`) and its blob."""
        for asset, owner in self._assets.items():
            places = [(f"assets/{asset}", owner.blobs)]
            for name, event in owner.events.items():
                places.append((f"assets/{asset}/events/{name}", event.blobs))
            for place, blobs in places:
                for blob in sorted(blobs & self._blobs.keys()):
                    yield f"{place}/{blob}", self._blobs[blob]

    def _find(self, asset: str, *, public: bool) -> _Asset | None:
        found = self._assets.get(asset)
        return None if found is None or (public and not found.record["public"]) else found


def attachment(blob: Blob, file_name: str = "", display_name: str = "") -> dict[str, str]:
    """Return the attribute value that attaches a blob, in today's shape. Empty names are left out."""
    value = {
        "arc_attribute_type": "arc_attachment",
        "arc_blob_identity": f"blobs/{blob.id}",
        "arc_blob_hash_alg": "SHA256",
        "arc_blob_hash_value": blob.digest,
    }
    if file_name:
        value["arc_file_name"] = file_name
    if display_name:
        value["arc_display_name"] = display_name
    return value


def now() -> str:
    """Return the time as the service writes it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _page(found: list[dict[str, Any]], offset: int, limit: int, *, public: bool) -> Page:
    records = [_encode(record, public=public) for record in found[offset : offset + limit]]
    return Page(records, offset + limit < len(found), len(found))


def _encode(record: dict[str, Any], *, public: bool) -> bytes:
    return msgspec.json.encode(_public(record) if public else record)


def _public(record: dict[str, Any]) -> dict[str, Any]:
    """Return the public view of a record."""
    changed = {key: f"public{record[key]}" for key in ("identity", "asset_identity") if key in record}
    return record | changed


def _seen(event: _Event, *, public: bool) -> dict[str, Any]:
    """Return an event's record with its place in the log in which its reader will look for it."""
    if public and event.public_entry is not None:
        return event.record | {"merklelog_entry": event.public_entry}
    return event.record


def _attached(attributes: dict[str, Any]) -> Iterator[str]:
    """Yield the UUIDs of the blobs that attributes attach, in today's shape and the older ones."""
    for key, value in attributes.items():
        for entry in value if isinstance(value, list) else [value]:
            if not isinstance(entry, dict):
                continue
            if entry.get("arc_attribute_type") == "arc_attachment" or key == "arc_attachments":
                identity = entry.get("arc_blob_identity") or entry.get("arc_attachment_identity")
                with contextlib.suppress(AttributeError):
                    yield str(identity).rsplit("/", 1)[-1]
