"""The inode table with its lookup counts, and open handles. Sync; knows neither FUSE nor the network.

An inode's number is a hash of its canonical path, so that it is the same after a remount. Nothing is
kept of an inode once the kernel has forgotten it.
"""

import hashlib
from collections.abc import Iterable
from typing import Generic, TypeVar

from attachfs.errors import IntegrityError, NotFound, Unexpected
from attachfs.model import Digest
from attachfs.namespace.nodes import ROOT, Node
from attachfs.namespace.tree import Attributes

ROOT_INODE = 1  # FUSE's number for the root
H = TypeVar("H")


class Inode:
    """One live inode: its node, the kernel's lookup count, and a file's attributes as last told.

    A walk makes one for every entry of the ledger, and the kernel keeps them: every word counts.
    """

    __slots__ = ("attributes", "content", "lookups", "node", "opens", "streams", "suspect")

    def __init__(self, node: Node) -> None:
        self.node = node
        self.lookups = 0
        self.attributes: Attributes | None = None  # of a file whose size is known
        self.content: Digest | None = None  # what the last open was of
        self.opens = 0
        self.streams = 0  # opens that may still hand out bytes which are not verified yet
        # The kernel may hold pages that were handed out and never verified.
        self.suspect = False

    def returned(self, attributes: Attributes) -> None:
        """Remember what has been told of a file's size."""
        if attributes.size_known and not attributes.is_dir:
            self.attributes = attributes

    def update_attributes(self, attributes: Attributes, size: int | None = None) -> None:
        """Remember attributes; `size`: what the file really has, if that is known better.

        Raises:
            IntegrityError: the size is another one, and the file is open: it cannot become another file.
        """
        before = self.attributes
        size = attributes.size if size is None else size
        if self.opens and before is not None and before.size != size:
            raise IntegrityError(
                f"the ledger now records {size} bytes where it recorded {before.size}, and the file is open"
            )
        self.returned(attributes)

    def opened(self, *, verified: bool, content: Digest | None = None) -> bool:
        """Count an open; return whether the kernel may keep the pages it has of this file.

        Raises:
            IntegrityError: it is open with other content, whose pages would stand among this one's.
        """
        same = self.content == content
        if self.opens and not same:
            raise IntegrityError(f"the ledger now records {content}, and the file is open as {self.content}")
        keep = same and verified and not self.suspect and not self.streams
        self.content = content
        if not self.opens:
            self.suspect = False  # `keep` was False if it was set: the kernel drops the pages now
        self.opens += 1
        self.streams += not verified
        return keep

    def released(self, *, streamed: bool, verified: bool) -> None:
        """Take back an open; `verified`: all that it handed out has been found right."""
        self.opens -= 1
        self.streams -= streamed
        self.suspect |= not verified


class InodeTable:
    """Live inodes by number."""

    def __init__(self) -> None:
        root = Inode(ROOT)
        root.lookups = 1  # the kernel never forgets the root
        self._inodes: dict[int, Inode] = {ROOT_INODE: root}
        self._moved: dict[Node, int] = {}  # live nodes whose own number was taken when they came
        self.disputed = False  # whether a node's own number has ever been taken when it came

    def __len__(self) -> int:
        return len(self._inodes)

    def __getitem__(self, number: int) -> Inode:
        """Return a live inode.

        Raises:
            NotFound: the kernel has forgotten it.
        """
        try:
            return self._inodes[number]
        except KeyError:
            raise NotFound(f"inode {number} is not known") from None

    def number(self, node: Node) -> int:
        """Return the number for `node`, without counting a lookup."""
        if node == ROOT:
            return ROOT_INODE
        if self._moved and node in self._moved:
            return self._moved[node]
        number = _own_number(node)
        while number <= ROOT_INODE or ((inode := self._inodes.get(number)) and inode.node != node):
            self.disputed = True
            number = (number + 1) % 2**63  # two live paths with one hash: the later one moves on
        return number

    def peek(self, number: int) -> Inode | None:
        """Return the inode if it is live."""
        return self._inodes.get(number)

    def remember(self, node: Node, number: int | None = None) -> tuple[int, Inode]:
        """Count one lookup of `node`; call it only when the reply has been accepted.

        Args:
            node: what was looked up.
            number: its number, if it has just been asked for.
        """
        number = self.number(node) if number is None else number
        inode = self._inodes.get(number)
        if inode is None:
            inode = self._inodes[number] = Inode(node)
            if self.disputed and number != _own_number(node):
                self._moved[node] = number
        inode.lookups += 1
        return number, inode

    def numbers(self) -> list[int]:
        """Return the live inodes' numbers."""
        return list(self._inodes)

    def forget(self, forgotten: Iterable[tuple[int, int]]) -> None:
        """Take back lookups, as (number, count) pairs; an inode without any leaves the table."""
        for number, count in forgotten:
            inode = self._inodes.get(number)
            if inode is None:
                continue
            inode.lookups -= count
            if inode.lookups <= 0 and number != ROOT_INODE:
                del self._inodes[number]
                self._moved.pop(inode.node, None)


def _own_number(node: Node) -> int:
    """Return the hash of the node's path: 63 bits, so that tools with signed numbers agree."""
    digest = hashlib.blake2b(node.path.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class HandleTable(Generic[H]):
    """Open handles by number."""

    def __init__(self) -> None:
        self._handles: dict[int, H] = {}
        self._last = 0

    def __len__(self) -> int:
        return len(self._handles)

    def __contains__(self, number: int) -> bool:
        return number in self._handles

    def __getitem__(self, number: int) -> H:
        """Return an open handle.

        Raises:
            Unexpected: there is no such handle.
        """
        try:
            return self._handles[number]
        except KeyError:
            raise Unexpected(f"handle {number} is not open") from None

    def add(self, handle: H) -> int:
        """Return the number given to a new handle."""
        self._last += 1
        self._handles[self._last] = handle
        return self._last

    def pop(self, number: int) -> H | None:
        """Remove a handle and return it, or None if it was not open."""
        return self._handles.pop(number, None)

    def values(self) -> list[H]:
        """Return the open handles."""
        return list(self._handles.values())
