"""Open a blob: cache hit, or fetch, verify, admit. Whether bytes may be handed out is decided here.

A blob is verified wherever it came from, so nothing here depends on its source. What must hold before a
file opens: the scan policy, three records that agree (`/info`, the owner's attribute, what was pinned
when the attachment was first seen), and, in strict verification, the whole of the bytes.
"""

import logging
import math
from collections import OrderedDict
from collections.abc import Callable

import trio

from attachfs.background import TaskStarter
from attachfs.blobs.download import NO_PAUSE, Download, PausePolicy
from attachfs.blobs.handle import BlobHandle
from attachfs.blobs.pins import Pins
from attachfs.blobs.range_reads import RangeReadContext
from attachfs.blobs.source import BlobSource, LocalBlobs
from attachfs.blobs.staging import Key, Staging
from attachfs.blobs.withholding import WITHHELD, ServedBlocks
from attachfs.cache.disk_cache import CachedBlob, DiskCache
from attachfs.errors import (
    AttachfsError,
    BadAnswer,
    IntegrityError,
    NoAttribute,
    ScanRefused,
)
from attachfs.ledger.view import Ledger
from attachfs.model import AttachmentRef, Digest, Info, ScanPolicy, Verify

log = logging.getLogger(__name__)

_REMEMBER_FAILURE = 5.0  # seconds; a failing file is opened again and again by some programs
_FAILURES = 1024
_HANDED_OUT = 32  # downloads that came to no good end, and it is known what they handed out


