"""Blocks of a blob that came ahead of its stream, in memory; and digests of those that were served."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable

from attachfs.blobs.withholding import WITHHELD

_KEPT = 64  # blocks kept in memory: 8 MiB for each download


class BlockBuffer:
    """The last blocks that were used, and what has to be compared with the whole.

    Args:
        size: the blob's length in bytes.
        compared: whether what is served will be compared with the whole.
    """

    def __init__(self, size: int, *, compared: bool) -> None:
        self._size = size
        self._compared = compared
        self._kept: OrderedDict[int, bytes] = OrderedDict()  # last used last
        self.digests: dict[int, bytes] = {}  # of the blocks that were served

    def __contains__(self, block: int) -> bool:
        return block in self._kept

    def length(self, block: int) -> int:
        """Return how many bytes a block has: fewer at the end."""
        return min(WITHHELD, self._size - block * WITHHELD)

    def add(self, block: int, data: bytes) -> bool:
        """Keep a block; False: other bytes of it have been served."""
        served = self.digests.get(block)
        if served is not None and hashlib.sha256(data).digest() != served:
            return False
        self._kept[block] = data
        self._kept.move_to_end(block)
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return True

    def serve(self, blocks: range, offset: int, end: int) -> bytes:
        """Return the bytes from `offset` to `end`, of blocks that are all here, and remember which."""
        pieces = []
        for block in blocks:
            data = self._kept[block]
            self._kept.move_to_end(block)
            if self._compared and block not in self.digests:
                self.digests[block] = hashlib.sha256(data).digest()
            begin = block * WITHHELD
            pieces.append(memoryview(data)[max(0, offset - begin) : end - begin])
        return b"".join(pieces)

    def clear(self) -> None:
        """Let go of everything but what has to be compared."""
        self._kept.clear()

    def first_difference(self, read: Callable[[int, int], bytes]) -> int | None:
        """Return where something else was served than is in the whole, None if nowhere. In a thread.

        Args:
            read: returns so many of its bytes, from an offset on.
        """
        for block, digest in sorted(self.digests.items()):
            if hashlib.sha256(read(self.length(block), block * WITHHELD)).digest() != digest:
                return block * WITHHELD
        return None
