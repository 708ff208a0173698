"""The cache's room on the disk: the one lock, the bound, and who is removed to keep within it.

Owns: the lock that guards the index, held for lookups, renames and removals only, never
while data is read, written, hashed or synced; the bound, `min_free`, and eviction.
"""

import functools
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress

from attachfs.cache import files
from attachfs.cache.closer import Closer
from attachfs.cache.descriptor import Descriptor
from attachfs.cache.directory import CacheDir
from attachfs.cache.files import BLOCK
from attachfs.cache.index import SLACK, File, Folder, Index
from attachfs.cache.quarantine import Quarantine
from attachfs.cache.warn_once import WarnOnce
from attachfs.errors import AttachfsError, NoSpace
from attachfs.model import Digest
from attachfs.units import MinFree, format_size

_FIXED = 16 * BLOCK  # the directory itself, its fixed folders and files, and room for `tmp` to grow
_QUARANTINE_MAX = 256 << 20  # bytes; and never more than a tenth of the cache
_SYNC_AFTER = 0.1  # seconds for which folders may wait for their sync
_QUICK = 2**20  # bytes; a removed file of this size is closed in well under a millisecond
_BATCH = 64  # blobs removed in one go before other threads get the lock
_COUNTED = ("hits", "misses", "admitted", "evicted", "rehashed", "mismatched", "spills")


