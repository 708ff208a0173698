"""The part of CBOR (RFC 8949) that seals are made of, read strictly and written deterministically.

Owns: integers, byte and text strings, arrays, maps and tags, all of definite length and in shortest form.
Not a library: a general decoder accepts floats, indefinite lengths, several encodings of one value and
duplicate keys, each of which would have to be refused again afterwards.
"""

from typing import NamedTuple, TypeAlias

MAX_SIZE = 1 << 16  # bytes; a seal with a receipt for each of 64 peaks stays below 20 KiB
_MAX_DEPTH = 8  # a seal's header needs 4
_MAX_ITEMS = 4096

_UNSIGNED, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP, _TAG = range(7)

Value: TypeAlias = "int | bytes | str | list[Value] | dict[Value, Value] | Tag"


class Tag(NamedTuple):
    """A tagged value."""

    number: int
    value: "Value"


class CborError(ValueError):
    """The bytes are not in the accepted part of CBOR."""


def decode(data: bytes) -> Value:
    """Return the one value that `data` holds.

    Raises:
        CborError: it is too large, nested too deep, not in shortest form, has duplicate keys, ends early,
            or goes on after the value.
    """
    if len(data) > MAX_SIZE:
        raise CborError(f"{len(data)} bytes are more than {MAX_SIZE}")
    reader = _Reader(data)
    value = reader.value(0)
    if reader.position != len(data):
        raise CborError(f"{len(data) - reader.position} bytes follow the value")
    return value


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self.position = 0
        self._items = 0

    def value(self, depth: int) -> Value:  # noqa: PLR0911 - one for each kind
        self._items += 1
        if depth > _MAX_DEPTH or self._items > _MAX_ITEMS:
            raise CborError("it is nested too deep or has too many items")
        kind, number = self._head()
        if kind == _UNSIGNED:
            return number
        if kind == _NEGATIVE:
            return -1 - number
        if kind == _BYTES:
            return self._take(number)
        if kind == _TEXT:
            try:
                return self._take(number).decode()
            except UnicodeDecodeError as error:
                raise CborError("a text is not UTF-8") from error
        if kind == _ARRAY:
            return [self.value(depth + 1) for _ in range(self._count(number))]
        if kind == _MAP:
            return self._map(number, depth)
        return Tag(number, self.value(depth + 1))

    def _map(self, number: int, depth: int) -> dict[Value, Value]:
        found: dict[Value, Value] = {}
        for _ in range(self._count(number)):
            key = self.value(depth + 1)
            if not isinstance(key, int | str) or key in found:
                raise CborError("a map's key is neither a number nor a text, or there twice")
            found[key] = self.value(depth + 1)
        return found

    def _head(self) -> tuple[int, int]:
        first = self._take(1)[0]
        kind, short = first >> 5, first & 31
        if kind > _TAG:
            raise CborError(f"byte {self.position - 1}: floats and simple values are not expected")
        if short < 24:
            return kind, short
        if short > 27:
            raise CborError(f"byte {self.position - 1}: a length is not definite")
        size = 1 << (short - 24)
        number = int.from_bytes(self._take(size), "big")
        if number < 24 or (size > 1 and number < 1 << (4 * size)):
            raise CborError(f"byte {self.position - size - 1}: a number is not in its shortest form")
        return kind, number

    def _count(self, number: int) -> int:
        if number > len(self._data) - self.position:  # each item takes a byte at least
            raise CborError("it ends early")
        return number

    def _take(self, size: int) -> bytes:
        end = self.position + size
        if end > len(self._data):
            raise CborError("it ends early")
        taken = self._data[self.position : end]
        self.position = end
        return taken


def encode(value: Value) -> bytes:
    """Return a value's core deterministic encoding: shortest form, keys in the order of their encoding."""
    if isinstance(value, Tag):
        return _head(_TAG, value.number) + encode(value.value)
    if isinstance(value, int):
        return _head(_UNSIGNED, value) if value >= 0 else _head(_NEGATIVE, -1 - value)
    if isinstance(value, bytes):
        return _head(_BYTES, len(value)) + value
    if isinstance(value, str):
        text = value.encode()
        return _head(_TEXT, len(text)) + text
    if isinstance(value, list):
        return _head(_ARRAY, len(value)) + b"".join(encode(one) for one in value)
    pairs = sorted((encode(key), encode(one)) for key, one in value.items())
    return _head(_MAP, len(value)) + b"".join(key + one for key, one in pairs)


def _head(kind: int, number: int) -> bytes:
    if number < 24:
        return bytes([kind << 5 | number])
    for short, size in ((24, 1), (25, 2), (26, 4), (27, 8)):
        if number < 1 << (8 * size):
            return bytes([kind << 5 | short]) + number.to_bytes(size, "big")
    raise CborError(f"{number} does not fit into 64 bits")
