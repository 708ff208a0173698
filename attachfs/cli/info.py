"""`attachfs info`: what the ledger records of a path, read from the mount's extended attributes."""

import errno
import json
import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from attachfs.cli import arguments, interruptible, output
from attachfs.cli.paths import read_record
from attachfs.units import format_size

_NO_SUCH = (errno.ENODATA, errno.EOPNOTSUPP)
_CLAIMS = ("cached", "attested")
_KINDS = ("attachment", "asset", "event")


def run(paths: Sequence[Path], *, as_json: bool) -> int:
    """Print what is recorded of each path; 3 if one of them could not be read."""
    code = output.OK
    found: list[dict[str, Any]] = []
    for path in paths:
        try:
            found.append(describe(path))
        except (OSError, ValueError) as error:
            output.complain(path, output.reason_of(error) if isinstance(error, OSError) else error)
            code = output.UNKNOWN
    if as_json:
        for facts in found:
            output.say_json(facts)
    elif found:
        _print_tables(found)
    return code


def describe(path: Path) -> dict[str, Any]:
    """Return the record of an attachment, asset or event as a dictionary, with `path` and our own claims.

    Raises:
        OSError: there is no such path, it is not on an attachfs mount, or the ledger could not be asked.
        ValueError: the record is not JSON.
    """
    is_file = stat.S_ISREG(path.stat().st_mode)
    for kind in _KINDS:
        if is_file != (kind == "attachment"):
            continue
        try:
            record = json.loads(read_record(path, kind))
        except OSError as error:
            if error.errno in _NO_SUCH:
                continue
            raise
        attributes = (
            {attribute: _mount_attribute(path, attribute) for attribute in _CLAIMS} if is_file else {}
        )
        return {"path": str(path), "kind": kind, **attributes, "record": record}
    raise OSError(0, "not an attachment, asset or event of an attachfs mount")


def _mount_attribute(path: Path, attribute: str) -> str:
    try:
        return os.getxattr(path, f"user.attachfs.{attribute}").decode()
    except OSError as error:
        return f"unknown ({output.reason_of(error)})"


def _print_tables(found: list[dict[str, Any]]) -> None:
    files = [facts for facts in found if facts["kind"] == "attachment"]
    if len(files) > 1:
        output.print_table(
            ("path", "size", "hash", "type", "scan", "accepted", "attested", "cached"),
            [_row(facts) for facts in files],
            right=("size",),
        )
    for facts in found:
        if facts["kind"] == "attachment" and len(files) > 1:
            continue
        own = [(name, facts[name]) for name in ("path", *_CLAIMS) if name in facts]
        output.print_facts([*own, *_flat("", facts["record"])])


def _row(facts: dict[str, Any]) -> tuple[object, ...]:
    record = facts["record"]
    recorded = record.get("hash")
    size = record.get("size")
    return (
        facts["path"],
        format_size(size) if isinstance(size, int) else size,
        recorded.get("value", "") if isinstance(recorded, dict) else "",
        record.get("mime_type", ""),
        record.get("scanned_status", ""),
        record.get("timestamp_accepted", ""),
        facts["attested"],
        facts["cached"],
    )


def _flat(prefix: str, value: Any) -> list[tuple[str, str]]:
    if isinstance(value, dict):
        nested = (_flat(f"{prefix}.{key}" if prefix else key, inner) for key, inner in value.items())
        return [pair for pairs in nested for pair in pairs]
    return [(prefix, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))]


@click.command("info")
@arguments.paths
@arguments.as_json
def command(paths: tuple[Path, ...], as_json: bool) -> None:
    """Show what the ledger records of files, assets and events, without downloading anything."""
    sys.exit(interruptible.run(lambda: run(paths, as_json=as_json), lambda: "info: interrupted"))
