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
import fcntl
import logging
import os
import secrets
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cachetools import LRUCache

from attachfs import cachefile
from attachfs.cachefile import BLOCK, Stamp
from attachfs.errors import AttachfsError, NoRoom, Unexpected, UsageError
from attachfs.model import Digest
from attachfs.quarantine import Quarantine, QuarantineNote
from attachfs.units import MinFree, format_size

__all__ = ["CacheStats", "CachedBlob", "DiskCache", "Entry", "VerifyResult", "Writer"]

_log = logging.getLogger("attachfs.cache")

_VERSION = 1
_VERSION_TEXT = f"attachfs cache {_VERSION}\n"
_OWN_NAMES = {"VERSION", "VERSION.new", "lock", "blobs", "tmp", "quarantine", "lost+found"}
_FIXED = 16 * BLOCK  # the directory itself, its fixed folders and files, and room for `tmp` to grow
_SLACK = 2 * BLOCK  # a new blob's share of folders: a new one's first block, or a full one's growth
_QUARANTINE_MAX = 256 << 20  # bytes; and never more than a tenth of the cache
_INDEX_WAIT = 10.0  # seconds that a writer waits for the index before it goes without the cache
_BATCH = 64  # blobs removed in one go before other threads get the lock
_DEGRADED = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT, errno.EIO}
_FOREIGN = {errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO}


class _File:
    """A blob's file, with or without a name: what it takes, and how many descriptors hold it."""

    __slots__ = ("charge", "digest", "hashing", "opens", "size", "spill", "stamp", "used_ns")

    def __init__(self, digest: Digest | None, size: int, charge: int) -> None:
        self.digest = digest
        self.size = size
        self.charge = charge
        self.opens = 0
        self.spill = False  # outside the bound
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


class CachedBlob:
    """An open file of verified bytes (or, from `Writer.dup_reader`, of bytes still arriving)."""

    def __init__(self, cache: "DiskCache", file: _File, fd: int) -> None:
        self.size = file.size
        self.fd = fd
        self._cache = cache
        self._file = file
        self._stamp = cachefile.stamp_of(os.fstat(fd))
        self._closing = threading.Lock()

    def unchanged(self) -> bool:
        """Whether size and time of last change are what they were at open."""
        try:
            return cachefile.stamp_of(os.fstat(self.fd)) == self._stamp
        except OSError:
            return False

    def close(self) -> None:
        """Close the file and give back what an unlinked one took. Idempotent."""
        with self._closing:
            fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)
            self._cache._release(self._file)  # noqa: SLF001 - one module, one object in two parts

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Writer:
    """One blob being written, with its room reserved. It ends with exactly one of admit, quarantine, abort.

    Bytes may be read through `fd` while they arrive, by whoever knows how far they have come.
    """

    def __init__(self, cache: "DiskCache", file: _File, fd: int, name: str | None) -> None:
        self.size = file.size
        self.fd = fd
        self.written = 0  # bytes; how far the furthest write reached
        self._cache = cache
        self._file = file
        self._name = name  # in tmp/; None for a spill, which never has one
        self._closing = threading.Lock()

    @property
    def spilled(self) -> bool:
        """Whether the bytes go to an unlinked file outside the cache's bound."""
        return self._name is None

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
            cachefile.write_all(self.fd, data, offset)
        except OSError as error:
            raise cachefile.translate(error, "cannot write to the cache") from error
        self.written = max(self.written, end)

    def pread(self, length: int, offset: int) -> bytes:
        """Read what has been written already.

        Raises:
            Unexpected: the disk failed.
        """
        try:
            return os.pread(self.fd, length, offset)
        except OSError as error:
            raise cachefile.translate(error, "cannot read from the cache") from error

    def dup_reader(self) -> CachedBlob:
        """Return a reader with a descriptor of its own that outlives this writer, whatever becomes of it.

        Raises:
            Unexpected: no descriptor is left.
        """
        return self._cache._dup(self._file, self.fd)  # noqa: SLF001 - one module

    def admit(self, digest: Digest) -> CachedBlob:
        """Give the blob its name and return it open. The caller has verified digest and length.

        Where the name cannot be given (a damaged or vanished directory) the blob is returned without one.
        Where the disk does not take the bytes (fsync fails) it raises: nobody knows what would be read back.

        Raises:
            NoRoom, Unexpected: the disk did not take the bytes; the writer is closed, fetch again to a spill.
        """
        return self._cache._admit(self, digest)  # noqa: SLF001 - one module

    def quarantine(self, note: QuarantineNote) -> Path | None:
        """Put the bytes aside and close. None: they are too large to keep, or the disk failed."""
        return self._cache._quarantine_writer(self, note)  # noqa: SLF001 - one module

    def abort(self) -> None:
        """Drop the bytes and the reservation. Idempotent, also after admit and quarantine."""
        fd = self._take_fd()
        if fd >= 0:
            self._cache._discard(self._name)  # noqa: SLF001 - one module
            os.close(fd)
            self._cache._release(self._file)  # noqa: SLF001 - one module

    def _take_fd(self) -> int:
        with self._closing:
            fd, self.fd = self.fd, -1
        return fd


