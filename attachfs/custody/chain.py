r"""Lines of a custody log, and the chain that they make. Pure.

    {"seq":2,"time":"…","event":"open",…,"previous":"<SHA-256 of line 1>","check":"<SHA-256>"}\n

`previous` is the SHA-256 of the whole line before, without its line feed; zeros in the first line of all.
`check` is the SHA-256 of this line without its `check`: it finds a change of the last line, which no line
follows. Whoever rewrites a line *and all that follow it* cannot be found by the file alone; keep the last
line's hash elsewhere.

A line that was cut off by the end of its process is completed by a line feed and nothing else; the next line
has its hash in `previous` and says `"after":"torn"`.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import Any, NamedTuple

ZERO = "0" * 64
MAX_LINE = 1 << 16  # bytes
BEGUN = "begun"  # the result in the first of two lines of what takes long: export, verify
_CHECK_RE = re.compile(rb',"check":"([0-9a-f]{64})"\}')
_CHECK_LENGTH = len(',"check":""}') + 64


class Line(NamedTuple):
    """A line whose `check` holds."""

    seq: int
    previous: str
    fields: dict[str, Any]


class End(NamedTuple):
    """Where a chain ends: the number and the hash of its last line; `torn` if that line was cut off."""

    seq: int
    hash: str
    torn: bool = False


START = End(0, ZERO)


def digest(line: bytes) -> str:
    """Return a line's hash."""
    return hashlib.sha256(line).hexdigest()


def encode(fields: dict[str, Any], end: End) -> bytes:
    """Return the line that follows an end, without its line feed."""
    body = {"seq": end.seq + 1, **fields}
    if end.torn:
        body["after"] = "torn"
    body["previous"] = end.hash
    raw = json.dumps(body, ensure_ascii=True, separators=(",", ":")).encode()
    return b'%b,"check":"%b"}' % (raw[:-1], digest(raw).encode())


def parse(line: bytes) -> Line | None:
    """Return a line, None if it is none, or was changed."""
    found = _CHECK_RE.fullmatch(line[-_CHECK_LENGTH:])
    if found is None or len(line) > MAX_LINE:
        return None
    raw = line[:-_CHECK_LENGTH] + b"}"
    if digest(raw).encode() != found[1]:
        return None
    try:
        fields = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict):
        return None
    seq, previous = fields.get("seq"), fields.get("previous")
    if not isinstance(seq, int) or seq < 1 or not isinstance(previous, str):
        return None
    return Line(seq, previous, fields)


class Kind(StrEnum):
    """What is wrong with a chain, or cannot be told of it; a note is neither."""

    CHANGED = "changed"
    MISSING = "missing"
    MISPLACED = "inserted or moved"
    CUT = "cut off"
    TORN = "torn"
    BEGINNING = "beginning missing"
    NOTE = "note"


class Finding(NamedTuple):
    """Something about a line: its file, its number there counted from 1, and a sentence."""

    kind: Kind
    file: str
    line: int
    text: str


class Raw(NamedTuple):
    """A line as read: its file, its number there, its bytes, and whether it ends with a line feed."""

    file: str
    number: int
    data: bytes
    ended: bool


class Running:
    """What has begun and not ended, as lines say: an export, a verification."""

    def __init__(self) -> None:
        self._begun: dict[tuple[str, ...], list[tuple[Raw, Line]]] = {}

    def note(self, raw: Raw, line: Line) -> None:
        """Take note of a line."""
        key = tuple(str(line.fields.get(name)) for name in ("event", "uid", "pid", "path"))
        if line.fields.get("result") == BEGUN:
            self._begun.setdefault(key, []).append((raw, line))
        elif key in self._begun:
            begun = self._begun[key]
            begun.pop()  # the earlier ones of the same process id have ended without a line
            if not begun:
                del self._begun[key]

    def left(self) -> list[tuple[Raw, Line]]:
        """Return the lines of what has begun, in the order of the log, and has no line of its end."""
        return sorted((one for begun in self._begun.values() for one in begun), key=lambda one: one[1].seq)


class _Seen(NamedTuple):
    raw: Raw
    line: Line | None
    hash: str


