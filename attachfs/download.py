"""One download of one blob: received, hashed and written in order; readers may follow it.

Lives here and only here: how far a follower may read. Bytes become readable as they are stored, except
the last part, which is withheld until the digest of the whole is right. So no program can read a wrong
blob to its end without an error.

And here alone: what becomes of a download that nobody follows any more. It stops a little later, and what
came rests, with the state of its hash, for somebody who wants more of it.
"""

import hashlib
import logging
import math
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple, Protocol, cast

import trio

from attachfs.cache import CachedBlob, Writer
from attachfs.errors import AttachfsError, BadAnswer, IntegrityError, NoRoom, Unexpected, first_of
from attachfs.model import AttachmentRef, Digest
from attachfs.quarantine import QuarantineNote

log = logging.getLogger(__name__)

# The kernel asks for whole pages, at most this much at a time. What is withheld begins at a multiple of it,
# and a request that touches it waits: no page that the kernel holds before the verdict contains a
# withheld byte, however far it reads ahead.
WITHHELD = 128 * 1024  # bytes, at least 1 and at most this many
_BATCH = 2**20  # bytes hashed and written at a time, at most
_WAITING = 64  # pieces (of 64 KiB at most, as they leave the socket) that wait to be stored


class Chunk(Protocol):
    """A piece of a blob. `offset` may go back to 0: the transfer began anew."""

    @property
    def offset(self) -> int:
        """Where the piece begins."""
        ...

    @property
    def data(self) -> bytes:
        """The piece."""
        ...


Chunks = AsyncIterator[Chunk]


class ChunkSource(Protocol):
    """Where the bytes come from."""

    def download(
        self, ref: AttachmentRef, size: int, /, *, start: int = 0
    ) -> AbstractAsyncContextManager[Chunks]:
        """Return the attachment's bytes in order, from `start` or from 0 on, at most `size` of them."""
        ...


class Leaving(NamedTuple):
    """What becomes of a download that nobody follows any more.

    Programs that look what a file is read its first bytes and close it, several in a row do: the download
    of a large file need not go on for them, and need not begin anew for the next one.
    """

    more: int = 2**20  # bytes that may still come
    within: float = 2.0  # seconds in which they may
    keep: float = 60.0  # seconds for which what came is kept


AT_ONCE = Leaving(0, 0, 0)


