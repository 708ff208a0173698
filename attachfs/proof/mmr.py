"""The arithmetic of a Merkle mountain range: which nodes there are, and how a path climbs to its peak.

Nodes are counted from 0 in the order in which they are appended; leaves go in as they are, and

    node = SHA-256( its position, counted from 1, as 8 bytes || left || right )

A node's height is 0 for a leaf. A size is complete if it ends with no two peaks of one height.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence

Node = Callable[[int], bytes]  # the node at an index


def height(index: int) -> int:
    """Return the height of the node at an index."""
    position = index + 1
    while position & (position + 1):  # until it is all ones: the last node of a perfect tree
        position -= (1 << (position.bit_length() - 1)) - 1
    return position.bit_length() - 1


def size_of(leaves: int) -> int:
    """Return the number of nodes of a range with so many leaves."""
    return 2 * leaves - leaves.bit_count()


def peaks(size: int) -> list[int]:
    """Return the indices of the peaks, left to right, of a range of `size` nodes.

    Raises:
        ValueError: no range has that size.
    """
    found: list[int] = []
    end = last = 0
    while end < size:
        tree = _largest_tree(size - end)
        if tree == last:
            raise ValueError(f"no Merkle mountain range has {size} nodes")
        end, last = end + tree, tree
        found.append(end - 1)
    return found


def leaf_number(index: int) -> int:
    """Return which leaf, counted from 0, stands at an index.

    Raises:
        ValueError: the node there is no leaf.
    """
    if height(index):
        raise ValueError(f"node {index} is not a leaf")
    number, rest = 0, index
    while rest:
        tree = _largest_tree(rest)  # of those that stand before it
        rest -= tree
        number += (tree + 1) // 2
    return number


def path(index: int, size: int) -> Iterator[tuple[int, int, bool]]:
    """Yield the siblings on the way from a node to its peak, in a range of `size` nodes.

    Each as the sibling's index, the parent's index, and whether the sibling is on the left.
    """
    level = height(index)
    while True:
        if height(index + 1) > level:
            sibling, parent, on_left = index - (2 << level) + 1, index + 1, True
        else:
            sibling, parent, on_left = index + (2 << level) - 1, index + (2 << level), False
        if parent >= size:
            return
        yield sibling, parent, on_left
        index, level = parent, level + 1


def root_of(leaf: bytes, index: int, size: int, node: Node) -> tuple[int, bytes]:
    """Return the index of a leaf's peak, and the hash that the leaf and its path give there."""
    value = leaf
    for sibling, parent, on_left in path(index, size):
        other = node(sibling)
        value = interior(parent, other, value) if on_left else interior(parent, value, other)
        index = parent
    return index, value


def interior(index: int, left: bytes, right: bytes) -> bytes:
    """Return the node at `index` above two others."""
    return hashlib.sha256((index + 1).to_bytes(8, "big") + left + right).digest()


def bag(hashes: Sequence[bytes]) -> bytes:
    """Return one root for peaks given left to right."""
    root = hashes[-1]
    for peak in reversed(hashes[:-1]):
        root = hashlib.sha256(root + peak).digest()
    return root


def _largest_tree(nodes: int) -> int:
    """Return the number of nodes of the largest perfect tree that has at most so many."""
    return (1 << ((nodes + 1).bit_length() - 1)) - 1
