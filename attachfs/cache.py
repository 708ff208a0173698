"""The content-addressed disk cache: what is in it, how large it may grow, what goes first.

    root/VERSION                      the layout's version
    root/lock                         held (flock) by the one mount that uses the directory; says which
    root/blobs/sha256/ab/<64 hex>     verified blobs; the name is the digest, and there is no other truth
    root/tmp/                         blobs being written
    root/quarantine/                  bytes that did not match, never served

A blob gets its name only after its caller has verified digest and length, and after fsync. The bound counts
what is admitted, being written, and removed but still open, folders included. Room is made before a write:
the least recently opened blob goes first; one that is open when room is made counts as opened just then,
because removing it would free nothing.

Callers run all of this in worker threads. One lock guards the index and is held for lookups, renames and
removals only: never while data is read, written, hashed or synced.

One mount per directory: two that share one bound would have to agree on every eviction through the disk, and
a second cache directory costs only disk. Commands work beside a running mount; they read and unlink.
"""

import errno
import itertools
import logging
import os
import re
import secrets
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from cachetools import Cache, LRUCache

from attachfs import cachefile
from attachfs.cachedir import DEGRADED, CacheDirectory
from attachfs.cachefile import BLOCK, CachedBlob, Descriptor, Stamp
from attachfs.errors import AttachfsError, NoRoom, Unexpected, UsageError
from attachfs.model import Digest
from attachfs.quarantine import Quarantine, QuarantineNote
from attachfs.units import MinFree, format_size

__all__ = ["CacheStats", "CachedBlob", "DiskCache", "Entry", "VerifyResult", "Writer"]

_log = logging.getLogger("attachfs.cache")

_FIXED = 16 * BLOCK  # the directory itself, its fixed folders and files, and room for `tmp` to grow
_SLACK = 2 * BLOCK  # a new blob's share of folders: a new one's first block, or a full one's growth
_QUARANTINE_MAX = 256 << 20  # bytes; and never more than a tenth of the cache
_INDEX_WAIT = 10.0  # seconds that a writer waits for the index before it goes without the cache
_BATCH = 64  # blobs removed in one go before other threads get the lock
_SHARD_RE = re.compile("[0-9a-f]{2}")
_FOREIGN = {errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO}


class _File:
    """A blob's file, with or without a name: what it takes, and how many descriptors hold it."""

    __slots__ = (
        "charge",
        "digest",
        "hashing",
        "inode",
        "named",
        "opens",
        "size",
        "spill",
        "stamp",
        "used_ns",
        "written",
    )

    def __init__(self, digest: Digest | None, size: int, charge: int) -> None:
        self.digest = digest
        self.size = size
        self.charge = charge
        self.named = False  # in blobs/ and in the index
        self.spill = False  # outside the bound
        self.opens = 0
        self.inode = 0
        self.written = size  # bytes; less while it is being written
        self.used_ns = 0
        self.stamp: Stamp | None = None  # the state in which this run found the bytes right
        self.hashing = threading.Lock()


class _Index(LRUCache[Digest, _File]):
    """The blobs on disk by digest, least recently opened first; its size is the room they take."""

    def __init__(self) -> None:
        super().__init__(maxsize=2**63 - 1, getsizeof=lambda file: file.charge)

    def popitem(self) -> tuple[Digest, _File]:
        """Remove and return the least recently opened blob that nobody has open.

        Open ones met on the way count as opened now. KeyError: there is none.
        """
        met = []
        try:
            while True:
                digest, file = super().popitem()
                if not file.opens:
                    return digest, file
                met.append((digest, file))
        finally:
            for digest, file in met:
                self[digest] = file

    def drain(self) -> list[tuple[Digest, _File]]:
        """Remove and return everything, least recently opened first."""
        found = []
        while self:
            found.append(super().popitem())
        return found

    def files(self) -> list[tuple[Digest, _File]]:
        """Return everything without counting it as used."""
        return [(digest, Cache.__getitem__(self, digest)) for digest in self]


class _Shard:
    """One folder of blobs: how many it holds and the room it takes itself."""

    __slots__ = ("charge", "count")

    def __init__(self) -> None:
        self.charge = 0
        self.count = 0


@dataclass(frozen=True)
class Entry:
    """A blob as `entries` lists it. `last_opened_ns` is nanoseconds since 1970."""

    digest: Digest
    size: int
    last_opened_ns: int
    open_count: int


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


@dataclass(frozen=True)
class CacheStats:
    """The cache's figures; sizes in bytes as they count against the bound."""

    max_bytes: int
    used_bytes: int
    blob_bytes: int
    blobs: int
    loose_bytes: int  # being written, or removed and still open
    quarantine_bytes: int
    spilled_bytes: int  # outside the bound
    open_files: int
    hits: int
    misses: int
    admitted: int
    evicted: int
    rehashed: int
    mismatched: int
    spills: int
    indexed: bool
    writable: bool
    troubles: dict[str, int]


