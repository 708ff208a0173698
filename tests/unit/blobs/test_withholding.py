"""What is withheld: whatever is asked for, and in which order, one part has been served to nobody."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attachfs.blobs import withholding
from attachfs.blobs.withholding import WITHHELD, ServedBlocks, blocks_of

BLOCKS = 8
SIZE = (BLOCKS - 1) * WITHHELD + 5
LAST = BLOCKS - 1


def block(number: int, count: int = 1) -> range:
    return range(number, number + count)


def read(served: ServedBlocks, first: int, stop: int) -> bool:
    """Read whole parts in order."""
    return served.allow_sequential(first * WITHHELD, min(stop * WITHHELD, SIZE))


@pytest.mark.parametrize(
    ("offset", "end", "first", "stop"),
    [
        (0, 1, 0, 1),
        (0, WITHHELD, 0, 1),
        (WITHHELD - 1, WITHHELD + 1, 0, 2),
        (WITHHELD, 3 * WITHHELD, 1, 3),
        (5, 5, 0, 1),
    ],
)
def test_a_read_lies_in_the_parts_that_hold_its_bytes(offset: int, end: int, first: int, stop: int) -> None:
    assert blocks_of(offset, end) == range(first, stop)


class TestWithheld:
    def test_the_last_part_is_withheld_at_first(self) -> None:
        served = ServedBlocks(SIZE)
        assert served.limit == LAST * WITHHELD
        assert read(served, 0, LAST)
        assert not read(served, LAST, BLOCKS)

    def test_stays_the_last_where_jumps_go_elsewhere(self) -> None:
        served = ServedBlocks(SIZE)
        assert served.allow_random(block(3))
        assert served.limit == LAST * WITHHELD

    def test_the_withheld_block_moves_to_the_last_that_nobody_has_had(self) -> None:
        served = ServedBlocks(SIZE)
        assert served.allow_random(block(LAST - 1))
        assert served.allow_random(block(LAST))
        assert served.limit == (LAST - 2) * WITHHELD
        assert read(served, 0, LAST - 2)
        assert not read(served, LAST - 2, LAST - 1)
        assert read(served, LAST - 1, BLOCKS)  # beyond it all has been served

    def test_the_withheld_part_is_not_among_what_is_requested_together(self) -> None:
        served = ServedBlocks(SIZE)
        assert served.allow_random(block(2, BLOCKS - 2))
        assert served.limit == WITHHELD

    def test_the_withheld_part_does_not_move_to_what_was_read_in_order(self) -> None:
        served = ServedBlocks(SIZE)
        assert served.allow_sequential(0, (LAST - 1) * WITHHELD + 1)
        assert not served.can_allow(block(LAST))
        assert not served.allow_random(block(LAST))
        assert served.limit == LAST * WITHHELD

    def test_the_withheld_part_does_not_move_below_what_was_read_of_what_is_stored(self) -> None:
        served = ServedBlocks(SIZE)
        assert served.allow_sequential((LAST - 1) * WITHHELD, LAST * WITHHELD)
        assert not served.allow_random(block(LAST))

    def test_the_withheld_part_does_not_move_when_all_others_were_read(self) -> None:
        served = ServedBlocks(SIZE)
        assert all(served.allow_random(block(number)) for number in range(LAST))
        assert not served.allow_random(block(LAST))
        assert served.limit == LAST * WITHHELD

    def test_a_withheld_part_in_the_middle_gives_way_to_whoever_reads_there_alone(self) -> None:
        served = ServedBlocks(SIZE)
        assert served.allow_random(block(5, 3))
        assert served.limit == 4 * WITHHELD
        assert read(served, 4, 5)  # stored, and the verdict may be far off
        assert served.limit == 3 * WITHHELD

    def test_a_withheld_part_in_the_middle_stays_for_whoever_reads_up_to_it(self) -> None:
        served = ServedBlocks(SIZE)
        assert served.allow_random(block(5, 3))
        assert read(served, 0, 4)
        assert not read(served, 4, 5)
        assert not read(served, 4, BLOCKS)

    @pytest.mark.parametrize("size", [1, WITHHELD])
    def test_a_file_of_one_part_is_withheld_whole(self, size: int) -> None:
        served = ServedBlocks(size)
        assert served.limit == 0
        assert not served.allow_sequential(0, 1)
        assert not served.allow_random(block(0))

    def test_nothing_is_withheld_where_nobody_vouches(self) -> None:
        served = ServedBlocks(SIZE, withholding=False)
        assert served.allow_random(range(BLOCKS))
        assert served.limit == SIZE
        assert read(served, 0, BLOCKS)


def test_there_is_a_bound_on_what_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(withholding, "_MOST", 3)
    served = ServedBlocks(SIZE)
    assert served.allow_random(block(2, 3))
    assert not served.can_allow(block(5))
    assert not served.allow_random(block(5))


def test_served_blocks_know_whether_anything_was_served() -> None:
    served = ServedBlocks(SIZE)
    assert not served.touched
    assert not served.allow_random(range(BLOCKS))
    assert not served.touched
    assert served.allow_random(block(3))
    assert served.touched


POSITIONS = st.integers(0, SIZE)


@settings(max_examples=500, deadline=None)
@given(st.lists(st.tuples(st.booleans(), POSITIONS, POSITIONS), max_size=40))
def test_one_part_is_served_to_nobody_whatever_is_asked_for(
    asked: list[tuple[bool, int, int]],
) -> None:
    served = ServedBlocks(SIZE)
    had = set[int]()
    for ahead, one, other in asked:
        offset, end = min(one, other), max(one, other) + 1
        end = min(end, SIZE)
        if offset == end:
            continue
        parts = blocks_of(offset, end)
        if served.allow_random(parts) if ahead else served.allow_sequential(offset, end):
            had.update(parts)
        assert served.limit // WITHHELD not in had
        assert set(range(served.limit // WITHHELD + 1, BLOCKS)) <= had
