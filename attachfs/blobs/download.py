"""One download of one blob: received, verified, and read by whoever has it open meanwhile.

    RECEIVING ──► VERIFYING ──► DONE
      ▲   │           │
      │   ▼           ▼
      PAUSED ──────► FAILED

RECEIVING becomes PAUSED when nobody reads any more, and goes on when somebody wants more. FAILED is also what
was given up, and a verified whole of which something else was served ahead of the stream.
"""

import enum
import logging
from collections.abc import Callable

import trio

from attachfs.blobs.range_reads import RangeReadContext
from attachfs.blobs.read_gate import ReadGate
from attachfs.blobs.readers import NO_PAUSE, PausePolicy, Readers
from attachfs.blobs.receiver import Receiver
from attachfs.blobs.source import BlobSource
from attachfs.blobs.staged_blob import StagedBlob
from attachfs.blobs.staging import Staging
from attachfs.blobs.withholding import WITHHELD, ServedBlocks
from attachfs.cache.disk_cache import CachedBlob
from attachfs.errors import AttachfsError, Unexpected, first_of
from attachfs.model import AttachmentRef, Digest

__all__ = ["NO_PAUSE", "WITHHELD", "Download", "PausePolicy", "State"]

log = logging.getLogger(__name__)


class State(enum.Enum):
    """Where a download is."""

    RECEIVING = "receiving"
    PAUSED = "paused"
    VERIFYING = "verifying"  # all of it has come
    DONE = "done"
    FAILED = "failed"


