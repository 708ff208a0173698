"""Reading from the cache: whether a blob is there, and whether its bytes are still those it was named for.

Owns: opening blobs by digest, hashing them again where their file has changed or somebody
asks, and putting out of reach what is wrong.
"""

import logging
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from attachfs.cache import files, scan
from attachfs.cache.descriptor import CachedBlob
from attachfs.cache.files import Stamp
from attachfs.cache.index import File
from attachfs.cache.quarantine import QuarantineNote
from attachfs.cache.store import CacheSpace
from attachfs.errors import AttachfsError
from attachfs.model import Digest

_log = logging.getLogger("attachfs.cache")


@dataclass(frozen=True)
class VerifyResult:
    """What re-reading one blob found; `problem` is empty where it is right."""

    digest: Digest
    size: int
    problem: str
    quarantined: Path | None = None
    unreadable: bool = False  # what its bytes are could not be found out

    @property
    def ok(self) -> bool:
        """Whether the bytes are those that the name says."""
        return not self.problem


class Reader:
    """Finds blobs in the cache's directory. Thread-safe; may take long."""

    def __init__(self, store: CacheSpace) -> None:
        self._store = store
        self._home = store.home

    def contains(self, digest: Digest, size: int) -> bool:
        """Whether a blob of that digest and size is there, without opening it or counting it as used."""
        return self.size_of(digest) == size

    def size_of(self, digest: Digest) -> int | None:
        """Return how long a blob's file is, None if there is none."""
        st = self._stat(digest)
        return st.st_size if st is not None and stat.S_ISREG(st.st_mode) else None

    def is_verified(self, digest: Digest, size: int) -> bool:
        """Whether a blob is there and has not changed since its digest was compared: it opens unhashed."""
        st = self._stat(digest)
        return st is not None and not files.foreign(st) and st.st_size == size and files.is_sealed(digest, st)

    def _stat(self, digest: Digest) -> os.stat_result | None:
        if not files.is_digest(digest):
            return None
        try:
            with self._home.below("blobs", *files.folder_of(digest)) as folder_fd:
                return os.stat(digest.hex, dir_fd=folder_fd, follow_symlinks=False)
        except OSError:
            return None

    def lookup(self, digest: Digest, size: int) -> CachedBlob | None:
        """Return the blob, open and checked, or None; it counts as used.

        Raises:
            TooManyFiles: it cannot be opened.
        """
        if not files.is_digest(digest):
            return None
        try:
            with self._store.lock:
                opened = self._open(digest)
        except OSError as error:
            if error.errno in files.TOO_MANY_FILES:  # a miss would only be downloaded, with more descriptors
                raise files.translate(error, f"cannot open the cached blob {digest}") from error
            kind = "planted" if files.is_planted(error) else "read"
            self._store.warn(kind, f"the cached blob {digest} cannot be opened: {error.strerror}")
            return None
        if opened is None:
            return None
        file, fd = opened
        descriptor = self._store.descriptor(file, fd)
        try:
            stamp = self._verified(file, fd, digest, size)
            if stamp is not None:
                return CachedBlob(size, descriptor, stamp)
        except OSError as error:
            self._store.warn("read", f"the cached blob {digest} cannot be read: {error.strerror}")
        except BaseException:
            descriptor.close()
            raise
        descriptor.close()
        return None

    def _open(self, digest: Digest) -> tuple[File, int] | None:
        """Open and hold a blob's file and count it as used. The caller holds the lock."""
        index = self._store.index
        try:
            with self._home.below("blobs", *files.folder_of(digest)) as folder_fd:
                fd = files.open_read(digest.hex, folder_fd)
        except FileNotFoundError:
            index.discard_entry(digest)
            return None
        try:
            st = os.fstat(fd)
            problem = files.foreign(st)
            if problem:
                os.close(fd)
                self._store.warn("planted", f"the cached blob {digest} is not used: {problem}")
                return None
            file = index.blobs.get(digest)
            if file is not None and (file.inode, file.size) != (st.st_ino, st.st_size):
                index.discard_entry(digest)  # replaced behind our back
                file = None
            if file is None:
                file = File.found(st)
                index.insert(digest, file, st)
            file.used_ns = time.time_ns()
            index.hold(file)
        except BaseException:
            os.close(fd)
            raise
        return file, fd

    def _verified(self, file: File, fd: int, digest: Digest, size: int) -> Stamp | None:
        """Return the state in which the bytes are known to be the digest's, None if they are not.

        They are by the seal, by memory of this run, or by hashing them. Whoever reads compares later states
        with the one returned, so it is never one from after the bytes were looked at.
        """
        with file.hashing:
            st = os.fstat(fd)
            stamp: Stamp | None = files.stamp_of(st)
            if file.stamp != stamp and not files.is_sealed(digest, st):
                stamp = self._hashed(fd, digest, size)
            file.stamp = stamp
            if stamp is None or stamp.size != size:
                return None  # or right bytes, but not those that were asked for
            # The time of access orders eviction over restarts. It changes ctime: not while bytes are hashed.
            with suppress(OSError):  # a read-only filesystem keeps the order in memory only
                files.set_atime(fd, file.used_ns)
            return stamp

    def _hashed(self, fd: int, digest: Digest, size: int) -> Stamp | None:
        """Return the state in which hashing found the bytes right, None if it did not."""
        self._store.count("rehashed")
        before = files.stable_stat(fd)
        if before is None:
            return None
        found, length = files.hash_file(fd, digest.alg)
        if found == digest:
            return files.seal_again(fd, digest, before)
        _log.warning("the cached blob %s has changed on disk (it is now %s): not served", digest, found)
        self._quarantine_blob(fd, digest, size, found, length)
        return None

    def _quarantine_blob(self, fd: int, digest: Digest, size: int, found: Digest, length: int) -> Path | None:
        """Move a blob that is not what its name says out of reach."""
        store = self._store
        note = QuarantineNote(
            path="",
            url_path="",
            expected=digest,
            got=found,
            expected_size=size,
            got_size=length,
            time=time.time(),
            reason="a cached blob changed on disk after it had been verified",
        )
        moved = File(length, written=length)
        name = self._home.temporary_name()
        path = None
        try:
            with self._home.below("tmp", create=True) as tmp_fd:
                with store.lock, self._home.below("blobs", *files.folder_of(digest)) as folder_fd:
                    named = os.stat(digest.hex, dir_fd=folder_fd, follow_symlinks=False)
                    if named.st_ino != os.fstat(fd).st_ino:
                        return None  # a good one has taken its place
                    os.rename(digest.hex, name, src_dir_fd=folder_fd, dst_dir_fd=tmp_fd)
                    store.index.discard_entry(digest)
                    store.counts["mismatched"] += 1
                    store.index.hold(moved)
                try:
                    path = store.quarantine.add(fd, note, (tmp_fd, name))
                finally:
                    if path is None:
                        os.unlink(name, dir_fd=tmp_fd)
                    store.release(moved)
        except FileNotFoundError:
            return None  # evicted meanwhile
        except OSError as error:
            store.warn("quarantine", f"{digest} cannot be quarantined: {error.strerror}")
        except AttachfsError as error:
            store.warn("quarantine", error.reason)
        store.shrink()
        return path

    def verify_all(self, progress: Callable[[int], None] | None = None) -> Iterator[VerifyResult]:
        """Hash every blob, whatever its seal; quarantine what is wrong.

        Args:
            progress: called with how many bytes were read.

        Raises:
            Unexpected: the directory cannot be listed.
        """
        for digest, st in scan.listed(self._home):
            result = self._verify(digest, st.st_size, progress)
            if result is not None:
                yield result

    def _verify(
        self, digest: Digest, size: int, progress: Callable[[int], None] | None
    ) -> VerifyResult | None:
        try:
            with self._home.below("blobs", *files.folder_of(digest)) as folder_fd:
                fd = files.open_read(digest.hex, folder_fd)
            try:
                problem = files.foreign(os.fstat(fd))
                if problem:
                    return VerifyResult(digest, size, problem)
                # The disk is asked, not the kernel's memory of what it once held.
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                found, length = files.hash_file(fd, digest.alg, progress)
                if found == digest:
                    return VerifyResult(digest, length, "")
                path = self._quarantine_blob(fd, digest, size, found, length)
                return VerifyResult(digest, length, f"its bytes hash to {found}", path)
            finally:
                os.close(fd)
        except FileNotFoundError:
            return None  # evicted meanwhile
        except OSError as error:
            return VerifyResult(digest, size, f"it cannot be read: {error.strerror}", unreadable=True)
