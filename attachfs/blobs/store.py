"""Open a blob: cache hit, or fetch, verify, admit. Whether bytes may be served is decided here.

A blob is verified wherever it came from, so nothing here depends on its source. What must hold before a
file opens: the scan policy, three records that agree (`/info`, the owner's attribute, what was pinned
when the attachment was first seen), and, in strict verification, the whole of the bytes.
"""

import logging
import math
from collections.abc import Callable

import trio

from attachfs.background import TaskStarter
from attachfs.blobs.download import NO_PAUSE, Download, PausePolicy
from attachfs.blobs.downloads import Downloads
from attachfs.blobs.handle import BlobHandle
from attachfs.blobs.pins import Pins
from attachfs.blobs.prefetched import Prefetched
from attachfs.blobs.source import BlobSource, LocalBlobs
from attachfs.blobs.staging import Staging
from attachfs.blobs.withholding import WITHHELD
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
        pause: what becomes of a download that nobody reads any more.
        local: where all bytes are on this machine already; `source` and `cache` are then not used.
        on_admitted: called with digest and length of each blob that was downloaded, verified and admitted.
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
        pause: PausePolicy = NO_PAUSE,
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
        self._on_admitted = on_admitted
        self._staging = Staging(cache, pins, namespace, local)
        self._downloads = Downloads(source, self._staging, nursery, pause, self._download_ended)
        self._prefetched = Prefetched(nursery)
        self._failures: dict[AttachmentRef, tuple[AttachfsError, float]] = {}
        self.opened = 0
        self.hits = 0
        self.verified_bytes = 0  # of downloads

    @property
    def downloading(self) -> int:
        """How many downloads are under way."""
        return self._downloads.running

    @property
    def paused(self) -> int:
        """How many downloads were stopped, and what came is kept."""
        return self._downloads.paused

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
        self._downloads.refuse_beside_mismatch(ref)
        self.opened += 1
        try:
            if self._verify == "off":
                return self._open_unverified(ref, info)
            digest = await self._agreed_digest(ref, info)
            blob = self._prefetched.take_same(ref, digest, info.size)
            self.hits += blob is not None
            strict = info.size <= self._strict_limit
            while blob is None:
                found = await self._find(ref, info, digest)
                if isinstance(found, CachedBlob):
                    self.hits += 1
                    return BlobHandle(ref.path, info.size, found, digest, self._nursery)
                download = found or self._downloads.start(ref, digest, info.size, early_readers=not strict)
                download.refs.add(ref)
                blob = BlobHandle(ref.path, info.size, download, digest)
                try:
                    if strict:
                        await download.finished()
                except AttachfsError:
                    blob.close()
                    if download.ref == ref:
                        raise
                    blob = None  # another attachment with the same content failed, and ours may not
                except BaseException:
                    blob.close()
                    raise
            return blob
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
        except BaseException:
            blob.close()
            raise
        if blob.intact:
            self._prefetched.keep(ref, blob)
        else:
            blob.close()

    async def mount_attribute(self, ref: AttachmentRef, name: str) -> bytes:
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
        if info.digest is None:
            return b"no"
        holds = self._staging.contains if name == "cached" else self._staging.is_verified
        return b"yes" if await holds(ref, info.digest, info.size) else b"no"

    # -- before the bytes --------------------------------------------------------------------------

    async def _find(self, ref: AttachmentRef, info: Info, digest: Digest) -> CachedBlob | Download | None:
        """Return what there is of a blob: in the cache, or on its way."""
        downloads, staging = self._downloads, self._staging
        download = downloads.find(digest)
        # One change of thread less for each new file. Only where nothing is served before it is pinned:
        # another process may have pinned another record since the pins were read, and then the pinning fails.
        if download is None and info.size <= self._strict_limit and staging.surely_new(ref, digest):
            return None
        # While one is under way and the record is the pinned one, there is nothing to look for on the disk.
        while download is None or not staging.confirmed(ref, digest, info.size):
            ended = downloads.ended
            cached = await staging.in_thread(lambda: staging.lookup(ref, digest, info.size))
            # Another opener may have begun while the disk was asked, and may even be done.
            download = downloads.find(digest)
            if cached is not None:
                try:
                    downloads.refuse_beside_mismatch(ref)
                except IntegrityError:
                    cached.close_soon()
                    raise
                if download is None:
                    return cached
                cached.close_soon()  # what was served on its way has yet to be compared with it
            if download is not None or ended == downloads.ended:
                break
        return download

    def _open_unverified(self, ref: AttachmentRef, info: Info) -> BlobHandle:
        """Open an attachment whose bytes nobody vouches for: the user said `--verify=off`."""
        download = self._downloads.find(ref) or self._downloads.start(
            ref, None, info.size, early_readers=True
        )
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

    async def _agreed_digest(self, ref: AttachmentRef, info: Info) -> Digest:
        """Return the digest on which the records agree."""
        digest = info.digest
        if digest is None:
            raise BadAnswer(f"{ref.path}: {info.digest_problem}, so its bytes cannot be verified")
        anchors = await self._ledger.anchors(ref)
        if anchors is not None and anchors != {digest}:
            recorded = ", ".join(sorted(str(anchor) for anchor in anchors))
            raise IntegrityError(
                f"{ref.path}: two records differ: /info says {digest}, the ledger's attribute {recorded}"
            )
        return digest

    # -- how it ended ------------------------------------------------------------------------------

    def _download_ended(self, download: Download) -> None:
        if download.verified:
            self.verified_bytes += download.size
            if self._on_admitted is not None and download.expected is not None:
                self._on_admitted(download.expected, download.size)
        elif isinstance(download.error, IntegrityError | BadAnswer) and not download.served_bytes_mismatch:
            self._remember(download.ref, download.error)

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