class Download:
    """A download under way, or just ended.

    Args:
        ref: the attachment that is fetched.
        expected: its recorded digest; None: nobody vouches for the bytes, and none is withheld.
        size: its recorded length in bytes.
        source: where the bytes come from.
        staging: where they go.
        policy: when it stops once nobody reads it, and for how long what came is kept.
        early_readers: whether somebody may read before all is verified.
        served: what was served of the blob by earlier downloads.
        context: where parts come from ahead of the stream; None: nowhere.
    """

    def __init__(
        self,
        ref: AttachmentRef,
        expected: Digest | None,
        size: int,
        source: BlobSource,
        staging: Staging,
        policy: PausePolicy = NO_PAUSE,
        *,
        early_readers: bool = True,
        served: ServedBlocks | None = None,
        context: RangeReadContext | None = None,
    ) -> None:
        self.ref = ref
        self.expected = expected
        self.size = size
        self.refs: set[AttachmentRef] = {ref}  # all attachments that are read through it
        self.state = State.RECEIVING
        self.served_bytes_mismatch = False  # the whole is right, and something else was served ahead of it
        self.ended = trio.Event()
        self._staging = staging
        vouched = expected is not None
        self.staged = StagedBlob(ref, expected, size)
        self._readers = Readers(policy)
        self.gate = ReadGate(
            ref,
            size,
            self.staged,
            served or ServedBlocks(size, withholding=vouched),
            context,
            compared=vouched,
        )
        self._receiver = Receiver(
            ref, expected, size, source, staging, self.staged, self.gate, early_readers=early_readers
        )
        self._cached: CachedBlob | None = None

    # -- readers -----------------------------------------------------------------------------------

    @property
    def verified(self) -> bool:
        """Whether every byte is known to be the recorded one."""
        return self.gate.verified

    @property
    def error(self) -> AttachfsError | None:
        """Why no more can be read."""
        return self.gate.error

    @property
    def joinable(self) -> bool:
        """Whether another reader may be added."""
        return not self._readers.cancelled

    @property
    def has_readers(self) -> bool:
        """Whether somebody has it open."""
        return self._readers.count > 0

    @property
    def kept(self) -> CachedBlob | None:
        """The blob that this became, None before it has been verified."""
        return self._cached if self.verified else None

    def acquire(self) -> None:
        """Count a reader."""
        self._readers.acquire()

    def release(self) -> None:
        """Take a reader back; a download that nobody reads stops."""
        if self._readers.release(self.staged.written, self.size):
            self.gate.range_reads.pause()
            self._close_if_idle()

    def pread_nowait(self, length: int, offset: int, buffer: bytearray | None = None) -> bytes | None:
        """Return stored bytes as `CachedBlob.pread_nowait` does."""
        assert self.staged.reader is not None
        return self.staged.reader.pread_nowait(length, offset, buffer)

    def pread(self, length: int, offset: int) -> bytes:
        """Return stored bytes. May wait for the disk."""
        while True:
            reader = self.staged.reader
            assert reader is not None
            try:
                return reader.pread(length, offset)
            except Unexpected:
                if reader is self.staged.reader:
                    raise  # else the bytes have just moved to a temporary file

    async def read_when_ready(self, offset: int, end: int) -> bytes | None:
        """Wait until the bytes are served. None: as what is stored; else they came ahead of that.

        Raises:
            AttachfsError: they never will be.
        """
        return await self.gate.read_when_ready(offset, end, self._readers.want_more)

    async def wait_until(self, end: int) -> None:
        """Wait until the bytes before `end` could be served in order.

        Raises:
            AttachfsError: they never will be.
        """
        await self.gate.wait_until(end, self._readers.want_more)

    async def finished(self) -> None:
        """Wait until all bytes are there and verified.

        Raises:
            AttachfsError: they could not be had, or are wrong.
        """
        await self.gate.wait_until(self.size + 1, self._readers.want_more)

    # -- its task ----------------------------------------------------------------------------------

    async def run(self, on_end: Callable[["Download"], None]) -> None:
        """Receive and verify, with pauses. Never raises: readers find the outcome here.

        Args:
            on_end: called before readers see the outcome, to take it out of every table.
        """
        try:
            while self.state not in (State.DONE, State.FAILED):
                self.state = State.RECEIVING
                with self._readers.attended(all_there=self.staged.written == self.size) as scope:
                    self._cached = await self._receiver.receive(self._on_stored, self._on_received)
                    await self._verified(self._cached)
                if not scope.cancelled_caught:
                    continue
                self.state = State.PAUSED
                if not await self._wanted_again():
                    self._fail(Unexpected(f"{self.ref.path}: the download was given up"))
        except* Exception as group:
            error = first_of(group)
            if not isinstance(error, AttachfsError):
                log.exception("%s: unexpected error in its download", self.ref.path)
                error = Unexpected(f"{self.ref.path}: {type(error).__name__}: see the log")
            self._fail(error)
        finally:
            if self.state is not State.DONE:  # cancelled, at the end of the mount
                self._fail(self.error or Unexpected(f"{self.ref.path}: the download was given up"))
            self.gate.range_reads.close()
            on_end(self)
            self.ended.set()
            self.gate.notify()
            self._close_if_idle()

    async def discard(self) -> None:
        """Have a paused download discard its data, and wait until its space is free."""
        self._readers.discard()
        await self.ended.wait()

    def discard_if_changed(self) -> bool:
        """Have it discard its data if it is paused, and its file was changed meanwhile. Whether it does."""
        if not self.discardable or self.staged.unchanged():
            return False
        log.warning("%s: what was kept of its download was changed on the disk", self.ref.path)
        self._readers.discard()
        return True

    @property
    def discardable(self) -> bool:
        """Whether nobody reads what is paused."""
        return self.state is State.PAUSED and not self._readers.count

    async def _verified(self, whole: CachedBlob) -> None:
        """Have the digest's verdict count for everybody who reads."""
        range_reads = self.gate.range_reads
        range_reads.close()
        wrong = None
        if range_reads.buffer.digests:
            wrong = await self._staging.in_thread(lambda: self.gate.mismatch(whole.pread))
        if self.expected is not None:
            await self._staging.pin_all(self.refs, self.expected, self.size)
        # No wait from here until it is out of the table: who joined meanwhile is pinned as well, and nobody
        # opens the whole beside somebody who was served something else.
        if wrong is not None:
            self.served_bytes_mismatch = True
            self._fail(wrong)
            log.warning("%s: programs that have it open can read no more of it", wrong.reason)
            return
        self.state = State.DONE
        self.gate.verified = self.expected is not None  # nobody vouches for bytes without a digest

    async def _wanted_again(self) -> bool:
        self._readers.clear_wanted()  # before the first wait: what is wanted from here on counts
        if self._readers.cancelled:
            return False
        if self._readers.count or self.staged.written == self.size:
            return True
        if not self.worth_keeping or not await self._staging.keep(self):
            return self._readers.count > 0
        self.staged.mark_paused()
        try:
            return await self._readers.wanted_again()
        finally:
            self._staging.drop_paused(self)

    @property
    def worth_keeping(self) -> bool:
        """Whether nobody reads it, something came, its digest is recorded, and it is no spill."""
        if self._readers.count or self.expected is None or not self.staged.written:
            return False
        return self.staged.begun and not self.staged.spilled

    def _fail(self, error: AttachfsError) -> None:
        self.state = State.FAILED
        self.gate.error = error
        self._readers.cancelled = True
        if self._cached is None:
            self.staged.abort()

    def _on_received(self) -> None:
        self.state = State.VERIFYING
        self._readers.keep_going()  # it is no longer worth stopping

    def _on_stored(self) -> None:
        self.gate.notify()
        self._readers.stored(self.staged.written, self.size)

    def _close_if_idle(self) -> None:
        if self._readers.count or not self.ended.is_set():
            return
        if self.staged.reader is not None:
            self.staged.reader.close_soon()
        if self._cached is not None:
            self._cached.close_soon()
            self._cached = None