class BlobStore:
    """Opens attachments.

    Args:
        ledger: what is recorded.
        source: where bytes come from.
        cache: where verified bytes are kept.
        pins: what was recorded when an attachment was first seen.
        nursery: where downloads run.
        namespace: begins the pins' keys: the service's host.
        verify, strict_limit: strict up to this many bytes under `auto`, stream above.
        scan_policy: which scan results open.
        leaving: what becomes of a download that nobody follows any more.
        local: where all bytes are on this machine already; `source` and `cache` are then not used.
        on_admitted: told the digest and length of each blob that was downloaded, verified and admitted.
    """

    def __init__(
        self,
        ledger: Ledger,
        source: BlobSource,
        cache: DiskCache,
        pins: Pins,
        nursery: TaskStarter,
        *,
        namespace: str,
        verify: Verify = "auto",
        strict_limit: int = 32 * 2**20,
        scan_policy: ScanPolicy = "block-bad",
        leaving: PausePolicy = NO_PAUSE,
        local: LocalBlobs | None = None,
        on_admitted: Callable[[Digest, int], None] | None = None,
    ) -> None:
        self._ledger = ledger
        self._source = source
        self._nursery = nursery
        self._verify = verify
        # What would be withheld whole is verified at open: the error comes where it leaves nothing behind.
        bounds = {"strict": math.inf, "auto": max(strict_limit, WITHHELD), "stream": WITHHELD, "off": -1}
        self._strict_limit = bounds[verify]
        self._scan_policy = scan_policy
        self._leaving = leaving
        self._on_admitted = on_admitted
        self._downloads: dict[Key, Download] = {}
        self._shelves = Staging(cache, pins, namespace, self._downloads, local)
        self._failures: dict[AttachmentRef, tuple[AttachfsError, float]] = {}
        self._handed_out: OrderedDict[tuple[Digest, int], ServedBlocks] = OrderedDict()
        self._contradicted: list[Download] = []  # and somebody still follows them
        self._landed = 0  # downloads that have ended
        self.opened = 0
        self.hits = 0
        self.verified_bytes = 0  # of downloads

    @property
    def downloading(self) -> int:
        """How many downloads are under way."""
        return len(self._downloads) - self.resting

    @property
    def resting(self) -> int:
        """How many downloads were stopped, and what came is kept."""
        return self._shelves.resting

    def change_policy(self, scan_policy: ScanPolicy) -> None:
        """Let other scan results open a file from now on, and try again what failed."""
        self._scan_policy = scan_policy
        self._failures.clear()

    async def open(self, ref: AttachmentRef) -> BlobHandle:
        """Open an attachment; in strict verification only once all of its bytes are there and right.

        Raises:
            ScanRefused: by the scan policy.
            IntegrityError: bytes or records differ.
            AttachfsError: it could not be had.
        """
        info = await self._ledger.info(ref)
        self._check_scan(ref, info)
        self._raise_remembered(ref)
        self._refuse_beside_wrong(ref)
        self.opened += 1
        try:
            return await self._open(ref, info)
        except (IntegrityError, BadAnswer) as error:
            self._remember(ref, error)
            raise

    async def prefetch(self, ref: AttachmentRef) -> None:
        """Have an attachment in the cache and verified, for somebody who will probably open it.

        Raises:
            AttachfsError: as `open` would.
        """
        blob = await self.open(ref)
        try:
            await blob.complete()
        finally:
            blob.close()

    async def claim(self, ref: AttachmentRef, name: str) -> bytes:
        """Return what this mount says of an attachment: `cached`, `verified` or `attested`.

        Raises:
            NoAttribute: it says nothing of that name.
            AttachfsError: `/info` or the owner's record could not be asked.
        """
        if name not in ("cached", "verified", "attested"):
            raise NoAttribute(f"{ref.path} has no attribute user.attachfs.{name}")
        info = await self._ledger.info(ref)
        if name == "attested":
            anchors = await self._ledger.anchors(ref)
            if anchors is None or info.digest is None:
                return b"unavailable"
            return b"match" if anchors == {info.digest} else b"mismatch"
        digest = info.digest
        there = digest is not None and await self._shelves.contains(ref, digest, info.size)
        return b"yes" if there else b"no"

    # -- before the bytes --------------------------------------------------------------------------

    async def _open(self, ref: AttachmentRef, info: Info) -> BlobHandle:
        if self._verify == "off":
            return self._open_unverified(ref, info)
        digest = info.digest
        if digest is None:
            raise BadAnswer(f"{ref.path}: {info.digest_problem}, so its bytes cannot be verified")
        await self._check_anchors(ref, digest)
        key = (digest, None)
        found = await self._find(ref, info, digest)
        if isinstance(found, CachedBlob):
            self.hits += 1
            return BlobHandle(ref.path, info.size, found, digest, self._nursery)
        download = found or self._begin(ref, info, key)
        download.refs.add(ref)
        blob = BlobHandle(ref.path, info.size, download, digest)
        try:
            if info.size <= self._strict_limit:
                await download.finished()
        except AttachfsError:
            blob.close()
            if download.ref != ref:
                # Another attachment with the same content failed. Ours may not: ask for it itself.
                return await self._open(ref, info)
            raise
        except BaseException:
            blob.close()
            raise
        return blob

    async def _find(self, ref: AttachmentRef, info: Info, digest: Digest) -> CachedBlob | Download | None:
        """Return what there is of a blob: in the cache, or on its way."""
        key = (digest, None)
        download = self._following(key)
        # While one is under way and the record is the pinned one, there is nothing to look for on the disk.
        while download is None or not self._shelves.confirmed(ref, digest, info.size):
            landed = self._landed
            cached = await self._shelves.in_thread(lambda: self._shelves.look(ref, digest, info.size))
            # Another opener may have begun while the disk was asked, and may even be done.
            download = self._following(key)
            if cached is not None:
                try:
                    self._refuse_beside_wrong(ref)
                except IntegrityError:
                    cached.close_soon()
                    raise
                if download is None:
                    return cached
                cached.close_soon()  # what was handed out on its way has yet to be compared with it
            if download is not None or landed == self._landed:
                break
        return download

    def _open_unverified(self, ref: AttachmentRef, info: Info) -> BlobHandle:
        """Open an attachment whose bytes nobody vouches for: the user said `--verify=off`."""
        download = self._following((None, ref)) or self._begin(ref, info, (None, ref))
        return BlobHandle(ref.path, info.size, download)

    def _check_scan(self, ref: AttachmentRef, info: Info) -> None:
        if self._scan_policy == "off":
            return
        bad = info.scanned_status == "SCANNED_BAD"
        if bad and self._scan_policy != "warn":
            reason = f": {info.scanned_bad_reason!a}" if info.scanned_bad_reason else ""
            raise ScanRefused(f"{ref.path}: the ledger's scan found it bad{reason} (--scan-policy)")
        if self._scan_policy == "require-ok" and info.scanned_status != "SCANNED_OK":
            raise ScanRefused(f"{ref.path}: not scanned yet ({info.scanned_status!a}) (--scan-policy)")
        if bad:
            log.warning("%s: the ledger's scan found it bad: %a", ref.path, info.scanned_bad_reason)

    async def _check_anchors(self, ref: AttachmentRef, digest: Digest) -> None:
        anchors = await self._ledger.anchors(ref)
        if anchors is not None and anchors != {digest}:
            recorded = ", ".join(sorted(str(anchor) for anchor in anchors))
            raise IntegrityError(
                f"{ref.path}: two records differ: /info says {digest}, the ledger's attribute {recorded}"
            )

    # -- the bytes ---------------------------------------------------------------------------------

    def _following(self, key: Key) -> Download | None:
        download = self._downloads.get(key)
        return None if download is None or download.abandoned else download

    def _begin(self, ref: AttachmentRef, info: Info, key: Key) -> Download:
        followed = info.size > self._strict_limit
        download = Download(
            ref,
            key[0],
            info.size,
            self._leaving,
            followed=followed,
            handed=None if key[0] is None else self._handed_out.pop((key[0], info.size), None),
            ahead=RangeReadContext(self._source, self._nursery) if followed else None,
        )
        self._downloads[key] = download
        self._nursery.start_soon(self._fetch, download, key)
        return download

    async def _fetch(self, download: Download, key: Key) -> None:
        shelf = self._shelves.of(download)
        try:
            await download.run(shelf, self._source)
            while download.stopped and await download.rest(keep=self._shelves.may_rest(download)):
                await download.run(shelf, self._source)
            if download.verified:
                self.verified_bytes += download.size
                if self._on_admitted is not None and download.expected is not None:
                    self._on_admitted(download.expected, download.size)
            if download.contradicted:
                self._contradicted.append(download)
            elif isinstance(download.error, IntegrityError | BadAnswer):
                self._remember(download.ref, download.error)
        finally:
            self._note_handed_out(download)
            if self._downloads.get(key) is download:
                del self._downloads[key]
            self._landed += 1
            download.landed()

    def _note_handed_out(self, download: Download) -> None:
        """Keep in mind what was handed out of a blob that was not found right: the next may be as wrong.

        Else somebody who tries again and again would be given the one part now and the other then.
        """
        if download.expected is None or download.verified or download.contradicted:
            return
        if download.handed.touched:
            self._handed_out[download.expected, download.size] = download.handed
            while len(self._handed_out) > _HANDED_OUT:
                self._handed_out.popitem(last=False)

    # -- failures ----------------------------------------------------------------------------------

    def _refuse_beside_wrong(self, ref: AttachmentRef) -> None:
        """Refuse to open a file while somebody has it open who was given wrong bytes ahead of the stream.

        The right ones would come into the kernel's pages, and be read on from there without an error.
        """
        self._contradicted = [one for one in self._contradicted if one.followed]
        if any(ref in one.refs for one in self._contradicted):
            raise IntegrityError(
                f"{ref.path}: a program that has it open was given wrong bytes; close it there"
            )

    def _remember(self, ref: AttachmentRef, error: AttachfsError) -> None:
        if len(self._failures) >= _FAILURES:
            self._failures.clear()
        self._failures[ref] = (error, trio.current_time() + _REMEMBER_FAILURE)

    def _raise_remembered(self, ref: AttachmentRef) -> None:
        failure = self._failures.get(ref)
        if failure is None:
            return
        error, until = failure
        if trio.current_time() < until:
            raise error.with_traceback(None)
        del self._failures[ref]
