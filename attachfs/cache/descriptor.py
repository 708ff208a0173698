"""Open descriptors of cached blobs, shared by their readers."""

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

from attachfs.cache.files import Stamp, stamp_of, translate


class Descriptor:
    """A file descriptor that is closed when its last user is done, however early its owner lets go.

    Closed any earlier, its number could be another file's by the time a slow thread writes to it.
    """

    __slots__ = ("_closed", "_lock", "_on_close", "_users", "fd")

    def __init__(self, fd: int, on_close: Callable[[], None]) -> None:
        self.fd = fd
        self._on_close = on_close
        self._users = 0
        self._closed = False
        self._lock = threading.Lock()

    @contextmanager
    def use(self) -> Iterator[int]:
        """Give the descriptor, and keep it open while the block runs. OSError: it is closed."""
        with self._lock:
            if self._closed:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            self._users += 1
        try:
            yield self.fd
        finally:
            with self._lock:
                self._users -= 1
                last = self._is_over()
            if last:
                self._finish()

    def close(self) -> None:
        """Close the file now, or when its last user is done. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            last = self._is_over()
        if last:
            self._finish()

    def pread(self, length: int, offset: int) -> bytes:
        """Read up to `length` bytes at `offset`.

        Raises:
            Unexpected: the disk failed, or the file is closed.
        """
        try:
            with self.use() as fd:
                return os.pread(fd, length, offset)
        except OSError as error:
            raise translate(error, "cannot read from the cache") from error

    def _is_over(self) -> bool:
        return self._closed and not self._users

    def _finish(self) -> None:
        fd, self.fd = self.fd, -1
        os.close(fd)
        self._on_close()


class CachedBlob:
    """An open file of verified bytes (or, from `Writer.dup_reader`, of bytes still arriving).

    `fd` is good until `close`; `pread` also for threads that may still be at it when somebody closes.

    Args:
        size: length in bytes.
        descriptor: is closed with this.
        stamp: the state in which the bytes were found right; None: they are still arriving.
    """

    def __init__(self, size: int, descriptor: Descriptor, stamp: Stamp | None = None) -> None:
        self.size = size
        self._descriptor = descriptor
        self._stamp = stamp

    @property
    def fd(self) -> int:
        """The descriptor, -1 when closed."""
        return self._descriptor.fd

    def unchanged(self) -> bool:
        """Whether inode, size and time of last change are those in which the bytes were found right."""
        try:
            with self._descriptor.use() as fd:
                return stamp_of(os.fstat(fd)) == self._stamp
        except OSError:
            return False

    def pread(self, length: int, offset: int) -> bytes:
        """Read up to `length` bytes at `offset`.

        Raises:
            Unexpected: the disk failed, or the blob is closed.
        """
        return self._descriptor.pread(length, offset)

    def close(self) -> None:
        """Close the file and give back what an unlinked one took. Idempotent."""
        self._descriptor.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
