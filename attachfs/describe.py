"""`attachfs info`: what the ledger records of a path, read from the mount's extended attributes."""

import errno
import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from attachfs.units import format_size

_NO_SUCH = (errno.ENODATA, errno.EOPNOTSUPP)
_CLAIMS = ("cached", "attested")


def run(paths: Sequence[Path], *, as_json: bool) -> int:
    """Print what is recorded of each path; return 0, or 1 if one of them could not be told."""
    code = 0
    found: list[tuple[Path, dict[str, Any]]] = []
    for path in paths:
        try:
            found.append((path, describe(path)))
        except OSError as error:
            click.echo(f"attachfs: {path}: {_reason(error)}", err=True)
            code = 1
    if as_json:
        for _, facts in found:
            click.echo(json.dumps(facts, ensure_ascii=False))
    elif found:
        _print_tables(found)
    return code


def describe(path: Path) -> dict[str, Any]:
    """Return the record of an attachment, asset or event as a dictionary, with `path` and our own claims.

    Raises:
        OSError: there is no such path, it is not on an attachfs mount, or the ledger could not be asked.
    """
    names = {
        "attachment": "user.attachment.json",
        "asset": "user.asset.json",
        "event": "user.event.json",
    }
    is_file = stat.S_ISREG(path.lstat().st_mode)
    for kind, name in names.items():
        if is_file != (kind == "attachment"):
            continue
        try:
            record = json.loads(os.getxattr(path, name))
        except OSError as error:
            if error.errno in _NO_SUCH:
                continue
            raise
        claims = {claim: _claim(path, claim) for claim in _CLAIMS} if is_file else {}
        return {"path": str(path), "kind": kind, **claims, "record": record}
    raise OSError(0, "not an attachment, asset or event of an attachfs mount")


def _claim(path: Path, claim: str) -> str:
    try:
        return os.getxattr(path, f"user.attachfs.{claim}").decode()
    except OSError as error:
        return f"unknown ({_reason(error)})"


def _print_tables(found: list[tuple[Path, dict[str, Any]]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    files = [facts for _, facts in found if facts["kind"] == "attachment"]
    if len(files) > 1:
        table = Table("path", "size", "hash", "type", "scan", "accepted", "attested", "cached", box=None)
        for facts in files:
            record = facts["record"]
            table.add_row(
                *(
                    Text(text, overflow="fold")
                    for text in (
                        facts["path"],
                        format_size(record.get("size", 0)),
                        _hash(record),
                        str(record.get("mime_type", "")),
                        str(record.get("scanned_status", "")),
                        str(record.get("timestamp_accepted", "")),
                        facts["attested"],
                        facts["cached"],
                    )
                )
            )
        console.print(table)
    for _, facts in found:
        if facts["kind"] == "attachment" and len(files) > 1:
            continue
        table = Table(show_header=False, box=None)
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for name in ("path", *_CLAIMS):
            if name in facts:
                table.add_row(name, Text(facts[name]))
        for key, value in _flat("", facts["record"]):
            table.add_row(key, Text(value))
        console.print(table)


def _hash(record: dict[str, Any]) -> str:
    recorded = record.get("hash")
    return str(recorded.get("value", "")) if isinstance(recorded, dict) else ""


def _flat(prefix: str, value: Any) -> list[tuple[str, str]]:
    if isinstance(value, dict):
        nested = (_flat(f"{prefix}.{key}" if prefix else key, inner) for key, inner in value.items())
        return [pair for pairs in nested for pair in pairs]
    return [(prefix, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))]


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
