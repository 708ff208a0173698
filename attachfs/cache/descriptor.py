"""Open descriptors of cached blobs, shared by their readers."""

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, Self, cast

from attachfs.cache.files import Stamp, stamp_of, translate


class Descriptor:
    """A file descriptor that is closed when its last user is done, however early its owner lets go.

    Closed any earlier, its number could be another file's by the time a slow thread writes to it.
    """

    __slots__ = ("_closed", "_lock", "_owner", "_users", "fd")

    def __init__(self, fd: int, owner: "Owner | None" = None) -> None:
        self.fd = fd
        self._owner = owner
        self._users = 0
        self._closed = False
        self._lock = threading.Lock()

    @contextmanager
    def use(self) -> Iterator[int]:
        """Give the descriptor, and keep it open while the block runs. OSError: it is closed."""
        if not self.acquire():
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        try:
            yield self.fd
        finally:
            self.release()

    def acquire(self) -> bool:
        """Keep the file open until `release`, as `use` does; False: it is closed."""
        with self._lock:
            if self._closed:
                return False
            self._users += 1
            return True

    def release(self, *, wait: bool = True) -> None:
        """Take `acquire` back. Not `wait`: what may take long is left to another thread."""
        with self._lock:
            self._users -= 1
            last = self._closed and not self._users
        if last:
            self._finish(wait=wait)

    def close(self, *, wait: bool = True) -> None:
        """Close the file now, or when its last user is done. Idempotent.

        Not `wait`: what may take long (giving back what a removed file took, or waiting for the cache's lock)
        is left to another thread.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            last = not self._users
        if last:
            self._finish(wait=wait)

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

    def _finish(self, *, wait: bool) -> None:
        fd, self.fd = self.fd, -1
        if self._owner is None:
            os.close(fd)
        else:
            self._owner.finish(fd, wait=wait)


class Owner(Protocol):
    """Who counts what an open file takes."""

    def finish(self, fd: int, *, wait: bool) -> None:
        """Close the file and give back what it took; not `wait`: without taking long."""
        ...


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
        if not self._descriptor.acquire():
            return False
        try:
            return stamp_of(os.fstat(self._descriptor.fd)) == self._stamp
        except OSError:
            return False
        finally:
            self._descriptor.release(wait=False)

    def pread(self, length: int, offset: int) -> bytes:
        """Read up to `length` bytes at `offset`.

        Raises:
            Unexpected: the disk failed, or the blob is closed.
        """
        return self._descriptor.pread(length, offset)

    def pread_nowait(self, length: int, offset: int, buffer: bytearray | None = None) -> bytes | None:
        """Return `length` bytes at `offset` if the page cache has them all, None if the disk must be asked.

        They are in `buffer`, until it is used again, if that is large enough. A closed blob: None as well.
        """
        if not self._descriptor.acquire():
            return None
        view = memoryview(bytearray(length) if buffer is None or len(buffer) < length else buffer)[:length]
        try:
            count = os.preadv(self._descriptor.fd, [view], offset, os.RWF_NOWAIT)
        except OSError:  # not in the page cache, or a filesystem that cannot tell
            return None
        finally:
            self._descriptor.release(wait=False)
        # What takes it wants a buffer, and a copy into bytes would cost as much as the read.
        return cast("bytes", view) if count == length else None

    def close(self) -> None:
        """Close the file and give back what an unlinked one took. Idempotent. May take long."""
        self._descriptor.close()

    def close_soon(self) -> None:
        """Close the file without taking long, whatever it is; for the event loop. Idempotent."""
        self._descriptor.close(wait=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
