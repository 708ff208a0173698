"""Recognising a walk: a program that goes through a directory's entries in an order, and what comes next.

Sync and pure. Programs walk in one of three orders: as listed (find, ls, tar), by inode number (cp sorts
what it has read so, find does for large directories) or by name (rsync, file managers). A directory can have
a hundred thousand entries: an order is kept as positions in the listing, and the listing is not copied.
"""

from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")
InThread = Callable[[Callable[[], Callable[[], None]]], None]

_LARGEST = 200_000  # entries above which only the order of the listing is looked for: sorting takes time
_AT_ONCE = 2_000  # entries above which they are sorted in a thread: a tenth of a second for each 20,000
_POSITION = "q"  # an array's kind of number


class _Ordering:
    """One order of the entries, and how far a walk has followed it.

    Args:
        positions: the entries' positions in the listing, in this order; None: as listed.
    """

    def __init__(self, positions: list[int] | None = None) -> None:
        self.positions = None if positions is None else array(_POSITION, positions)
        self._ranks = None if positions is None else array(_POSITION, bytes(8 * len(positions)))
        for rank, position in enumerate(positions or ()):
            assert self._ranks is not None
            self._ranks[position] = rank
        self.last = -1
        self.streak = 0  # steps in this order, one after another
        self.requested = 0  # rank up to which entries were given out by `ahead`

    def step(self, position: int) -> None:
        if self._ranks is not None:
            if position >= len(self._ranks):
                return
            position = self._ranks[position]
        if position == self.last:
            return
        self.streak = self.streak + 1 if position == self.last + 1 and self.last >= 0 else 0
        self.last = position
        if not self.streak:
            self.requested = position + 1


class AccessPattern(Generic[T]):
    """A walk over the entries of one directory.

    Args:
        items: the entries in the listing's order.
        keys: what else they may be sorted by; called in a thread too.
        in_thread: runs a function in a thread, and then what that returns in the event loop. None: there is
            none, and everything is sorted at once.
    """

    def __init__(
        self,
        items: Sequence[T],
        keys: Iterable[Callable[[T], int | str]] = (),
        in_thread: InThread | None = None,
    ) -> None:
        self._keys = tuple(keys)
        self._in_thread = in_thread
        self._sorting = False
        self._first: T | None = None
        self._orders: list[_Ordering] = []
        self._positions: dict[T, int] = {}
        self._items = items

    def extend(self, items: Sequence[T]) -> None:
        """Take note of a listing that has grown; what was in it is where it was."""
        self._items = items
        if self._orders:
            self._find_positions()

    def step(self, item: T) -> int:
        """Take note that the walk has come to `item`; return how many steps it has kept to one order."""
        if self._first is None:
            self._first = item
            return 0
        if not self._orders and not self._build():
            return 0
        position = self._positions.get(item)
        if position is not None:
            for order in self._orders:
                order.step(position)
        return max(order.streak for order in self._orders)

    def ahead(self, count: int) -> list[T]:
        """Return those of the next `count` entries that were not returned before, in the walk's order."""
        order = self._order
        if order is None or not order.streak:
            return []
        length = self._length(order)
        start, end = max(order.requested, order.last + 1), min(order.last + 1 + count, length)
        order.requested = max(order.requested, end)
        if order.positions is None:
            return [self._items[position] for position in range(start, end)]
        return [self._items[position] for position in order.positions[start:end]]

    @property
    def remaining(self) -> int:
        """How many entries are still to come, if the walk keeps to its order."""
        order = self._order
        return 0 if order is None else self._length(order) - order.last - 1

    @property
    def _order(self) -> _Ordering | None:
        """The order that the walk keeps to; of two as likely, one that goes on."""
        if len(self._orders) < 2:
            return self._orders[0] if self._orders else None
        return max(self._orders, key=lambda order: (order.streak, order.last + 1 < self._length(order)))

    def _length(self, order: _Ordering) -> int:
        return len(self._positions) if order.positions is None else len(order.positions)

    def _build(self) -> bool:
        """Sort, now that there is a second step: a directory that is looked into once costs nothing.

        Returns whether it is done; of a large directory it will be at one of the next steps.
        """
        if self._in_thread is None or len(self._items) <= _AT_ONCE:
            self._sort()()
        elif not self._sorting:
            self._sorting = True
            self._in_thread(self._sort)
        return bool(self._orders)

    def _sort(self) -> Callable[[], None]:
        """Sort what has been listed so far, touching nothing; return what makes that known."""
        items = list(self._items)  # it may grow meanwhile
        positions = {item: position for position, item in enumerate(items)}
        orders = [_Ordering()]
        if len(items) <= _LARGEST:
            for key in self._keys:
                keys = [key(item) for item in items]
                orders.append(_Ordering(sorted(range(len(items)), key=keys.__getitem__)))

        def install() -> None:
            self._positions, self._orders = positions, orders
            self._find_positions()
            assert self._first is not None
            first = self._positions.get(self._first)
            if first is not None:
                for order in orders:
                    order.step(first)

        return install

    def _find_positions(self) -> None:
        for position in range(len(self._positions), len(self._items)):
            self._positions[self._items[position]] = position
