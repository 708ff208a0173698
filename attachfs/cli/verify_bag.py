"""`attachfs verify` of an exported bag: its manifests, its records and its bytes against each other."""

import functools
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from attachfs.archive import layout
from attachfs.archive.check import BagCheck, Checked
from attachfs.archive.folder import BagFolder
from attachfs.cli.verdicts import Result, Verdict

Progress = Callable[[int], object]


class Task(NamedTuple):
    """A file to be read, and what reads it. None: it is right, and not worth a line."""

    size: int
    check: Callable[[Progress], Result | None]


def is_bag(path: Path) -> bool:
    """Whether a directory says that it is a bag, or is one whose export has not ended."""
    with suppress(OSError):  # what cannot be looked at is told when it is its turn
        return any((path / name).exists() for name in (layout.DECLARATION, layout.WORK))
    return False


def tasks(path: Path) -> Iterator[Task]:
    """Yield what is to be looked at in a bag.

    Raises:
        UsageError: it is no bag.
    """
    check = BagCheck(BagFolder(path))
    for problem in check.structure():
        yield Task(0, functools.partial(_already_found, path, problem))
    for name, sha256 in check.tags:
        yield Task(check.size(name), functools.partial(_check_tag, path, check, name, sha256))
    for name, sha256 in check.payload:
        yield Task(check.size(name), functools.partial(_check_payload, path, check, name, sha256))


def _already_found(bag: Path, found: Checked, _: Progress) -> Result:
    return _result(bag, found)


def _check_payload(bag: Path, check: BagCheck, name: str, sha256: str, progress: Progress) -> Result:
    return _result(bag, check.check_payload(name, sha256, progress))


def _check_tag(bag: Path, check: BagCheck, name: str, sha256: str, progress: Progress) -> Result | None:
    found = check.check_tag(name, sha256, progress)
    return _result(bag, found) if found.problem else None


def _result(bag: Path, found: Checked) -> Result:
    verdict = Verdict.OK
    if found.problem:
        verdict = Verdict.UNKNOWN if found.unknown else Verdict.DIFFERS
    return Result(bag / found.path, verdict, found.problem, False, found.recorded, found.found, found.size)
