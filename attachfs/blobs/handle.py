"""One open file's bytes, as a program reads them: of a verified blob, or of a download that is followed.

Owns: that a read is exact, how it is answered without waiting, and how bytes that are on
the disk only are read ahead of a program that goes through them.
"""

import trio

from attachfs.background import TaskStarter
from attachfs.blobs.download import Download
from attachfs.cache.disk_cache import CachedBlob
from attachfs.errors import AttachfsError, IntegrityError, Unexpected
from attachfs.model import Digest

_IN_ORDER = 4  # reads, one after another, before anything is read ahead
_STEP = 2**20  # bytes read ahead at a time, and how far reads in order may overtake each other
_AHEAD = 8 * _STEP
_HANDS = 2  # threads that read ahead of one program
_READS = 16  # reads that wait for the disk at once, of all programs

_limits = trio.lowlevel.RunVar[trio.CapacityLimiter]("attachfs disk reads")


def _read_limit() -> trio.CapacityLimiter:
    """Return the limit of threads that read from the disk: of their own, so that requests keep theirs."""
    try:
        return _limits.get()
    except LookupError:
        limit = trio.CapacityLimiter(_READS)
        _limits.set(limit)
        return limit


class BlobHandle:
    """One open file's bytes.

    Args:
        path: for messages.
        size: length in bytes.
        source: the verified blob, or the download.
        digest: the recorded digest; None if nobody vouches for the bytes.
        nursery: where a verified blob is read ahead, if anywhere.
    """

    def __init__(
        self,
        path: str,
        size: int,
        source: CachedBlob | Download,
        digest: Digest | None = None,
        nursery: TaskStarter | None = None,
    ) -> None:
        self._path = path
        self.size = size
        self.digest = digest
        self._source = source
        self._closed = False
        self._ahead: _DiskReadahead | None = None
        if isinstance(source, Download):
            source.acquire()
        elif nursery is not None and size > _AHEAD:
            self._ahead = _DiskReadahead(source, nursery)

    @property
    def verified(self) -> bool:
        """Whether every byte is known to be the recorded one."""
        return isinstance(self._source, CachedBlob) or self._source.verified

    @property
    def intact(self) -> bool:
        """Whether all bytes are verified, and the file that has them has not been touched since."""
        blob = self._source.kept if isinstance(self._source, Download) else self._source
        return blob is not None and blob.unchanged()

    def read_nowait(self, offset: int, size: int, buffer: bytearray | None = None) -> bytes | None:
        """Return the bytes at `offset` if that needs neither the network nor the disk, else None.

        Args:
            offset, size: as `read` takes them.
            buffer: is used for the bytes, if it is large enough: they are good until it is used again.

        Raises:
            AttachfsError: the bytes turned out wrong, or could not be had.
        """
        end = min(offset + size, self.size)
        if offset >= end:
            return b""
        source = self._source
        if isinstance(source, Download):
            if source.error is not None:
                raise source.error.with_traceback(None)
            if not source.gate.try_serve(offset, end):
                return None
        data = source.pread_nowait(end - offset, offset, buffer)
        self._check()
        if self._ahead is not None:
            self._ahead.note(offset, end, missed=data is None)
        return data

    async def read(self, offset: int, size: int) -> bytes:
        """Return exactly the bytes in [offset, offset + size), cut at the end of the file.

        Waits for a download to come that far, or to bring them ahead of that, and for its verification where
        what is withheld is asked for.

        Raises:
            AttachfsError: the bytes turned out wrong, or could not be had.
        """
        end = min(offset + size, self.size)
        if offset >= end:
            return b""
        source = self._source
        data: bytes | None = None
        if isinstance(source, Download):
            data = await source.read_when_ready(offset, end)
            if data is None:
                # What has just been written is in the page cache: a thread would cost more than the read.
                data = source.pread_nowait(end - offset, offset)
        if data is None:
            data = await trio.to_thread.run_sync(source.pread, end - offset, offset, limiter=_read_limit())
        self._check()
        if len(data) != end - offset:
            raise Unexpected(f"{self._path}: the stored bytes end early; they were changed on the disk")
        return data

    async def complete(self) -> None:
        """Wait until all bytes are there and verified.

        Raises:
            AttachfsError: they turned out wrong, or could not be had.
        """
        if isinstance(self._source, Download):
            await self._source.finished()

    def close(self) -> None:
        """Let go of the bytes."""
        if self._closed:
            return
        self._closed = True
        if self._ahead is not None:
            self._ahead.stop()
        if isinstance(self._source, Download):
            self._source.release()
        else:
            self._source.close_soon()

    def _check(self) -> None:
        """Look, once they have been read, whether the bytes are still those that were verified."""
        blob = self._source.kept if isinstance(self._source, Download) else self._source
        if blob is not None and not blob.unchanged():
            raise IntegrityError(f"{self._path}: the cached bytes were changed on the disk while open")


class _DiskReadahead:
    """Has a blob read from the disk ahead of a program that goes through it and had to wait for it.

    The kernel reads ahead as well, but at most what is set for the disk, often 128 KiB; and what has just
    come from a disk is slow to copy, which a second processor can do in advance.

    Args:
        blob: is read; what was read is in the page cache, and dropped here.
        nursery: where that runs.
    """

    def __init__(self, blob: CachedBlob, nursery: TaskStarter) -> None:
        self._blob = blob
        self._nursery = nursery
        self._position = 0  # where the program is
        self._in_order = 0  # reads
        self._missed = False  # one of them had to wait: what lies ahead is likely to be on the disk as well
        self._until = 0  # up to where was read ahead
        self._active = False
        self._busy = 0

    def note(self, offset: int, end: int, *, missed: bool) -> None:
        """Take note of a read; `missed`: it has to wait for the disk."""
        if abs(offset - self._position) > _STEP:
            self._in_order, self._position, self._missed, self._active = 0, end, missed, False
            return
        self._in_order += 1
        self._position = max(self._position, end)
        self._missed |= missed
        if self._missed and not self._active and self._in_order >= _IN_ORDER:
            self._active, self._until = True, self._position
        self._go_on()

    def stop(self) -> None:
        """Read nothing more."""
        self._active = False

    def _go_on(self) -> None:
        while (
            self._active
            and self._busy < _HANDS
            and self._until < min(self._position + _AHEAD, self._blob.size)
        ):
            self._until = max(self._until, self._position)
            self._busy += 1
            self._nursery.start_soon(self._read, self._until)
            self._until += _STEP

    async def _read(self, offset: int) -> None:
        try:
            await trio.to_thread.run_sync(self._blob.pread, _STEP, offset, limiter=_read_limit())
        except AttachfsError:
            self._active = False  # closed, or a disk in trouble: whoever reads sees it
        finally:
            self._busy -= 1
        self._go_on()