class CacheSpace:
    """What the parts of the cache share: directory, quarantine and index, and the room these may take.

    `index` and `counts` belong to whoever holds `lock`.
    """

    def __init__(self, home: CacheDir, warnings: WarnOnce, max_bytes: int, min_free: MinFree) -> None:
        self.home = home
        self.warn = warnings.warn
        self.quarantine = Quarantine(home.root / "quarantine", _quarantine_bound(max_bytes))
        self.max_bytes = max_bytes
        self.lock = threading.Lock()
        self.index = Index()
        self.indexed = threading.Event()
        self.counts = dict.fromkeys(_COUNTED, 0)
        self.closer = Closer()
        self._unsynced: dict[Folder | str, int] = {}  # open folders
        self._unsynced_lock = threading.Lock()
        self._syncer = Closer()
        self._sync_now = threading.Event()
        self._min_free = min_free

    def attach(self, owner: str, *, exclusive: bool) -> None:
        """Attach the directory, as `CacheDirectory.attach` does. Not `exclusive`: the bound is another's."""
        if not exclusive:
            self.quarantine.max_bytes = _QUARANTINE_MAX  # what the mount's bound is, it alone knows
        with self.lock:
            self.home.attach(owner, exclusive=exclusive)

    def count(self, what: str) -> None:
        """Count one more of what `stats` tells. The caller does not hold the lock."""
        with self.lock:
            self.counts[what] += 1

    def used(self) -> int:
        """Return the room that counts against the bound. The caller holds the lock."""
        return _FIXED + self.index.used + self.quarantine.used

    # ---- taking room and giving it back

    def check_size(self, file: File) -> None:
        """Refuse what would not fit into an empty cache."""
        if file.size < 0 or file.disk_usage + _FIXED > self.max_bytes:
            raise NoSpace(f"a blob of {format_size(file.size)} is larger than the cache")

    def reserve(self, file: File) -> None:
        """Make room for a file that is to be written, and hold it.

        Raises:
            NoSpace: there is none, and nothing was evicted; or somebody else was quicker.
            OSError: the directory is in trouble.
        """
        try:
            self._hold_if_possible(file)
        except NoSpace:
            if not self.closer.wait():
                raise
            self._hold_if_possible(file)  # what was waiting to be closed has given its room back
        try:
            self._make_space(min_free=True)
        except BaseException:
            self.release(file)
            raise

    def _hold_if_possible(self, file: File) -> None:
        with self.lock:
            self._check_space(file)
            self.index.hold(file)

    def reserve_over_limit(self, file: File) -> None:
        """Hold a file in any case, and evict for it what can be.

        Raises:
            NoSpace, OSError: not enough could be; the file is held all the same.
        """
        with self.lock:
            self.index.hold(file)
        self._make_space()

    def open_spill(self, size: int) -> tuple[File, int]:
        """Open and hold an unlinked file outside the bound.

        Raises:
            NoSpace: no filesystem at hand has room.
            Unexpected, TooManyFiles: no temporary file can be made.
        """
        problem: OSError | None = None
        for place in self._spill_places(size):
            try:
                with place() as dir_fd:
                    fd = files.create_unlinked(dir_fd, f".attachfs-{self.home.temporary_name()}")
            except OSError as error:
                problem = error
                continue
            file = File(size, spill=True)
            with self.lock:
                self.counts["spills"] += 1
                self.index.hold(file)
            return file, fd
        if problem is not None:
            raise files.translate(problem, "cannot make a temporary file") from problem
        raise NoSpace(f"no room for a temporary file of {format_size(size)}")

    def descriptor(self, file: File, fd: int) -> Descriptor:
        """Return an open file that has been held as one that is released when it is closed."""
        return Descriptor(fd, _Held(self, file))

    def try_close(self, file: File, fd: int) -> bool:
        """Close a held file and release it if that takes no time; False: nothing was done."""
        if not self.lock.acquire(blocking=False):
            return False  # whoever has it may be removing something large
        try:
            last = file.opens == 1
            if last:
                there = os.fstat(fd)  # somebody else may have removed it
                if there.st_size > _QUICK and (not file.named or not there.st_nlink):
                    return False  # the filesystem gives back block after block
            if last and self.used() > self.max_bytes and self.indexed.is_set():
                return False  # something has to be evicted now
            os.close(fd)
            self.index.release(file)
            return True
        finally:
            self.lock.release()

    def release(self, file: File) -> None:
        """One descriptor less; the last of a file without a name gives its room back."""
        with self.lock:
            if not self.index.release(file):
                return
            over = self.used() > self.max_bytes and self.indexed.is_set()
        if over:
            self.shrink()

    def resize(self, max_bytes: int) -> None:
        """Change the bound; a smaller one evicts at once what it can, and the rest as files are closed."""
        with self.lock:
            self.max_bytes = max_bytes
            self.quarantine.max_bytes = _quarantine_bound(max_bytes)
        if self.home.exclusive:
            with suppress(AttachfsError, OSError):
                self.quarantine.scan()
            self.shrink()

    def shrink(self) -> None:
        """Evict until the bound holds, if that can be done."""
        if not self.home.exclusive or self.home.closed:
            return  # the bound is another process's business
        with suppress(NoSpace):
            try:
                self._make_space()
            except OSError as error:
                self.warn("remove", f"nothing can be removed from the cache: {error.strerror}")

    def surely_missing(self, digest: Digest) -> bool:
        """Whether a blob is not in the index, which is complete. Never waits; the disk is not asked."""
        return self.indexed.is_set() and digest not in self.index.blobs

    def sync_soon(self, fds: dict[Folder | str, int]) -> None:
        """Have folders synced that were given names, many names with one sync; takes the descriptors over.

        A name that a power failure takes away before that is a miss: bytes are synced before they have one.
        """
        with self._unsynced_lock:
            first = not self._unsynced
            replaced = [self._unsynced[key] for key in fds if key in self._unsynced]
            self._unsynced.update(fds)
        for fd in replaced:
            os.close(fd)
        if first:
            self._syncer.run(self._sync)

    def finish(self) -> None:
        """Do now what was to be done soon."""
        self._sync_now.set()
        self._syncer.wait()
        self.closer.wait()

    def _sync(self) -> None:
        self._sync_now.wait(_SYNC_AFTER)  # more names come meanwhile
        with self._unsynced_lock:
            fds, self._unsynced = self._unsynced, {}
        for fd in fds.values():
            try:
                os.fsync(fd)
            except OSError as error:
                self.warn("sync", f"the cache's folders cannot be synced: {error.strerror}")
            finally:
                os.close(fd)

    # ---- removing

    def remove(self, digest: Digest) -> bool:
        """Remove a blob; whoever has it open reads on. Returns whether it was there."""
        if not files.is_digest(digest):
            return False
        with self.lock:
            try:
                return self._unlink(digest)
            except OSError as error:
                self.warn("remove", f"{digest} cannot be removed from the cache: {error.strerror}")
                return False

    def drop_folder(self, folder: Folder, alg_fd: int) -> None:
        """Remove a folder of blobs if it is empty; nobody can be naming one in it, as that needs the lock.

        The caller holds the lock.
        """
        if self.index.blobs.is_empty(folder) and self.home.exclusive:
            with suppress(OSError):  # something foreign lies there
                os.rmdir(folder[1], dir_fd=alg_fd)
                self.index.blobs.drop(folder)

    def _unlink(self, digest: Digest) -> bool:
        """Remove a blob's name and its folder if that was the last. The caller holds the lock."""
        found = False
        folder = files.folder_of(digest)
        with suppress(FileNotFoundError), self.home.below("blobs", folder[0]) as alg_fd:
            with files.folder(alg_fd, folder[1]) as folder_fd:
                try:
                    os.unlink(digest.hex, dir_fd=folder_fd)
                    found = True
                except (FileNotFoundError, IsADirectoryError):
                    pass
            self.index.discard_entry(digest)
            self.drop_folder(folder, alg_fd)
        self.index.discard_entry(digest)
        return found

    def _check_space(self, file: File) -> None:
        """Refuse before anything is evicted what evicting everything would not make possible."""
        evictable = self.index.evictable()
        if self.used() - evictable + file.disk_usage > self.max_bytes:
            raise NoSpace("everything in the cache is in use")
        if self._lacking_free(file.disk_usage) > evictable:
            raise NoSpace("the cache's filesystem has too little room left")

    def _lacking_free(self, need: int) -> int:
        """Return how many bytes must go so that `min_free` holds once `need` and the rest is written."""
        vfs = self.home.statvfs()
        if not vfs.f_blocks:
            return 0  # a filesystem that does not tell
        kept_free = self._min_free.of(vfs.f_blocks * vfs.f_frsize)
        return need + self.index.promised() + kept_free - vfs.f_bavail * vfs.f_frsize

    def _make_space(self, *, min_free: bool = False) -> None:
        """Evict until the bound holds, which already counts the reservation that this is for."""
        lacking = None
        while True:
            # The lock is let go between batches, so that lookups go on while thousands of blobs are removed.
            with self.lock:
                measured = self._lacking_free(SLACK) if min_free else 0
                # Some filesystems give room back late: what was evicted here counts as well.
                lacking = measured if lacking is None else min(lacking, measured)
                for _ in range(_BATCH):
                    # Two bounds: the cache's own, which is counted, and what must stay free on the disk,
                    # which others use as well and is measured only once a batch.
                    if self.used() <= self.max_bytes and lacking <= 0:
                        return
                    lacking -= self._evict()

    def _evict(self) -> int:
        """Remove the least recently opened blob and return the room that gave. The caller holds the lock."""
        digest = self.index.blobs.lru_candidate()
        if digest is None:
            raise NoSpace("everything in the cache is in use")
        before = self.used()
        self._unlink(digest)
        self.counts["evicted"] += 1
        return before - self.used()

    # ---- where spills go

    def _spill_places(self, size: int) -> list[Callable[[], AbstractContextManager[int]]]:
        """Return where a spill may go: first where `min_free` stays free, then where it fits at all."""
        with_min_free: list[Callable[[], AbstractContextManager[int]]] = []
        fits: list[Callable[[], AbstractContextManager[int]]] = []
        for place in (self._spill_folder, _temporary_folder):
            try:
                with place() as dir_fd:
                    vfs = os.fstatvfs(dir_fd)
            except OSError as error:
                if error.errno in files.TOO_MANY_FILES:
                    raise files.translate(error, "cannot make a temporary file") from error
                continue
            free = vfs.f_bavail * vfs.f_frsize - size
            if free >= self._min_free.of(vfs.f_blocks * vfs.f_frsize):
                with_min_free.append(place)
            elif free >= 0:
                fits.append(place)
        return with_min_free + fits

    def _spill_folder(self) -> AbstractContextManager[int]:
        return self.home.below("tmp", create=True)


class _Held:
    """One descriptor of a file that is counted; given up with `finish`."""

    __slots__ = ("_file", "_space")

    def __init__(self, space: CacheSpace, file: File) -> None:
        self._space = space
        self._file = file

    def finish(self, fd: int, *, wait: bool) -> None:
        """Close the file and give back what it took; not `wait`: without taking long."""
        if wait:
            self._close(fd)
        elif not self._space.try_close(self._file, fd):
            self._space.closer.run(functools.partial(self._close, fd))

    def _close(self, fd: int) -> None:
        os.close(fd)
        self._space.release(self._file)


def _quarantine_bound(max_bytes: int) -> int:
    return min(_QUARANTINE_MAX, max_bytes // 10)


@contextmanager
def _temporary_folder() -> Iterator[int]:
    fd = os.open(tempfile.gettempdir(), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