class DiskCache:
    """The cache in directory `root`, bounded by `max_bytes` and by what `min_free` leaves of the filesystem.

    Call `start` once, then `index` in a thread; lookups work meanwhile, writers wait for it.
    """

    def __init__(self, root: Path, max_bytes: int, min_free: MinFree) -> None:
        self.root = Path(os.path.realpath(root))
        self.indexed = threading.Event()
        self._max = max_bytes
        self._min_free = min_free
        self._lock = threading.Lock()
        self._indexing = threading.Lock()
        self._index = _Index()
        self._shards: dict[tuple[str, str], _Shard] = {}
        self._removed: set[Digest] | None = set()  # while indexing: what the walk may have seen and is gone
        self._loose = 0  # room of files without a name in blobs/: being written, or removed and still open
        self._spilled = 0
        self._open_files: dict[int, _File] = {}
        self._writers: dict[int, Writer] = {}
        self._counts = dict.fromkeys(
            ("hits", "misses", "admitted", "evicted", "rehashed", "mismatched", "spills"), 0
        )
        self._troubles: dict[str, int] = {}
        self._run = secrets.token_hex(4)
        self._serial = 0
        self._root_fd = -1
        self._lock_fd = -1
        self._holder = ""
        self._exclusive = True
        self._writable = False
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
        self._holder = holder
        self._exclusive = exclusive
        try:
            with self._lock:
                self._attach(first=True)
        except AttachfsError:
            self.close()
            raise
        except OSError as error:
            self._trouble("directory", f"the cache directory {self.root} cannot be used: {error.strerror}")

    def close(self) -> None:
        """Give the directory back. Blobs that are still open stay readable."""
        with self._lock:
            self._detach()
        for kind, count in self._troubles.items():
            if count > 1:
                _log.warning("cache trouble %r was met %d times in all", kind, count)

    def _detach(self) -> None:
        for fd in (self._root_fd, self._lock_fd):
            if fd >= 0:
                os.close(fd)
        self._root_fd = self._lock_fd = -1
        self._writable = False

    def _attach(self, *, first: bool = False) -> None:
        """Open the directory (again, if it was deleted) and take its lock. The caller holds _lock."""
        if self._root_fd >= 0:
            with suppress(OSError):
                there = self.root.lstat()
                here = os.fstat(self._root_fd)
                if (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino) and self._writable:
                    return
            self._detach()
        if self._exclusive:
            self.root.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):
                self.root.mkdir(mode=cachefile.DIR_MODE)
        self._root_fd = cachefile.open_root(str(self.root))
        try:
            self._check_root()
            if self._exclusive:
                self._take_lock()
                self._check_version()
                for name in ("blobs", "tmp", "quarantine"):
                    with cachefile.folder(self._root_fd, name, create=True):
                        pass
            else:
                self._check_version()
            self._writable = True
        except OSError as error:
            if error.errno not in _DEGRADED:
                raise UsageError(f"the cache directory {self.root} cannot be used: {error}") from error
            self._trouble(
                "directory", f"the cache directory {self.root} cannot be written: {error.strerror}; going on"
            )
        if not first:
            for _, file in self._index.drain():
                self._loosen(file)
            self._shards.clear()

    def _check_root(self) -> None:
        st = os.fstat(self._root_fd)
        if st.st_uid != os.geteuid():
            raise UsageError(
                f"the cache directory {self.root} belongs to user {st.st_uid}: "
                f"choose another with --cache-dir"
            )
        names = set(cachefile.names(self._root_fd))
        if "VERSION" not in names and not names <= _OWN_NAMES:
            raise UsageError(
                f"the directory {self.root} holds other files and no cache: choose another with --cache-dir"
            )
        if st.st_mode & 0o022:
            raise UsageError(
                f"the cache directory {self.root} can be written by others: "
                f"'chmod 700' it, or choose another with --cache-dir"
            )
        if st.st_mode & 0o077:
            os.fchmod(self._root_fd, cachefile.DIR_MODE)

    def _check_version(self) -> None:
        try:
            fd = cachefile.open_read("VERSION", self._root_fd)
        except FileNotFoundError:
            if not self._exclusive:
                raise UsageError(f"there is no cache in {self.root}") from None
            with suppress(FileNotFoundError):
                os.unlink("VERSION.new", dir_fd=self._root_fd)
            fd = cachefile.create("VERSION.new", self._root_fd)
            try:
                cachefile.write_all(fd, _VERSION_TEXT.encode(), 0)
                os.fsync(fd)
            finally:
                os.close(fd)
            os.rename("VERSION.new", "VERSION", src_dir_fd=self._root_fd, dst_dir_fd=self._root_fd)
            return
        try:
            text = os.pread(fd, 100, 0).decode("utf-8", "replace")
        finally:
            os.close(fd)
        if text != _VERSION_TEXT:
            raise UsageError(
                f"the cache in {self.root} was made by another version of attachfs (its VERSION says "
                f"{text.strip()!r}, this program writes {_VERSION_TEXT.strip()!r}): "
                f"choose another directory with --cache-dir, or delete that one"
            )

    def _take_lock(self) -> None:
        for _ in range(100):
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
            fd = os.open("lock", flags, cachefile.FILE_MODE, dir_fd=self._root_fd)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                with suppress(FileNotFoundError):
                    named = os.stat("lock", dir_fd=self._root_fd, follow_symlinks=False)
                    if named.st_ino == os.fstat(fd).st_ino:
                        os.ftruncate(fd, 0)
                        cachefile.write_all(fd, f"{os.getpid()}\n{self._holder}\n".encode(), 0)
                        self._lock_fd = fd
                        return
            except BlockingIOError:
                pid, _, holder = os.pread(fd, 4096, 0).decode("utf-8", "replace").partition("\n")
                os.close(fd)
                raise UsageError(
                    f"the cache directory {self.root} is in use by process {pid.strip() or '?'}"
                    f" (mounted on {holder.strip() or '?'}): choose another with --cache-dir"
                ) from None
            except OSError:
                os.close(fd)
                raise
            os.close(fd)
        raise UsageError(f"the lock in {self.root} keeps being replaced: choose another with --cache-dir")

    # ---- the index ----------------------------------------------------------------------------------------

    def index(self) -> None:
        """Walk the directory: remove left-over temporary files, learn what there is, hold it to the bound."""
        with self._indexing:
            if self.indexed.is_set():
                return
            try:
                if self._exclusive:
                    self._sweep()
                    self._quarantine.scan()
                self._walk_into_index()
            except (OSError, AttachfsError) as error:
                self._trouble("index", f"the cache in {self.root} cannot be listed: {error}")
            finally:
                with self._lock:
                    self._removed = None
                self.indexed.set()
        if self._exclusive:
            self._shrink()

    def _sweep(self) -> None:
        """Remove what an earlier run left in tmp/; foreign folders stay."""
        with suppress(FileNotFoundError), self._below("tmp") as tmp_fd:
            for name in cachefile.names(tmp_fd):
                if name.startswith(self._run):
                    continue
                try:
                    os.unlink(name, dir_fd=tmp_fd)
                except IsADirectoryError:
                    with suppress(OSError):
                        os.rmdir(name, dir_fd=tmp_fd)
                except FileNotFoundError:
                    pass

    def _walk_into_index(self) -> None:
        found: list[tuple[int, Digest, os.stat_result]] = []
        shards: dict[tuple[str, str], _Shard] = {}
        for digest, st in self._walk(shards):
            found.append((st.st_atime_ns, digest, st))
        found.sort(key=lambda item: item[0])
        fresh = _Index()
        for _, digest, st in found:
            fresh[digest] = self._file_of(digest, st)
            shards[digest.alg, digest.hex[:2]].count += 1
        with self._lock:
            for digest in self._removed or ():
                if fresh.pop(digest, None) is not None:
                    shards[digest.alg, digest.hex[:2]].count -= 1
            for digest, file in self._index.drain():
                if digest not in fresh:
                    shards.setdefault((digest.alg, digest.hex[:2]), _Shard()).count += 1
                fresh[digest] = file
            self._index, self._shards = fresh, shards

    def _walk(
        self, shards: dict[tuple[str, str], _Shard] | None = None
    ) -> Iterator[tuple[Digest, os.stat_result]]:
        """Yield the blobs on disk; whatever else lies there is passed over."""
        with suppress(FileNotFoundError), self._below("blobs") as blobs_fd:
            for alg in cachefile.names(blobs_fd):
                with self._folder_or_none(blobs_fd, alg) as alg_fd:
                    for shard in cachefile.names(alg_fd) if alg_fd is not None else ():
                        with self._folder_or_none(alg_fd or 0, shard) as fd:
                            if fd is None or len(shard) != 2:
                                continue
                            yield from self._walk_shard(alg, shard, fd, shards)

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
        try:
            manager = cachefile.folder(dir_fd, name)
            fd = manager.__enter__()
        except OSError:
            yield None
            return
        try:
            yield fd
        finally:
            manager.__exit__(None, None, None)

    @staticmethod
    def _file_of(digest: Digest, st: os.stat_result) -> _File:
        file = _File(digest, st.st_size, cachefile.charge_stat(st))
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
        try:
            if self._is_right(file, fd, digest, size):
                blob = CachedBlob(self, file, fd)
                fd = -1
                return blob
        except OSError as error:
            self._trouble("read", f"the cached blob {digest} cannot be read: {error.strerror}")
        finally:
            if fd >= 0:
                os.close(fd)
                self._release(file)
        return None

    def _open_file(self, digest: Digest) -> tuple[_File, int] | None:
        """Open a blob's file and count it as used. The caller holds _lock."""
        try:
            with self._below("blobs", digest.alg, digest.hex[:2]) as shard_fd:
                fd = cachefile.open_read(digest.hex, shard_fd)
        except FileNotFoundError:
            self._forget(digest)
            return None
        try:
            st = os.fstat(fd)
            if not stat.S_ISREG(st.st_mode) or st.st_uid != os.geteuid() or st.st_nlink != 1:
                os.close(fd)
                self._trouble("planted", f"{digest} in the cache is not a file of ours alone: not used")
                return None
            file = self._index.get(digest)
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
            if st.st_size == size and (file.stamp == stamp or cachefile.is_sealed(digest, st)):
                file.stamp = stamp
                return True
            with self._lock:
                self._counts["rehashed"] += 1
            found, length = cachefile.hash_file(fd, digest.alg)
            if found != digest:
                self._trouble("mismatch", f"the cached blob {digest} has changed: put aside, not served")
                self._put_aside(fd, digest, size, found, length)
                return False
            if cachefile.stamp_of(os.fstat(fd)) != stamp:
                return False  # written to while it was hashed: whoever did that may go on
            if length != size:
                return False  # the bytes are right, the size asked for is not this blob's
            with suppress(OSError):
                stamp = cachefile.seal(fd, digest)
            file.stamp = stamp
            return True

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
        with self._lock:
            self._counts["mismatched"] += 1
        try:
            with self._below("blobs", digest.alg, digest.hex[:2]) as shard_fd:
                named = os.stat(digest.hex, dir_fd=shard_fd, follow_symlinks=False)
                if named.st_ino != os.fstat(fd).st_ino:
                    return None
                with suppress(AttachfsError):
                    path = self._quarantine.add(fd, note, (shard_fd, digest.hex))
                    with self._lock:
                        self._forget(digest)
                    if path is not None:
                        return path
        except OSError as error:
            self._trouble("quarantine", f"{digest} cannot be put aside: {error.strerror}")
        self.remove(digest)
        return None

    def contains(self, digest: Digest, size: int) -> bool:
        """Whether a blob of that digest and size is there, without opening it or counting it as used."""
        if not cachefile.is_digest(digest):
            return False
        try:
            with self._below("blobs", digest.alg, digest.hex[:2]) as shard_fd:
                st = os.stat(digest.hex, dir_fd=shard_fd, follow_symlinks=False)
        except OSError:
            return False
        return stat.S_ISREG(st.st_mode) and st.st_size == size

    def entries(self) -> list[Entry]:
        """Return what is cached, least recently opened first."""
        with self._lock:
            files = [] if not self.indexed.is_set() else list(self._index.items())
        if files:
            found = [Entry(digest, file.size, file.used_ns, file.opens) for digest, file in files]
        else:
            found = [Entry(digest, st.st_size, st.st_atime_ns, 0) for digest, st in self._walk()]
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
                writable=self._writable,
                troubles=dict(self._troubles),
                **self._counts,
            )

    def verify_all(self, progress: Callable[[int], None] | None = None) -> Iterator[VerifyResult]:
        """Hash every blob, whatever its seal; put aside what is wrong. `progress` is told the bytes read."""
        for digest, listed in list(self._walk()):
            size = listed.st_size
            try:
                with self._below("blobs", digest.alg, digest.hex[:2]) as shard_fd:
                    fd = cachefile.open_read(digest.hex, shard_fd)
                try:
                    found, length = cachefile.hash_file(fd, digest.alg, progress)
                    if found == digest:
                        yield VerifyResult(digest, length, "")
                    else:
                        path = self._put_aside(fd, digest, size, found, length)
                        yield VerifyResult(digest, length, f"its bytes hash to {found}", path)
                finally:
                    os.close(fd)
            except FileNotFoundError:
                continue  # evicted meanwhile
            except OSError as error:
                yield VerifyResult(digest, size, f"it cannot be read: {error.strerror}")

    # ---- writing ------------------------------------------------------------------------------------------

    def reserve(self, size: int) -> Writer:
        """Make room for `size` bytes and return a writer for them.

        Raises:
            NoRoom: the blob is larger than the cache, everything is in use, or `min_free` forbids it.
            Unexpected: the disk failed.
        """
        if not self.indexed.is_set():
            self._wait_for_index()
        file = _File(None, size, cachefile.charge_of(size) + _SLACK)
        try:
            with self._lock:
                if size < 0 or file.charge + _FIXED > self._max:
                    raise NoRoom(f"a blob of {format_size(size)} is larger than the cache")
                if not self._exclusive:
                    raise Unexpected("this cache was opened to look at, not to write")
                self._attach()
                if not self._writable:
                    raise NoRoom(f"the cache directory {self.root} cannot be written")
                self._check_room(file.charge)
                self._loose += file.charge
                self._hold(file)
        except OSError as error:
            self._trouble("directory", f"the cache directory {self.root} cannot be used: {error.strerror}")
            raise cachefile.translate(error, f"cannot write to the cache in {self.root}") from error
        try:
            self._make_room()
            with self._below("tmp", create=True) as tmp_fd:
                name = self._temporary_name()
                fd = cachefile.create(name, tmp_fd)
        except OSError as error:
            self._release(file)
            self._trouble("write", f"cannot write to the cache in {self.root}: {error.strerror}")
            raise cachefile.translate(error, f"cannot write to the cache in {self.root}") from error
        except AttachfsError:
            self._release(file)
            raise
        writer = Writer(self, file, fd, name)
        with self._lock:
            self._writers[id(file)] = writer
        return writer

    def spill(self, size: int) -> Writer:
        """Return a writer to an unlinked temporary file outside the bound; admit gives it no name.

        Raises:
            NoRoom: no filesystem at hand has room.
            Unexpected: no temporary file can be made.
        """
        problem: OSError | None = None
        for directory in self._spill_places(size):
            try:
                dir_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    fd = cachefile.create_unlinked(dir_fd, f".attachfs-{self._run}-{self._temporary_name()}")
                finally:
                    os.close(dir_fd)
            except OSError as error:
                problem = error
                continue
            file = _File(None, size, cachefile.charge_of(size))
            file.spill = True
            with self._lock:
                self._counts["spills"] += 1
                self._spilled += file.charge
                self._hold(file)
            return Writer(self, file, fd, None)
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

    def clear(self) -> None:
        """Remove every blob, not the quarantine."""
        for digest, _ in list(self._walk()):
            self.remove(digest)

    def _wait_for_index(self) -> None:
        if self._indexing.acquire(blocking=False):
            self._indexing.release()
            self.index()  # nobody has begun
        elif not self.indexed.wait(_INDEX_WAIT):
            raise NoRoom(f"the cache in {self.root} is still being indexed")

    def _spill_places(self, size: int) -> list[str]:
        """Return where a spill may go: first where `min_free` stays free, then where it fits at all."""
        good, fits = [], []
        temporary = tempfile.gettempdir()
        for directory in (str(self.root), temporary):
            with suppress(OSError):
                vfs = os.statvfs(directory)
                free = vfs.f_bavail * vfs.f_frsize - size
                if free >= self._min_free.of(vfs.f_blocks * vfs.f_frsize):
                    good.append(directory)
                elif free >= 0:
                    fits.append(directory)
        return good + fits

    def _temporary_name(self) -> str:
        with self._lock:
            self._serial += 1
            return f"{self._run}-{self._serial}"

    def _admit(self, writer: Writer, digest: Digest) -> CachedBlob:
        file = writer._file  # noqa: SLF001 - one module
        fd = writer.fd
        try:
            if not cachefile.is_digest(digest) or os.fstat(fd).st_size != file.size:
                raise Unexpected(f"the file for {digest} is not {file.size} bytes long")
            if writer._name is not None:  # noqa: SLF001 - one module
                other = self._lookup(digest, file.size)
                if other is not None:
                    writer.abort()
                    return other
                file.stamp = cachefile.seal(fd, digest)
                os.fsync(fd)
        except OSError as error:
            writer.abort()
            self._trouble("write", f"the cache's disk did not take a blob: {error.strerror}")
            raise cachefile.translate(error, "the cache's disk did not take a blob") from error
        except AttachfsError:
            writer.abort()
            raise
        writer._take_fd()  # noqa: SLF001 - from here on the blob owns it
        with self._lock:
            self._writers.pop(id(file), None)
            file.digest = digest
            file.used_ns = time.time_ns()
        if writer._name is not None:  # noqa: SLF001 - one module
            try:
                self._name(file, writer._name, digest, fd)  # noqa: SLF001 - one module
            except OSError as error:
                self._discard(writer._name)  # noqa: SLF001 - one module
                self._trouble("admit", f"{digest} cannot be kept in the cache: {error.strerror}; served once")
        return CachedBlob(self, file, fd)

    def _name(self, file: _File, name: str, digest: Digest, fd: int) -> None:
        """Rename a synced file into place and make the name durable."""
        with self._below("tmp") as tmp_fd, self._below("blobs", digest.alg, create=True) as alg_fd:
            with self._lock, cachefile.folder(alg_fd, digest.hex[:2], create=True) as shard_fd:
                os.rename(name, digest.hex, src_dir_fd=tmp_fd, dst_dir_fd=shard_fd)
                self._forget(digest)
                self._loose -= file.charge
                file.charge = cachefile.charge_stat(os.fstat(fd))
                self._insert(digest, file)
                self._counts["admitted"] += 1
                self._shards[digest.alg, digest.hex[:2]].charge = cachefile.charge_stat(os.fstat(shard_fd))
                held = os.dup(shard_fd)
            try:
                os.fsync(held)
                os.fsync(alg_fd)
            except OSError as error:
                self._trouble("sync", f"the cache's folders cannot be synced: {error.strerror}")
            finally:
                os.close(held)
        self._shrink()

    def _quarantine_writer(self, writer: Writer, note: QuarantineNote) -> Path | None:
        with self._lock:
            self._counts["mismatched"] += 1
        path = None
        try:
            if writer._name is None:  # noqa: SLF001 - one module
                path = self._quarantine.add(writer.fd, note)
            else:
                with self._below("tmp") as tmp_fd:
                    path = self._quarantine.add(writer.fd, note, (tmp_fd, writer._name))  # noqa: SLF001
        except (OSError, AttachfsError) as error:
            self._trouble("quarantine", f"mismatching bytes cannot be put aside: {error}")
        writer.abort()
        self._shrink()
        return path

    def _discard(self, name: str | None) -> None:
        if name is not None:
            with suppress(OSError), self._below("tmp") as tmp_fd:
                os.unlink(name, dir_fd=tmp_fd)

    def _dup(self, file: _File, fd: int) -> CachedBlob:
        try:
            copy = os.dup(fd)
        except OSError as error:
            raise cachefile.translate(error, "cannot read from the cache") from error
        with self._lock:
            self._hold(file)
        return CachedBlob(self, file, copy)

    # ---- room ---------------------------------------------------------------------------------------------

    def _quarantine_bound(self) -> int:
        return min(_QUARANTINE_MAX, self._max // 10)

    def _used(self) -> int:
        shards = sum(shard.charge for shard in self._shards.values())
        return _FIXED + int(self._index.currsize) + shards + self._loose + self._quarantine.used

    def _lacking_free(self, need: int) -> int:
        """Return how many bytes must go so that `min_free` still holds once all reservations are written."""
        vfs = os.fstatvfs(self._root_fd)
        pending = sum(max(0, writer.size - writer.written) for writer in self._writers.values())
        keep = self._min_free.of(vfs.f_blocks * vfs.f_frsize)
        return need + pending + keep - vfs.f_bavail * vfs.f_frsize

    def _check_room(self, need: int) -> None:
        """Refuse what evicting everything would not make possible; make room for `min_free`."""
        held = sum(file.charge for file in self._open_files.values() if self._is_named(file))
        evictable = int(self._index.currsize) - held
        if self._used() - evictable + need > self._max:
            raise NoRoom("everything in the cache is in use")
        lacking = self._lacking_free(need)
        if lacking > evictable:
            raise NoRoom("the filesystem of the cache has too little room left")
        while lacking > 0:
            try:
                lacking -= self._evict()
            except KeyError:
                raise NoRoom("the filesystem of the cache has too little room left") from None

    def _make_room(self) -> None:
        """Evict until the bound holds, which already counts the reservation this is for."""
        while True:
            with self._lock:
                for _ in range(_BATCH):
                    if self._used() <= self._max:
                        return
                    try:
                        self._evict()
                    except KeyError:
                        raise NoRoom("everything in the cache is in use") from None

    def _shrink(self) -> None:
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
        found = True
        with suppress(FileNotFoundError), self._below("blobs", digest.alg) as alg_fd:
            with cachefile.folder(alg_fd, digest.hex[:2]) as shard_fd:
                try:
                    os.unlink(digest.hex, dir_fd=shard_fd)
                except FileNotFoundError:
                    found = False
            self._forget(digest)
            shard = self._shards.get((digest.alg, digest.hex[:2]))
            if self._exclusive and shard is not None and shard.count <= 0:
                with suppress(OSError):  # not empty: something foreign lies there
                    os.rmdir(digest.hex[:2], dir_fd=alg_fd)
                    del self._shards[digest.alg, digest.hex[:2]]
            return found
        self._forget(digest)
        return False

    def _insert(self, digest: Digest, file: _File) -> None:
        self._index[digest] = file
        self._shards.setdefault((digest.alg, digest.hex[:2]), _Shard()).count += 1
        if self._removed is not None:
            self._removed.discard(digest)

    def _forget(self, digest: Digest) -> None:
        """Take a blob that has lost its name out of the index. The caller holds _lock."""
        if self._removed is not None:
            self._removed.add(digest)
        file = self._index.pop(digest, None)
        if file is not None:
            self._shards[digest.alg, digest.hex[:2]].count -= 1
            self._loosen(file)

    def _loosen(self, file: _File) -> None:
        if file.opens:
            self._loose += file.charge

    def _is_named(self, file: _File) -> bool:
        return file.digest is not None and self._index.get(file.digest) is file

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
            self._writers.pop(id(file), None)
            if self._is_named(file):
                over = self._used() > self._max
            else:
                over = False
                if file.spill:
                    self._spilled -= file.charge
                else:
                    self._loose -= file.charge
        if over and self._exclusive:
            self._shrink()

    # ---- helpers ------------------------------------------------------------------------------------------

    @contextmanager
    def _below(self, *names: str, create: bool = False) -> Iterator[int]:
        if self._root_fd < 0:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.root))
        with cachefile.folder(self._root_fd, *names, create=create) as fd:
            yield fd

    def _trouble(self, kind: str, text: str) -> None:
        """Warn about the first trouble of its kind; count the rest."""
        count = self._troubles.get(kind, 0) + 1
        self._troubles[kind] = count
        _log.log(logging.WARNING if count == 1 else logging.DEBUG, "%s", text)
