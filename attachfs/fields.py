"""A record's fields as dotted names and text, and the names of many records in little memory.

Owns: what a field is called (`attributes.arc_display_name`, nested keys dotted), and the table of which
fields records have. Most records of a ledger have the same ones, so each keeps the number of an entry.
"""

from collections.abc import Iterator
from typing import Any

import msgspec

UNKNOWN = 0  # the number of no entry
VALUE_LIMIT = 65_536  # bytes; what an extended attribute may have, so that a longer value is no field to list
_MOST_NAMES = 500_000  # in the table; one takes about 100 bytes if no other record has it


def leaves(record: dict[str, Any]) -> Iterator[tuple[str, object]]:
    """Yield the name and value of each field, in the record's order."""
    levels = [("", iter(record.items()))]  # no recursion: a record may be nested deeper than the stack
    while levels:
        prefix, items = levels[-1]
        for key, value in items:
            if isinstance(value, dict) and value:
                levels.append((f"{prefix}{key}.", iter(value.items())))
                break
            yield f"{prefix}{key}", value
        else:
            levels.pop()


def as_text(value: object) -> str:
    """Return a field's value: strings as they are, null as "", all else as JSON.

    Raises:
        RecursionError: it is nested too deep.
    """
    if isinstance(value, str):
        return value
    return "" if value is None else msgspec.json.encode(value).decode()


class FieldNames:
    """Which fields records have: each different tuple of names once, under a number.

    A number is never used again. When the table is full it is emptied, and the numbers that records have from
    before mean nothing any more.

    Args:
        most: how many names are kept.
    """

    def __init__(self, most: int = _MOST_NAMES) -> None:
        self._most = most
        self._numbers: dict[tuple[str, ...], int] = {}
        self._names: dict[int, tuple[str, ...]] = {}
        self._count = 0  # names in the table
        self._last = UNKNOWN

    def number_of(self, record: dict[str, Any]) -> int:
        """Return the number for a record's fields, those whose value is too long left out."""
        names = tuple(name for name, value in leaves(record) if _is_short(value))
        number = self._numbers.get(names)
        if number is None:
            self._count += len(names)
            if self._count > self._most:
                self._numbers.clear()
                self._names.clear()
                self._count = len(names)
            self._last += 1
            number = self._numbers[names] = self._last
            self._names[number] = names
        return number

    def names(self, number: int) -> tuple[str, ...] | None:
        """Return the names that have a number, or None if they are not known."""
        return self._names.get(number)


def _is_short(value: object) -> bool:
    if isinstance(value, str):
        # No character takes more than four bytes: most values need not be encoded to be measured.
        return len(value) * 4 <= VALUE_LIMIT or len(value.encode("utf-8", "replace")) <= VALUE_LIMIT
    try:
        return not isinstance(value, list) or len(msgspec.json.encode(value)) <= VALUE_LIMIT
    except RecursionError:
        return False


FIELD_NAMES = FieldNames()  # as with interned strings, sharing it changes nothing but memory