class Download:
    """A download under way, or just ended.

    Args:
        ref: the attachment that is fetched.
        expected: its recorded digest; None: nobody vouches for the bytes, and none is withheld.
        size: its recorded length in bytes.
        leaving: when it stops once nobody follows it, and for how long what came is kept.
    """

    def __init__(
        self, ref: AttachmentRef, expected: Digest | None, size: int, leaving: Leaving = AT_ONCE
    ) -> None:
        self.ref = ref
        self.expected = expected
        self.size = size
        self.written = 0  # bytes stored, from 0 on, in order
        self._reader: CachedBlob | None = None  # followers' own view, open until the last has left
        self.verified = False
        self.refs: set[AttachmentRef] = {ref}  # all attachments that are read through it
        self.error: AttachfsError | None = None
        self._limit = size if expected is None else max(0, size - 1) // WITHHELD * WITHHELD
        self._hash = hashlib.new(expected.alg if expected else "sha256")
        self._writer: Writer | None = None
        self._cached: CachedBlob | None = None
        self._followers = 0
        self.abandoned = False  # nobody followed it any more: it must not be joined again
        self.stopped = False  # because nobody followed it; it may run again
        self.resting_since: float | None = None  # None: it runs, or has ended
        self._leaving = leaving
        self._stop_at = math.inf  # bytes stored; does not count while there are followers
        self._wanted = trio.Event()  # somebody waits for more than is there
        self._landed = False
        self._spill: Callable[[], Writer]
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
        if self._leaving == AT_ONCE:
            self.abandoned = True
            self._scope.cancel()
        elif self.resting_since is not None:
            self._scope.deadline = trio.current_time() + self._leaving.keep
        elif self.written < self.size:  # else only the verdict is missing
            self._stop_at = self.written + self._leaving.more
            self._scope.deadline = trio.current_time() + self._leaving.within
        self._close_if_idle()

    @property
    def fd(self) -> int:
        """Where what has been stored can be read, while there are followers."""
        assert self._reader is not None
        return self._reader.fd

    def pread(self, length: int, offset: int) -> bytes:
        """Return stored bytes. May wait for the disk."""
        assert self._reader is not None
        return self._reader.pread(length, offset)

    @property
    def kept(self) -> CachedBlob | None:
        """The blob that this became, None before it has been verified."""
        return self._cached if self.verified else None

    def may_read(self, end: int) -> bool:
        """Whether the bytes before `end` may be handed out now."""
        return self.verified or (end <= self.written and end <= self._limit)

    async def reach(self, end: int) -> None:
        """Wait until the bytes before `end` may be handed out.

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

    async def run(
        self,
        room: Callable[[], Awaitable[Writer]],
        spill: Callable[[], Writer],
        source: ChunkSource,
        settle: Callable[[], Awaitable[None]],
    ) -> None:
        """Fetch, verify and admit. Never raises: followers find the outcome here.

        Afterwards it may be `stopped`: then call `rest`, and this again if somebody wants more.

        Args:
            room: returns where the bytes go.
            spill: returns where they go if that fails on the way; called in a thread.
            source: returns the bytes.
            settle: is awaited once all bytes are right, before the last of them are handed out.
        """
        self._spill = spill
        self.stopped = False
        try:
            with self._scope:
                if self._writer is None:
                    self._writer = await room()
                    self._reader = self._writer.dup_reader()
                async with source.download(self.ref, self.size, start=self.written) as chunks:
                    await self._pipe(chunks)
                self._scope.deadline = math.inf
                await trio.to_thread.run_sync(self._conclude)
                await settle()
                # Nobody vouches for bytes without a recorded digest.
                self.verified = self.expected is not None
        except* Exception as group:
            error = first_of(group)
            if not isinstance(error, AttachfsError):
                log.exception("%s: the download failed for a reason of its own", self.ref.path)
                error = Unexpected(f"{self.ref.path}: {type(error).__name__}: see the log")
            self.error = error
        finally:
            self.stopped = self._scope.cancelled_caught and not (self.error or self._cached or self.abandoned)
            if self._cached is None and not self.stopped:
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
        return self._writer is not None and not self._writer.spilled

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
        if self._writer is not None:
            self._writer.abort()

    def landed(self) -> None:
        """Tell followers that there is an outcome. Its owner calls it once it is out of every table."""
        self._landed = True
        self._tick()
        self._close_if_idle()

    async def _pipe(self, chunks: Chunks) -> None:
        """Receive and store side by side."""
        send, receive = trio.open_memory_channel[Chunk](_WAITING)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._store, receive)
            async with send:
                async for chunk in chunks:
                    await send.send(chunk)

    async def _store(self, receive: trio.MemoryReceiveChannel[Chunk]) -> None:
        """Store what has come, as much at a time as is there: a reader may be waiting for the last of it."""
        async with receive:
            async for first in receive:
                following: Chunk | None = first
                while following is not None:
                    batch, following = _contiguous(following, receive)
                    offset, data = batch[0].offset, b"".join(chunk.data for chunk in batch)
                    await trio.to_thread.run_sync(self._put, offset, data)
                    self.written = max(self.written, offset + len(data))
                    self._tick()
                    if not self._followers and self._stop_at <= self.written < self.size:
                        self._scope.cancel()

    def _put(self, offset: int, data: bytes) -> None:
        """Hash and write a batch. What a transfer that began anew repeats must be the same."""
        assert self._writer is not None
        again = self.written - offset
        if again < 0:
            raise BadAnswer(f"{self.ref.path}: {-again} bytes are missing at {self.written}")
        if again:
            repeated = data[:again]
            if self.pread(len(repeated), offset) != repeated:
                raise BadAnswer(f"{self.ref.path}: the service sent other bytes the second time")
            data = data[again:]
            offset = self.written
        if not data:
            return
        self._hash.update(data)
        try:
            self._writer.write(data, offset)
        except NoRoom as error:
            self._relocate(error)
            self._writer.write(data, offset)

    def _relocate(self, error: AttachfsError) -> None:
        """Go on in a temporary file: the disk would not take what had been reserved."""
        before = self._writer
        assert before is not None
        if before.spilled:
            raise error
        log.info("%s goes on in a temporary file: %s", self.ref.path, error.reason)
        after = self._spill()
        try:
            for offset in range(0, self.written, _BATCH):
                after.write(self.pread(min(_BATCH, self.written - offset), offset), offset)
            reader = after.dup_reader()
        except BaseException:
            after.abort()
            raise
        self._writer = after
        self._reader, old = reader, self._reader
        if old is not None:
            old.close()
        before.abort()

    def _conclude(self) -> None:
        """Compare what came with what is recorded, and admit it or put it aside. Runs in a thread."""
        assert self._writer is not None
        expected = self.expected
        if self.written != self.size:
            reason = f"the record says {self.size} bytes, {self.written} came"
            self._put_aside(reason)
            raise BadAnswer(f"{self.ref.path}: {reason}")
        if expected is None:
            self._cached = self._writer.admit(Digest("sha256", self._hash.hexdigest()))
            return
        if self._hash.hexdigest() != expected.hex:
            reason = f"the bytes do not match the record: expected {expected}, got {self._hash.hexdigest()}"
            self._put_aside(reason)
            raise IntegrityError(f"{self.ref.path}: {reason}")
        try:
            self._cached = self._writer.admit(expected)
        except (NoRoom, Unexpected) as error:
            # Not on the disk for good: what was kept is copied, and believed only if it is right again.
            self._relocate(error)
            if _digest(self._writer, expected.alg) != expected.hex:
                raise Unexpected(f"{self.ref.path}: the disk lost what was written to it") from error
            self._cached = self._writer.admit(expected)

    def _put_aside(self, reason: str) -> None:
        assert self._writer is not None
        if self.expected is None:
            return
        self._writer.quarantine(
            QuarantineNote(
                path=self.ref.path,
                url_path=self.ref.path,
                expected=self.expected,
                got=Digest(self._hash.name, self._hash.hexdigest()),
                expected_size=self.size,
                got_size=self.written,
                time=time.time(),
                reason=reason,
            )
        )

    def _tick(self) -> None:
        progress, self._progress = self._progress, trio.Event()
        progress.set()

    def _close_if_idle(self) -> None:
        if not self._followers and self._landed:
            self._close()

    def _close(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        if self._cached is not None:
            self._cached.close()
            self._cached = None


def _contiguous(first: Chunk, receive: trio.MemoryReceiveChannel[Chunk]) -> tuple[list[Chunk], Chunk | None]:
    """Return the pieces that follow `first` and have come already, and one that does not follow, if any."""
    batch, end = [first], first.offset + len(first.data)
    while end - first.offset < _BATCH:
        try:
            chunk = receive.receive_nowait()
        except (trio.WouldBlock, trio.EndOfChannel):
            break
        if chunk.offset != end:
            return batch, chunk
        batch.append(chunk)
        end += len(chunk.data)
    return batch, None


def _digest(writer: Writer, algorithm: str) -> str:
    digest = hashlib.new(algorithm)
    for offset in range(0, writer.size, _BATCH):
        digest.update(writer.pread(min(_BATCH, writer.size - offset), offset))
    return digest.hexdigest()


def pread_nowait(fd: int, size: int, offset: int) -> bytes | None:
    """Return `size` bytes at `offset` if the page cache has them all, None if the disk must be asked."""
    buffer = bytearray(size)
    try:
        count = os.preadv(fd, [buffer], offset, os.RWF_NOWAIT)
    except OSError:  # not in the page cache, or a filesystem that cannot tell
        return None
    # What takes it wants a buffer, and a copy into bytes would cost as much as the read.
    return cast("bytes", buffer) if count == size else None
