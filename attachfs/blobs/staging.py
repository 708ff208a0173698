"""The disk as blobs/store.py and its downloads use it: what is there, where new bytes go, what is pinned.

Lives here and only here: what is given up for new bytes, and in which order: first what is kept of stopped
downloads, then the cache's least recently opened blobs, then the place in the cache itself.
"""

import functools
import logging
from collections.abc import Callable
from typing import TypeVar

import trio

from attachfs.blobs.download import Download
from attachfs.blobs.pins import Pins, PinStatus
from attachfs.blobs.source import LocalBlobs
from attachfs.cache.disk_cache import CachedBlob, DiskCache, Writer
from attachfs.errors import IntegrityError, NoRoom, Unexpected
from attachfs.model import AttachmentRef, Digest

log = logging.getLogger(__name__)

T = TypeVar("T")

_THREADS = 8  # at once; the disk serves no more side by side
_RESTING = 32  # stopped downloads whose bytes are kept; they reserve a quarter of the cache at most

Key = tuple[Digest | None, AttachmentRef | None]


class Staging:
    """The cache and the pins.

    Args:
        cache: where verified bytes are kept.
        pins: what was recorded when an attachment was first seen.
        namespace: begins the pins' keys: the service's host.
        downloads: those that run or rest; somebody else keeps the table.
        local: where all bytes are instead of in the cache, if they are on this machine anyway.
    """

    def __init__(
        self,
        cache: DiskCache,
        pins: Pins,
        namespace: str,
        downloads: dict[Key, Download],
        local: LocalBlobs | None = None,
    ) -> None:
        self._cache = cache
        self._local = local
        self._pins = pins
        self._namespace = namespace
        self._downloads = downloads
        self._threads = trio.CapacityLimiter(_THREADS)
        self._waiting = trio.CapacityLimiter(1)
        self._pins_failed = False
        self._spilled = False

    def of(self, download: Download) -> "Shelf":
        """Return the place for one download."""
        return Shelf(self, download)

    @property
    def resting(self) -> int:
        """How many downloads were stopped, and what came is kept."""
        # A copy of the table, as threads ask too.
        return sum(one.resting_since is not None for one in list(self._downloads.values()))

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Do something with the disk."""
        return await trio.to_thread.run_sync(work, limiter=self._threads)

    # -- what is there -----------------------------------------------------------------------------

    def confirmed(self, ref: AttachmentRef, digest: Digest, size: int) -> bool:
        """Whether this run has found already that the record is the first one seen."""
        return self._pins.confirmed(self._key(ref), digest, size)

    def look(self, ref: AttachmentRef, digest: Digest, size: int) -> CachedBlob | None:
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

    # -- what is pinned ----------------------------------------------------------------------------

    def pin(self, ref: AttachmentRef, digest: Digest, size: int) -> None:
        """Pin what has been verified. That no pin says otherwise was looked up before. Runs in a thread.

        Raises:
            IntegrityError: somebody else has pinned another record meanwhile.
        """
        try:
            result = self._pins.check(self._key(ref), digest, size)
        except Unexpected as error:
            # Nothing is wrong with the bytes; what is lost is that a later change would be noticed.
            if not self._pins_failed:
                self._pins_failed = True
                log.warning("first-seen hashes cannot be written down: %s", error.reason)
            return
        if result.status is PinStatus.CHANGED:
            raise IntegrityError(f"{ref.path}: the record has changed since it was first read: {result.pin}")

    async def settle(self, download: Download) -> None:
        """Pin every attachment that is read through a download, those that joined meanwhile too."""
        digest, size = download.expected, download.size
        pinned = set[AttachmentRef]()
        while digest is not None and (waiting := download.refs - pinned):
            for ref in waiting:
                if not self.confirmed(ref, digest, size):
                    await self.in_thread(functools.partial(self.pin, ref, digest, size))
            pinned |= waiting

    def _key(self, ref: AttachmentRef) -> str:
        return f"{self._namespace}/{ref.attachment}"

    # -- where new bytes go ------------------------------------------------------------------------

    async def room(self, download: Download) -> Writer:
        """Reserve room for a download: in the cache, or else in an unlinked temporary file."""
        size = download.size
        if download.expected is None:
            return await self.in_thread(lambda: self._cache.spill(size))
        if not self._cache.indexed.is_set():  # how much room there is, is known once it is
            # Each waits in turn for a thread of their own: all together they would take everybody's.
            await trio.to_thread.run_sync(
                self._cache.indexed.wait, abandon_on_cancel=True, limiter=self._waiting
            )
        # What is kept of stopped downloads goes before any verified blob does.
        self._dismiss(lambda: self._fits(size))
        try:
            try:
                return await self.in_thread(lambda: self._cache.reserve(size))
            except NoRoom:
                if not self._dismiss(lambda: False):
                    raise
                return await self.in_thread(lambda: self._cache.reserve(size))
        except NoRoom as error:
            reason = error.reason
            return await self.in_thread(lambda: self.spill(download, reason))

    def room_now(self, download: Download) -> Writer:
        """Reserve room in the cache, if nothing has to be waited for or given up. Runs in a thread.

        Raises:
            NoRoom: something has to be.
        """
        if not self._cache.indexed.is_set() or self.resting:
            raise NoRoom("room has to be made")
        return self._cache.reserve(download.size)

    def spill(self, download: Download, reason: str) -> Writer:
        """Return a temporary file outside of the cache. The first is told loudly. Runs in a thread."""
        told = self._spilled or self._cache.stats().troubles  # of those, the cache has told itself
        self._spilled = True
        level = logging.INFO if told else logging.WARNING
        log.log(level, "%s is read through a temporary file and not kept: %s", download.ref.path, reason)
        return self._cache.spill(download.size)

    # -- what rests --------------------------------------------------------------------------------

    def may_rest(self, download: Download) -> bool:
        """Whether what came of a stopped download is kept; older ones go if that is too much."""
        budget = self._cache.stats().max_bytes // 4
        if not download.worth_keeping or download.size > budget:
            return False

        def enough() -> bool:
            kept = [one.size for one in self._downloads.values() if one.resting_since is not None]
            return len(kept) < _RESTING and sum(kept) + download.size <= budget

        self._dismiss(enough)
        return enough()

    def _dismiss(self, enough: Callable[[], bool]) -> bool:
        """Give up what rests, longest at rest first, until it is enough. Return whether anything was."""
        resting = [one for one in self._downloads.values() if one.dismissable]
        resting.sort(key=lambda one: one.resting_since or 0)
        before = len(resting)
        while resting and not enough():
            one = resting.pop(0)
            one.dismiss()
        return len(resting) < before

    def _fits(self, size: int) -> bool:
        return self._cache.may_fit(size)


class Shelf:
    """Where one download's bytes go, and what is noted of them.

    Args:
        shelves: all of them.
        download: the download.
    """

    def __init__(self, shelves: Staging, download: Download) -> None:
        self._shelves = shelves
        self._download = download

    async def room(self) -> Writer:
        """Return where the bytes go, having made room if need be."""
        return await self._shelves.room(self._download)

    def room_now(self) -> Writer:
        """Return where the bytes go. Runs in a thread. NoRoom: room has to be made."""
        return self._shelves.room_now(self._download)

    def spill(self) -> Writer:
        """Return where the bytes go if that fails on the way. Runs in a thread."""
        return self._shelves.spill(self._download, "the cache's disk did not take all of it")

    def pin(self) -> None:
        """Note what has been verified for the attachment that is fetched. Runs in a thread."""
        if self._download.expected is not None:
            self._shelves.pin(self._download.ref, self._download.expected, self._download.size)

    async def settle(self) -> None:
        """Note it for every attachment read through the download."""
        await self._shelves.settle(self._download)

    async def in_thread(self, work: Callable[[], None]) -> None:
        """Do something with the disk."""
        await self._shelves.in_thread(work)
