"""Reads far ahead of a stream: answered with parts that are requested by themselves. The requests are here.

When to request, and how much, is `range_policy`; what is kept and served, and compared with the whole once
that was found right, is `block_buffer`; whether a block may be served at all, `withholding`.

Nothing here can fail a stream, and nobody has to wait for it: who is not answered here is by the stream.
"""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import trio

from attachfs.background import TaskStarter
from attachfs.blobs.block_buffer import BlockBuffer
from attachfs.blobs.range_policy import PendingRead, RangePolicy
from attachfs.blobs.source import BlobSource, Chunks
from attachfs.blobs.withholding import WITHHELD, ServedBlocks
from attachfs.errors import AttachfsError, BadAnswer
from attachfs.model import AttachmentRef

log = logging.getLogger(__name__)

_REQUESTS = 2  # at once for each download


class RangeReadContext(NamedTuple):
    """Who can be asked for parts, and where that runs."""

    source: BlobSource
    nursery: TaskStarter


class RangeRequest:
    """A request for some blocks; `next` is the first that has not come yet."""

    def __init__(self, blocks: range) -> None:
        self.first = self.next = blocks.start
        self.stop = blocks.stop
        self.scope = trio.CancelScope()

    def brings(self, block: int) -> bool:
        """Whether the block is still to come."""
        return self.next <= block < self.stop

    def is_for(self, read: PendingRead) -> bool:
        """Whether anything of the read is still to come."""
        return read.blocks.start < self.stop and self.next < read.blocks.stop


