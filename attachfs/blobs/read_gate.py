"""Which bytes of a download may be read, and when.

Invariant: before verification some block W was served to nobody. `ServedBlocks` (withholding.py) keeps it for
all ways on which bytes leave a download, and there are two: as they are stored, in order; and ahead of that,
as parts that were requested by themselves (range_reads.py). So no program can read a wrong blob to its end
without an error, and the kernel, which keeps what it is given, never has all of it.
"""

from collections.abc import Callable

import trio

from attachfs.blobs.range_reads import RangeReadContext, RangeReads
from attachfs.blobs.staged_blob import StagedBlob
from attachfs.blobs.withholding import ServedBlocks
from attachfs.errors import AttachfsError, IntegrityError
from attachfs.model import AttachmentRef


class ReadGate:
    """Lets readers of a download wait for its bytes, and serves them once that is allowed.

    Args:
        ref: the attachment that is downloaded.
        size: its recorded length in bytes.
        staged: what has come.
        served: what was served of the blob before it was verified, by earlier downloads too.
        context: where parts come from ahead of the stream; None: nowhere.
        compared: whether what was served ahead will be compared with the whole.
    """

    def __init__(
        self,
        ref: AttachmentRef,
        size: int,
        staged: StagedBlob,
        served: ServedBlocks,
        context: RangeReadContext | None,
        *,
        compared: bool,
    ) -> None:
        self._ref = ref
        self._size = size
        self._staged = staged
        self.served = served
        self.range_reads = RangeReads(ref, size, served, context, self.notify, compared=compared)
        self.verified = False
        self.error: AttachfsError | None = None
        self._progress = trio.Event()

    def notify(self) -> None:
        """Have everybody who waits look again."""
        progress, self._progress = self._progress, trio.Event()
        progress.set()

    async def progress(self) -> None:
        """Wait until something has changed."""
        await self._progress.wait()

    def can_serve(self, end: int) -> bool:
        """Whether the bytes before `end` could be served in order."""
        return self.verified or (end <= self._staged.written and end <= self.served.limit)

    def try_serve(self, offset: int, end: int) -> bool:
        """Serve what is stored; False: it is not, or has to be withheld."""
        return self.verified or (end <= self._staged.written and self.served.allow_sequential(offset, end))

    async def read_when_ready(self, offset: int, end: int, want_more: Callable[[], None]) -> bytes | None:
        """Wait until the bytes are served. None: as what is stored; else they came ahead of that.

        Raises:
            AttachfsError: they never will be.
        """
        if self.error is None and self.try_serve(offset, end):
            return None
        with self.range_reads.pending(offset, end) as read:
            while self.error is None:
                if self.try_serve(offset, end):
                    return None
                data = self.range_reads.try_serve(read)
                if data is not None:
                    return data
                want_more()
                with trio.move_on_after(self.range_reads.request(read, self._staged.written)):
                    await self._progress.wait()
        raise self.error.with_traceback(None)

    async def wait_until(self, end: int, want_more: Callable[[], None]) -> None:
        """Wait until the bytes before `end` could be served in order.

        Raises:
            AttachfsError: they never will be.
        """
        while self.error is None and not self.can_serve(end):
            want_more()
            await self._progress.wait()
        if self.error is not None:
            raise self.error.with_traceback(None)

    def mismatch(self, read: Callable[[int, int], bytes]) -> IntegrityError | None:
        """Compare what was served ahead of the stream with the whole, which was found right. In a thread.

        Args:
            read: returns so many bytes of the whole, from an offset on.

        Returns:
            What readers get instead of reading on, if something else was served.
        """
        differs_at = self.range_reads.buffer.first_difference(read)
        if differs_at is None:
            return None
        reason = (
            f"{self._ref.path}: what was read ahead from byte {differs_at} on differs from the verified whole"
        )
        return IntegrityError(reason)
