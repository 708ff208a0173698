"""The cache's directory itself: made, checked, locked, and found again after somebody has deleted it.

What lies in it is reached through `below` only, from an open descriptor and through no symbolic link.
The names of temporary files are given here, and what an earlier run left of them is removed here.
"""

import errno
import fcntl
import itertools
import os
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from attachfs.cache import files, lock_file
from attachfs.errors import AttachfsError, UsageError

# What makes a directory one that can at best be read; other errors mean that it is none.
DEGRADED = frozenset({errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT, errno.EIO})

_VERSION_TEXT = "attachfs cache 1\n"
_OWN_NAMES = {"VERSION", "VERSION.new", "lock", "blobs", "tmp", "quarantine", "lost+found"}


class CacheDir:
    """The directory at `root`. One caller at a time attaches and detaches; `below` is for everybody.

    Args:
        root: where; it may be reached through symbolic links, but holds none of ours.
        warn: called with what is wrong but can be lived with, as (kind, sentence).
    """

    def __init__(self, root: Path, warn: Callable[[str, str], None]) -> None:
        self.root = Path(os.path.realpath(root))
        self.writable = False
        self.exclusive = True
        self.closed = False
        self._warn = warn
        self._root_fd = -1
        self._lock_fd = -1
        self._number = threading.Lock()  # held while the number of _root_fd is used or changed
        self._owner = ""
        self._run = secrets.token_hex(4)
        self._serial = itertools.count()

    def attach(self, owner: str, *, exclusive: bool) -> None:
        """Make or check the directory; where `exclusive`, take its lock, on which `owner` says who has it.

        Raises:
            UsageError: the directory is not ours to use, a newer version's, or held by another process.
            OSError: it cannot be had at all. One that cannot be written is attached, and not `writable`.
        """
        self._owner, self.exclusive, self.closed = owner, exclusive, False
        self.attach_again()

    def attach_again(self) -> None:
        """Attach if the directory has been deleted meanwhile, or could not be written; else do nothing.

        Raises:
            UsageError, OSError: as `attach`; the directory is then detached.
        """
        if self._root_fd >= 0:
            with suppress(FileNotFoundError):
                if _identity(self.root.lstat()) == self.identity():
                    if self.writable:
                        return
                    self._let_go()
            if self._root_fd >= 0:
                self._warn("deleted", f"the cache directory {self.root} was deleted or replaced")
                self._let_go()
        if self.closed:
            raise FileNotFoundError(errno.ENOENT, "the cache is closed")
        if self.exclusive:
            self.root.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):
                self.root.mkdir(mode=files.DIR_MODE)
        self._root_fd = files.open_root(str(self.root))
        try:
            self._prepare()
            self.writable = True
        except OSError as error:
            if error.errno not in DEGRADED:
                self._let_go()
                raise
            reason = f"cannot be written ({error.strerror}): only read for now"
            self._warn("directory", f"the cache directory {self.root} {reason}")
        except AttachfsError:
            self._let_go()
            raise

    def detach(self) -> None:
        """Give up the lock, for good."""
        self.closed = True
        self._let_go()

    def identity(self) -> tuple[int, int] | None:
        """Return what tells this directory from another that takes its place: device and inode."""
        return _identity(os.fstat(self._root_fd)) if self._root_fd >= 0 else None

    @contextmanager
    def below(self, *names: str, create: bool = False) -> Iterator[int]:
        """Open a folder of the cache while the block runs."""
        with self._number:
            if self._root_fd < 0:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.root))
            fd = self._open_below(names, create=create)
        try:
            yield fd
        finally:
            os.close(fd)

    def _open_below(self, names: tuple[str, ...], *, create: bool) -> int:
        if not names:
            return os.dup(self._root_fd)
        try:
            return files.open_folder(self._root_fd, names)
        except FileNotFoundError:
            if not create:
                raise
            return files.descend(os.dup(self._root_fd), names, create=True)

    def statvfs(self) -> os.statvfs_result:
        """Return how full the directory's filesystem is."""
        with self._number:
            if self._root_fd < 0:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.root))
            return os.fstatvfs(self._root_fd)

    def temporary_name(self) -> str:
        """Return a name for a file in tmp/ that no other file has."""
        return f"{self._run}-{next(self._serial)}"

    def remove_temporary(self, name: str) -> None:
        """Remove a file in tmp/, if that can be done."""
        with suppress(OSError), self.below("tmp") as tmp_fd:
            os.unlink(name, dir_fd=tmp_fd)

    def sweep(self) -> None:
        """Remove what an earlier run left in tmp/; foreign folders stay.

        Raises:
            OSError: tmp/ cannot be listed.
        """
        with suppress(FileNotFoundError), self.below("tmp") as tmp_fd:
            for name in files.names(tmp_fd):
                if name.startswith(f"{self._run}-"):
                    continue
                try:
                    os.unlink(name, dir_fd=tmp_fd)
                except FileNotFoundError:
                    pass
                except OSError as error:
                    text = f"{name!a} in the cache's tmp/ cannot be removed: {error.strerror}"
                    self._warn("sweep", text)

    def _prepare(self) -> None:
        self._check_root()
        if self.exclusive:
            self._take_lock()
        self._check_version()
        if self.exclusive:
            for name in ("blobs", "tmp", "quarantine"):
                with files.folder(self._root_fd, name, create=True):
                    pass

    def _check_root(self) -> None:
        st = os.fstat(self._root_fd)
        if st.st_uid != os.geteuid():
            raise UsageError(
                f"the cache directory {self.root} belongs to user {st.st_uid}: "
                f"choose another with --cache-dir"
            )
        names = set(files.names(self._root_fd))
        if "VERSION" not in names and not names <= _OWN_NAMES:
            raise UsageError(
                f"the directory {self.root} holds other files and no cache: choose another with --cache-dir"
            )
        if st.st_mode & 0o022 and names:
            raise UsageError(
                f"the cache directory {self.root} can be written by others: "
                f"'chmod 700' it, or choose another with --cache-dir"
            )
        if st.st_mode & 0o077:
            os.fchmod(self._root_fd, files.DIR_MODE)

    def _check_version(self) -> None:
        try:
            fd = files.open_read("VERSION", self._root_fd)
        except FileNotFoundError:
            if not self.exclusive:
                raise UsageError(f"there is no cache in {self.root}") from None
            with suppress(FileNotFoundError):
                os.unlink("VERSION.new", dir_fd=self._root_fd)
            fd = files.create("VERSION.new", self._root_fd)
            try:
                files.write_all(fd, _VERSION_TEXT.encode(), 0)
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
            fd = os.open("lock", flags, files.FILE_MODE, dir_fd=self._root_fd)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                with suppress(FileNotFoundError):
                    named = os.stat("lock", dir_fd=self._root_fd, follow_symlinks=False)
                    if named.st_ino == os.fstat(fd).st_ino:
                        os.ftruncate(fd, 0)
                        files.write_all(fd, lock_file.text_of(self._owner).encode(), 0)
                        self._lock_fd = fd
                        return
            except BlockingIOError:
                found = lock_file.parse(os.pread(fd, 4096, 0).decode("utf-8", "replace"))
                os.close(fd)
                who = f"process {found.pid} ({found.doing})" if found else "a process that has just begun"
                raise UsageError(
                    f"the cache directory {self.root} is in use by {who}: choose another with --cache-dir"
                ) from None
            except OSError:
                os.close(fd)
                raise
            os.close(fd)
        raise UsageError(f"the lock in {self.root} keeps being replaced: choose another with --cache-dir")

    def _let_go(self) -> None:
        with self._number:
            fds = self._root_fd, self._lock_fd
            self._root_fd = self._lock_fd = -1
        for fd in fds:
            if fd >= 0:
                os.close(fd)
        self.writable = False


def _identity(st: os.stat_result) -> tuple[int, int]:
    return st.st_dev, st.st_ino
