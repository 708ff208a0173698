"""The chain: whole ones verify, and each single edit is found, and where."""

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attachfs.custody import chain
from attachfs.custody.chain import End, Finding, Kind, Raw, Verifier

WRONG = set(Kind) - {Kind.NOTE}


def make(count: int, end: End = chain.START) -> tuple[list[bytes], End]:
    lines = []
    for number in range(count):
        line = chain.encode(
            {"event": "open", "uid": 1000, "path": f"assets/{number}\n\u202e", "size": number}, end
        )
        lines.append(line)
        end = End(end.seq + 1, chain.digest(line))
    return lines, end


def raws(lines: list[bytes], name: str = "log", *, ended: bool = True) -> list[Raw]:
    last = len(lines)
    return [Raw(name, number, line, ended or number < last) for number, line in enumerate(lines, 1)]


def look(lines: list[bytes], last: str = "") -> list[Finding]:
    return list(Verifier(last).findings(raws(lines)))


def wrong(lines: list[bytes], last: str = "") -> list[Finding]:
    return [finding for finding in look(lines, last) if finding.kind in WRONG]


@given(st.integers(0, 20))
def test_a_whole_chain_verifies(count: int) -> None:
    lines, end = make(count)
    verifier = Verifier(end.hash if count else "")
    assert list(verifier.findings(raws(lines))) == []
    assert (verifier.end, verifier.lines) == (end, count)


def test_the_first_line_follows_nothing_and_each_has_the_hash_of_the_one_before() -> None:
    lines, _ = make(3)
    parsed = [chain.parse(line) for line in lines]
    assert [line.previous if line else "" for line in parsed] == [
        chain.ZERO,
        chain.digest(lines[0]),
        chain.digest(lines[1]),
    ]


Edit = Callable[[list[bytes], random.Random], tuple[list[bytes], int]]


def change_a_byte(lines: list[bytes], chance: random.Random) -> tuple[list[bytes], int]:
    at = chance.randrange(len(lines))
    line = bytearray(lines[at])
    position = chance.randrange(len(line))
    line[position] = chance.choice([byte for byte in range(256) if byte not in (line[position], 10)])
    return [*lines[:at], bytes(line), *lines[at + 1 :]], at


def drop_a_byte(lines: list[bytes], chance: random.Random) -> tuple[list[bytes], int]:
    at = chance.randrange(len(lines))
    position = chance.randrange(len(lines[at]))
    return [*lines[:at], lines[at][:position] + lines[at][position + 1 :], *lines[at + 1 :]], at


def change_and_make_it_hold(lines: list[bytes], chance: random.Random) -> tuple[list[bytes], int]:
    """Change what a line says and compute its own hash again, but not the lines after it."""
    at = chance.randrange(len(lines) - 1)
    line = chain.parse(lines[at])
    assert line is not None
    fields = {key: value for key, value in line.fields.items() if key not in ("seq", "previous")}
    forged = chain.encode({**fields, "uid": chance.randrange(1, 1000)}, End(at, line.previous))
    return [*lines[:at], forged, *lines[at + 1 :]], at + 1  # noticed by the line after it


def drop_a_line(lines: list[bytes], chance: random.Random) -> tuple[list[bytes], int]:
    at = chance.randrange(len(lines) - 1)
    return [*lines[:at], *lines[at + 1 :]], at


def drop_the_last_line(lines: list[bytes], chance: random.Random) -> tuple[list[bytes], int]:
    del chance
    return lines[:-1], len(lines) - 2


def insert_a_copy(lines: list[bytes], chance: random.Random) -> tuple[list[bytes], int]:
    at, which = chance.randrange(len(lines) + 1), chance.randrange(len(lines))
    # a copy beside its original: either of them is the one too many
    found = at if at != which else at + 1
    return [*lines[:at], lines[which], *lines[at:]], found


def insert_a_foreign_line(lines: list[bytes], chance: random.Random) -> tuple[list[bytes], int]:
    at = chance.randrange(len(lines) + 1)
    return [*lines[:at], bytes(chance.choices(range(32, 127), k=80)), *lines[at:]], at


def swap_two(lines: list[bytes], chance: random.Random) -> tuple[list[bytes], int]:
    one, other = sorted(chance.sample(range(len(lines)), 2))
    changed = list(lines)
    changed[one], changed[other] = lines[other], lines[one]
    return changed, one


EDITS: list[Edit] = [
    change_a_byte,
    drop_a_byte,
    change_and_make_it_hold,
    drop_a_line,
    drop_the_last_line,
    insert_a_copy,
    insert_a_foreign_line,
    swap_two,
]


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_each_of_a_thousand_random_single_edits_is_found_where_it_was_made(edit: Edit) -> None:
    lines, end = make(40)
    chance = random.Random(edit.__name__)
    for _ in range(1000):
        changed, at = edit(lines, chance)
        found = wrong(changed, end.hash)
        assert found, (edit, at)
        # the line itself, or where a line is missing the one that comes next
        assert at + 1 in {finding.line for finding in found[:2]}, (edit, at, found)


