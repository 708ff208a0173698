"""A blob store with everything below it real but the service, and bytes to put into it."""

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from attachfs.blobs.pins import Pins
from attachfs.blobs.store import BlobStore
from attachfs.cache.disk_cache import DiskCache
from attachfs.ledger.view import Ledger
from attachfs.model import AttachmentRef, Digest
from attachfs.units import MinFree
from tests.services.memory_source import (
    FakeBytes,
    FakeSource,
    as_json,
    asset_record,
    asset_ref,
    attribute,
    info_body,
)


def digest_of(data: bytes) -> Digest:
    return Digest("sha256", hashlib.sha256(data).hexdigest())


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


class World:
    """Blobs over a real cache and real pins, a fake ledger and fake bytes."""

    def __init__(self, path: Path, nursery: trio.Nursery, cache_size: int, **options: Any) -> None:
        self.ledger_source = FakeSource()
        self.ledger = Ledger(self.ledger_source, nursery)
        self.bytes = FakeBytes()
        self.cache = DiskCache(path / "cache", cache_size, MinFree())
        self.cache.start("test")
        self.cache.index()
        self.pins = Pins(path / "pins.sqlite")
        self.blobs = BlobStore(
            self.ledger, self.bytes, self.cache, self.pins, nursery, namespace="ledger.example", **options
        )

    def record(self, ref: AttachmentRef, data: bytes, anchor: bytes | None = None, **info: Any) -> None:
        """Let the ledger record `data` for an attachment; `anchor` is what the owner's attribute records."""
        self.ledger_source.infos[ref] = info_body(ref, data, **info)
        value = attribute(int(ref.attachment[:8], 16), digest_of(data if anchor is None else anchor).hex)
        self.ledger_source.records[asset_ref()] = as_json(asset_record(asset_ref(), {"x": value}))
        self.ledger.clear()

    def serve(
        self, ref: AttachmentRef, data: bytes, served: bytes | Exception | None = None, **info: Any
    ) -> None:
        """Record `data` and serve it, or something else, whole."""
        self.record(ref, data, **info)
        self.bytes.contents[ref] = data if served is None else served

    @property
    def gets(self) -> int:
        return len(self.bytes.transfers)

    @property
    def quarantined(self) -> list[bytes]:
        folder = self.cache.root / "quarantine"
        return [path.read_bytes() for path in sorted(folder.glob("*.blob"))]

    async def read(self, ref: AttachmentRef) -> bytes:
        """Open, read whole, and close."""
        blob = await self.blobs.open(ref)
        try:
            return bytes(await blob.read(0, blob.size))
        finally:
            blob.close()

    def close(self) -> None:
        self.cache.close()
        self.pins.close()


MakeWorld = Callable[..., World]


class Worlds:
    """Makes worlds below a folder, and takes them down."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._made: list[World] = []

    def __call__(self, nursery: trio.Nursery, cache_size: int = 64 * 2**20, **options: Any) -> World:
        self._made.append(World(self._path, nursery, cache_size, **options))
        return self._made[-1]

    def close(self) -> None:
        for world in self._made:
            world.close()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for threads to have done their part; the clock of the test stands still meanwhile."""
    ends = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < ends
        await trio.lowlevel.checkpoint()
