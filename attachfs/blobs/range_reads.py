"""Reads far ahead of a stream: answered with parts that are asked for by themselves, and compared in the end.

Owns: which read is out of order, how much is asked for at a time, what is kept of it in memory,
and what of it was served, so that it can be compared with the whole once that has been found right.

Nothing here can fail a stream, and nobody has to wait for it: who is not answered here is by the stream.
"""

import hashlib
import logging
import math
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import trio

from attachfs.background import TaskStarter
from attachfs.blobs.source import BlobSource, Chunks
from attachfs.blobs.withholding import WITHHELD, ServedBlocks, blocks_of
from attachfs.errors import AttachfsError, BadAnswer
from attachfs.model import AttachmentRef

log = logging.getLogger(__name__)

_NEAR = 2**20  # bytes ahead of the stream; whoever reads in order, and the kernel ahead of them, stays within
_SOON = 0.25  # seconds: about a round trip; what the stream will have brought by then is not asked for
_MOST = 32  # blocks asked for at a time, once reads follow each other
_KEPT = 64  # blocks kept in memory: 8 MiB for each download
_FLIGHTS = 2  # requests at once for each download
_RUNS = 4  # places at which reads follow each other
_FIRST_PAUSE = 5.0  # seconds in which nothing is asked for after a failure, doubling
_LAST_PAUSE = 300.0


class RangeReadContext(NamedTuple):
    """Who can be asked for parts, and where that runs."""

    source: BlobSource
    nursery: TaskStarter


class PendingRead:
    """A read that waits, since when, and for which blocks."""

    def __init__(self, offset: int, end: int) -> None:
        self.offset = offset
        self.end = end
        self.blocks = blocks_of(offset, end)
        self.since = trio.current_time()


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


