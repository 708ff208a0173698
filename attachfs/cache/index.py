"""The cache's tables: its blobs in the order in which they go, and the room that all of its files take.

Owns: what counts, and how much. Nothing here touches the disk or takes a lock: the lock
is `cache/store.py`'s, and whoever calls holds it.
"""

import os
import threading

from cachetools import Cache, LRUCache

from attachfs.cache import files as cache_files
from attachfs.cache.files import BLOCK, Stamp
from attachfs.model import Digest

SLACK = 2 * BLOCK  # a new blob's share of folders: a new one's first block, or a full one's growth

Folder = tuple[str, str]  # as cachefile.folder_of gives it


class File:
    """A blob's file, with or without a name: what it takes, and how many descriptors hold it."""

    __slots__ = (
        "digest",
        "disk_usage",
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

    def __init__(self, size: int, *, written: int = 0, spill: bool = False) -> None:
        self.size = size
        self.written = written  # bytes; less than size while it is being written
        self.spill = spill  # outside the bound
        self.disk_usage = cache_files.disk_usage_of(size) + (0 if spill else SLACK)
        self.digest: Digest | None = None
        self.named = False  # in blobs/ and in the index
        self.opens = 0
        self.inode = 0
        self.used_ns = 0
        self.stamp: Stamp | None = None  # the state in which this run found the bytes right
        self.hashing = threading.Lock()

    @classmethod
    def found(cls, st: os.stat_result) -> "File":
        """Return the file of a blob that lies on the disk."""
        file = cls(st.st_size, written=st.st_size)
        file.used_ns = st.st_atime_ns
        file.measure(st)
        return file

    def measure(self, st: os.stat_result) -> None:
        """Count what the file really takes."""
        self.disk_usage = cache_files.disk_usage_of_stat(st)
        self.inode = st.st_ino


class _FolderUsage:
    """One folder of blobs: how many it holds and the room it takes itself."""

    __slots__ = ("count", "disk_usage")

    def __init__(self) -> None:
        self.disk_usage = 0
        self.count = 0


class BlobStore:
    """The blobs that have a name, least recently opened first, and their folders."""

    def __init__(self) -> None:
        self.folders: dict[Folder, _FolderUsage] = {}
        self.folder_bytes = 0
        self._files: LRUCache[Digest, File] = LRUCache(2**63 - 1, getsizeof=lambda file: file.disk_usage)

    def __len__(self) -> int:
        return len(self._files)

    def __contains__(self, digest: Digest) -> bool:
        return digest in self._files

    @property
    def file_bytes(self) -> int:
        """The room that the blobs take, without their folders."""
        return int(self._files.currsize)

    def get(self, digest: Digest) -> File | None:
        """Return a blob's file and make it the most recent."""
        return self._files.get(digest)

    def listed(self) -> list[tuple[Digest, File]]:
        """Return everything without counting it as used."""
        return [(digest, Cache.__getitem__(self._files, digest)) for digest in self._files]

    def add(self, digest: Digest, file: File) -> None:
        """Add a file as the most recent."""
        file.digest = digest
        file.named = True
        self._files[digest] = file
        self.folders.setdefault(cache_files.folder_of(digest), _FolderUsage()).count += 1

    def pop(self, digest: Digest) -> File | None:
        """Remove and return a blob's file, if it is there."""
        file: File | None = self._files.pop(digest, None)
        if file is not None:
            file.named = False
            self.folders[cache_files.folder_of(digest)].count -= 1
        return file

    def in_order(self) -> list[tuple[Digest, File]]:
        """Return everything, least recently opened first."""
        found = [self._files.popitem() for _ in range(len(self._files))]
        self._files.update(found)
        return found

    def lru_candidate(self) -> Digest | None:
        """Return the least recently opened blob that nobody has open.

        Open ones met on the way count as opened now, and so does the one returned.
        """
        met: list[tuple[Digest, File]] = []
        found = None
        while self._files and found is None:
            digest, file = self._files.popitem()
            met.append((digest, file))
            if not file.opens:
                found = digest
        self._files.update(met)
        return found

    def measure(self, folder: Folder, disk_usage: int) -> int:
        """Set what a folder takes itself; return how many blobs it holds."""
        usage = self.folders.setdefault(folder, _FolderUsage())
        self.folder_bytes += disk_usage - usage.disk_usage
        usage.disk_usage = disk_usage
        return usage.count

    def is_empty(self, folder: Folder) -> bool:
        """Whether a folder is known and holds no blob."""
        usage = self.folders.get(folder)
        return usage is not None and usage.count <= 0

    def drop(self, folder: Folder) -> None:
        """Forget an empty folder that has been removed."""
        self.folder_bytes -= self.folders.pop(folder).disk_usage


class Index:
    """All files of the cache: the blobs, and what is open with or without a name."""

    def __init__(self) -> None:
        self.root: tuple[int, int] | None = None  # the directory (device, inode) whose walk is in it
        self.blobs = BlobStore()
        self.open_files: dict[int, File] = {}
        self.loose = 0  # room of files without a name in blobs/: being written, or removed and still open
        self.spilled = 0
        self._gone: set[Digest] | None = None  # while walking: what the walk may have seen and is gone

    @property
    def used(self) -> int:
        """The room that counts against the bound."""
        return self.blobs.file_bytes + self.blobs.folder_bytes + self.loose

    def evictable(self) -> int:
        """Return the room that would be free if everything went that nobody has open."""
        held = [file for file in self.open_files.values() if file.named]
        kept = {cache_files.folder_of(file.digest) for file in held if file.digest is not None}
        usage = self.blobs.file_bytes - sum(file.disk_usage for file in held)
        return usage + self.blobs.folder_bytes - sum(self.blobs.folders[folder].disk_usage for folder in kept)

    def promised(self) -> int:
        """Return how much is yet to be written to files that were reserved."""
        files = self.open_files.values()
        return sum(file.size - file.written for file in files if not file.named and not file.spill)

    # ---- files that are open

    def hold(self, file: File) -> None:
        """Count one more descriptor; the first of a file without a name takes its room."""
        if not file.opens:
            self.open_files[id(file)] = file
            self._take(file, file.disk_usage)
        file.opens += 1

    def release(self, file: File) -> bool:
        """Count one descriptor less; the last of a file without a name gives its room back: True."""
        file.opens -= 1
        if file.opens:
            return False
        del self.open_files[id(file)]
        self._take(file, -file.disk_usage)
        return True

    def _take(self, file: File, usage: int) -> None:
        if file.spill:
            self.spilled += usage
        elif not file.named:
            self.loose += usage

    # ---- files that have a name

    def insert(self, digest: Digest, file: File, st: os.stat_result) -> None:
        """Put a file that has its name into the index, as the most recent."""
        if file.opens:
            self._take(file, -file.disk_usage)
        file.measure(st)
        self.blobs.add(digest, file)

    def discard_entry(self, digest: Digest) -> None:
        """Take a blob that has lost its name out of the index."""
        if self._gone is not None:
            self._gone.add(digest)
        self._unname(digest)

    def _unname(self, digest: Digest) -> None:
        file = self.blobs.pop(digest)
        if file is not None and file.opens:
            self._take(file, file.disk_usage)

    def clear(self) -> None:
        """Forget all blobs: their directory is not there any more."""
        for digest, _ in self.blobs.listed():
            self._unname(digest)
        self.blobs = BlobStore()
        self.root = None

    # ---- while the directory is walked, without the lock

    def begin_scan(self) -> None:
        """Note from now on what goes."""
        self._gone = set()

    def take_over(self, fresh: BlobStore, root: tuple[int, int] | None) -> None:
        """Believe what a walk has found, and whatever has happened meanwhile more than that."""
        for digest in self._gone or ():
            fresh.pop(digest)
        for digest, file in self.blobs.in_order():  # more recent than all that was found
            folder = cache_files.folder_of(digest)
            fresh.pop(digest)
            fresh.add(digest, file)
            fresh.measure(
                folder, max(fresh.folders[folder].disk_usage, self.blobs.folders[folder].disk_usage)
            )
        self.blobs, self.root = fresh, root

    def end_scan(self) -> None:
        """Stop noting."""
        self._gone = None
