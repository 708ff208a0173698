"""A bag's directory, which anybody may have made: nothing leads out of it, nothing is read unbounded.

Every component of a path is opened by itself and without following links (openat(2), `O_NOFOLLOW`), and only
regular files are read, so a pipe, a device or a socket is an error and nothing that waits for ever.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from attachfs.archive.layout import is_inside
from attachfs.errors import BadAnswer, NotFound, UsageError

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: opening a pipe would wait for its writer.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_DEEPEST = 64  # directories within each other; ours has five


class BagFolder:
    """The directory of a bag. Thread-safe.

    Args:
        root: the directory; may itself be reached through links.

    Raises:
        UsageError: it cannot be opened.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        try:
            self._fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise UsageError(f"{root} cannot be opened as a bag: {error.strerror}") from error

    def close(self) -> None:
        """Close the directory. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self, path: str) -> int:
        """Return a descriptor of a regular file.

        Raises:
            NotFound: there is none.
            BadAnswer: it, or a directory on the way, is a link, a pipe or anything else that is no file.
            OSError: it cannot be read.
        """
        with self._parent(path) as (parent, name):
            try:
                fd = os.open(name, _FILE, dir_fd=parent)
            except OSError as error:
                raise _translated(error, path) from error
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise BadAnswer(f"{path} in the bag is not a regular file")
        return fd

    def read(self, path: str, limit: int) -> bytes:
        """Return a file's content.

        Raises:
            NotFound, BadAnswer: as `open`, or it has more than `limit` bytes.
            OSError: it cannot be read.
        """
        with os.fdopen(self.open(path), "rb") as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise BadAnswer(f"{path} in the bag is larger than it can be ({limit:,} bytes at most)")
        return data

    def size(self, path: str) -> int:
        """Return a file's size. Raises as `open` does."""
        fd = self.open(path)
        try:
            return os.fstat(fd).st_size
        finally:
            os.close(fd)

    def names(self, path: str) -> list[tuple[str, bool]]:
        """Return the names in a directory, sorted, and whether each is a directory; [] if there is none.

        Raises:
            BadAnswer: the path leads through a link or a file.
            OSError: it cannot be read.
        """
        try:
            fd = self._directory(path)
        except NotFound:
            return []
        try:
            with os.scandir(fd) as entries:
                return sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
        finally:
            os.close(fd)

    def walk(self, path: str) -> Iterator[str]:
        """Yield the paths of everything below a directory that is no directory, sorted within each.

        Raises:
            BadAnswer, OSError: as `names`, or directories are nested beyond reason.
        """
        if path.count("/") > _DEEPEST:
            raise BadAnswer(f"{path[:100]!a}… in the bag is nested too deep")
        for name, is_directory in self.names(path):
            below = f"{path}/{name}"
            if is_directory:
                yield from self.walk(below)
            else:
                yield below

    @contextmanager
    def _parent(self, path: str) -> Iterator[tuple[int, str]]:
        if not is_inside(path):
            raise BadAnswer(f"{path!a} leads out of the bag")
        above, _, name = path.rpartition("/")
        fd = self._directory(above)
        try:
            yield fd, name
        finally:
            os.close(fd)

    def _directory(self, path: str) -> int:
        if path and not is_inside(path):
            raise BadAnswer(f"{path!a} leads out of the bag")
        fd = os.dup(self._fd)
        for name in path.split("/") if path else ():
            try:
                inner = os.open(name, _DIRECTORY, dir_fd=fd)
            except OSError as error:
                raise _translated(error, path) from error
            finally:
                with suppress(OSError):
                    os.close(fd)
            fd = inner
        return fd


def _translated(error: OSError, path: str) -> Exception:
    if error.errno == errno.ENOENT:
        return NotFound(f"{path} is not in the bag")
    if error.errno in (errno.ELOOP, errno.ENOTDIR):
        return BadAnswer(f"{path} in the bag is, or leads through, a link or a file in a directory's place")
    if error.errno == errno.ENXIO:
        return BadAnswer(f"{path} in the bag is not a regular file")
    return error