class Verifier:
    """Follows a chain through lines.

    Args:
        last: the hash that the last line had once, if it was kept.

    After `findings` has been gone through, `end` is the end of the chain, `lines` the number of lines.
    """

    def __init__(self, last: str = "") -> None:
        self.end = START
        self.lines = 0
        self._last = last.lower()
        self._met_last = 0  # the line that had the kept hash
        self._broken = False  # the line before was reported; what follows from that is not
        self._running = Running()

    def findings(self, lines: Iterable[Raw]) -> Iterator[Finding]:
        """Yield what is wrong, in order."""
        seen = (_Seen(raw, parse(raw.data), digest(raw.data)) for raw in lines)
        raw = None
        for one, following in _with_next(seen):
            raw = one.raw
            self.lines += 1
            if one.hash == self._last:
                self._met_last = self.lines
            if one.line is not None:
                self._running.note(one.raw, one.line)
            yield from self._check_line(one, following)
        if raw is not None:
            yield from self._close(raw)
        for begun, line in self._running.left():
            what = f"{line.fields.get('event')} of {line.fields.get('path')}"
            text = f"the {what} has no line of its end: it still runs, was killed, or its end is not here"
            yield Finding(Kind.NOTE, begun.file, begun.number, text)

    def _check_line(self, one: _Seen, following: _Seen | None) -> Iterator[Finding]:
        if one.line is None or not one.raw.ended:
            yield from self._unreadable(one, following)
            return
        seq, expected = one.line.seq, self.end.seq + 1
        if seq > expected and _is_ahead(seq, expected, following):
            yield _misplaced(one, seq, expected)
            return  # the next one is compared with the line before this one
        if self.end == START and seq > 1:
            yield _about(Kind.BEGINNING, one, f"lines 1 to {seq - 1} of the log are not here")
        elif seq > expected:
            missing = f"line {expected}" if seq == expected + 1 else f"lines {expected} to {seq - 1}"
            yield _about(Kind.MISSING, one, f"before it, {missing} of the log is missing")
        elif seq < expected:
            yield _misplaced(one, seq, expected)
            return
        elif one.line.previous != self.end.hash and not self._broken:
            yield _about(
                Kind.CHANGED, one, "the line before it is not the one that was there when it was written"
            )
        self._broken = False
        self.end = End(seq, one.hash)

    def _unreadable(self, one: _Seen, following: _Seen | None) -> Iterator[Finding]:
        follows = following.line if following is not None else None
        if not one.raw.ended and following is None:
            yield _about(
                Kind.TORN, one, "it has no end: its process was ended while it wrote, or it was cut off"
            )
            return
        if follows is not None and follows.previous == one.hash and follows.fields.get("after") == "torn":
            yield _about(Kind.NOTE, one, "it is torn: its process was ended while it wrote; the log goes on")
            self.end = End(self.end.seq + 1, one.hash)
            return
        yield _about(Kind.CHANGED, one, "it was changed, or is not a line of this log")
        # It stands for a line if the next one counts on; else it was inserted.
        if follows is None or follows.seq != self.end.seq + 1:
            self.end = End(self.end.seq + 1, "")
            self._broken = True

    def _close(self, raw: Raw) -> Iterator[Finding]:
        if not self._last or self.end.hash == self._last:
            return
        if self._met_last:
            more = self.lines - self._met_last
            yield Finding(
                Kind.NOTE, raw.file, raw.number, f"{more} lines were added after the one with the given hash"
            )
            return
        yield Finding(
            Kind.CUT, raw.file, raw.number, "the line with the given hash is not here: the end was cut off"
        )


def _is_ahead(seq: int, expected: int, following: _Seen | None) -> bool:
    """Whether a line that comes too early is alone in that: then it was put here, and none is missing."""
    return following is not None and following.line is not None and expected <= following.line.seq < seq


def _misplaced(one: _Seen, seq: int, expected: int) -> Finding:
    return _about(Kind.MISPLACED, one, f"it is line {seq} of its log, and line {expected} should be here")


def _about(kind: Kind, one: _Seen, text: str) -> Finding:
    return Finding(kind, one.raw.file, one.raw.number, text)


def _with_next(seen: Iterable[_Seen]) -> Iterator[tuple[_Seen, _Seen | None]]:
    ahead: Iterator[_Seen | None] = iter(seen)
    one = next(ahead, None)
    for following in itertools.chain(ahead, (None,)):
        if one is not None:
            yield one, following
        one = following
