"""`attachfs ls`: a listing as people want it, from the ledger's records alone; nothing is downloaded."""

import os
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from attachfs.cli import arguments, interruptible, output
from attachfs.cli import paths as places
from attachfs.cli.parallel import in_order
from attachfs.cli.paths import Mounts
from attachfs.text import printable
from attachfs.units import format_size

_JOBS = 8
_COLUMNS = ("name", "size", "type", "date", "scan", "attested", "cached")
_STYLES = {
    ("scan", "BAD"): "bold red",
    ("attested", "mismatch"): "bold red",
    ("scan", "OK"): "green",
    ("attested", "match"): "green",
    ("cached", "yes"): "cyan",
}


class Line(NamedTuple):
    """What is shown of a file or directory; of a directory, and of what could not be read, less."""

    name: str
    path: Path
    kind: str
    size: int | None = None
    mime_type: str = ""
    mtime: float | None = None
    scan: str = ""
    attested: str = ""
    cached: str = ""
    problem: str = ""


def run(paths: Sequence[Path], *, as_json: bool, recursive: bool) -> int:
    """Print what is at and in each path; 3 if something could not be read."""
    Mounts().require(paths)
    code = output.OK
    files = [path for path in paths if not path.is_dir()]
    blocks: Iterator[tuple[Path | None, list[Line]]] = iter(
        [(None, list(in_order(files, lambda path: _inspect(path, str(path)), _JOBS)))] if files else []
    )
    several = recursive or len(paths) > 1
    first = True
    for path, lines in _chain(blocks, [path for path in paths if path not in files], recursive=recursive):
        for line in lines:
            if line.problem:
                output.complain(line.path, line.problem)
                code = output.UNKNOWN
        if as_json:
            for line in lines:
                output.say_json(_json(line))
            continue
        if path is not None and several:
            output.say(("" if first else "\n") + printable(f"{path}:"))
        first = False
        if lines:
            output.print_table(_COLUMNS, [_cells(line) for line in lines], right=("size",), styles=_STYLES)
    return code


def _chain(
    blocks: Iterator[tuple[Path | None, list[Line]]], directories: Sequence[Path], *, recursive: bool
) -> Iterator[tuple[Path | None, list[Line]]]:
    yield from blocks
    for directory in directories:
        yield from _list(directory, recursive=recursive)


def _list(directory: Path, *, recursive: bool) -> Iterator[tuple[Path, list[Line]]]:
    try:
        with os.scandir(directory) as entries:
            inside = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        yield directory, [Line(directory.name, directory, "unknown", problem=output.reason_of(error))]
        return
    yield directory, list(in_order(inside, lambda one: _inspect(directory / one.name, one.name), _JOBS))
    if recursive:
        for entry in inside:
            if entry.is_dir(follow_symlinks=False):
                yield from _list(directory / entry.name, recursive=True)


def _inspect(path: Path, name: str) -> Line:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            kind = next((kind for kind in ("asset", "event") if _is(path, kind)), "directory")
            return Line(f"{name}/", path, kind, mtime=status.st_mtime)

        def text(key: str) -> str:
            return places.text_xattr(path, key) or ""

        return Line(
            name,
            path,
            "attachment",
            status.st_size,
            text("user.mime_type"),
            status.st_mtime,
            text("user.attachment.scanned_status").removeprefix("SCANNED_"),
            text("user.attachfs.attested"),
            text("user.attachfs.cached"),
        )
    except OSError as error:
        return Line(name, path, "unknown", problem=output.reason_of(error))


def _is(path: Path, kind: str) -> bool:
    return places.text_xattr(path, f"user.{kind}.identity") is not None


def _cells(line: Line) -> tuple[str, ...]:
    date = "" if line.mtime is None else output.moment(line.mtime)[:16].replace("T", " ")
    size = "" if line.size is None else format_size(line.size)
    kind = line.mime_type or ("" if line.kind == "attachment" else line.kind)
    return line.name, size, kind, date, line.scan.replace("_", " "), line.attested, line.cached


def _json(line: Line) -> dict[str, Any]:
    shown = line._asdict() | {"mtime": None if line.mtime is None else output.moment(line.mtime)}
    return {key: value for key, value in shown.items() if key in ("path", "kind") or value not in ("", None)}


@click.command("ls")
@arguments.paths
@click.option("-R", "--recursive", is_flag=True, help="List directories below too.")
@arguments.as_json
def command(paths: tuple[Path, ...], recursive: bool, as_json: bool) -> None:
    """List files with size, type, date, scan status and what has been verified, without downloading them.

    PATH is on a mount. Times are UTC; 'attested' says whether the owner's attributes record the same hash.
    """
    sys.exit(
        interruptible.run(lambda: run(paths, as_json=as_json, recursive=recursive), lambda: "ls: interrupted")
    )