class _Stream:
    """Reads that follow each other: where the next would be, and how many blocks were last asked for."""

    def __init__(self, after: int, amount: int) -> None:
        self.after = after
        self.amount = amount


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
        self._compared = compared
        self.digests: dict[int, bytes] = {}  # of the blocks served from here
        self._kept: OrderedDict[int, bytes] = OrderedDict()  # last used last
        self._pending = set[PendingRead]()
        self._requests: list[RangeRequest] = []
        self._streams = deque[_Stream](maxlen=_RUNS)
        self._stream: Chunks | None = None
        self._etag: str | None = None  # of the parts
        self._queue = 0  # bytes: up to where reads that wait for the stream follow each other
        self._pace = _ThroughputMeter()
        self._pause = _FIRST_PAUSE
        self._not_before = -math.inf

    # -- the stream --------------------------------------------------------------------------------

    def beside(self, stream: Chunks) -> None:
        """Take note of the stream that parts are read ahead of."""
        self._stream = stream

    def note_received(self, amount: int) -> None:
        """Take note of how much came with the stream."""
        self._pace.note(amount)

    def pause(self) -> None:
        """Let go of everything but what has to be compared: nobody reads."""
        self._kept.clear()
        for request in self._requests:
            request.scope.cancel()

    def close(self) -> None:
        """Serve nothing more."""
        self._context = None
        self.pause()

    def first_difference(self, read: Callable[[int, int], bytes]) -> int | None:
        """Return where something else was served than is in the whole, None if nowhere. In a thread.

        Args:
            read: returns so many of its bytes, from an offset on.
        """
        for block, digest in sorted(self.digests.items()):
            if hashlib.sha256(read(self._length(block), block * WITHHELD)).digest() != digest:
                return block * WITHHELD
        return None

    # -- reads -------------------------------------------------------------------------------------

    @contextmanager
    def pending(self, offset: int, end: int) -> Iterator[PendingRead]:
        """Tell of a read that has to wait."""
        read = PendingRead(offset, end)
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
        if self._context is None or not self._kept or any(block not in self._kept for block in read.blocks):
            return None
        if self._etags_differ():
            self._stop("its parts are of another version than the whole")
            return None
        if not self._served.allow_random(read.blocks):
            return None
        pieces = []
        for block in read.blocks:
            data = self._kept[block]
            self._kept.move_to_end(block)
            if self._compared and block not in self.digests:
                self.digests[block] = hashlib.sha256(data).digest()
            begin = block * WITHHELD
            pieces.append(memoryview(data)[max(0, read.offset - begin) : read.end - begin])
        return b"".join(pieces)

    def request(self, read: PendingRead, written: int) -> float:
        """See to it that the blocks of a read come ahead of the stream, if that is worth a request.

        Returns:
            For how long to wait before this is called again, if nothing happens meanwhile.
        """
        if self._context is None:
            return math.inf
        if read.offset <= max(written + _NEAR, self._queue):
            if read.offset <= max(written, self._queue):
                self._queue = max(self._queue, read.end)
            return math.inf
        missing = [block for block in read.blocks if block not in self._kept and not self._coming(block)]
        if not missing or not self._served.can_allow(read.blocks):
            return math.inf
        now = trio.current_time()
        ready = self._not_before
        if read.end - written <= self._pace.within(now):
            ready = max(ready, read.since + _SOON)  # the stream is as fast
        if now < ready:
            return ready - now
        for block in missing:
            if not self._coming(block):
                self._start(self._context, range(block, read.blocks.stop))
        return math.inf

    # -- requests ----------------------------------------------------------------------------------

    def _coming(self, block: int) -> bool:
        return any(request.brings(block) for request in self._requests)

    def _wanted(self, request: RangeRequest) -> bool:
        return any(request.is_for(read) for read in self._pending)

    def _start(self, context: RangeReadContext, blocks: range) -> None:
        """Ask for some blocks, and for more if reads follow each other there; else wait for a place."""
        while len(self._requests) >= _FLIGHTS:
            idle = next((request for request in self._requests if not self._wanted(request)), None)
            if idle is None:
                return
            self._requests.remove(idle)
            idle.scope.cancel()
        stream = next((one for one in self._streams if one.after == blocks.start), None)
        if stream is None:
            stream = _Stream(blocks.start, 0)
            self._streams.append(stream)
        stream.amount = min(max(2 * stream.amount, len(blocks)), _MOST)
        stop = min(blocks.start + stream.amount, blocks_of(0, self._size).stop)
        for block in range(blocks.start + 1, stop):
            if block in self._kept or self._coming(block):
                stop = block  # from there on it is here already, or comes
                break
        stream.after = stop
        request = RangeRequest(range(blocks.start, stop))
        self._requests.append(request)
        context.nursery.start_soon(self._run_request, context.source, request)

    async def _run_request(self, source: BlobSource, request: RangeRequest) -> None:
        try:
            with request.scope:
                await self._receive(source, request)
                self._pause = _FIRST_PAUSE
        except AttachfsError as error:
            log.debug("%s: nothing is read ahead for %g s: %s", self._ref.path, self._pause, error.reason)
            self._not_before = trio.current_time() + self._pause
            self._pause = min(2 * self._pause, _LAST_PAUSE)
        except Exception:
            log.exception("%s: unexpected error while reading ahead", self._ref.path)
            self.close()
        finally:
            if request in self._requests:
                self._requests.remove(request)
            self._notify()

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
                while request.next < request.stop and len(buffer) >= (length := self._length(request.next)):
                    self._keep(request.next, bytes(buffer[:length]))
                    del buffer[:length]
                    request.next += 1
                    self._notify()
                if self._context is None:
                    return
                if request.next == request.stop and buffer:
                    break
            if request.next < request.stop or buffer:
                raise BadAnswer(f"{self._ref.path}: a part of another length came than was asked for")

    def _keep(self, block: int, data: bytes) -> None:
        served_digest = self.digests.get(block)
        if served_digest is not None and hashlib.sha256(data).digest() != served_digest:
            self._stop("the service sent other bytes the second time")  # the verdict tells which are wrong
            return
        if self._context is None:
            return
        self._kept[block] = data
        self._kept.move_to_end(block)
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)

    def _etags_differ(self, etag: str | None = None) -> bool:
        """Whether the stream or an earlier part is known to be of another version; `etag`: a new part's."""
        known = {self._etag, etag, self._stream.etag if self._stream is not None else None} - {None}
        self._etag = self._etag or etag
        return len(known) > 1

    def _stop(self, reason: str) -> None:
        if self._context is not None:
            log.info("%s is read in order only: %s", self._ref.path, reason)
        self.close()

    def _length(self, block: int) -> int:
        return min(WITHHELD, self._size - block * WITHHELD)


class _ThroughputMeter:
    """How much came with a stream within the time that a request would take."""

    def __init__(self) -> None:
        self._since = -math.inf
        self._amount = 0
        self._before = 0

    def note(self, amount: int) -> None:
        """Take note of what came."""
        self._turn(trio.current_time())
        self._amount += amount

    def within(self, now: float) -> int:
        """Return how much came of late, within so long."""
        self._turn(now)
        return max(self._amount, self._before)

    def _turn(self, now: float) -> None:
        if now - self._since < _SOON:
            return
        self._before = self._amount if now - self._since < 2 * _SOON else 0
        self._since, self._amount = now, 0
