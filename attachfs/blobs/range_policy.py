"""When a read far ahead of a stream is worth a request of its own, and for how much. Pure: no clock here."""

import math
from collections import deque
from collections.abc import Callable

from attachfs.blobs.withholding import blocks_of

_NEAR = 2**20  # bytes ahead of the stream; whoever reads in order, and the kernel ahead of them, stays within
_SOON = 0.25  # seconds: about a round trip; what the stream will have brought by then is not requested
_MOST = 32  # blocks requested at a time, once reads follow each other
_STREAMS = 4  # places at which reads follow each other
_FIRST_PAUSE = 5.0  # seconds in which nothing is requested after a failure, doubling
_LAST_PAUSE = 300.0


class PendingRead:
    """A read that waits, since when, and for which blocks."""

    def __init__(self, offset: int, end: int, since: float) -> None:
        self.offset = offset
        self.end = end
        self.blocks = blocks_of(offset, end)
        self.since = since


class RangePolicy:
    """Decides which reads of one download are requested by themselves. Times are seconds on any clock.

    Args:
        size: the blob's length in bytes.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._streams = deque[_Stream](maxlen=_STREAMS)
        self._queue = 0  # bytes: up to where reads that wait for the stream follow each other
        self._throughput = _ThroughputMeter()
        self.pause = _FIRST_PAUSE
        self._not_before = -math.inf

    def note_received(self, amount: int, now: float) -> None:
        """Take note of how much came with the stream."""
        self._throughput.note(amount, now)

    def is_ahead(self, read: PendingRead, written: int) -> bool:
        """Whether a read is out of order: far ahead of the stream and of those who wait for it."""
        if read.offset > max(written + _NEAR, self._queue):
            return True
        if read.offset <= max(written, self._queue):
            self._queue = max(self._queue, read.end)
        return False

    def delay(self, read: PendingRead, written: int, now: float) -> float:
        """Return for how many seconds a read that is ahead is better left to the stream; 0: request it."""
        ready = self._not_before
        if read.end - written <= self._throughput.within(now):
            ready = max(ready, read.since + _SOON)  # the stream is as fast
        return max(0.0, ready - now)

    def extent(self, blocks: range, there: Callable[[int], bool]) -> range:
        """Return the blocks to request: those, and more if reads follow each other there.

        Args:
            blocks: which a read lacks.
            there: whether a block is here already, or comes.
        """
        stream = next((one for one in self._streams if one.after == blocks.start), None)
        if stream is None:
            stream = _Stream(blocks.start, 0)
            self._streams.append(stream)
        stream.amount = min(max(2 * stream.amount, len(blocks)), _MOST)
        stop = min(blocks.start + stream.amount, blocks_of(0, self._size).stop)
        stop = next((block for block in range(blocks.start + 1, stop) if there(block)), stop)
        stream.after = stop
        return range(blocks.start, stop)

    def succeeded(self) -> None:
        """Take note of a request that brought all it was for."""
        self.pause = _FIRST_PAUSE

    def failed(self, now: float) -> None:
        """Request nothing for a while."""
        self._not_before = now + self.pause
        self.pause = min(2 * self.pause, _LAST_PAUSE)


class _Stream:
    """Reads that follow each other: where the next would be, and how many blocks were last requested."""

    def __init__(self, after: int, amount: int) -> None:
        self.after = after
        self.amount = amount


class _ThroughputMeter:
    """How much came with a stream within the time that a request would take."""

    def __init__(self) -> None:
        self._since = -math.inf
        self._amount = 0
        self._before = 0

    def note(self, amount: int, now: float) -> None:
        """Take note of what came."""
        self._turn(now)
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
