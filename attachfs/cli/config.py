"""`attachfs config`: which settings a mount would use, and where each was given."""

import os
import sys
from pathlib import Path
from typing import Any

import click

from attachfs.cli import arguments, output
from attachfs.cli.groups import Group
from attachfs.config import file as config_file
from attachfs.config import options
from attachfs.config.directories import home_directory
from attachfs.config.settings import Config
from attachfs.text import printable
from attachfs.units import format_size

_SECRET = "DATATRAILS_CLIENT_SECRET"  # noqa: S105 - a variable's name
_SIZES = ("cache_size", "strict_limit")


def show(settings: Config, *, as_json: bool) -> int:
    """Print every setting with its origin; return the exit code."""
    rows = []
    for option in options.OPTIONS:
        value = getattr(settings, option.key)
        rows.append((option.name, value, settings.origins[option.key]))
    hidden = "set, not shown" if os.environ.get(_SECRET) else None
    if as_json:
        found: dict[str, Any] = {
            name: {"value": _plain(value), "origin": origin} for name, value, origin in rows
        }
        if hidden:
            found["client-secret"] = {"value": None, "origin": _SECRET}
        output.say_json(found)
        return output.OK
    if hidden:
        rows.append(("client-secret", hidden, _SECRET))
    shown = [(name, _words(name, value), origin) for name, value, origin in rows]
    output.print_table(("setting", "value", "given in"), shown)
    return output.OK


def path(settings: Config) -> int:
    """Print the configuration file's path, and on standard error whether it is there."""
    found = settings.config or config_file.default_path()
    output.say(printable(found))
    if not found.exists():
        output.note("there is no such file: every setting has its default, unless given otherwise")
    return output.OK


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return [str(one) for one in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _words(name: str, value: object) -> str:  # noqa: PLR0911 - one for each kind of value
    key = name.replace("-", "_")
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if key in _SIZES and isinstance(value, int):
        return format_size(value)
    if key == "umask" and isinstance(value, int):
        return f"{value:03o}"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    home = home_directory()
    if isinstance(value, Path) and home is not None and value.is_relative_to(home) and value != home:
        return f"~/{value.relative_to(home)}"
    return str(value)


@click.group("config", cls=Group)
def command() -> None:
    """Show the settings that a mount would use, and where they come from."""


@command.command("show")
@arguments.as_json
@arguments.o_words
@arguments.mount_options
def config_show(as_json: bool, o_words: tuple[str, ...], **given: str | None) -> None:
    """Show every setting with its value, and where that was given. Secrets are never shown."""
    sys.exit(show(arguments.settings(given, arguments.words_of(o_words)), as_json=as_json))


@command.command("path")
@arguments.locating_options("config", "profile")
def config_path(**given: str | None) -> None:
    """Show where the configuration file is, or would be."""
    sys.exit(path(arguments.settings(given)))