class RangeReads:
    """What is read ahead of one download.

    Args:
        ref: the attachment that is fetched.
        size: its recorded length in bytes.
        served: what was served of it.
        context: where parts come from; None: nothing is read ahead.
        notify: called when blocks have come, or will not.
        compared: whether what was served will be compared with the whole.
    """

    def __init__(
        self,
        ref: AttachmentRef,
        size: int,
        served: ServedBlocks,
        context: RangeReadContext | None,
        notify: Callable[[], None],
        *,
        compared: bool,
    ) -> None:
        self._ref = ref
        self._size = size
        self._served = served
        self._context = context
        self._notify = notify
        self.buffer = BlockBuffer(size, compared=compared)
        self._policy = RangePolicy(size)
        self._pending = set[PendingRead]()
        self._requests: list[RangeRequest] = []
        self._stream: Chunks | None = None
        self._etag: str | None = None  # of the parts

    # -- the stream --------------------------------------------------------------------------------

    def beside(self, stream: Chunks) -> None:
        """Take note of the stream that parts are read ahead of."""
        self._stream = stream

    def note_received(self, amount: int) -> None:
        """Take note of how much came with the stream."""
        self._policy.note_received(amount, trio.current_time())

    def pause(self) -> None:
        """Let go of everything but what has to be compared: nobody reads."""
        self.buffer.clear()
        for request in self._requests:
            request.scope.cancel()

    def close(self) -> None:
        """Serve nothing more."""
        self._context = None
        self.pause()

    # -- reads -------------------------------------------------------------------------------------

    @contextmanager
    def pending(self, offset: int, end: int) -> Iterator[PendingRead]:
        """Tell of a read that has to wait."""
        read = PendingRead(offset, end, trio.current_time())
        self._pending.add(read)
        try:
            yield read
        finally:
            self._pending.remove(read)
            for request in self._requests:
                if request.next == request.first and not self._wanted(request):
                    request.scope.cancel()  # it was killed, or the stream was there first

    def try_serve(self, read: PendingRead) -> bytes | None:
        """Serve the blocks of a read, if it is here and may be."""
        if self._context is None or any(block not in self.buffer for block in read.blocks):
            return None
        if self._etags_differ():
            self._stop("its parts are of another version than the whole")
            return None
        if not self._served.allow_random(read.blocks):
            return None
        return self.buffer.serve(read.blocks, read.offset, read.end)

    def request(self, read: PendingRead, written: int) -> float:
        """See to it that the blocks of a read come ahead of the stream, if that is worth a request.

        Returns:
            For how long to wait before this is called again, if nothing happens meanwhile.
        """
        if self._context is None:
            return math.inf
        if not self._policy.is_ahead(read, written):
            return math.inf
        missing = [block for block in read.blocks if not self._is_there(block)]
        if not missing or not self._served.can_allow(read.blocks):
            return math.inf
        delay = self._policy.delay(read, written, trio.current_time())
        if delay:
            return delay
        for block in missing:
            if not self._coming(block):
                self._start(self._context, range(block, read.blocks.stop))
        return math.inf

    # -- requests ----------------------------------------------------------------------------------

    def _is_there(self, block: int) -> bool:
        return block in self.buffer or self._coming(block)

    def _coming(self, block: int) -> bool:
        return any(request.brings(block) for request in self._requests)

    def _wanted(self, request: RangeRequest) -> bool:
        return any(request.is_for(read) for read in self._pending)

    def _start(self, context: RangeReadContext, blocks: range) -> None:
        """Ask for some blocks, and for more if reads follow each other there; else wait for a place."""
        while len(self._requests) >= _REQUESTS:
            # Somebody waits for this one: what was only read further than asked gives way, and nothing else.
            idle = next((request for request in self._requests if not self._wanted(request)), None)
            if idle is None:
                return  # `request` is called again as soon as any of them has come
            self._requests.remove(idle)  # now: its task ends only once it runs, and its place is needed here
            idle.scope.cancel()
        request = RangeRequest(self._policy.extent(blocks, self._is_there))
        self._requests.append(request)
        context.nursery.start_soon(self._run_request, context.source, request)

    async def _run_request(self, source: BlobSource, request: RangeRequest) -> None:
        try:
            with request.scope:
                await self._receive(source, request)
                self._policy.succeeded()
        except AttachfsError as error:
            pause = self._policy.pause
            log.debug("%s: nothing is requested ahead for %g s: %s", self._ref.path, pause, error.reason)
            self._policy.failed(trio.current_time())
        except Exception:
            log.exception("%s: unexpected error while reading ahead", self._ref.path)
            self.close()
        finally:
            if request in self._requests:  # else it had to give way
                self._requests.remove(request)
            self._notify()  # also after a failure: who waited for it now waits for the stream

    async def _receive(self, source: BlobSource, request: RangeRequest) -> None:
        start, stop = request.first * WITHHELD, min(request.stop * WITHHELD, self._size)
        async with source.part(self._ref, self._size, start=start, stop=stop) as part:
            if part is None:
                self._stop("the service does not send parts")
                return
            if self._etags_differ(part.etag):
                self._stop("the part is of another version than the whole")
                return
            buffer = bytearray()
            async for piece in part:
                buffer += piece
                # A block is served only whole: one that is cut short may be wrong anywhere.
                while request.next < request.stop and len(buffer) >= (
                    length := self.buffer.length(request.next)
                ):
                    self._keep(request.next, bytes(buffer[:length]))
                    del buffer[:length]
                    request.next += 1
                    self._notify()
                if self._context is None:
                    return  # closed while this waited; what came since is not to be kept
                if request.next == request.stop and buffer:
                    break
            if request.next < request.stop or buffer:
                raise BadAnswer(f"{self._ref.path}: the part has another length than the one requested")

    def _keep(self, block: int, data: bytes) -> None:
        if self._context is not None and not self.buffer.add(block, data):
            self._stop("the service sent other bytes the second time")  # the verdict tells which are wrong

    def _etags_differ(self, etag: str | None = None) -> bool:
        """Whether the stream or an earlier part is known to be of another version; `etag`: a new part's."""
        etags = {self._etag, etag, self._stream.etag if self._stream is not None else None} - {None}
        self._etag = self._etag or etag
        return len(etags) > 1

    def _stop(self, reason: str) -> None:
        if self._context is not None:
            log.info("%s is read in order only: %s", self._ref.path, reason)
        self.close()
