"""Which order a walk follows, and what comes next in it."""

from collections.abc import Callable

import hypothesis.strategies as st
from hypothesis import given

from attachfs.fuse.access_order import AccessPattern


def test_the_first_entry_says_nothing_yet() -> None:
    walk = AccessPattern(list("abcdef"))
    assert walk.step("a") == 0
    assert walk.ahead(10) == []


def test_what_was_given_out_is_not_given_again() -> None:
    walk = AccessPattern(list("abcdef"))
    walk.step("a")
    assert walk.step("b") == 1
    assert walk.ahead(2) == ["c", "d"]
    assert walk.ahead(2) == []
    walk.step("c")
    assert walk.ahead(2) == ["e"]


def test_the_same_entry_again_changes_nothing() -> None:
    walk = AccessPattern(list("abcdef"))
    for step in "aabbcc":
        streak = walk.step(step)
    assert streak == 2


def test_a_step_aside_begins_anew() -> None:
    walk = AccessPattern(list("abcdef"))
    for step in "abce":
        streak = walk.step(step)
    assert streak == 0
    assert walk.ahead(3) == []


def test_a_listing_that_grows_is_followed_on() -> None:
    walk = AccessPattern(list("abc"))
    for step in "abc":
        walk.step(step)
    assert walk.ahead(4) == []
    walk.extend(list("abcdefg"))
    assert walk.ahead(2) == ["d", "e"]


@given(items=st.lists(st.integers(), unique=True, min_size=3), by_value=st.booleans())
def test_any_whole_walk_in_listing_or_sorted_order_is_told_ahead_from_the_fifth_entry_on(
    *, items: list[int], by_value: bool
) -> None:
    walk = AccessPattern(items, (lambda item: item,))
    order = sorted(items) if by_value else items
    told: list[int] = []
    other = items if by_value else sorted(items)
    begins = other.index(order[0])
    for position, item in enumerate(order):
        # As long as both orders go the same way, nobody can know which of them it is.
        both = other[begins : begins + position] == order[:position]
        assert position < 4 or both or item in told
        walk.step(item)
        told += walk.ahead(4)
    # A wrong guess in the beginning may have told some: never more than each order's entries once.
    assert all(told.count(item) <= 2 for item in order)


def test_a_large_directory_is_sorted_elsewhere_and_the_walk_goes_on_from_where_it_is() -> None:
    handed: list[Callable[[], Callable[[], None]]] = []
    items = [f"{number:05}" for number in range(5000)]
    walk = AccessPattern(items, (lambda one: -int(one),), handed.append)
    assert [walk.step(one) for one in ("04000", "03999", "03998")] == [0, 0, 0]
    assert len(handed) == 1  # once
    assert walk.ahead(3) == []
    install = handed[0]()
    items.append("05000")
    walk.extend(items)
    install()
    assert walk.step("03997") == 0
    assert walk.step("03996") == 1
    assert walk.ahead(2) == ["03995", "03994"]
