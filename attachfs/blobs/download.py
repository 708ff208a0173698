"""One download of one blob: received, and stored as it comes; readers may follow it.

Lives here and only here: when a follower may read. Bytes become readable as they are stored, or ahead of that
(range_reads.py), except one part, the last at first (withholding.py), which is withheld until the digest of
the whole is right. So no program can read a wrong blob to its end without an error.

And here alone: what becomes of a download that nobody follows any more. It stops a little later, and what
came rests, with the state of its hash, for somebody who wants more of it.
"""

import logging
import math
from collections.abc import Callable
from queue import SimpleQueue
from typing import NamedTuple, Protocol

import trio

from attachfs.blobs.range_reads import RangeReadContext, RangeReads
from attachfs.blobs.receiver import Receiver
from attachfs.blobs.source import BlobSource, Chunk
from attachfs.blobs.withholding import WITHHELD, ServedBlocks
from attachfs.cache.disk_cache import CachedBlob, Writer
from attachfs.errors import AttachfsError, IntegrityError, NoRoom, Unexpected, first_of
from attachfs.model import AttachmentRef, Digest

__all__ = ["NO_PAUSE", "WITHHELD", "Download", "PausePolicy"]

log = logging.getLogger(__name__)

_BACKLOG = 4 * 2**20  # bytes received and not stored yet, above which the service has to wait
_SMALL = 2**20  # bytes of a blob that is stored in one go, where nobody may read it before


class Shelf(Protocol):
    """Where a download's bytes go, and what is noted of them."""

    async def room(self) -> Writer:
        """Return where the bytes go, having made room if need be."""
        ...

    def room_now(self) -> Writer:
        """Return where the bytes go. Called in a thread. NoRoom: room has to be made."""
        ...

    def spill(self) -> Writer:
        """Return where the bytes go if that fails on the way. Called in a thread."""
        ...

    def pin(self) -> None:
        """Note what has been verified for the attachment that is fetched. Called in a thread."""
        ...

    async def settle(self) -> None:
        """Note it for every attachment read through this, before the last bytes are handed out."""
        ...

    async def in_thread(self, work: Callable[[], None]) -> None:
        """Do something with the disk."""
        ...


class PausePolicy(NamedTuple):
    """What becomes of a download that nobody follows any more.

    Programs that look what a file is read its first bytes and close it, several in a row do: the download
    of a large file need not go on for them, and need not begin anew for the next one.
    """

    more: int = 2**20  # bytes that may still come
    within: float = 2.0  # seconds in which they may
    keep: float = 60.0  # seconds for which what came is kept


NO_PAUSE = PausePolicy(0, 0, 0)


