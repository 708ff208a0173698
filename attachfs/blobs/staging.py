"""The disk as downloads use it: what is there, where new bytes go, what is pinned.

Owns: what is given up for new bytes, and in which order: first what is kept of paused downloads, then the
cache's least recently opened blobs, then the place in the cache itself.
"""

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import trio

from attachfs.blobs.batches import Batches
from attachfs.blobs.pins import PinRecord, PinResult, Pins, PinStatus
from attachfs.blobs.small_blobs import SmallBlob, store_all
from attachfs.blobs.source import LocalBlobs
from attachfs.cache.disk_cache import CachedBlob, DiskCache, Writer
from attachfs.errors import AttachfsError, IntegrityError, NoSpace
from attachfs.model import AttachmentRef, Digest

log = logging.getLogger(__name__)

T = TypeVar("T")

_THREADS = 8  # at once; the disk serves no more side by side
_PAUSED = 32  # downloads whose bytes are kept; they reserve a quarter of the cache at most


class PausedDownload(Protocol):
    """A paused download, which can be made to discard its data."""

    @property
    def size(self) -> int:
        """How much room it holds, in bytes."""
        ...

    @property
    def discardable(self) -> bool:
        """Whether nobody reads it."""
        ...

    async def discard(self) -> None:
        """Give up what came; returns once the room is free."""
        ...


