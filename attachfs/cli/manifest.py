"""`attachfs manifest`: what `sha256sum -c` reads, from the ledger's records alone; nothing is downloaded."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import click

from attachfs.cli import arguments, interruptible, output
from attachfs.cli import paths as places
from attachfs.cli.parallel import in_order
from attachfs.cli.paths import Found, Mounts, Record
from attachfs.text import printable

_JOBS = 8


class _Line(NamedTuple):
    path: Path
    record: Record | None
    url: str = ""
    problem: str = ""


def run(paths: Sequence[Path], *, as_json: bool) -> int:
    """Print a line for each file below each path; 3 if one has no hash that can be checked."""
    lines = 0

    def print_lines() -> int:
        nonlocal lines
        Mounts().require(paths)
        code = output.OK
        for path in paths:
            base = path if path.is_dir() else path.parent
            before = lines
            for line in in_order(places.walk([path]), _inspect, _JOBS):
                lines += 1
                if not _say(line, base, as_json=as_json):
                    code = output.UNKNOWN
            if lines == before:
                output.complain(path, "no attachments are listed there")
                code = output.UNKNOWN
        return code

    return interruptible.run(
        print_lines, lambda: f"manifest: interrupted after {output.count(lines, 'file')}"
    )


def _inspect(file: Found) -> _Line:
    try:
        if file.problem is not None:
            raise file.problem
        record = places.live_record(file.path)
        return _Line(file.path, record, places.text_xattr(file.path, "user.xdg.origin.url") or "")
    except OSError as error:
        return _Line(file.path, None, problem=output.reason_of(error))


def _say(line: _Line, base: Path, *, as_json: bool) -> bool:
    """Print one line; False if the file cannot be verified with it."""
    if line.record is None or line.record.digest is None:
        output.complain(line.path, line.problem or (line.record.problem if line.record else ""))
        return False
    name, digest = line.path.relative_to(base), line.record.digest
    if as_json:
        output.say_json(
            {
                "path": name,
                "size": line.record.size,
                "hash": {"alg": digest.alg, "value": digest.hex},
                "url": line.url,
            }
        )
    elif digest.alg != "sha256":
        output.complain(line.path, f"recorded as {digest.alg}, which sha256sum does not check; see --json")
        return False
    else:
        _write(sum_line(digest.hex, os.fsencode(name)))
    return True


def sum_line(value: str, name: bytes) -> bytes:
    r"""Return a line as sha256sum writes it: a backslash in front where the name had to be escaped."""
    escaped = name.replace(b"\\", rb"\\").replace(b"\n", rb"\n").replace(b"\r", rb"\r")
    mark = b"\\" if escaped != name else b""
    return mark + value.encode() + b"  " + escaped + b"\n"


def _write(line: bytes) -> None:
    if sys.stdout.isatty():
        output.say(printable(os.fsdecode(line).rstrip("\n")))
    else:
        sys.stdout.buffer.write(line)


@click.command("manifest")
@arguments.paths
@arguments.as_json
def command(paths: tuple[Path, ...], as_json: bool) -> None:
    """Print lines for 'sha256sum -c' from the ledger's records, without downloading anything.

    Names are relative to PATH, so that the lines can be checked in a copy of it.
    """
    sys.exit(run(paths, as_json=as_json))