class Writer:
    """One blob being written, with its room reserved. The first of admit, quarantine and abort ends it.

    Bytes may be read through `fd` or `pread` while they arrive, by whoever knows how far they have come.
    """

    def __init__(self, cache: "DiskCache", file: _File, descriptor: Descriptor, name: str | None) -> None:
        self.size = file.size
        self.file = file
        self.descriptor = descriptor
        self.name = name  # in tmp/; None for a spill, which never has one
        self._cache = cache
        self._received = 0
        self._ended = False
        self._ending = threading.Lock()

    @property
    def fd(self) -> int:
        """The descriptor, -1 when closed."""
        return self.descriptor.fd

    @property
    def written(self) -> int:
        """How far the furthest write reached."""
        return self.file.written

    @property
    def complete(self) -> bool:
        """Whether as many bytes were written as were reserved, up to the last."""
        return self.file.written == self.size <= self._received

    @property
    def spilled(self) -> bool:
        """Whether the bytes go to an unlinked file outside the cache's bound."""
        return self.name is None

    def write(self, data: bytes | memoryview, offset: int) -> None:
        """Write all of `data` at `offset`.

        Raises:
            NoRoom: the disk or the quota is full.
            Unexpected: the disk failed, or `data` would go beyond the reserved size; nothing was written.
        """
        end = offset + len(data)
        if offset < 0 or end > self.size:
            raise Unexpected(f"refused to write bytes {offset} to {end} of a blob of {self.size}")
        try:
            with self.descriptor.use() as fd:
                if self._ended:
                    raise Unexpected("refused to write to a blob that is complete or given up")
                cachefile.write_all(fd, data, offset)
        except OSError as error:
            raise cachefile.translate(error, "cannot write to the cache") from error
        self._received += len(data)
        self.file.written = max(self.file.written, end)

    def pread(self, length: int, offset: int) -> bytes:
        """Read what has been written already.

        Raises:
            Unexpected: the disk failed, or the writer is closed.
        """
        return self.descriptor.pread(length, offset)

    def dup_reader(self) -> CachedBlob:
        """Return a reader with a descriptor of its own that outlives this writer, whatever becomes of it.

        Raises:
            Unexpected: no descriptor is left, or the writer is closed.
        """
        return self._cache.dup(self)

    def admit(self, digest: Digest) -> CachedBlob:
        """Give the blob its name and return it open. The caller has verified digest and length.

        Where the name cannot be given (a damaged or vanished directory) the blob is returned without one.
        Where the disk does not take the bytes (fsync fails) it raises: nobody knows what would be read back.

        Raises:
            NoRoom, Unexpected: the disk did not take the bytes, or some are missing; the writer is closed.
        """
        if not self.end():
            raise Unexpected(f"{digest} was given up before it was complete")
        return self._cache.admit(self, digest)

    def quarantine(self, note: QuarantineNote) -> Path | None:
        """Put the bytes aside and close. None: they are too large to keep, or the disk failed."""
        return self._cache.quarantine(self, note) if self.end() else None

    def abort(self) -> None:
        """Drop the bytes and the reservation. Idempotent; does nothing after admit and quarantine."""
        if self.end():
            self._cache.discard(self)

    def end(self) -> bool:
        """Claim the right to end this writer; False if somebody already has."""
        with self._ending:
            first, self._ended = not self._ended, True
        return first


