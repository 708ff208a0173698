"""What lies in the cache's directory: listed, and learnt into the index at the start.

Owns: the walk over the folders of blobs, and when one is due: at the start, and when
another directory has taken the place of the one that was walked.
"""

import os
import re
import stat
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from attachfs.cache import files
from attachfs.cache.directory import CacheDir
from attachfs.cache.index import BlobStore, File, Folder
from attachfs.cache.store import CacheSpace
from attachfs.errors import NoSpace, Unexpected, UsageError
from attachfs.model import Digest

_WAIT = 10.0  # seconds that a writer waits for the index before it goes without the cache
_FOLDER_RE = re.compile("[0-9a-f]{2}")


class Scanned(NamedTuple):
    """One folder of blobs as it lies on the disk; `disk_usage` is the room it takes itself."""

    folder: Folder
    disk_usage: int
    blobs: list[tuple[Digest, os.stat_result]]


def scan_blobs(home: CacheDir) -> Iterator[Scanned]:
    """Yield the folders of blobs on disk; whatever else lies there is passed over.

    Raises:
        OSError: one cannot be listed.
    """
    with suppress(FileNotFoundError), home.below("blobs") as blobs_fd:
        for alg in files.ALGORITHMS:
            for name in _names(blobs_fd, alg):
                if _FOLDER_RE.fullmatch(name):
                    yield from _scan_folder(blobs_fd, (alg, name))


def listed(home: CacheDir) -> list[tuple[Digest, os.stat_result]]:
    """Return the blobs on disk.

    Raises:
        Unexpected: the directory cannot be listed.
    """
    try:
        return [blob for walked in scan_blobs(home) for blob in walked.blobs]
    except OSError as error:
        raise Unexpected(f"the cache in {home.root} cannot be listed: {error.strerror}") from error


def _names(blobs_fd: int, alg: str) -> list[str]:
    try:
        with files.folder(blobs_fd, alg) as alg_fd:
            return files.names(alg_fd)
    except OSError as error:
        if files.is_planted(error) or isinstance(error, FileNotFoundError):
            return []
        raise


def _scan_folder(blobs_fd: int, folder: Folder) -> Iterator[Scanned]:
    """Yield the folder if it is one, and is still there."""
    alg, start = folder
    blobs = []
    try:
        with files.folder(blobs_fd, *folder) as fd:
            disk_usage = files.disk_usage_of_stat(os.fstat(fd))
            with os.scandir(fd) as entries:
                for entry in entries:
                    digest = Digest(alg, entry.name)
                    if not entry.name.startswith(start) or not files.is_digest(digest):
                        continue
                    with suppress(FileNotFoundError):
                        st = entry.stat(follow_symlinks=False)
                        if stat.S_ISREG(st.st_mode):
                            blobs.append((digest, st))
    except OSError as error:
        if files.is_planted(error) or isinstance(error, FileNotFoundError):
            return
        raise
    yield Scanned(folder, disk_usage, blobs)


class Indexer:
    """Keeps the index one of the directory that is there. Thread-safe."""

    def __init__(self, store: CacheSpace) -> None:
        self._store = store
        self._home = store.home
        self._scanning = threading.Lock()
        self._stopped = False

    def stop(self) -> None:
        """Walk no further, and wait for a walk under way: the directory is about to be given back."""
        self._stopped = True
        if self._scanning.acquire(timeout=_WAIT):
            self._scanning.release()

    def run(self) -> None:
        """Remove left-over temporary files, learn what there is, hold it to the bound; once."""
        store, home = self._store, self._home
        try:
            with self._scanning:
                if self._stopped:
                    return
                with store.lock:
                    root = home.identity()
                    if store.indexed.is_set() and root == store.index.root:
                        return
                    store.index.begin_scan()
                try:
                    if home.exclusive:
                        home.sweep()
                    store.quarantine.scan(trim=home.exclusive)
                    if not self._learn(root):
                        return
                except OSError as error:
                    store.warn("directory", f"the cache in {home.root} cannot be listed: {error.strerror}")
                finally:
                    with store.lock:
                        store.index.end_scan()
        finally:
            store.indexed.set()  # whatever happened: writers wait for it
        with self._scanning:
            if not self._stopped:
                store.shrink()

    def wait(self) -> None:
        """Wait for the first walk; if nobody has begun it, do it.

        Raises:
            NoSpace: it takes too long.
        """
        if self._store.indexed.is_set():
            return
        if self._scanning.acquire(blocking=False):
            self._scanning.release()
            self.run()  # nobody has begun
        elif not self._store.indexed.wait(_WAIT):
            raise NoSpace(f"the cache in {self._home.root} is still being indexed")

    def attach_again(self) -> None:
        """Have a directory that can be written to, made again if it was deleted, and its index.

        Raises:
            NoSpace: there is none.
            OSError: it cannot be made.
        """
        try:
            with self._store.lock:
                same = self._attach_again()
        except UsageError as error:
            self._store.warn("directory", error.reason)
            raise NoSpace(error.reason) from error
        if not same:
            self.run()  # another directory than before, or one that could not be listed
            if self._store.index.root is None:
                raise NoSpace(f"the cache in {self._home.root} cannot be listed")

    def _attach_again(self) -> bool:
        """Return whether the directory is the one that was walked; if not, empty the index."""
        if not self._home.exclusive:
            raise NoSpace("this cache was opened to look at, not to write")
        self._home.attach_again()
        if not self._home.writable:
            raise NoSpace(f"the cache directory {self._home.root} cannot be written")
        if self._home.identity() == self._store.index.root:
            return True
        self._store.index.clear()
        return False

    def _learn(self, root: tuple[int, int] | None) -> bool:
        """Walk the folders of blobs into the index; False: it was stopped."""
        fresh = BlobStore()
        found: list[tuple[Digest, os.stat_result]] = []
        for walked in scan_blobs(self._home):
            if self._stopped:
                return False
            fresh.measure(walked.folder, walked.disk_usage)
            found += walked.blobs
        for digest, st in sorted(found, key=lambda blob: blob[1].st_atime_ns):
            fresh.add(digest, File.found(st))
        with self._store.lock:
            self._store.index.take_over(fresh, root)
            for folder in filter(fresh.is_empty, list(fresh.folders)):
                with suppress(OSError), self._home.below("blobs", folder[0]) as alg_fd:
                    self._store.drop_folder(folder, alg_fd)
        return True
