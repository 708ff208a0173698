"""A bag's bytes, as files open them: hashed at the first open, and again whenever their file has changed."""

import os
import threading
from collections import OrderedDict

from attachfs.archive import layout
from attachfs.archive.source import Archive
from attachfs.blobs.pins import Pin, PinResult, Pins, PinStatus
from attachfs.cache.descriptor import CachedBlob, Descriptor
from attachfs.cache.files import hash_file, stamp_of, translate, without_writers
from attachfs.errors import AttachfsError, BadAnswer, IntegrityError, NotFound
from attachfs.model import AttachmentRef, Digest

_VERIFIED = 200_000  # files that were found right, remembered


class BagBlobs:
    """Attachments' bytes in a bag. Thread-safe; may take long.

    Args:
        archive: the bag.
    """

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._lock = threading.Lock()
        self._verified: OrderedDict[AttachmentRef, tuple[Digest, tuple[int, ...]]] = OrderedDict()

    def open(self, ref: AttachmentRef, digest: Digest, size: int) -> CachedBlob:
        """Return an attachment's bytes, open and found to be those that are recorded.

        Raises:
            IntegrityError: they are not.
            AttachfsError: the bag does not have them, and why; or the disk failed.
        """
        path = layout.payload_path(ref)
        try:
            fd = self._archive.folder.open(path)
        except NotFound:
            raise self._absence(ref) from None
        except OSError as error:
            raise translate(error, f"{path} in the archive cannot be read") from error
        descriptor = Descriptor(fd)
        try:
            before = stamp_of(os.fstat(fd))  # reads are compared with what was hashed, not with what is later
            self._check(ref, fd, digest, size)
            return CachedBlob(size, descriptor, before)
        except OSError as error:
            descriptor.close()
            raise translate(error, f"{path} in the archive cannot be read") from error
        except BaseException:
            descriptor.close()
            raise

    def contains(self, ref: AttachmentRef, size: int) -> bool:
        """Whether the bag has an attachment of that size."""
        try:
            return self._archive.folder.size(layout.payload_path(ref)) == size
        except (NotFound, BadAnswer, OSError):
            return False

    def is_verified(self, ref: AttachmentRef, digest: Digest) -> bool:
        """Whether an attachment's bytes have been found to be those of the record, and not changed since."""
        try:
            fd = self._archive.folder.open(layout.payload_path(ref))
        except (NotFound, BadAnswer, OSError):
            return False
        try:
            with self._lock:
                return self._verified.get(ref) == (digest, _stamp(fd))
        finally:
            os.close(fd)

    def _absence(self, ref: AttachmentRef) -> AttachfsError:
        reason = self._archive.absence(ref.path)
        if isinstance(reason, NotFound):  # its record is there: somebody has taken the file away
            return BadAnswer(f"{ref.path}: its bytes are missing from the archive")
        return reason

    def _check(self, ref: AttachmentRef, fd: int, digest: Digest, size: int) -> None:
        stamp = _stamp(fd)
        with self._lock:
            if self._verified.get(ref) == (digest, stamp):
                self._verified.move_to_end(ref)
                return
        length = os.fstat(fd).st_size
        if length != size:
            raise IntegrityError(f"{ref.path}: the archive has {length} bytes, recorded are {size}")
        found, length = hash_file(fd, digest.alg)
        if found != digest or length != size:
            raise IntegrityError(
                f"{ref.path}: the archive's bytes hash to {found}, recorded is {digest}: they were changed "
                f"after the export"
            )
        if not _is_unchanged(fd, stamp):
            raise IntegrityError(f"{ref.path}: the archive's file was written to while it was hashed")
        with self._lock:
            self._verified[ref] = digest, stamp
            while len(self._verified) > _VERIFIED:
                self._verified.popitem(last=False)


def _is_unchanged(fd: int, stamp: tuple[int, ...]) -> bool:
    """Whether a file is as it was, and nobody can write to it unseen, as through a mapping."""
    try:
        with without_writers(fd):
            return _stamp(fd) == stamp
    except BlockingIOError:
        return False
    except OSError:  # no leases here, or the file is another user's
        return _stamp(fd) == stamp


def _stamp(fd: int) -> tuple[int, ...]:
    st = os.fstat(fd)
    return st.st_ino, st.st_size, st.st_mtime_ns, st.st_ctime_ns


class ReadOnlyPins(Pins):
    """First-seen hashes that a bag is compared with and adds nothing to: anybody may have made it."""

    def get(self, key: str) -> Pin | None:
        """Return the pin of exactly this key.

        Raises:
            Unexpected: the pins cannot be read.
        """
        return super().get(key) if self.path.exists() else None

    def check(self, key: str, digest: Digest, size: int) -> PinResult:
        """Compare with the first record seen under `key`, if there is one.

        Raises:
            Unexpected: the pins cannot be read.
        """
        if self.get(key) is None:
            return PinResult(PinStatus.NEW, Pin(key, digest, size, 0))
        return super().check(key, digest, size)
