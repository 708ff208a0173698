"""What every command prints alike: messages, tables, JSON, and the exit codes.

Names and values come from the ledger, and so from anybody who may write there. Nothing of them reaches a
terminal unescaped that could move its cursor, change its state or show text in another order than it has.
"""

import io
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from attachfs.text import printable

if TYPE_CHECKING:
    from rich.table import Table

OK = 0
DIFFERS = 1  # something differs, is wrong, or failed
USAGE = 2
UNKNOWN = 3  # it could not be found out
INTERRUPTED = 130  # by Ctrl-C, as shells report it

_PLAIN: dict[tuple[str, str], str] = {}
_WIDE = 10_000  # columns; what is piped into another program is not folded


def say(text: str) -> None:
    """Print a line of results; `text` is safe already."""
    click.echo(text)


def complain(what: object, reason: object = "") -> None:
    """Print to standard error: what it is about, and what is wrong."""
    click.echo(f"attachfs: {printable(what)}" + (f": {printable(reason)}" if reason != "" else ""), err=True)


def note(text: str) -> None:
    """Print to standard error what is neither a result nor a complaint: a summary, progress."""
    click.echo(printable(text), err=True)


def say_json(value: Any) -> None:
    """Print a value as one line of JSON, in ASCII, so that it is safe to look at."""
    click.echo(json.dumps(value, ensure_ascii=True, default=_jsonable))


def _jsonable(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} is not JSON")


def reason_of(error: OSError) -> str:
    """Return an operating system's error in a few words."""
    return error.strerror or str(error)


def count(number: int, noun: str) -> str:
    """Return a number with its noun: `1 file`, `2 files`, `2 directories`."""
    many = f"{noun[:-1]}ies" if noun.endswith("ory") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else many}"


def moment(seconds: float) -> str:
    """Return a time (seconds since 1970) in UTC, as the ledger writes it."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (OverflowError, ValueError, OSError):  # beyond the calendar's ends, or no number
        return f"{seconds:g} seconds since 1970"


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    right: Sequence[str] = (),
    styles: Mapping[tuple[str, str], str] = _PLAIN,
) -> None:
    """Print a table with headings; the columns in `right` are aligned there.

    `styles` has the style, on a terminal, of a column's cell that says a certain text.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        cells = zip(columns, map(printable, row), strict=True)
        table.add_row(*(Text(cell, styles.get((name, cell), "")) for name, cell in cells))
    _print(table)


def print_facts(facts: Iterable[tuple[str, object]]) -> None:
    """Print names and values, one pair a line."""
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts:
        table.add_row(Text(printable(name)), Text(printable(value)))
    _print(table)


def _print(table: "Table") -> None:
    from rich.console import Console

    if sys.stdout.isatty():
        Console(highlight=False).print(table)
        return
    piped = io.StringIO()
    Console(highlight=False, width=_WIDE, file=piped).print(table)
    click.echo("\n".join(line.rstrip() for line in piped.getvalue().splitlines()))
