"""Sizes as people write them (`10G`, `512M`, `5%`) and as they read them. No dependencies."""

import re
from typing import NamedTuple

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50}
_SIZE_RE = re.compile(r"([0-9]{1,19})(?:\.([0-9]{1,6}))?\s*(?:([KMGTP])(?:I?B)?|B)?", re.IGNORECASE)
_PERCENT_RE = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,6})?)\s*%")
_MAX = 2**63 - 1  # off_t: no filesystem holds more


class MinFree(NamedTuple):
    """How much of the filesystem the cache leaves free: a number of bytes or a percentage of its size."""

    bytes: int = 0
    percent: float = 0.0

    def of(self, total: int) -> int:
        """Return the number of bytes to leave free on a filesystem of `total` bytes."""
        return max(self.bytes, int(total * self.percent / 100))

    def __str__(self) -> str:
        return f"{self.percent:g}%" if self.percent else format_size(self.bytes)


def parse_size(text: str) -> int:
    """Return the bytes that `text` means: a number, alone or with K, M, G, T or P (powers of 1024).

    Raises:
        ValueError: `text` is no such size; the message says what would be.
    """
    found = _SIZE_RE.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is not a size: write bytes, or a number with K, M, G or T, like 10G")
    unit = _UNITS[(found[3] or "").upper()]
    fraction = found[2] or ""
    if fraction and unit == 1:
        raise ValueError(f"{text!r} is not a whole number of bytes")
    value = int(found[1]) * unit + (int(fraction) * unit // 10 ** len(fraction) if fraction else 0)
    if value > _MAX:
        raise ValueError(f"{text!r} is larger than any filesystem")
    return value


def parse_min_free(text: str) -> MinFree:
    """Return what to leave free: a size, or a percentage of the filesystem (`5%`).

    Raises:
        ValueError: `text` is neither; the message says what would be.
    """
    stripped = text.strip()
    found = _PERCENT_RE.fullmatch(stripped)
    if found is not None:
        percent = float(found[1])
        if percent >= 100:
            raise ValueError(f"{text!r} would leave nothing for the cache: write less than 100%")
        return MinFree(percent=percent)
    if "%" in stripped:
        raise ValueError(f"{text!r} is not a percentage: write a number and %, like 5%")
    try:
        return MinFree(bytes=parse_size(stripped))
    except ValueError as error:
        raise ValueError(f"{error}, or a percentage like 5%") from None


def format_size(count: int) -> str:
    """Return `count` bytes for a person: `0 B`, `1.5 KiB`, `10 GiB`."""
    value = float(count)
    units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
    while abs(value) >= 1024 and len(units) > 1:
        value /= 1024
        del units[0]
    unit = units[0]
    text = f"{value:.0f}" if unit == "B" or abs(value) >= 100 else f"{value:.1f}".removesuffix(".0")
    return f"{text} {unit}"
