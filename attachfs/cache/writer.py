"""One blob on its way into the cache: written, then given its name, quarantined or dropped.

Owns: in which order a blob gets its name, so that a crash at any instant leaves the whole
blob or none: all bytes there, sealed, synced, renamed; folders synced soon after, many names at a time.
"""

import os
import threading
import time
from contextlib import suppress
from pathlib import Path

from attachfs.cache import files
from attachfs.cache.descriptor import CachedBlob
from attachfs.cache.index import File, Folder
from attachfs.cache.quarantine import QuarantineNote
from attachfs.cache.reader import Reader
from attachfs.cache.store import CacheSpace
from attachfs.errors import AttachfsError, Unexpected
from attachfs.model import Digest

_WRITE_BACK = 8 << 20  # bytes after which the kernel is asked to begin with writing them to the disk


class Writer:
    """One blob being written, with its room reserved. The first of admit, quarantine and abort ends it.

    Bytes may be read through `fd` or `pread` while they arrive, by whoever knows how far they have come.

    Args:
        store: where the room was reserved.
        reader: finds a blob that somebody else has admitted meanwhile.
        file: held for this writer.
        fd: open for reading and writing; closed with the writer.
        name: in tmp/; None for a spill, which never has one.
    """

    def __init__(self, store: CacheSpace, reader: Reader, file: File, fd: int, name: str | None) -> None:
        self.size = file.size
        self._store = store
        self._home = store.home
        self._reader = reader
        self._file = file
        self._descriptor = store.descriptor(file, fd)
        self._name = name
        self._received = 0
        self._begun = 0  # bytes that the kernel was asked to write to the disk
        self._ended = False
        self._ending = threading.Lock()

    @property
    def fd(self) -> int:
        """The descriptor, -1 when closed."""
        return self._descriptor.fd

    @property
    def written(self) -> int:
        """How far the furthest write reached."""
        return self._file.written

    @property
    def complete(self) -> bool:
        """Whether as many bytes were written as were reserved, up to the last."""
        return self._file.written == self.size <= self._received

    @property
    def spilled(self) -> bool:
        """Whether the bytes go to an unlinked file outside the cache's bound."""
        return self._name is None

    def write(self, data: bytes | memoryview, offset: int) -> None:
        """Write all of `data` at `offset`.

        Raises:
            NoSpace: the disk or the quota is full.
            Unexpected: the disk failed, or `data` would go beyond the reserved size; nothing was written.
        """
        end = offset + len(data)
        if offset < 0 or end > self.size:
            raise Unexpected(f"refused to write bytes {offset} to {end} of a blob of {self.size}")
        try:
            with self._descriptor.use() as fd:
                if self._ended:
                    raise Unexpected("refused to write to a blob that is complete or given up")
                files.write_all(fd, data, offset)
                if self._name is not None and end - self._begun >= _WRITE_BACK:
                    files.start_writing_back(fd, self._begun, end - self._begun)
                    self._begun = end
        except OSError as error:
            raise files.translate(error, "cannot write to the cache") from error
        self._received += len(data)
        self._file.written = max(self._file.written, end)

    def pread(self, length: int, offset: int) -> bytes:
        """Read what has been written already.

        Raises:
            Unexpected: the disk failed, or the writer is closed.
        """
        return self._descriptor.pread(length, offset)

    def dup_reader(self) -> CachedBlob:
        """Return a reader with a descriptor of its own that outlives this writer, whatever becomes of it.

        Raises:
            Unexpected: no descriptor is left, or the writer is closed.
        """
        try:
            with self._descriptor.use() as fd:
                copy = os.dup(fd)
                with self._store.lock:
                    self._store.index.hold(self._file)
        except OSError as error:
            raise files.translate(error, "cannot read from the cache") from error
        return CachedBlob(self.size, self._store.descriptor(self._file, copy))

    # ---- its three ends

    def admit(self, digest: Digest) -> CachedBlob:
        """Give the blob its name and return it open. The caller has verified digest and length.

        Where the name cannot be given (a damaged or vanished directory) the blob is returned without one.
        Where the disk does not take the bytes (fsync fails) it raises: nobody knows what would be read back.

        Raises:
            NoSpace, Unexpected: the disk did not take the bytes, or some are missing; the writer is closed.
        """
        if not self._end():
            raise Unexpected(f"{digest} was given up before it was complete")
        try:
            with self._descriptor.use() as fd:
                st = os.fstat(fd)
                self._check_complete(digest, st)
                if self._name is not None:
                    missing = self._store.surely_missing(digest)
                    other = None if missing else self._reader.lookup(digest, self.size)
                    if other is not None:
                        self._drop()
                        return other
                    st = files.seal(fd, digest)
                    os.fsync(fd)
                stamp = self._file.stamp = files.stamp_of(st)
        except OSError as error:
            self._drop()
            self._store.warn("write", f"the cache's disk did not take a blob: {error.strerror}")
            raise files.translate(error, "the cache's disk did not take a blob") from error
        except BaseException:
            self._drop()
            raise
        if self._name is not None:
            try:
                self._give_name(self._name, digest, st)
            except OSError as error:
                self._home.remove_temporary(self._name)
                self._store.warn("admit", f"{digest} cannot be kept in the cache: {error.strerror}")
        return CachedBlob(self.size, self._descriptor, stamp)

    def quarantine(self, note: QuarantineNote) -> Path | None:
        """Put the bytes aside and close. None: they are too large to keep, or the disk failed."""
        if not self._end():
            return None
        self._store.count("mismatched")
        path = None
        try:
            with self._descriptor.use() as fd:
                path = self._quarantine_blob(fd, note)
        except OSError as error:
            self._store.warn("quarantine", f"mismatching bytes cannot be quarantined: {error.strerror}")
        except AttachfsError as error:
            self._store.warn("quarantine", error.reason)
        self._drop()
        self._store.shrink()
        return path

    def abort(self) -> None:
        """Drop the bytes and the reservation. Idempotent; does nothing after admit and quarantine."""
        if self._end():
            self._drop()

    def abort_soon(self) -> None:
        """Abort without taking long; for the event loop."""
        if self._end():
            self._drop(wait=False)

    def _end(self) -> bool:
        """Claim the right to end this writer; False if somebody already has."""
        with self._ending:
            first, self._ended = not self._ended, True
        return first

    def _drop(self, *, wait: bool = True) -> None:
        if self._name is not None:
            self._home.remove_temporary(self._name)
        self._descriptor.close(wait=wait)  # gives the room back; removing the name alone does not

    def _check_complete(self, digest: Digest, st: os.stat_result) -> None:
        if not files.is_digest(digest):
            raise Unexpected(f"{digest} is no digest")
        if not self.complete or st.st_size != self.size:
            raise Unexpected(f"the file for {digest} is not complete")

    def _give_name(self, name: str, digest: Digest, st: os.stat_result) -> None:
        """Rename the synced file into place, and have the name made durable soon."""
        store, index = self._store, self._store.index
        folder = files.folder_of(digest)
        new: dict[Folder | str, int] = {}
        with self._home.below("tmp") as tmp_fd:
            # Under the lock, as removing the last blob of a folder removes the folder.
            with store.lock, self._home.below("blobs", *folder, create=True) as folder_fd:
                os.rename(name, digest.hex, src_dir_fd=tmp_fd, dst_dir_fd=folder_fd)
                index.discard_entry(digest)
                self._file.used_ns = time.time_ns()
                index.insert(digest, self._file, st)
                store.counts["admitted"] += 1
                count = index.blobs.measure(folder, files.disk_usage_of_stat(os.fstat(folder_fd)))
                new[folder] = os.dup(folder_fd)
            if count == 1:  # the folder may be new, and so those above it
                for names in (("blobs", folder[0]), ("blobs",)):
                    with suppress(OSError), self._home.below(*names) as fd:
                        new["/".join(names)] = os.dup(fd)
        store.sync_soon(new)
        store.shrink()

    def _quarantine_blob(self, fd: int, note: QuarantineNote) -> Path | None:
        """Move the file into the quarantine, or copy what has no name: inside the bound, so room is made."""
        quarantine = self._store.quarantine
        if self._name is not None:
            with self._home.below("tmp") as tmp_fd:
                return quarantine.add(fd, note, (tmp_fd, self._name))
        size = os.fstat(fd).st_size
        if size > quarantine.max_bytes:
            size = 0  # only the note is kept
        reservation = File(size, written=size)
        try:
            self._store.reserve_over_limit(reservation)
            return quarantine.add(fd, note)
        finally:
            self._store.release(reservation)
