"""Recognising a walk: a program that goes through a directory's entries in an order, and what comes next.

Sync and pure. Programs walk in one of three orders: as listed (find, ls, tar), by inode number (cp sorts
what it has read so, find does for large directories) or by name (rsync, file managers).
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")

_LARGEST = 200_000  # entries above which only the order of the listing is looked for: sorting takes time


class _Order(Generic[T]):
    """One order of the entries, and how far a walk has followed it."""

    def __init__(self, items: Sequence[T]) -> None:
        self.items = items
        self.index = {item: position for position, item in enumerate(items)}
        self.last = -1
        self.streak = 0  # steps in this order, one after another
        self.asked = 0  # position up to which entries were given out by `ahead`

    def step(self, item: T) -> None:
        position = self.index.get(item)
        if position is None or position == self.last:
            return
        self.streak = self.streak + 1 if position == self.last + 1 and self.last >= 0 else 0
        self.last = position
        if not self.streak:
            self.asked = position + 1


class Walk(Generic[T]):
    """A walk over the entries of one directory.

    Args:
        items: the entries in the listing's order.
        keys: what else they may be sorted by.
    """

    def __init__(self, items: Sequence[T], keys: Iterable[Callable[[T], int | str]] = ()) -> None:
        self._keys = tuple(keys)
        self._first: T | None = None
        self._orders: list[_Order[T]] = []
        self._items = items

    def extend(self, items: Sequence[T]) -> None:
        """Take note of a listing that has grown."""
        if len(items) == len(self._items):
            return
        self._items = items
        if self._orders:
            old = self._orders[0]
            new = _Order(items)
            new.last, new.streak, new.asked = old.last, old.streak, old.asked
            self._orders[0] = new

    def step(self, item: T) -> int:
        """Take note that the walk has come to `item`; return how many steps it has kept to one order."""
        if self._first is None:
            self._first = item
            return 0
        if not self._orders:
            self._build()
        for order in self._orders:
            order.step(item)
        return max(order.streak for order in self._orders)

    def ahead(self, count: int) -> list[T]:
        """Return those of the next `count` entries that were not returned before, in the walk's order."""
        if not self._orders:
            return []
        order = max(self._orders, key=lambda order: order.streak)
        if not order.streak:
            return []
        start, end = max(order.asked, order.last + 1), min(order.last + 1 + count, len(order.items))
        order.asked = max(order.asked, end)
        return list(order.items[start:end])

    def _build(self) -> None:
        """Sort, now that there is a second step: a directory that is looked into once costs nothing."""
        self._orders = [_Order(self._items)]
        if len(self._items) <= _LARGEST:
            self._orders += [_Order(sorted(self._items, key=key)) for key in self._keys]
        for order in self._orders:
            assert self._first is not None
            order.step(self._first)