class Staging:
    """The cache and the pins.

    Args:
        cache: where verified bytes are kept.
        pins: what was recorded when an attachment was first seen.
        namespace: begins the pins' keys: the service's host.
        local: where all bytes are instead of in the cache, if they are on this machine anyway.
    """

    def __init__(
        self,
        cache: DiskCache,
        pins: Pins,
        namespace: str,
        local: LocalBlobs | None = None,
    ) -> None:
        self._cache = cache
        self._local = local
        self._pins = pins
        self._namespace = namespace
        self._kept: list[PausedDownload] = []  # paused longest first
        self._threads = trio.CapacityLimiter(_THREADS)
        self._small = Batches[SmallBlob, CachedBlob](self._store_all, "attachfs-store")
        self._index_limiter = trio.CapacityLimiter(1)
        self._index_wait: trio.Event | None = None  # set once the one who waits for the cache's index is back
        self._index_given_up = 0  # how often that took too long
        self._pins_failed = False
        self._spilled = False

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Do something with the disk."""
        return await trio.to_thread.run_sync(work, limiter=self._threads)

    # -- what is there -----------------------------------------------------------------------------

    def confirmed(self, ref: AttachmentRef, digest: Digest, size: int) -> bool:
        """Whether this run has found already that the record is the first one seen."""
        return self._pins.confirmed(self._key(ref), digest, size)

    def surely_new(self, ref: AttachmentRef, digest: Digest) -> bool:
        """Whether there is nothing to find on the disk: no blob, and no pin to compare with."""
        return (
            self._local is None
            and self._cache.surely_missing(digest)
            and self._pins.surely_new(self._key(ref))
        )

    def lookup(self, ref: AttachmentRef, digest: Digest, size: int) -> CachedBlob | None:
        """Compare the record with the pin, and return the blob if it is in the cache. Runs in a thread.

        Raises:
            IntegrityError: the record has changed.
            Unexpected: the pins cannot be read.
        """
        pinned = self._pins.conflict(self._key(ref), digest, size)
        if pinned is not None:
            raise IntegrityError(
                f"{ref.path}: the record has changed: /info says {digest} ({size} bytes), but when this "
                f"attachment was first read it was {pinned}; review with: attachfs pins conflicts; "
                f"to believe the new record: attachfs pins release {self._key(ref)}"
            )
        if self._local is not None:
            cached: CachedBlob | None = self._local.open(ref, digest, size)
        else:
            cached = self._cache.open(digest, size)
        if cached is not None:
            try:
                self.pin(ref, digest, size)
            except BaseException:
                cached.close()
                raise
        return cached

    async def contains(self, ref: AttachmentRef, digest: Digest, size: int) -> bool:
        """Whether a blob is in the cache."""
        local = self._local
        if local is not None:
            return await self.in_thread(lambda: local.contains(ref, size))
        return await self.in_thread(lambda: self._cache.contains(digest, size))

    async def is_verified(self, ref: AttachmentRef, digest: Digest, size: int) -> bool:
        """Whether a blob is on this machine and has not changed since its digest was compared."""
        local = self._local
        if local is not None:
            return await self.in_thread(lambda: local.is_verified(ref, digest))
        return await self.in_thread(lambda: self._cache.is_verified(digest, size))

    # -- what is pinned ----------------------------------------------------------------------------

    def pin(self, ref: AttachmentRef, digest: Digest, size: int) -> None:
        """Pin what has been verified. That no pin says otherwise was looked up before. Runs in a thread.

        Raises:
            IntegrityError: somebody else has pinned another record meanwhile.
        """
        failure = self._pin_many([(ref, digest, size)])[0]
        if failure is not None:
            raise failure

    def _pin_many(
        self, records: Sequence[tuple[AttachmentRef, Digest, int]]
    ) -> Sequence[IntegrityError | None]:
        """Pin in one transaction what has been verified; return what speaks against each."""
        results = self._pins.check_many(
            [PinRecord(self._key(ref), digest, size) for ref, digest, size in records]
        )
        return [self._pinned(ref, result) for (ref, _, _), result in zip(records, results, strict=True)]

    def _pinned(self, ref: AttachmentRef, result: PinResult | AttachfsError) -> IntegrityError | None:
        if isinstance(result, AttachfsError):
            # Nothing is wrong with the bytes; what is lost is that a later change would be noticed.
            if not self._pins_failed:
                self._pins_failed = True
                log.warning("first-seen hashes cannot be stored: %s", result.reason)
        elif result.status is PinStatus.CHANGED:
            return IntegrityError(f"{ref.path}: the record has changed since it was first read: {result.pin}")
        return None

    async def pin_all(self, refs: set[AttachmentRef], digest: Digest, size: int) -> None:
        """Pin every attachment that is read through a download, those that join meanwhile too."""
        pinned = set[AttachmentRef]()
        while unpinned := refs - pinned:
            for ref in unpinned:
                if not self.confirmed(ref, digest, size):
                    await self.in_thread(functools.partial(self.pin, ref, digest, size))
            pinned |= unpinned

    def _key(self, ref: AttachmentRef) -> str:
        return f"{self._namespace}/{ref.attachment}"

    # -- where new bytes go ------------------------------------------------------------------------

    async def reserve(self, ref: AttachmentRef, expected: Digest | None, size: int) -> Writer:
        """Reserve room for a download: in the cache, or else in an unlinked temporary file.

        Raises:
            NoSpace, Unexpected, TooManyFiles: there is none anywhere.
        """
        if expected is None:
            return await self.in_thread(lambda: self._cache.spill(size))
        try:
            await self._wait_for_index()  # how much room there is, is known then
            # What is kept of paused downloads goes before any verified blob does.
            await self._discard_until(lambda: self._cache.may_fit(size))
            try:
                return await self.in_thread(lambda: self._cache.reserve(size))
            except NoSpace:
                if not await self._discard_until(lambda: False):
                    raise
                return await self.in_thread(lambda: self._cache.reserve(size))
        except NoSpace as error:
            reason = error.reason
            return await self.in_thread(lambda: self.spill(ref, size, reason))

    async def _wait_for_index(self) -> None:
        """Wait until what is in the cache is known. One waits in a thread, and all others for that one.

        Raises:
            NoSpace: it takes too long.
        """
        while not self._cache.indexed.is_set():
            if self._index_wait is not None:
                given_up = self._index_given_up
                await self._index_wait.wait()
                if self._index_given_up != given_up:
                    raise NoSpace(f"the cache in {self._cache.root} is still being indexed")
                continue
            self._index_wait = wait = trio.Event()
            try:
                await trio.to_thread.run_sync(
                    self._cache.wait_for_index, abandon_on_cancel=True, limiter=self._index_limiter
                )
            except NoSpace:
                self._index_given_up += 1
                raise
            finally:
                self._index_wait = None
                wait.set()

    def try_reserve(self, size: int) -> Writer:
        """Reserve room in the cache, if nothing has to be waited for or dismissed. Runs in a thread.

        Raises:
            NoSpace: something has to be.
        """
        if not self._cache.indexed.is_set() or self._kept:
            raise NoSpace("room has to be made")
        return self._cache.reserve(size)

    async def store(self, blob: SmallBlob) -> CachedBlob:
        """Write, verify, admit and pin a small blob whose bytes have all come.

        Raises:
            NoSpace: something has to be given up or waited for first; or no disk takes it.
            AttachfsError: it is wrong, or cannot be stored.
        """
        return await self._small.do(blob)

    def _store_all(self, blobs: Sequence[SmallBlob]) -> Sequence[CachedBlob | Exception]:
        return store_all(blobs, self.try_reserve, self._pin_many)

    def spill(self, ref: AttachmentRef, size: int, reason: str) -> Writer:
        """Return a temporary file outside of the cache. The first is reported loudly. Runs in a thread."""
        reported = self._spilled or self._cache.stats().troubles  # of those, the cache has warned itself
        self._spilled = True
        level = logging.INFO if reported else logging.WARNING
        log.log(level, "%s is read through a temporary file and not kept: %s", ref.path, reason)
        return self._cache.spill(size)

    # -- what is kept of paused downloads ------------------------------------------------------------

    @property
    def paused(self) -> int:
        """How many paused downloads are kept."""
        return len(self._kept)

    async def keep(self, download: PausedDownload) -> bool:
        """Keep what came of a paused download, and its room; older ones go if that is too much.

        Returns:
            Whether it is kept: until `drop_paused`, or until it is discarded.
        """
        budget = self._cache.stats().max_bytes // 4

        def enough() -> bool:
            return len(self._kept) < _PAUSED and sum(one.size for one in self._kept) + download.size <= budget

        if download.size > budget:
            return False
        await self._discard_until(enough)
        if not enough():
            return False
        self._kept.append(download)
        return True

    def drop_paused(self, download: PausedDownload) -> None:
        """Take a download off the list: it goes on, or is discarded."""
        if download in self._kept:
            self._kept.remove(download)

    async def _discard_until(self, enough: Callable[[], bool]) -> bool:
        """Discard paused downloads, longest first, until it is enough. Return whether any was."""
        discarded = False
        for one in list(self._kept):
            if enough():
                break
            if one.discardable:
                self.drop_paused(one)
                await one.discard()
                discarded = True
        return discarded
