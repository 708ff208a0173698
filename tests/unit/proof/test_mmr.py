"""The range's arithmetic, against trees that are built node by node."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attachfs.proof import mmr


class Naive:
    """A range built by merging perfect trees, without any index arithmetic."""

    def __init__(self, leaves: int) -> None:
        self.nodes: list[bytes] = []
        self.heights: list[int] = []
        self.leaf_indices: list[int] = []
        stack: list[tuple[int, int]] = []  # height, index
        for number in range(leaves):
            self.leaf_indices.append(len(self.nodes))
            stack.append((0, self._add(hashlib.sha256(b"%d" % number).digest(), 0)))
            while len(stack) > 1 and stack[-1][0] == stack[-2][0]:
                (level, left), (_, right) = stack[-2:]
                position = (len(self.nodes) + 1).to_bytes(8, "big")
                joined = hashlib.sha256(position + self.nodes[left] + self.nodes[right]).digest()
                stack[-2:] = [(level + 1, self._add(joined, level + 1))]
        self.peaks = [index for _, index in stack]

    def _add(self, value: bytes, level: int) -> int:
        self.nodes.append(value)
        self.heights.append(level)
        return len(self.nodes) - 1


@pytest.mark.parametrize("leaves", range(1, 70))
def test_sizes_heights_peaks_and_leaves_agree_with_a_range_that_was_built(leaves: int) -> None:
    built = Naive(leaves)
    size = len(built.nodes)
    assert mmr.size_of(leaves) == size
    assert mmr.peaks(size) == built.peaks
    assert [mmr.height(index) for index in range(size)] == built.heights
    assert [mmr.leaf_number(index) for index in built.leaf_indices] == list(range(leaves))


@pytest.mark.parametrize("leaves", [*range(1, 40), 64, 100])
def test_each_leaf_leads_to_its_peak(leaves: int) -> None:
    built = Naive(leaves)
    size = len(built.nodes)
    for index in built.leaf_indices:
        peak, root = mmr.root_of(built.nodes[index], index, size, built.nodes.__getitem__)
        assert peak in built.peaks
        assert root == built.nodes[peak]


@pytest.mark.parametrize("size", [2, 5, 6, 9, 12, 13, 14])
def test_a_size_that_no_range_has_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="no Merkle mountain range"):
        mmr.peaks(size)


def test_an_interior_node_is_no_leaf() -> None:
    with pytest.raises(ValueError, match="not a leaf"):
        mmr.leaf_number(2)


@given(st.integers(0, 2**61))
def test_huge_sizes_take_no_time(number: int) -> None:
    size = mmr.size_of(number)
    assert mmr.leaf_number(size) == number


def test_of_one_peak_the_bag_is_the_peak() -> None:
    assert mmr.bag([b"a" * 32]) == b"a" * 32