@given(st.lists(st.sampled_from(EDITS), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_several_edits_are_found(edits: list[Edit], chance: random.Random) -> None:
    lines, end = make(12)
    changed = lines
    for edit in edits:
        if len(changed) > 2 and all(chain.parse(line) for line in changed):
            changed, _ = edit(changed, chance)
    if changed != lines:
        assert wrong(changed, end.hash)


@given(st.lists(st.binary(max_size=200).filter(lambda line: b"\n" not in line), min_size=1, max_size=5))
def test_any_bytes_are_no_chain(lines: list[bytes]) -> None:
    assert wrong(lines)


def test_a_missing_line_is_told_by_its_number() -> None:
    lines, _ = make(9)
    (finding,) = wrong([*lines[:3], *lines[6:]])
    assert (finding.kind, finding.line) == (Kind.MISSING, 4)
    assert "lines 4 to 6" in finding.text


def test_a_changed_line_is_one_finding_and_not_a_chain_of_them() -> None:
    lines, _ = make(9)
    lines[4] = lines[4].replace(b"open", b"OPEN")
    (finding,) = wrong(lines)
    assert (finding.kind, finding.line) == (Kind.CHANGED, 5)


def test_a_torn_last_line_is_told_apart() -> None:
    lines, end = make(4)
    torn = [*lines, chain.encode({"event": "open"}, end)[:50]]
    (finding,) = Verifier().findings(raws(torn, ended=False))
    assert (finding.kind, finding.line) == (Kind.TORN, 5)


def test_a_log_that_went_on_after_a_torn_line_verifies_with_a_note() -> None:
    lines, end = make(4)
    torn = chain.encode({"event": "open"}, end)[:50]
    more, _ = make(2, End(5, chain.digest(torn), torn=True))
    assert b'"after":"torn"' in more[0]
    assert wrong([*lines, torn, *more]) == []
    assert [finding.kind for finding in look([*lines, torn, *more])] == [Kind.NOTE]
    assert wrong([*lines, torn[:-1], *more])  # the torn line is part of the chain


def test_a_cut_tail_is_told_where_the_next_file_or_a_hash_is_given() -> None:
    lines, end = make(6)
    assert wrong(lines[:4]) == []
    assert [finding.kind for finding in wrong(lines[:4], end.hash)] == [Kind.CUT]
    following, _ = make(3, end)
    files = [*raws(lines[:4], "old"), *raws(following, "new")]
    (finding,) = Verifier().findings(files)
    assert (finding.kind, finding.file, finding.line) == (Kind.MISSING, "new", 1)
    assert list(Verifier().findings([*raws(lines, "old"), *raws(following, "new")])) == []


def test_lines_after_the_given_hash_are_a_note() -> None:
    lines, _ = make(6)
    assert [finding.kind for finding in look(lines, chain.digest(lines[3]))] == [Kind.NOTE]


def test_a_file_that_is_not_the_first_says_so() -> None:
    _, end = make(6)
    following, _ = make(3, end)
    (finding,) = look(following)
    assert (finding.kind, finding.line) == (Kind.BEGINNING, 1)
    assert "lines 1 to 6" in finding.text


def of(command: str, pid: int, result: str, end: End) -> tuple[bytes, End]:
    line = chain.encode({"event": command, "uid": 1, "pid": pid, "path": "/mnt/a", "result": result}, end)
    return line, End(end.seq + 1, chain.digest(line))


@pytest.mark.parametrize(
    ("lines", "left"),
    [
        ([("export", 1, "begun"), ("export", 1, "exit status 0")], []),
        ([("export", 1, "begun"), ("export", 1, "interrupted by SIGTERM")], []),
        ([("export", 1, "begun")], [1]),
        ([("export", 1, "begun"), ("verify", 1, "exit status 0"), ("export", 2, "exit status 0")], [1]),
        ([("export", 1, "begun"), ("verify", 2, "begun"), ("export", 1, "failed")], [2]),
        ([("export", 1, "begun"), ("export", 1, "begun"), ("export", 1, "exit status 0")], [1]),
    ],
)
def test_what_has_begun_and_has_no_end_is_noted(lines: list[tuple[str, int, str]], left: list[int]) -> None:
    encoded, end = [], chain.START
    for one in lines:
        line, end = of(*one, end)
        encoded.append(line)
    found = look(encoded)
    assert [finding.kind for finding in found] == [Kind.NOTE] * len(left)
    assert [finding.line for finding in found] == left
    for finding in found:
        assert "/mnt/a has no line of its end" in finding.text
