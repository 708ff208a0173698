"""`attachfs custody`: whether a custody log is whole and unaltered, and what it says."""

import os
import pwd
import re
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from attachfs.cli import arguments, interruptible, output
from attachfs.cli.paths import Mounts
from attachfs.custody import chain
from attachfs.custody.chain import Kind, Raw, Running, Verifier
from attachfs.custody.writer import CustodyLog
from attachfs.errors import UsageError
from attachfs.mount import mountinfo
from attachfs.mount.custody import command_of
from attachfs.text import printable
from attachfs.units import format_size

_WRONG = frozenset({Kind.CHANGED, Kind.MISSING, Kind.MISPLACED, Kind.CUT})
_SHOWN = 100  # findings printed
_COLUMNS = ("time", "event", "user", "command", "pid", "path", "size", "result")


def read_lines(files: Iterable[Path]) -> Iterator[Raw]:
    """Yield the lines of files, one after the other.

    Raises:
        OSError: one cannot be read.
    """
    for path in files:
        with path.open("rb") as file:
            number = 0
            while data := file.readline(chain.MAX_LINE + 1):
                number += 1
                ended = data.endswith(b"\n")
                yield Raw(str(path), number, data.removesuffix(b"\n"), ended)


def in_order(files: Sequence[Path]) -> list[Path]:
    """Return the files in the order of their chain, whatever order they were given in.

    Raises:
        UsageError: one cannot be read.
    """
    begins: list[tuple[int, int, Path]] = []
    for position, path in enumerate(files):
        try:
            first = next(read_lines([path]), None)
        except OSError as error:
            raise UsageError(f"{path}: {output.reason_of(error)}") from error
        line = None if first is None else chain.parse(first.data)
        # Where the first line cannot be read, the given order is the best there is.
        before = begins[-1][0] if begins else 0
        begins.append((before if line is None else line.seq, position, path))
    return [path for _, _, path in sorted(begins)]


def verify(files: Sequence[Path], last: str, *, as_json: bool) -> int:
    """Print what is wrong with a log; return 1 if anything is, else 3 if it cannot be told, else 0."""
    ordered = in_order(files)
    verifier = Verifier(last)
    counts: Counter[Kind] = Counter()
    try:
        for finding in verifier.findings(read_lines(ordered)):
            counts[finding.kind] += 1
            if as_json:
                output.say_json(finding._asdict() | {"kind": str(finding.kind)})
            elif counts.total() <= _SHOWN:
                output.say(f"{printable(finding.file)}:{finding.line}: {finding.kind}: {finding.text}")
    except OSError as error:
        output.complain(error.filename or "", output.reason_of(error))
        return output.UNKNOWN
    if not as_json and counts.total() > _SHOWN:
        output.say(f"… and {counts.total() - _SHOWN:,} more")
    wrong = sum(counts[kind] for kind in _WRONG)
    output.note(f"custody: {output.count(verifier.lines, 'line')}, {wrong or 'none'} of them wrong")
    if verifier.end.hash:
        output.note(f"custody: the last line is number {verifier.end.seq}; its hash, to be kept elsewhere:")
        output.note(f"custody: --last {verifier.end.hash}")
    if wrong:
        return output.DIFFERS
    return output.UNKNOWN if counts[Kind.TORN] or counts[Kind.BEGINNING] or not verifier.lines else output.OK


