"""What of a blob has been served before it was verified, and which part is withheld. Sync; no bytes here.

Owns: that before the verdict one part of a blob has been served to nobody, whatever
was asked for and in which order. So whoever reads a wrong blob whole meets an error, and the kernel, which
keeps what it is given, never has all of it.

At first the last part is withheld. It is served, ahead of the stream, only if another is untouched;
that one is withheld then, and all beyond it have been served. The stream may be followed up to it.
"""

from collections import OrderedDict

from attachfs.model import Digest

# What is withheld begins at a multiple of this, so at the beginning of a page, and a request that touches it
# waits: no page that the kernel holds before the verdict has a withheld byte, however far it reads ahead.
WITHHELD = 128 * 1024  # bytes, at least 1 and at most this many
_HISTORY = 32  # downloads that came to no good end
_MOST = 16 * 1024  # parts served ahead of a stream; each costs some hundred bytes until the verdict


def blocks_of(offset: int, end: int) -> range:
    """Return the numbers of the parts that hold any of the bytes."""
    return range(offset // WITHHELD, -(-end // WITHHELD))


class ServedHistory:
    """What was served of blobs that were not found right: the next download of one may be as wrong.

    Else somebody who tries again and again would be given the one part now and the other then.
    """

    def __init__(self) -> None:
        self._served = OrderedDict[tuple[Digest, int], ServedBlocks]()

    def take(self, digest: Digest, size: int) -> "ServedBlocks | None":
        """Return what was served of a blob, for its next download to go on with."""
        return self._served.pop((digest, size), None)

    def keep(self, digest: Digest, size: int, served: "ServedBlocks") -> None:
        """Keep in mind what was served of a blob, if anything was."""
        if served.touched:
            self._served[digest, size] = served
            while len(self._served) > _HISTORY:
                self._served.popitem(last=False)


class ServedBlocks:
    """What was served of one blob, over all of its downloads until one is verified.

    Whatever is allowed here counts as served from that moment on.

    Args:
        size: the blob's length in bytes.
        withholding: False: nobody vouches for the bytes, and none is withheld.
    """

    def __init__(self, size: int, *, withholding: bool = True) -> None:
        self._size = size
        self._withholding = withholding
        self._last = max(0, size - 1) // WITHHELD
        self._front = 0  # bytes: up to where anything was read that had come in order
        self._ahead = set[int]()  # parts served before, or beyond, that
        self._withheld = self._last

    @property
    def limit(self) -> int:
        """Up to where the stream may be followed, in bytes."""
        return self._withheld * WITHHELD if self._withholding else self._size

    @property
    def touched(self) -> bool:
        """Whether anything was served at all."""
        return bool(self._front or self._ahead)

    def allow_sequential(self, offset: int, end: int) -> bool:
        """Serve bytes that have come with the stream; False: they must wait for the verdict."""
        if end <= self.limit:
            self._front = max(self._front, end)
            return True
        if offset >= self.limit + WITHHELD:
            return True  # beyond what is withheld all has been served before
        # Where reads out of order have moved it, what is withheld may lie in the middle, and the verdict be
        # far off.
        return self._withheld != self._last and self.allow_random(blocks_of(offset, end))

    def can_allow(self, blocks: range) -> bool:
        """Whether `allow_random` would hand these parts out."""
        if not self._withholding:
            return True
        if len(self._ahead) + len(blocks) > _MOST:
            return False
        return self._withheld not in blocks or self._other(blocks) is not None

    def allow_random(self, blocks: range) -> bool:
        """Serve parts, wherever the stream is; False: they must wait for it, or for the verdict."""
        if not self._withholding:
            return True
        if not self.can_allow(blocks):
            return False
        if self._withheld in blocks:
            other = self._other(blocks)
            assert other is not None
            self._withheld = other
        self._ahead.update(blocks)
        return True

    def _other(self, blocks: range) -> int | None:
        """Return the last part that could be withheld instead: nobody has had any of it, nor will now."""
        for block in range(self._withheld - 1, -(-self._front // WITHHELD) - 1, -1):
            if block not in self._ahead and block not in blocks:
                return block
        return None