class DiskCache:
    """The cache in directory `root`, bounded by `max_bytes` and by what `min_free` leaves of the filesystem.

    Call `start` once, then `index` in a thread; lookups work meanwhile, writers wait for it.
    """

    def __init__(self, root: Path, max_bytes: int, min_free: MinFree) -> None:
        self._home = CacheDirectory(root, self._trouble)
        self.root = self._home.root
        self.indexed = threading.Event()
        self._max = max_bytes
        self._min_free = min_free
        self._lock = threading.Lock()
        self._indexing = threading.Lock()
        self._index = _Index()
        self._indexed_root: tuple[int, int] | None = None  # the directory (device, inode) that it is of
        self._shards: dict[tuple[str, str], _Shard] = {}
        self._shard_bytes = 0
        self._removed: set[Digest] | None = None  # while indexing: what the walk may have seen and is gone
        self._loose = 0  # room of files without a name in blobs/: being written, or removed and still open
        self._spilled = 0
        self._open_files: dict[int, _File] = {}
        self._counts = dict.fromkeys(
            ("hits", "misses", "admitted", "evicted", "rehashed", "mismatched", "spills"), 0
        )
        self._troubles: dict[str, int] = {}
        self._trouble_lock = threading.Lock()
        self._run = secrets.token_hex(4)
        self._serial = itertools.count()
        self._exclusive = True
        self._closed = False
        self._quarantine = Quarantine(self.root / "quarantine", self._quarantine_bound())

    # ---- start and end ------------------------------------------------------------------------------------

    def start(self, holder: str = "", *, exclusive: bool = True) -> None:
        """Make or check the directory and take its lock. Call it in the process that stays.

        Args:
            holder: what the next one who comes is told: the mount point.
            exclusive: False for commands that work beside a mount; they never write blobs.

        Raises:
            UsageError: the directory is not ours to use, is another program's or a newer version's, or is
                held by another process. A directory that cannot be written only costs a warning.
        """
        self._exclusive = exclusive
        if not exclusive:
            self._quarantine.max_bytes = _QUARANTINE_MAX  # what the mount's bound is, it alone knows
        try:
            with self._lock:
                self._home.attach(holder, exclusive=exclusive)
        except OSError as error:
            if error.errno not in DEGRADED:
                raise UsageError(
                    f"the cache directory {self.root} cannot be used ({error.strerror}): "
                    f"choose another with --cache-dir"
                ) from error
            self._trouble("directory", f"the cache directory {self.root} cannot be used ({error.strerror})")

    def close(self) -> None:
        """Give the directory back. Blobs that are still open stay readable."""
        with self._lock:
            self._closed = True
            self._home.detach()
        for kind, count in self._troubles.items():
            if count > 1:
                _log.warning("trouble with the cache (%s) was met %d times in all", kind, count)

    # ---- the index ----------------------------------------------------------------------------------------

    def index(self) -> None:
        """Walk the directory: remove left-over temporary files, learn what there is, hold it to the bound."""
        with self._indexing:
            with self._lock:
                identity = self._home.identity()
                if self.indexed.is_set() and identity == self._indexed_root:
                    return
                self._removed = set()
            try:
                if self._exclusive:
                    self._sweep()
                self._quarantine.scan(trim=self._exclusive)
                self._walk_into_index(identity)
            except OSError as error:
                self._trouble("directory", f"the cache in {self.root} cannot be listed: {error.strerror}")
            finally:
                with self._lock:
                    self._removed = None
                self.indexed.set()
        self._shrink()

    def _sweep(self) -> None:
        """Remove what an earlier run left in tmp/; foreign folders stay."""
        with suppress(FileNotFoundError), self._home.below("tmp") as tmp_fd:
            for name in cachefile.names(tmp_fd):
                if name.startswith(f"{self._run}-"):
                    continue
                try:
                    os.unlink(name, dir_fd=tmp_fd)
                except FileNotFoundError:
                    pass
                except OSError as error:
                    self._trouble(
                        "sweep", f"{name!a} in the cache's tmp/ cannot be removed: {error.strerror}"
                    )

    def _walk_into_index(self, identity: tuple[int, int] | None) -> None:
        found: list[tuple[int, Digest, os.stat_result]] = []
        shards: dict[tuple[str, str], _Shard] = {}
        for digest, st in self._walk(shards):
            found.append((st.st_atime_ns, digest, st))
        found.sort(key=lambda item: item[0])
        fresh = _Index()
        for _, digest, st in found:
            file = self._file_of(digest, st)
            file.named = True
            fresh[digest] = file
            shards[_shard_key(digest)].count += 1
        with self._lock:
            for digest in self._removed or ():
                if fresh.pop(digest, None) is not None:
                    shards[_shard_key(digest)].count -= 1
            # Whatever was opened or admitted meanwhile is more recent than all that was found.
            for digest, file in self._index.drain():
                key = _shard_key(digest)
                shard = shards.setdefault(key, _Shard())
                shard.charge = max(shard.charge, self._shards[key].charge)
                if digest not in fresh:
                    shard.count += 1
                fresh[digest] = file
            self._index, self._shards, self._indexed_root = fresh, shards, identity
            self._shard_bytes = sum(shard.charge for shard in shards.values())
            for key in [key for key, shard in shards.items() if not shard.count]:
                with suppress(OSError), self._home.below("blobs", key[0]) as alg_fd:
                    self._drop_shard(key, alg_fd)

    def _walk(
        self, shards: dict[tuple[str, str], _Shard] | None = None
    ) -> Iterator[tuple[Digest, os.stat_result]]:
        """Yield the blobs on disk; whatever else lies there is passed over."""
        with suppress(FileNotFoundError), self._home.below("blobs") as blobs_fd:
            for alg in cachefile.ALGORITHMS:
                with self._folder_or_none(blobs_fd, alg) as alg_fd:
                    for shard in () if alg_fd is None else cachefile.names(alg_fd):
                        if alg_fd is not None and _SHARD_RE.fullmatch(shard):
                            with self._folder_or_none(alg_fd, shard) as fd:
                                if fd is not None:
                                    yield from self._walk_shard(alg, shard, fd, shards)

    def _listed(self) -> list[tuple[Digest, os.stat_result]]:
        try:
            return list(self._walk())
        except OSError as error:
            raise Unexpected(f"the cache in {self.root} cannot be listed: {error.strerror}") from error

    @staticmethod
    def _walk_shard(
        alg: str, shard: str, fd: int, shards: dict[tuple[str, str], _Shard] | None
    ) -> Iterator[tuple[Digest, os.stat_result]]:
        if shards is not None:
            shards.setdefault((alg, shard), _Shard()).charge = cachefile.charge_stat(os.fstat(fd))
        with os.scandir(fd) as entries:
            for entry in entries:
                digest = Digest(alg, entry.name)
                if not entry.name.startswith(shard) or not cachefile.is_digest(digest):
                    continue
                with suppress(FileNotFoundError):
                    st = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(st.st_mode):
                        yield digest, st

    @staticmethod
    @contextmanager
    def _folder_or_none(dir_fd: int, name: str) -> Iterator[int | None]:
        """Open a folder while the block runs; None where there is something else, or nothing any more."""
        with ExitStack() as stack:
            fd = None
            try:
                fd = stack.enter_context(cachefile.folder(dir_fd, name))
            except OSError as error:
                if error.errno not in _FOREIGN and error.errno != errno.ENOENT:
                    raise
            yield fd

    @staticmethod
    def _file_of(digest: Digest, st: os.stat_result) -> _File:
        file = _File(digest, st.st_size, cachefile.charge_stat(st))
        file.inode = st.st_ino
        file.used_ns = st.st_atime_ns
        return file

    # ---- lookups ------------------------------------------------------------------------------------------

    def open(self, digest: Digest, size: int) -> CachedBlob | None:
        """Return the blob, open, or None. A hit makes it the most recently opened.

        May take long: a blob whose file changed since it was admitted is hashed again; if wrong, put aside.
        """
        blob = self._lookup(digest, size)
        with self._lock:
            self._counts["misses" if blob is None else "hits"] += 1
        return blob

    def _lookup(self, digest: Digest, size: int) -> CachedBlob | None:
        if not cachefile.is_digest(digest):
            return None
        try:
            with self._lock:
                opened = self._open_file(digest)
        except OSError as error:
            kind = "planted" if error.errno in _FOREIGN else "read"
            self._trouble(kind, f"the cached blob {digest} cannot be opened: {error.strerror}")
            return None
        if opened is None:
            return None
        file, fd = opened
        descriptor = Descriptor(fd, lambda: self._release(file))
        try:
            if self._is_right(file, fd, digest, size):
                return CachedBlob(size, descriptor)
        except OSError as error:
            self._trouble("read", f"the cached blob {digest} cannot be read: {error.strerror}")
        except BaseException:
            descriptor.close()
            raise
        descriptor.close()
        return None

    def _open_file(self, digest: Digest) -> tuple[_File, int] | None:
        """Open a blob's file and count it as used. The caller holds _lock."""
        try:
            with self._home.below("blobs", digest.alg, digest.hex[:2]) as shard_fd:
                fd = cachefile.open_read(digest.hex, shard_fd)
        except FileNotFoundError:
            self._forget(digest)
            return None
        try:
            st = os.fstat(fd)
            problem = cachefile.foreign(st)
            if problem:
                os.close(fd)
                self._trouble("planted", f"the cached blob {digest} is not used: {problem}")
                return None
            file = self._index.get(digest)
            if file is not None and (file.inode, file.size) != (st.st_ino, st.st_size):
                self._forget(digest)  # replaced behind our back
                file = None
            if file is None:
                file = self._file_of(digest, st)
                self._insert(digest, file)
            now = time.time_ns()
            file.used_ns = now
            self._hold(file)
        except BaseException:
            os.close(fd)
            raise
        with suppress(OSError):  # a read-only filesystem keeps the order in memory only
            os.utime(fd, ns=(now, st.st_mtime_ns))
        return file, fd

    def _is_right(self, file: _File, fd: int, digest: Digest, size: int) -> bool:
        """Whether the bytes are the digest's: by the seal, by memory of this run, or by hashing them."""
        with file.hashing:
            st = os.fstat(fd)
            stamp = cachefile.stamp_of(st)
            if file.stamp == stamp or cachefile.is_sealed(digest, st):
                file.stamp = stamp
                return st.st_size == size
            with self._lock:
                self._counts["rehashed"] += 1
            found, length = cachefile.hash_file(fd, digest.alg)
            if cachefile.stamp_of(os.fstat(fd)) != stamp:
                return False  # written to while it was hashed: whoever did that may go on
            if found != digest:
                _log.warning(
                    "the cached blob %s has changed on disk (it is now %s): not served", digest, found
                )
                self._put_aside(fd, digest, size, found, length)
                return False
            with suppress(OSError):  # read-only: hashed once in each run
                stamp = cachefile.seal(fd, digest)
            file.stamp = stamp
            return length == size  # if not: right bytes, but not those that were asked for

    def _put_aside(self, fd: int, digest: Digest, size: int, found: Digest, length: int) -> Path | None:
        """Move a blob that is not what its name says out of reach."""
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
        moved = _File(None, length, cachefile.charge_of(length) + _SLACK)
        name = self._temporary_name()
        path = None
        try:
            with self._home.below("tmp", create=True) as tmp_fd:
                with self._lock, self._home.below("blobs", digest.alg, digest.hex[:2]) as shard_fd:
                    named = os.stat(digest.hex, dir_fd=shard_fd, follow_symlinks=False)
                    if named.st_ino != os.fstat(fd).st_ino:
                        return None  # a good one has taken its place
                    os.rename(digest.hex, name, src_dir_fd=shard_fd, dst_dir_fd=tmp_fd)
                    self._forget(digest)
                    self._counts["mismatched"] += 1
                    self._loose += moved.charge
                    self._hold(moved)
                try:
                    path = self._quarantine.add(fd, note, (tmp_fd, name))
                finally:
                    if path is None:
                        os.unlink(name, dir_fd=tmp_fd)
                    self._release(moved)
        except FileNotFoundError:
            return None  # evicted meanwhile
        except OSError as error:
            self._trouble("quarantine", f"{digest} cannot be put aside: {error.strerror}")
        except AttachfsError as error:
            self._trouble("quarantine", error.reason)
        self._shrink()
        return path

    def contains(self, digest: Digest, size: int) -> bool:
        """Whether a blob of that digest and size is there, without opening it or counting it as used."""
        if not cachefile.is_digest(digest):
            return False
        try:
            with self._home.below("blobs", digest.alg, digest.hex[:2]) as shard_fd:
                st = os.stat(digest.hex, dir_fd=shard_fd, follow_symlinks=False)
        except OSError:
            return False
        return stat.S_ISREG(st.st_mode) and st.st_size == size

    def entries(self) -> list[Entry]:
        """Return what is cached, least recently opened first.

        Raises:
            Unexpected: the directory cannot be listed.
        """
        with self._lock:
            files = [] if not self.indexed.is_set() else self._index.files()
        if files:
            found = [Entry(digest, file.size, file.used_ns, file.opens) for digest, file in files]
        else:
            found = [Entry(digest, st.st_size, st.st_atime_ns, 0) for digest, st in self._listed()]
        return sorted(found, key=lambda entry: entry.last_opened_ns)

    def stats(self) -> CacheStats:
        """Return the figures of this moment."""
        with self._lock:
            return CacheStats(
                max_bytes=self._max,
                used_bytes=self._used(),
                blob_bytes=int(self._index.currsize),
                blobs=len(self._index),
                loose_bytes=self._loose,
                quarantine_bytes=self._quarantine.used,
                spilled_bytes=self._spilled,
                open_files=len(self._open_files),
                indexed=self.indexed.is_set(),
                writable=self._home.writable,
                troubles=dict(self._troubles),
                **self._counts,
            )

    def verify_all(self, progress: Callable[[int], None] | None = None) -> Iterator[VerifyResult]:
        """Hash every blob, whatever its seal; put aside what is wrong. `progress` is told the bytes read.

        Raises:
            Unexpected: the directory cannot be listed.
        """
        for digest, listed in self._listed():
            result = self._verify_one(digest, listed.st_size, progress)
            if result is not None:
                yield result

    def _verify_one(
        self, digest: Digest, size: int, progress: Callable[[int], None] | None
    ) -> VerifyResult | None:
        try:
            with self._home.below("blobs", digest.alg, digest.hex[:2]) as shard_fd:
                fd = cachefile.open_read(digest.hex, shard_fd)
            try:
                problem = cachefile.foreign(os.fstat(fd))
                if problem:
                    return VerifyResult(digest, size, problem)
                # The disk is asked, not the kernel's memory of what it once held.
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                found, length = cachefile.hash_file(fd, digest.alg, progress)
                if found == digest:
                    return VerifyResult(digest, length, "")
                path = self._put_aside(fd, digest, size, found, length)
                return VerifyResult(digest, length, f"its bytes hash to {found}", path)
            finally:
                os.close(fd)
        except FileNotFoundError:
            return None  # evicted meanwhile
        except OSError as error:
            return VerifyResult(digest, size, f"it cannot be read: {error.strerror}", unreadable=True)

    # ---- writing ------------------------------------------------------------------------------------------

    def reserve(self, size: int) -> Writer:
        """Make room for `size` bytes and return a writer for them.

        Raises:
            NoRoom: the blob is larger than the cache, everything is in use, `min_free` forbids it, or the
                cache's disk or directory is in trouble. A spill may still do.
        """
        if not self.indexed.is_set():
            self._wait_for_index()
        file = _File(None, size, cachefile.charge_of(size) + _SLACK)
        file.written = 0
        kind = "directory"
        try:
            self._attach_for_writing(file)
            kind = "write"
            with self._lock:
                self._check_room(file)
                self._loose += file.charge
                self._hold(file)
            try:
                self._make_room(min_free=True)
                name = self._temporary_name()
                with self._home.below("tmp", create=True) as tmp_fd:
                    fd = cachefile.create(name, tmp_fd)
            except BaseException:
                self._release(file)
                raise
        except OSError as error:
            reason = f"the cache in {self.root} cannot be written: {error.strerror}"
            self._trouble(kind, reason)
            raise NoRoom(reason) from error
        return self._writer(file, fd, name)

    def _attach_for_writing(self, file: _File) -> None:
        if file.size < 0 or file.charge + _FIXED > self._max:
            raise NoRoom(f"a blob of {format_size(file.size)} is larger than the cache")
        try:
            with self._lock:
                if not self._exclusive:
                    raise NoRoom("this cache was opened to look at, not to write")
                self._home.attach_again()
                if not self._home.writable:
                    raise NoRoom(f"the cache directory {self.root} cannot be written")
                same = self._home.identity() == self._indexed_root
                if not same:
                    for _, old in self._index.drain():
                        self._loosen(old)
                    self._shards.clear()
                    self._shard_bytes = 0
                    self._indexed_root = None
        except UsageError as error:
            self._trouble("directory", error.reason)
            raise NoRoom(error.reason) from error
        if not same:
            self.index()  # another directory than before, or one that could not be listed
            if self._indexed_root is None:
                raise NoRoom(f"the cache in {self.root} cannot be listed")

    def spill(self, size: int) -> Writer:
        """Return a writer to an unlinked temporary file outside the bound; admit gives it no name.

        Raises:
            NoRoom: no filesystem at hand has room.
            Unexpected: no temporary file can be made.
        """
        problem: OSError | None = None
        for place in self._spill_places(size):
            try:
                with place() as dir_fd:
                    fd = cachefile.create_unlinked(dir_fd, f".attachfs-{self._temporary_name()}")
            except OSError as error:
                problem = error
                continue
            file = _File(None, size, cachefile.charge_of(size))
            file.spill = True
            file.written = 0
            with self._lock:
                self._counts["spills"] += 1
                self._spilled += file.charge
                self._hold(file)
            return self._writer(file, fd, None)
        if problem is not None:
            raise cachefile.translate(problem, "cannot make a temporary file") from problem
        raise NoRoom(f"no room for a temporary file of {format_size(size)}")

    def resize(self, max_bytes: int) -> None:
        """Change the bound; a smaller one evicts at once what it can, and the rest as files are closed."""
        with self._lock:
            self._max = max_bytes
            self._quarantine.max_bytes = self._quarantine_bound()
        if self._exclusive:
            with suppress(AttachfsError, OSError):
                self._quarantine.scan()
            self._shrink()

    def remove(self, digest: Digest) -> bool:
        """Remove a blob; whoever has it open reads on. Returns whether it was there."""
        if not cachefile.is_digest(digest):
            return False
        with self._lock:
            try:
                return self._unlink(digest)
            except OSError as error:
                self._trouble("remove", f"{digest} cannot be removed from the cache: {error.strerror}")
                return False

    def clear(self) -> int:
        """Remove every blob, not the quarantine, and return how many.

        Raises:
            Unexpected: the directory cannot be listed.
        """
        return sum(self.remove(digest) for digest, _ in self._listed())

    def _wait_for_index(self) -> None:
        if self._indexing.acquire(blocking=False):
            self._indexing.release()
            self.index()  # nobody has begun
        elif not self.indexed.wait(_INDEX_WAIT):
            raise NoRoom(f"the cache in {self.root} is still being indexed")

    def _spill_places(self, size: int) -> list[Callable[[], AbstractContextManager[int]]]:
        """Return where a spill may go: first where `min_free` stays free, then where it fits at all."""
        good: list[Callable[[], AbstractContextManager[int]]] = []
        fits: list[Callable[[], AbstractContextManager[int]]] = []
        for place in (self._spill_folder, _temporary_folder):
            with suppress(OSError), place() as dir_fd:
                vfs = os.fstatvfs(dir_fd)
                free = vfs.f_bavail * vfs.f_frsize - size
                if free >= self._min_free.of(vfs.f_blocks * vfs.f_frsize):
                    good.append(place)
                elif free >= 0:
                    fits.append(place)
        return good + fits

    def _spill_folder(self) -> AbstractContextManager[int]:
        return self._home.below("tmp", create=True)

    def _writer(self, file: _File, fd: int, name: str | None) -> Writer:
        return Writer(self, file, Descriptor(fd, lambda: self._release(file)), name)

    def _temporary_name(self) -> str:
        return f"{self._run}-{next(self._serial)}"

    def admit(self, writer: Writer, digest: Digest) -> CachedBlob:
        """Do what `Writer.admit` says, for a writer that the caller has ended."""
        file, descriptor, name = writer.file, writer.descriptor, writer.name
        try:
            with descriptor.use() as fd:
                _check_complete(writer, digest, os.fstat(fd))
                if name is not None:
                    other = self._lookup(digest, file.size)
                    if other is not None:
                        self.discard(writer)
                        return other
                    file.stamp = cachefile.seal(fd, digest)
                    os.fsync(fd)
        except OSError as error:
            self.discard(writer)
            self._trouble("write", f"the cache's disk did not take a blob: {error.strerror}")
            raise cachefile.translate(error, "the cache's disk did not take a blob") from error
        except BaseException:
            self.discard(writer)
            raise
        if name is not None:
            try:
                self._name(file, name, digest)
            except OSError as error:
                self._remove_temporary(name)
                self._trouble("admit", f"{digest} cannot be kept in the cache: {error.strerror}")
        return CachedBlob(file.size, descriptor)

    def _name(self, file: _File, name: str, digest: Digest) -> None:
        """Rename a synced file into place and make the name durable."""
        with (
            self._home.below("tmp") as tmp_fd,
            self._home.below("blobs", create=True) as blobs_fd,
            cachefile.folder(blobs_fd, digest.alg, create=True) as alg_fd,
        ):
            with self._lock, cachefile.folder(alg_fd, digest.hex[:2], create=True) as shard_fd:
                os.rename(name, digest.hex, src_dir_fd=tmp_fd, dst_dir_fd=shard_fd)
                self._forget(digest)
                st = os.stat(digest.hex, dir_fd=shard_fd, follow_symlinks=False)
                self._loose -= file.charge
                file.charge = cachefile.charge_stat(st)
                file.digest = digest
                file.inode = st.st_ino
                file.used_ns = time.time_ns()
                self._insert(digest, file)
                self._counts["admitted"] += 1
                shard = self._shards[_shard_key(digest)]
                growth = cachefile.charge_stat(os.fstat(shard_fd)) - shard.charge
                shard.charge += growth
                self._shard_bytes += growth
                synced = [os.dup(shard_fd)]
                if shard.count == 1:
                    synced += [os.dup(alg_fd), os.dup(blobs_fd)]
            try:
                for fd in synced:
                    os.fsync(fd)
            except OSError as error:
                self._trouble("sync", f"the cache's folders cannot be synced: {error.strerror}")
            finally:
                for fd in synced:
                    os.close(fd)
        self._shrink()

    def quarantine(self, writer: Writer, note: QuarantineNote) -> Path | None:
        """Do what `Writer.quarantine` says, for a writer that the caller has ended."""
        with self._lock:
            self._counts["mismatched"] += 1
        path = None
        try:
            with writer.descriptor.use() as fd:
                if writer.name is not None:
                    with self._home.below("tmp") as tmp_fd:
                        path = self._quarantine.add(fd, note, (tmp_fd, writer.name))
                else:
                    path = self._copy_aside(fd, note)
        except OSError as error:
            self._trouble("quarantine", f"mismatching bytes cannot be put aside: {error.strerror}")
        except AttachfsError as error:
            self._trouble("quarantine", error.reason)
        self.discard(writer)
        self._shrink()
        return path

    def _copy_aside(self, fd: int, note: QuarantineNote) -> Path | None:
        """Copy a spilled file into the quarantine, which is inside the bound: room is made first."""
        size = os.fstat(fd).st_size
        if size > self._quarantine.max_bytes:
            size = 0  # only the note is kept
        room = _File(None, size, cachefile.charge_of(size) + _SLACK)
        with self._lock:
            self._loose += room.charge
            self._hold(room)
        try:
            self._make_room()
            return self._quarantine.add(fd, note)
        finally:
            self._release(room)

    def discard(self, writer: Writer) -> None:
        """Drop the file of a writer that the caller has ended."""
        self._remove_temporary(writer.name)
        writer.descriptor.close()

    def _remove_temporary(self, name: str | None) -> None:
        if name is not None:
            with suppress(OSError), self._home.below("tmp") as tmp_fd:
                os.unlink(name, dir_fd=tmp_fd)

    def dup(self, writer: Writer) -> CachedBlob:
        """Do what `Writer.dup_reader` says."""
        file = writer.file
        try:
            with writer.descriptor.use() as fd:
                copy = os.dup(fd)
                with self._lock:
                    self._hold(file)
        except OSError as error:
            raise cachefile.translate(error, "cannot read from the cache") from error
        return CachedBlob(file.size, Descriptor(copy, lambda: self._release(file)))

    # ---- room ---------------------------------------------------------------------------------------------

    def _quarantine_bound(self) -> int:
        return min(_QUARANTINE_MAX, self._max // 10)

    def _used(self) -> int:
        return _FIXED + int(self._index.currsize) + self._shard_bytes + self._loose + self._quarantine.used

    def _lacking_free(self, need: int) -> int:
        """Return how many bytes must go so that `min_free` holds once `need` and the rest is written."""
        with self._home.below() as root_fd:
            vfs = os.fstatvfs(root_fd)
        if not vfs.f_blocks:
            return 0  # a filesystem that does not tell
        pending = sum(
            file.size - file.written
            for file in self._open_files.values()
            if not file.named and not file.spill
        )
        return need + pending + self._min_free.of(vfs.f_blocks * vfs.f_frsize) - vfs.f_bavail * vfs.f_frsize

    def _check_room(self, file: _File) -> None:
        """Refuse before anything is evicted what evicting everything would not make possible."""
        held = [other for other in self._open_files.values() if other.named]
        kept = {_shard_key(other.digest) for other in held if other.digest is not None}
        evictable = int(self._index.currsize) - sum(other.charge for other in held)
        evictable += self._shard_bytes - sum(self._shards[key].charge for key in kept)
        if self._used() - evictable + file.charge > self._max:
            raise NoRoom("everything in the cache is in use")
        if self._lacking_free(file.charge) > evictable:
            raise NoRoom("the cache's filesystem has too little room left")

    def _make_room(self, *, min_free: bool = False) -> None:
        """Evict until the bound holds, which already counts the reservation that this is for."""
        lacking = None
        while True:
            with self._lock:
                measured = self._lacking_free(_SLACK) if min_free else 0
                # Some filesystems give room back late: what was evicted here is believed as well.
                lacking = measured if lacking is None else min(lacking, measured)
                for _ in range(_BATCH):
                    if self._used() <= self._max and lacking <= 0:
                        return
                    try:
                        lacking -= self._evict()
                    except KeyError:
                        raise NoRoom("everything in the cache is in use") from None

    def _shrink(self) -> None:
        if not self._exclusive or self._closed:
            return  # the bound is another process's business
        with suppress(NoRoom):
            try:
                self._make_room()
            except OSError as error:
                self._trouble("remove", f"nothing can be removed from the cache: {error.strerror}")

    def _evict(self) -> int:
        """Remove the least recently opened blob and return the room that gave. The caller holds _lock."""
        digest, file = self._index.popitem()
        self._index[digest] = file
        before = self._used()
        self._unlink(digest)
        self._counts["evicted"] += 1
        return before - self._used()

    def _unlink(self, digest: Digest) -> bool:
        """Remove a blob's name and its folder if that was the last. The caller holds _lock."""
        found = False
        with suppress(FileNotFoundError), self._home.below("blobs", digest.alg) as alg_fd:
            with cachefile.folder(alg_fd, digest.hex[:2]) as shard_fd:
                try:
                    os.unlink(digest.hex, dir_fd=shard_fd)
                    found = True
                except (FileNotFoundError, IsADirectoryError):
                    pass
            self._forget(digest)
            self._drop_shard(_shard_key(digest), alg_fd)
        self._forget(digest)
        return found

    def _drop_shard(self, key: tuple[str, str], alg_fd: int) -> None:
        """Remove an empty folder of blobs; nobody can be naming one in it, as that needs _lock as well."""
        shard = self._shards.get(key)
        if shard is not None and shard.count <= 0 and self._exclusive:
            with suppress(OSError):  # something foreign lies there
                os.rmdir(key[1], dir_fd=alg_fd)
                self._shard_bytes -= shard.charge
                del self._shards[key]

    def _insert(self, digest: Digest, file: _File) -> None:
        """Put a file that has its name into the index. The caller holds _lock."""
        file.named = True
        self._index[digest] = file
        self._shards.setdefault(_shard_key(digest), _Shard()).count += 1

    def _forget(self, digest: Digest) -> None:
        """Take a blob that has lost its name out of the index. The caller holds _lock."""
        if self._removed is not None:
            self._removed.add(digest)
        file = self._index.pop(digest, None)
        if file is not None:
            self._shards[_shard_key(digest)].count -= 1
            self._loosen(file)

    def _loosen(self, file: _File) -> None:
        file.named = False
        if file.opens:
            self._loose += file.charge

    def _hold(self, file: _File) -> None:
        file.opens += 1
        self._open_files[id(file)] = file

    def _release(self, file: _File) -> None:
        """One descriptor less; the last of a file without a name gives its room back."""
        with self._lock:
            file.opens -= 1
            if file.opens:
                return
            del self._open_files[id(file)]
            if file.spill:
                self._spilled -= file.charge
            elif not file.named:
                self._loose -= file.charge
            over = self._used() > self._max and self.indexed.is_set()
        if over:
            self._shrink()

    # ---- helpers ------------------------------------------------------------------------------------------

    def _trouble(self, kind: str, text: str) -> None:
        """Warn about the first trouble of its kind; count the rest."""
        with self._trouble_lock:
            count = self._troubles.get(kind, 0) + 1
            self._troubles[kind] = count
        _log.log(logging.WARNING if count == 1 else logging.DEBUG, "%s", text)


def _shard_key(digest: Digest) -> tuple[str, str]:
    return digest.alg, digest.hex[:2]


def _check_complete(writer: Writer, digest: Digest, st: os.stat_result) -> None:
    if not cachefile.is_digest(digest):
        raise Unexpected(f"{digest} is no digest")
    if not writer.complete or st.st_size != writer.size:
        raise Unexpected(f"the file for {digest} is not complete")


@contextmanager
def _temporary_folder() -> Iterator[int]:
    fd = os.open(tempfile.gettempdir(), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