def show(files: Sequence[Path]) -> int:
    """Print a log's lines as a table; lines that are none are named."""
    rows: list[tuple[Any, ...]] = []
    code = output.OK
    running = Running()
    unended: dict[Raw, int] = {}  # rows of those that have begun
    for raw in read_lines(in_order(files)):
        line = chain.parse(raw.data)
        if line is None:
            output.complain(f"{raw.file}:{raw.number}", "not a line of a custody log, or changed since")
            code = output.UNKNOWN
            continue
        fields = line.fields
        size = fields.get("size")
        cells = {**fields, "user": _user(fields.get("uid")), "size": "" if size is None else size}
        if isinstance(size, int):
            cells["size"] = format_size(size)
        running.note(raw, line)
        if line.fields.get("result") == chain.BEGUN:
            unended[raw] = len(rows)
        rows.append(tuple(cells.get(name, "") for name in _COLUMNS))
    for raw, _ in running.left():
        number = unended[raw]
        rows[number] = (*rows[number][:-1], f"{chain.BEGUN}, no end")
    output.print_table(_COLUMNS, rows, right=("pid", "size"))
    return code


def _user(uid: object) -> object:
    try:
        return pwd.getpwuid(uid).pw_name if isinstance(uid, int) else ""
    except (KeyError, OverflowError):
        return uid


def noted(event: str, paths: Sequence[Path], work: Callable[[], int]) -> int:
    """Do a command's work, and note its beginning and end in the custody logs of the mounts that it looks at.

    A log that this user cannot write is named. What the command opens, the mount notes itself, or refuses. A
    signal that ends the command is noted as its end; SIGKILL cannot be.
    """
    logs: set[Path] = set()

    def interrupted(number: int) -> None:
        _note(logs, event, paths, f"interrupted by {signal.Signals(number).name}")

    def begin() -> int:
        logs.update(_logs_of(paths))
        _note(logs, event, paths, chain.BEGUN)
        return output.OK

    with interruptible.before_end(interrupted):
        interruptible.run(begin, lambda: f"{event}: interrupted")  # a mount may not answer
        try:
            code = work()
        except Exception:
            _note(logs, event, paths, "failed")
            raise
        _note(logs, event, paths, f"exit status {code}")
    return code


def _logs_of(paths: Sequence[Path]) -> set[Path]:
    mounts = Mounts()
    points = set()
    for path in paths:
        try:
            mount = mounts.of(path)
        except OSError:
            continue  # the command itself says so
        if mount is not None:
            points.add(mount.point)
    found = [(mountinfo.status(point) or {}).get("custody_log") for point in points]
    return {Path(name) for name in found if isinstance(name, str)}


def _note(logs: Iterable[Path], event: str, paths: Sequence[Path], result: str) -> None:
    pid = os.getpid()
    for name in logs:
        try:
            log = CustodyLog(name)
            for path in paths:
                fields = {"event": event, "uid": os.getuid(), "pid": pid, "command": command_of(pid)}
                log.append({**fields, "path": str(path.absolute()), "result": result})
            log.close()
        except OSError as error:
            output.complain(name, f"the {event} is not noted in the custody log: {output.reason_of(error)}")


_files = click.argument("files", nargs=-1, required=True, type=arguments.AnyPath(), metavar="FILE…")


def _hash(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> str:
    if value is not None and re.fullmatch("[0-9a-fA-F]{64}", value) is None:
        raise click.BadParameter("it is not a SHA-256 in hexadecimal")
    return value or ""


@click.group("custody")
def command() -> None:
    """Check a custody log (see 'attachfs mount --custody-log'), or show it."""


@command.command("verify")
@_files
@arguments.as_json
@click.option(
    "--last", callback=_hash, metavar="HASH", help="The last line's hash, as an earlier verify printed it."
)
def _verify_command(files: tuple[Path, ...], as_json: bool, last: str) -> None:
    """Find lines that were changed, removed, inserted or moved.

    Give all files of a rotated log, in any order. Missing lines at the end of a file are found if the next
    file is given, or with --last.

    Exit status: 0 it is whole, 1 it was altered, 3 that cannot be decided: its beginning is missing, or its
    last line is torn.
    """
    sys.exit(verify(files, last, as_json=as_json))


@command.command("show")
@_files
def _show_command(files: tuple[Path, ...]) -> None:
    """Show who opened what, as a table."""
    sys.exit(show(files))
