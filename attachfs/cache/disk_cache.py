"""The content-addressed disk cache, as everybody else knows it: blobs by their digest, bounded.

    root/VERSION                      the layout's version
    root/lock                         held (flock) by the one mount that uses the directory; says which
    root/blobs/sha256/ab/<64 hex>     verified blobs; the name is the digest, and there is no other truth
    root/tmp/                         blobs being written
    root/quarantine/                  bytes that did not match, never served

A blob gets its name only after its caller has verified digest and length, and after fsync. The bound counts
what is admitted, being written, and removed but still open, folders included. Room is made before a write:
the least recently opened blob goes first; one that is open when room is made counts as opened just then,
because removing it would free nothing.

Callers run all of this in worker threads. One mount per directory: two that share one bound would have to
agree on every eviction through the disk, and a second cache directory costs only disk. Commands work beside
a running mount; they read and unlink.

Owns: what the cache offers, and which of its parts does it.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from attachfs.cache import files as cache_files
from attachfs.cache import scan
from attachfs.cache.descriptor import CachedBlob
from attachfs.cache.directory import DEGRADED, CacheDir
from attachfs.cache.index import File
from attachfs.cache.reader import Reader, VerifyResult
from attachfs.cache.scan import Indexer
from attachfs.cache.store import CacheSpace
from attachfs.cache.warn_once import WarnOnce
from attachfs.cache.writer import Writer
from attachfs.errors import NoSpace, UsageError
from attachfs.model import Digest
from attachfs.units import MinFree

__all__ = ["CacheStats", "CachedBlob", "DiskCache", "Entry", "VerifyResult", "Writer"]

_log = logging.getLogger("attachfs.cache")


@dataclass(frozen=True)
class Entry:
    """A blob as `entries` lists it. `last_opened_ns` is nanoseconds since 1970."""

    digest: Digest
    size: int
    last_opened_ns: int
    open_count: int


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


class DiskCache:
    """The cache in directory `root`, bounded by `max_bytes` and by what `min_free` leaves of the filesystem.

    Call `start` once, then `index` in a thread; lookups work meanwhile, writers wait for it.
    """

    def __init__(self, root: Path, max_bytes: int, min_free: MinFree) -> None:
        self._warnings = WarnOnce(_log, "the cache")
        self._home = CacheDir(root, self._warnings.warn)
        self._store = CacheSpace(self._home, self._warnings, max_bytes, min_free)
        self._indexer = Indexer(self._store)
        self._reader = Reader(self._store)
        self.root = self._home.root
        self.indexed = self._store.indexed

    def start(self, owner: str = "", *, exclusive: bool = True) -> None:
        """Make or check the directory and take its lock. Call it in the process that stays.

        Args:
            owner: what the next one who comes is shown: the mount point.
            exclusive: False for commands that work beside a mount; they never write blobs.

        Raises:
            UsageError: the directory is not ours to use, is another program's or a newer version's, or is
                held by another process. A directory that cannot be written only costs a warning.
        """
        try:
            self._store.attach(owner, exclusive=exclusive)
        except OSError as error:
            reason = f"the cache directory {self.root} cannot be used ({error.strerror})"
            if error.errno not in DEGRADED:
                raise UsageError(f"{reason}: choose another with --cache-dir") from error
            self._warnings.warn("directory", reason)

    def index(self) -> None:
        """Walk the directory: remove left-over temporary files, learn what there is, hold it to the bound."""
        self._indexer.run()

    def wait_for_index(self) -> None:
        """Wait until the directory has been walked; if nobody has begun that, do it.

        Raises:
            NoSpace: it takes too long.
        """
        self._indexer.wait()

    def space(self) -> tuple[int, int]:
        """Return how large the cache may be, and how much counts against that."""
        with self._store.lock:
            return self._store.max_bytes, self._store.used()

    def close(self) -> None:
        """Give the directory back once nobody walks it. Blobs that are still open stay readable."""
        self._indexer.stop()
        self._store.finish()
        with self._store.lock:
            self._home.detach()
        self._warnings.flush()

    # ---- reading

    def open(self, digest: Digest, size: int) -> CachedBlob | None:
        """Return the blob, open, or None. A hit makes it the most recently opened.

        May take long: a blob whose file changed since it was admitted is hashed again; if wrong, quarantined.
        """
        blob = self._reader.lookup(digest, size)
        self._store.count("misses" if blob is None else "hits")
        return blob

    def surely_missing(self, digest: Digest) -> bool:
        """Whether a blob is not there, as far as that is known without asking the disk. Never waits."""
        return self._store.surely_missing(digest)

    def contains(self, digest: Digest, size: int) -> bool:
        """Whether a blob of that digest and size is there, without opening it or counting it as used."""
        return self._reader.contains(digest, size)

    def size_of(self, digest: Digest) -> int | None:
        """Return how long a blob's file is, None if there is none. It does not count as used."""
        return self._reader.size_of(digest)

    def is_verified(self, digest: Digest, size: int) -> bool:
        """Whether a blob is there and has not changed since its digest was compared."""
        return self._reader.is_verified(digest, size)

    def verify_all(self, progress: Callable[[int], None] | None = None) -> Iterator[VerifyResult]:
        """Hash every blob, whatever its seal; quarantine what is wrong.

        Args:
            progress: called with how many bytes were read.

        Raises:
            Unexpected: the directory cannot be listed.
        """
        return self._reader.verify_all(progress)

    # ---- writing

    def may_fit(self, size: int) -> bool:
        """Whether so much could be written now without evicting anything. Never waits; a guess."""
        return self._store.used() + size <= self._store.max_bytes

    def reserve(self, size: int) -> Writer:
        """Make room for `size` bytes and return a writer for them.

        Raises:
            NoSpace: the blob is larger than the cache, everything is in use, `min_free` forbids it, or the
                cache's disk or directory is in trouble. A spill may still do.
            TooManyFiles: no descriptor is left.
        """
        self._indexer.wait()
        file = File(size)
        self._store.check_size(file)
        kind = "directory"
        try:
            self._indexer.attach_again()
            kind = "write"
            self._store.reserve(file)
            try:
                name = self._home.temporary_name()
                with self._home.below("tmp", create=True) as tmp_fd:
                    fd = cache_files.create(name, tmp_fd)
            except BaseException:
                self._store.release(file)
                raise
        except OSError as error:
            if error.errno in cache_files.TOO_MANY_FILES:  # a spill would need one as well
                raise cache_files.translate(error, "cannot store a blob") from error
            reason = f"the cache in {self.root} cannot be written: {error.strerror}"
            self._warnings.warn(kind, reason)
            raise NoSpace(reason) from error
        return Writer(self._store, self._reader, file, fd, name)

    def spill(self, size: int) -> Writer:
        """Return a writer to an unlinked temporary file outside the bound; admit gives it no name.

        Raises:
            NoSpace: no filesystem at hand has room.
            Unexpected: no temporary file can be made.
        """
        file, fd = self._store.open_spill(size)
        return Writer(self._store, self._reader, file, fd, None)

    # ---- upkeep

    def resize(self, max_bytes: int) -> None:
        """Change the bound; a smaller one evicts at once what it can, and the rest as files are closed."""
        self._store.resize(max_bytes)

    def remove(self, digest: Digest) -> bool:
        """Remove a blob; whoever has it open reads on. Returns whether it was there."""
        return self._store.remove(digest)

    def clear(self) -> int:
        """Remove every blob, not the quarantine, and return how many.

        Raises:
            Unexpected: the directory cannot be listed.
        """
        removed = sum(self.remove(digest) for digest, _ in scan.listed(self._home))
        with self._store.lock:
            vanished = [digest for digest, _ in self._store.index.blobs.listed()]
        for digest in vanished:  # somebody has removed the directory: only the index still has them
            self.remove(digest)
        return removed

    def entries(self) -> list[Entry]:
        """Return what is cached, least recently opened first.

        Raises:
            Unexpected: the directory cannot be listed.
        """
        with self._store.lock:
            files = self._store.index.blobs.listed() if self.indexed.is_set() else []
        if files:
            found = [Entry(digest, file.size, file.used_ns, file.opens) for digest, file in files]
        else:
            listed = scan.listed(self._home)
            found = [Entry(digest, st.st_size, st.st_atime_ns, 0) for digest, st in listed]
        return sorted(found, key=lambda entry: entry.last_opened_ns)

    def stats(self) -> CacheStats:
        """Return the figures of this moment. Never waits: whoever has the lock may be removing a large file.

        So figures that a thread is just changing may not add up.
        """
        store = self._store
        return CacheStats(
            max_bytes=store.max_bytes,
            used_bytes=store.used(),
            blob_bytes=store.index.blobs.file_bytes,
            blobs=len(store.index.blobs),
            loose_bytes=store.index.loose,
            quarantine_bytes=store.quarantine.used,
            spilled_bytes=store.index.spilled,
            open_files=len(store.index.open_files),
            indexed=self.indexed.is_set(),
            writable=self._home.writable,
            troubles=self._warnings.counts(),
            **store.counts,
        )
