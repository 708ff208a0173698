"""What a demo ledger answers with (`Blob`, `Page`), and the interface `Ledger` of all of them. No HTTP."""

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

import msgspec

from attachfs.demo.query import Query

TENANT = "tenant/5f0a5d1e-7f5e-4b1c-9c1e-0d2f6a3b8c4d"
ISSUER = "https://demo.attachfs.invalid/appidpv1"


class Refused(Exception):
    """A change that this ledger does not allow. The text says why."""


class Source(NamedTuple):
    """Where a blob's bytes come from: their number, and how to open them for `seek` and `read`."""

    size: int
    open: Callable[[], BinaryIO]


def file_source(path: Path) -> Source:
    """Return the bytes of a file, which must not change."""
    return Source(path.stat().st_size, lambda: path.open("rb", buffering=0))


def bytes_source(data: bytes) -> Source:
    """Return bytes that are held in memory."""
    return Source(len(data), lambda: io.BytesIO(data))


@dataclass(slots=True)
class Blob:
    """A blob's record, and where the bytes are that the service hands out (not always the recorded ones).

    `digest` and `size` are what was recorded at upload; `overrides` replaces fields of `/info` as they stand.
    """

    id: str
    digest: str
    size: int
    mime_type: str
    accepted: str
    source: Source
    scanned_status: str = "NOT_SCANNED"
    scanned_bad_reason: str = ""
    scanned_timestamp: str = ""
    forbidden: bool = False
    overrides: dict[str, Any] = field(default_factory=dict)

    def info(self) -> bytes:
        """Return the body of `/info`."""
        record: dict[str, Any] = {
            "identity": f"blobs/{self.id}",
            "hash": {"alg": "SHA256", "value": self.digest},
            "mime_type": self.mime_type,
            "size": self.size,
            "timestamp_accepted": self.accepted,
            "scanned_status": self.scanned_status,
            "scanned_bad_reason": self.scanned_bad_reason,
            "scanned_timestamp": self.scanned_timestamp,
            "issuer": ISSUER,
            "subject": "demo-application",
            "tenantid": TENANT,
        }
        return msgspec.json.encode(record | self.overrides)


class Page(NamedTuple):
    """A part of a listing: records as JSON, whether more follow, and how many match in all."""

    records: list[bytes]
    more: bool
    total: int


class Ledger(Protocol):
    """What the application needs of a ledger. UUIDs are bare; None means that there is no such thing.

    `public` asks for the public view: only public assets, under identities that begin `publicassets/`.
    """

    def list_assets(self, query: Query, offset: int, limit: int) -> Page:
        """Return the assets that match, from the `offset`th on."""

    def list_events(
        self, asset: str | None, query: Query, offset: int, limit: int, *, public: bool = False
    ) -> Page | None:
        """Return the events of one asset (None: of all) that match, from the `offset`th on."""

    def asset(self, asset: str, *, public: bool = False) -> bytes | None:
        """Return an asset's record as JSON."""

    def event(self, asset: str, event: str, *, public: bool = False) -> bytes | None:
        """Return an event's record as JSON."""

    def find_attachment(
        self, asset: str, event: str | None, blob: str, *, public: bool = False
    ) -> Blob | None:
        """Return a blob if it is attached to that asset's current attributes, or to that event."""

    def blob(self, blob: str) -> Blob | None:
        """Return a blob by its identity alone."""

    def massif(self, tenant: str, number: int) -> bytes | None:
        """Return a massif of a tenant's transparency log."""

    def seal(self, tenant: str, number: int) -> bytes | None:
        """Return the seal of such a massif."""

    def create_asset(
        self,
        attributes: dict[str, Any],
        *,
        behaviours: list[str] | None = None,
        public: bool = False,
        proof_mechanism: str = "MERKLE_LOG",
    ) -> str:
        """Create an asset and return its UUID."""

    def create_event(
        self,
        asset: str,
        event_attributes: dict[str, Any],
        asset_attributes: dict[str, Any] | None = None,
        *,
        operation: str = "Record",
        behaviour: str = "RecordEvidence",
        declared: str | None = None,
    ) -> str | None:
        """Create an event and return its UUID; None if there is no such asset."""

    def add_blob(self, content: bytes | BinaryIO) -> Blob:
        """Store a blob. May be called in a thread."""
