"""Appending to a custody log, by several processes and through rotation. Blocks on the disk.

A log is rotated by renaming it: the next line goes into a new file of the old name and continues the chain.
Somebody who comes when there is no file, or an empty one, finds the end of the chain in the file beside it
whose name begins alike and whose last line has the highest number (`custody.log.1`, `custody.log-20261125`).
"""

import errno
import fcntl
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from attachfs.custody import chain
from attachfs.custody.chain import End

_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_MODE = 0o600
_SIBLINGS = 100  # files beside the log that are looked at
_LONGEST = 4096  # characters of a text in a line
_TRIES = 10  # openings while others rotate


class CustodyLog:
    """A custody log that is open for appending. Thread-safe.

    Args:
        path: the file; made with mode 0600 if it is missing.
        now: the time of day.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """

    def __init__(self, path: Path, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.path = path
        self._now = now
        self._lock = threading.Lock()
        self._fd = -1
        self._end = chain.START
        self._size = -1  # of the file after our last line
        self._dirty = False
        self.follow()

    @property
    def end(self) -> End:
        """The end of the chain after the last line that was written or met here."""
        return self._end

    def append(self, fields: dict[str, Any]) -> None:
        """Write a line.

        Args:
            fields: what it says, beside its number, the time and the hashes.

        Raises:
            OSError: it cannot be written. Nothing, or the beginning of a line, is in the file then.
        """
        with self._lock, self._locked() as torn:
            time = self._now().isoformat(timespec="microseconds").replace("+00:00", "Z")
            shortened = {key: _short(value) for key, value in fields.items()}
            line = chain.encode({"time": time, **shortened}, self._end)
            data = (b"\n" if torn else b"") + line + b"\n"
            self._size = -1  # until it is written whole, the file is to be looked at again
            written = os.write(self._fd, data)
            if written != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._end = End(self._end.seq + 1, chain.digest(line))
            self._size = os.fstat(self._fd).st_size
            self._dirty = True

    def follow(self) -> None:
        """Go on in the new file if the log was renamed.

        Raises:
            OSError: it cannot be opened.
        """
        with self._lock, self._locked():
            pass

    def sync(self) -> None:
        """Bring what was written to the disk.

        Raises:
            OSError: that failed.
        """
        with self._lock:
            if not self._dirty:
                return
            self._dirty = False
            fd = os.dup(self._fd)
        try:
            os.fsync(fd)
        except OSError:
            self._dirty = True  # tried again
            raise
        finally:
            os.close(fd)

    def close(self) -> None:
        """Sync and close. Idempotent."""
        with suppress(OSError):
            self.sync()
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    @contextmanager
    def _locked(self) -> Iterator[bool]:
        """Hold the lock of the file of the log's name, `_end` being its end; yield whether that is torn."""
        for _ in range(_TRIES):
            if self._fd < 0:
                self._fd, self._size = _open(self.path), -1
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            try:
                if _is_at(self._fd, self.path):
                    yield self._find_end()
                    return
                self._close_rotated()
            finally:
                if self._fd >= 0:
                    fcntl.flock(self._fd, fcntl.LOCK_UN)
        raise OSError(errno.EBUSY, "it keeps being rotated")

    def _close_rotated(self) -> None:
        """Close a file that was rotated, knowing its end.

        Nobody adds to it any more: whoever has its lock looks first whether it still has the log's name. So
        its lock need not be held until the new file's is.
        """
        self._find_end()
        if self._dirty:
            os.fsync(self._fd)
            self._dirty = False
        os.close(self._fd)
        self._fd = -1

    def _find_end(self) -> bool:
        """Set `_end`, and return whether the file ends within a line."""
        size = os.fstat(self._fd).st_size
        if size == self._size:
            return False
        if size == 0:
            self._end = max(self._end, _end_beside(self.path))
            return False
        found = _end_of(self._fd, size)
        if found is None:
            raise OSError(errno.EINVAL, "it has other content than a custody log")
        self._end, open_ended = found
        return open_ended


def _open(path: Path) -> int:
    """Open a log; the file is made if it is missing."""
    fd = os.open(path, _FLAGS | os.O_CREAT, _MODE)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "it is not a regular file")
    return fd


def _is_at(fd: int, path: Path) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    ours = os.fstat(fd)
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)


def _end_of(fd: int, size: int) -> tuple[End, bool] | None:
    """Return the end of a file's chain, and whether the file ends within a line; None if it is no log."""
    start = max(0, size - 3 * chain.MAX_LINE)
    tail = os.pread(fd, size - start, start)
    open_ended = not tail.endswith(b"\n")
    lines = tail.removesuffix(b"\n").split(b"\n")
    last = chain.digest(lines[-1])
    if start:
        del lines[0]  # it begins somewhere before
    torn = int(open_ended)
    for behind, line in enumerate(reversed(lines[: len(lines) - torn]), torn):
        found = chain.parse(line)
        if found is not None:
            return End(found.seq + behind, last, torn=behind > 0), open_ended
    if not start and len(lines) == 1 and open_ended and lines[0][:7] == b'{"seq":'[: len(lines[0])]:
        return End(1, last, torn=True), True  # the very first line was cut off
    return None


def _end_beside(path: Path) -> End:
    """Return the end of the chain in the file before a new one; the start if there is none."""
    best = chain.START
    with suppress(OSError):
        names = sorted(entry.name for entry in os.scandir(path.parent) if entry.name.startswith(path.name))
        for name in names[:_SIBLINGS]:
            if name != path.name:
                with suppress(OSError):
                    best = max(best, _end_in(path.parent / name))
    return best


def _end_in(path: Path) -> End:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
        size = os.fstat(fd).st_size
        if not stat.S_ISREG(os.fstat(fd).st_mode) or not size:
            return chain.START
        found = _end_of(fd, size)
        return chain.START if found is None else found[0]
    finally:
        os.close(fd)


def _short(value: Any) -> Any:
    return value[:_LONGEST] if isinstance(value, str) else value
