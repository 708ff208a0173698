"""A massif: one file of the log. Its leaves, the nodes above them, and what leads to older massifs.

    0      header: version (21..22), epoch (23..26), height (27), number of the massif (28..31), big-endian
    288    trie data, 64 bytes for each of 2^height entries: key (32), extra (24), idtimestamp (8)
    then   peak stack: the peaks of the range before this massif, left to right, 32 bytes each;
           version 0: as many as there are; version 1: 64 places, the rest zero
    then   nodes, 32 bytes each, from the massif's first index on

The height counts from 1: a massif has 2^(height-1) leaves. The stack holds every older node that a path or a
peak needs, so that a proof never needs another massif.
"""

from typing import NamedTuple

from attachfs.proof import mmr
from attachfs.proof.errors import ProofError, State

MAX_SIZE = 32 << 20  # bytes; a full massif of the service's height 14 has 1.5 MiB
DEFAULT_HEIGHT = 14  # what the service uses; each massif says its own
MAX_HEIGHT = 18

HASH = 32
TRIE_START = 288
TRIE_ENTRY = 64
FIXED_STACK = 64  # places, version 1
VERSIONS = (0, 1)


class TrieEntry(NamedTuple):
    """What the log notes beside a leaf: the key that names its event, and its idtimestamp."""

    key: bytes
    idtimestamp: bytes


class Massif:
    """A massif, parsed.

    Args:
        data: the whole file.

    Raises:
        ProofError: it is damaged, cut off, or of a version that is not known.
    """

    def __init__(self, data: bytes) -> None:
        if len(data) > MAX_SIZE:
            raise _unreadable(f"it has more than {MAX_SIZE} bytes")
        if len(data) < TRIE_START:
            raise _unreadable("it is shorter than its header")
        self.version = int.from_bytes(data[21:23], "big")
        self.height = data[27]
        self.number = int.from_bytes(data[28:32], "big")
        if self.version not in VERSIONS:
            raise _unreadable(f"its version {self.version} is not known")
        if not 1 <= self.height <= MAX_HEIGHT:
            raise _unreadable(f"its height {self.height} is not from 1 to {MAX_HEIGHT}")
        leaves = 1 << (self.height - 1)
        self.first = mmr.size_of(self.number * leaves)
        self._stacked = {index: place for place, index in enumerate(mmr.peaks(self.first))}
        self._stack = TRIE_START + TRIE_ENTRY * (1 << self.height)
        self._nodes = self._stack + HASH * (FIXED_STACK if self.version else len(self._stacked))
        nodes, rest = divmod(len(data) - self._nodes, HASH)
        if nodes < 0 or rest:
            raise _unreadable("it is cut off")
        self.size = self.first + nodes
        if self.size > mmr.size_of((self.number + 1) * leaves):
            raise _unreadable("it has more nodes than a massif of its height")
        self._first_leaf = self.number * leaves
        self._leaves = leaves
        self._data = data

    @property
    def full_size(self) -> int:
        """The number of nodes of the range when this massif is full."""
        return mmr.size_of(self._first_leaf + self._leaves)

    def root(self, size: int) -> bytes:
        """Return the bag of the peaks of the range of `size` nodes.

        Raises:
            ProofError: as `peaks`.
        """
        return mmr.bag(self.peaks(size))

    def is_consistent(self, size: int) -> bool:
        """Whether each node above others, of those before `size`, is the hash of the two below it."""
        for index in range(self.first, size):
            level = mmr.height(index)
            if level and self.node(index) != mmr.interior(
                index, self.node(index - (1 << level)), self.node(index - 1)
            ):
                return False
        return True

    def covers(self, leaf_number: int) -> bool:
        """Whether a leaf belongs into this massif."""
        return self._first_leaf <= leaf_number < self._first_leaf + self._leaves

    def node(self, index: int) -> bytes:
        """Return the node at an index.

        Raises:
            ProofError: neither the massif nor its stack has it.
        """
        if self.first <= index < self.size:
            start = self._nodes + HASH * (index - self.first)
        elif index in self._stacked:
            start = self._stack + HASH * self._stacked[index]
        else:
            raise _unreadable(f"node {index} is not in it")
        return self._data[start : start + HASH]

    def peaks(self, size: int) -> list[bytes]:
        """Return the peaks of the range of `size` nodes, left to right.

        Raises:
            ProofError: no range has that size, or it is not in this massif.
        """
        if not self.first <= size <= self.size:
            raise _unreadable(f"it has nodes {self.first} to {self.size}, and {size} are needed")
        try:
            return [self.node(index) for index in mmr.peaks(size)]
        except ValueError as error:
            raise _unreadable(str(error)) from error

    def entry(self, leaf_number: int) -> TrieEntry:
        """Return what is noted beside a leaf of this massif."""
        start = TRIE_START + TRIE_ENTRY * (leaf_number - self._first_leaf)
        found = self._data[start : start + TRIE_ENTRY]
        return TrieEntry(found[:32], found[56:])


def height_of(data: bytes) -> int:
    """Return the height that a massif's header says, the service's if it says none that can be."""
    height = data[27] if len(data) >= TRIE_START else 0
    return height if 1 <= height <= MAX_HEIGHT else DEFAULT_HEIGHT


def _unreadable(why: str) -> ProofError:
    return ProofError(State.UNREADABLE, f"the massif cannot be used: {why}")
