"""What is withheld: whatever is asked for, and in which order, one part has been handed out to nobody."""

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


def read(handed: ServedBlocks, first: int, stop: int) -> bool:
    """Read whole parts in order."""
    return handed.in_order(first * WITHHELD, min(stop * WITHHELD, SIZE))


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
def test_which_parts_hold_a_read(offset: int, end: int, first: int, stop: int) -> None:
    assert blocks_of(offset, end) == range(first, stop)


class TestWithheld:
    def test_is_the_last_part_at_first(self) -> None:
        handed = ServedBlocks(SIZE)
        assert handed.limit == LAST * WITHHELD
        assert read(handed, 0, LAST)
        assert not read(handed, LAST, BLOCKS)

    def test_stays_the_last_where_jumps_go_elsewhere(self) -> None:
        handed = ServedBlocks(SIZE)
        assert handed.take(block(3))
        assert handed.limit == LAST * WITHHELD

    def test_moves_to_the_last_that_nobody_has_had(self) -> None:
        handed = ServedBlocks(SIZE)
        assert handed.take(block(LAST - 1))
        assert handed.take(block(LAST))
        assert handed.limit == (LAST - 2) * WITHHELD
        assert read(handed, 0, LAST - 2)
        assert not read(handed, LAST - 2, LAST - 1)
        assert read(handed, LAST - 1, BLOCKS)  # beyond it all has been handed out

    def test_is_not_among_what_is_asked_for_together(self) -> None:
        handed = ServedBlocks(SIZE)
        assert handed.take(block(2, BLOCKS - 2))
        assert handed.limit == WITHHELD

    def test_does_not_move_to_what_was_read_in_order(self) -> None:
        handed = ServedBlocks(SIZE)
        assert handed.in_order(0, (LAST - 1) * WITHHELD + 1)
        assert not handed.may_take(block(LAST))
        assert not handed.take(block(LAST))
        assert handed.limit == LAST * WITHHELD

    def test_does_not_move_below_what_was_read_somewhere_of_what_is_stored(self) -> None:
        handed = ServedBlocks(SIZE)
        assert handed.in_order((LAST - 1) * WITHHELD, LAST * WITHHELD)
        assert not handed.take(block(LAST))

    def test_does_not_move_when_all_others_were_jumped_to(self) -> None:
        handed = ServedBlocks(SIZE)
        assert all(handed.take(block(number)) for number in range(LAST))
        assert not handed.take(block(LAST))
        assert handed.limit == LAST * WITHHELD

    def test_in_the_middle_gives_way_to_whoever_reads_there_alone(self) -> None:
        handed = ServedBlocks(SIZE)
        assert handed.take(block(5, 3))
        assert handed.limit == 4 * WITHHELD
        assert read(handed, 4, 5)  # stored, and the verdict may be far off
        assert handed.limit == 3 * WITHHELD

    def test_in_the_middle_stays_for_whoever_reads_up_to_it(self) -> None:
        handed = ServedBlocks(SIZE)
        assert handed.take(block(5, 3))
        assert read(handed, 0, 4)
        assert not read(handed, 4, 5)
        assert not read(handed, 4, BLOCKS)

    @pytest.mark.parametrize("size", [1, WITHHELD])
    def test_of_one_part_alone_it_is_all(self, size: int) -> None:
        handed = ServedBlocks(size)
        assert handed.limit == 0
        assert not handed.in_order(0, 1)
        assert not handed.take(block(0))

    def test_is_nothing_where_nobody_vouches(self) -> None:
        handed = ServedBlocks(SIZE, withholding=False)
        assert handed.take(range(BLOCKS))
        assert handed.limit == SIZE
        assert read(handed, 0, BLOCKS)


def test_there_is_a_bound_on_what_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(withholding, "_MOST", 3)
    handed = ServedBlocks(SIZE)
    assert handed.take(block(2, 3))
    assert not handed.may_take(block(5))
    assert not handed.take(block(5))


def test_it_is_known_whether_anything_was_handed_out() -> None:
    handed = ServedBlocks(SIZE)
    assert not handed.touched
    assert not handed.take(range(BLOCKS))
    assert not handed.touched
    assert handed.take(block(3))
    assert handed.touched


POSITIONS = st.integers(0, SIZE)


@settings(max_examples=500, deadline=None)
@given(st.lists(st.tuples(st.booleans(), POSITIONS, POSITIONS), max_size=40))
def test_one_part_is_handed_out_to_nobody_whatever_is_asked_for(
    asked: list[tuple[bool, int, int]],
) -> None:
    handed = ServedBlocks(SIZE)
    had = set[int]()
    for ahead, one, other in asked:
        offset, end = min(one, other), max(one, other) + 1
        end = min(end, SIZE)
        if offset == end:
            continue
        parts = blocks_of(offset, end)
        if handed.take(parts) if ahead else handed.in_order(offset, end):
            had.update(parts)
        assert handed.limit // WITHHELD not in had
        assert set(range(handed.limit // WITHHELD + 1, BLOCKS)) <= had
