"""What may be sent in place of a blob's bytes, and what a program then sees: one table, run at two layers.

`tests/unit/blobs/test_store.py` runs it over a blob store, `tests/mount/test_matrix.py` through the kernel in
each mode, size and framing.
"""

import errno
from collections.abc import Callable
from typing import NamedTuple


def flipped(data: bytes, position: int) -> bytes:
    """Return the data with one bit of the byte at `position` flipped."""
    wrong = bytearray(data)
    wrong[position] ^= 1
    return bytes(wrong)


class WrongBody(NamedTuple):
    """What is sent instead of `right`, and the errno that a program gets for it."""

    of: Callable[[bytes], bytes]
    errno: int


WRONG_BODIES = {
    "first bit flipped": WrongBody(lambda right: flipped(right, 0), errno.EBADMSG),
    "middle bit flipped": WrongBody(lambda right: flipped(right, len(right) // 2), errno.EBADMSG),
    "last bit flipped": WrongBody(lambda right: flipped(right, len(right) - 1), errno.EBADMSG),
    "another blob's bytes": WrongBody(lambda right: bytes(byte ^ 0x55 for byte in right), errno.EBADMSG),
    "a byte short": WrongBody(lambda right: right[:-1], errno.EIO),
    "a byte long": WrongBody(lambda right: right + b"x", errno.EIO),
    "empty": WrongBody(lambda _: b"", errno.EIO),
}