class Download:
    """A download under way, or just ended.

    Args:
        ref: the attachment that is fetched.
        expected: its recorded digest; None: nobody vouches for the bytes, and none is withheld.
        size: its recorded length in bytes.
        leaving: when it stops once nobody follows it, and for how long what came is kept.
        followed: whether somebody may read before all is verified.
        handed: what was handed out of the blob by earlier downloads.
        ahead: who can be asked for parts ahead of the stream.
    """

    def __init__(
        self,
        ref: AttachmentRef,
        expected: Digest | None,
        size: int,
        leaving: PausePolicy = NO_PAUSE,
        *,
        followed: bool = True,
        handed: ServedBlocks | None = None,
        ahead: RangeReadContext | None = None,
    ) -> None:
        self.ref = ref
        self.expected = expected
        self.size = size
        self.verified = False
        self.refs: set[AttachmentRef] = {ref}  # all attachments that are read through it
        self.error: AttachfsError | None = None
        self.contradicted = False  # the whole is right, and something else was handed out ahead of it
        vouched = expected is not None
        self.handed = handed or ServedBlocks(size, withholding=vouched)
        self._jumps = RangeReads(ref, size, self.handed, ahead, self._tick, compared=vouched)
        self._offered = None if followed else expected  # nobody reads before all is verified
        self._in_one_go = self._offered is not None and size <= _SMALL
        self.intake = Receiver(ref, expected, size)
        self._received = 0  # bytes handed to the thread that stores them, and those it is done with
        self._stored = 0
        self._cached: CachedBlob | None = None
        self._followers = 0
        self.abandoned = False  # nobody followed it any more: it must not be joined again
        self.stopped = False  # because nobody followed it; it may run again
        self.resting_since: float | None = None  # None: it runs, or has ended
        self._leaving = leaving
        self._stop_at = math.inf  # bytes stored; does not count while there are followers
        self._wanted = trio.Event()  # somebody waits for more than is there
        self._landed = False
        self._scope = trio.CancelScope()
        self._progress = trio.Event()

    # -- followers ---------------------------------------------------------------------------------

    def join(self) -> None:
        """Count a follower."""
        self._followers += 1
        self._scope.deadline = math.inf

    def leave(self) -> None:
        """Take a follower back; a download that nobody follows stops."""
        self._followers -= 1
        if self._followers:
            return
        self._jumps.rest()
        if self._leaving == NO_PAUSE:
            self.abandoned = True
            self._scope.cancel()
        elif self.resting_since is not None:
            self._scope.deadline = trio.current_time() + self._leaving.keep
        elif self.written < self.size:  # else only the verdict is missing
            self._stop_at = self.written + self._leaving.more
            self._scope.deadline = trio.current_time() + self._leaving.within
        self._close_if_idle()

    @property
    def written(self) -> int:
        """How many bytes are stored, from 0 on, in order."""
        return self.intake.written

    def pread_nowait(self, length: int, offset: int, buffer: bytearray | None = None) -> bytes | None:
        """Return stored bytes as `CachedBlob.pread_nowait` does."""
        assert self.intake.reader is not None
        return self.intake.reader.pread_nowait(length, offset, buffer)

    def pread(self, length: int, offset: int) -> bytes:
        """Return stored bytes. May wait for the disk."""
        while True:
            reader = self.intake.reader
            assert reader is not None
            try:
                return reader.pread(length, offset)
            except Unexpected:
                if reader is self.intake.reader:
                    raise  # else the bytes have just moved to a temporary file

    @property
    def kept(self) -> CachedBlob | None:
        """The blob that this became, None before it has been verified."""
        return self._cached if self.verified else None

    @property
    def followed(self) -> bool:
        """Whether somebody has it open."""
        return self._followers > 0

    def may_read(self, end: int) -> bool:
        """Whether the bytes before `end` could be handed out in order."""
        return self.verified or (end <= self.written and end <= self.handed.limit)

    def grant(self, offset: int, end: int) -> bool:
        """Hand out what is stored; False: it is not, or has to be withheld."""
        return self.verified or (end <= self.written and self.handed.in_order(offset, end))

    async def obtain(self, offset: int, end: int) -> bytes | None:
        """Wait until the bytes are handed out. None: as what is stored; else they came ahead of that.

        Raises:
            AttachfsError: they never will.
        """
        if self.error is None and self.grant(offset, end):
            return None
        with self._jumps.wish(offset, end) as wish:
            while self.error is None:
                if self.grant(offset, end):
                    return None
                data = self._jumps.take(wish)
                if data is not None:
                    return data
                self._wanted.set()
                with trio.move_on_after(self._jumps.ask(wish, self.written)):
                    await self._progress.wait()
        raise self.error.with_traceback(None)

    async def reach(self, end: int) -> None:
        """Wait until the bytes before `end` could be handed out in order.

        Raises:
            AttachfsError: they never will.
        """
        while self.error is None and not self.may_read(end):
            self._wanted.set()
            await self._progress.wait()
        if self.error is not None:
            raise self.error.with_traceback(None)

    async def finished(self) -> None:
        """Wait until all bytes are there and verified.

        Raises:
            AttachfsError: they could not be had, or are wrong.
        """
        await self.reach(self.size + 1)

    # -- the download ------------------------------------------------------------------------------

    async def run(self, shelf: Shelf, source: BlobSource) -> None:
        """Fetch, verify and admit. Never raises: followers find the outcome here.

        Afterwards it may be `stopped`: then call `rest`, and this again if somebody wants more.

        Args:
            shelf: where the bytes go.
            source: returns the bytes.
        """
        self.stopped = False
        try:
            with self._scope:
                if self._in_one_go:
                    await self._fetch_in_one_go(shelf, source)
                else:
                    await self._fetch(shelf, source)
                wrong = await self._compare()
                # Last, and without a wait after it: who joined meanwhile is pinned as well.
                await shelf.settle()
                self.error, self.contradicted = wrong, wrong is not None
                # Nobody vouches for bytes without a recorded digest.
                self.verified = self.expected is not None and wrong is None
        except* Exception as group:
            error = first_of(group)
            if not isinstance(error, AttachfsError):
                log.exception("%s: the download failed for a reason of its own", self.ref.path)
                error = Unexpected(f"{self.ref.path}: {type(error).__name__}: see the log")
            self.error = error
        finally:
            self.stopped = self._scope.cancelled_caught and not (self.error or self._cached or self.abandoned)
            if not self.stopped:
                self._jumps.close()
                if self._cached is None:
                    self._give_up()

    async def rest(self, *, keep: bool) -> bool:
        """Keep what came before the download was stopped. Return whether it is to run again.

        If nobody wants more of it in time, or it is dismissed, or not to be kept, it is given up.
        """
        again = False
        try:
            again = bool(self._followers) or self.written == self.size or (keep and await self._rest())
        finally:
            self.resting_since = None
            if not again:
                self.abandoned = True
                self._give_up()
        self._scope = trio.CancelScope()
        if not self._followers and self.written < self.size:  # who wanted more has left again
            self._scope.deadline = trio.current_time() + self._leaving.within
        return again

    def dismiss(self) -> None:
        """Give up what rests and is not followed, and its room, at once."""
        self.abandoned = True
        self.resting_since = None
        self._give_up()
        self._close()
        self._scope.cancel()

    @property
    def worth_keeping(self) -> bool:
        """Whether nobody follows it, something came, its digest is recorded, and it is no spill."""
        if self._followers or self.expected is None or not self.written:
            return False
        return self.intake.begun and not self.intake.spilled

    @property
    def dismissable(self) -> bool:
        """Whether it rests and nobody follows it."""
        return self.resting_since is not None and not self._followers

    async def _rest(self) -> bool:
        self._wanted = trio.Event()
        self.resting_since = trio.current_time()
        while True:
            with trio.CancelScope() as self._scope:
                if not self._followers:
                    self._scope.deadline = trio.current_time() + self._leaving.keep
                await self._wanted.wait()
            if self._wanted.is_set() or not self._followers:
                return self._wanted.is_set() and not self.abandoned

    def _give_up(self) -> None:
        self.error = self.error or Unexpected(f"{self.ref.path}: the download was given up")
        self.intake.abort()

    def landed(self) -> None:
        """Tell followers that there is an outcome. Its owner calls it once it is out of every table."""
        self._landed = True
        self._tick()
        self._close_if_idle()

    # -- small blobs that nobody may read before all is there ---------------------------------------------

    async def _fetch_in_one_go(self, shelf: Shelf, source: BlobSource) -> None:
        """Receive all, and then do all that is to be done with the disk in one thread."""
        async with source.download(self.ref, self.size, digest=self._offered) as chunks:
            pieces = [chunk async for chunk in chunks]
        self._scope.deadline = math.inf

        def store() -> None:
            if not self.intake.begun:
                self.intake.begin(shelf.room_now())
            for piece in pieces:
                self._put(piece, shelf)
            self._cached = self.intake.conclude(shelf.spill)
            shelf.pin()

        try:
            await shelf.in_thread(store)
        except NoRoom:
            if self.intake.begun:
                raise
            self.intake.begin(await shelf.room())
            await shelf.in_thread(store)

    # -- all others ----------------------------------------------------------------------------------------

    async def _fetch(self, shelf: Shelf, source: BlobSource) -> None:
        """Receive and store side by side, then come to a verdict."""
        if not self.intake.begun:
            self.intake.begin(await shelf.room())
        pieces = SimpleQueue[Chunk | None]()
        async with (
            source.download(self.ref, self.size, start=self.written, digest=self._offered) as chunks,
            trio.open_nursery() as nursery,
        ):
            self._jumps.beside(chunks)
            nursery.start_soon(self._store_in_thread, pieces, shelf)
            try:
                async for chunk in chunks:
                    self._received += len(chunk.data)
                    self._jumps.came(len(chunk.data))
                    pieces.put(chunk)
                    while self._received - self._stored > _BACKLOG:
                        await self._progress.wait()
            finally:
                pieces.put(None)
        self._scope.deadline = math.inf

        def conclude() -> None:
            self._cached = self.intake.conclude(shelf.spill)

        await shelf.in_thread(conclude)

    async def _compare(self) -> IntegrityError | None:
        """Compare what was handed out ahead of the stream with the whole, which has been found right.

        Returns:
            If it was something else, what those who follow are to be told instead of reading on.
        """
        self._jumps.close()
        if self._cached is None or not self._jumps.digests:
            return None
        wrong = await trio.to_thread.run_sync(self._jumps.differing, self._cached.pread)
        if wrong is None:
            return None
        reason = f"{self.ref.path}: what was read ahead from byte {wrong} on differs from the verified whole"
        log.warning("%s: whoever has it open can read no more of it", reason)
        return IntegrityError(reason)

    async def _store_in_thread(self, pieces: SimpleQueue[Chunk | None], shelf: Shelf) -> None:
        """Hash and write what comes, as long as it comes."""
        tell = trio.lowlevel.current_trio_token().run_sync_soon

        def store() -> None:
            while (piece := pieces.get()) is not None:
                self._put(piece, shelf)
                self._stored += len(piece.data)
                tell(self._have_stored, idempotent=True)

        # A thread of its own: it may wait for the service as long as the transfer takes.
        await trio.to_thread.run_sync(store, limiter=trio.CapacityLimiter(1))

    def _put(self, piece: Chunk, shelf: Shelf) -> None:
        if piece.discards:
            if self._offered is None:  # somebody may have read what would be void
                raise Unexpected(f"{self.ref.path}: its source took back what it had sent")
            self.intake.restart()
        self.intake.put(piece.data, piece.offset, shelf.spill)

    def _have_stored(self) -> None:
        self._tick()
        if not self._followers and self._stop_at <= self.written < self.size:
            self._scope.cancel()

    def _tick(self) -> None:
        progress, self._progress = self._progress, trio.Event()
        progress.set()

    def _close_if_idle(self) -> None:
        if not self._followers and self._landed:
            self._close()

    def _close(self) -> None:
        if self.intake.reader is not None:
            self.intake.reader.close_soon()
        if self._cached is not None:
            self._cached.close_soon()
            self._cached = None
