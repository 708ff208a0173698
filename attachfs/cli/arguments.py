"""Arguments and options that several commands take, and the settings that come from them."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from attachfs.config import file as config_file
from attachfs.config import options
from attachfs.config import settings as config_settings
from attachfs.config.options import Option
from attachfs.errors import UsageError

F = TypeVar("F", bound=Callable[..., Any])


if TYPE_CHECKING:
    _PathType = click.ParamType[Path]
else:
    _PathType = click.ParamType  # which is generic from click 8.2 on


class AnyPath(_PathType):
    """A path as it was given. click's own type asks for its status, and may wait for a mount for that."""

    name = "path"

    def convert(self, value: Any, _param: click.Parameter | None, _ctx: click.Context | None) -> Path:
        """Return the path."""
        return Path(value)

    def shell_complete(
        self, _ctx: click.Context, _param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Let the shell complete it."""
        return [CompletionItem(incomplete, type="file")]


class MountPoint(AnyPath):
    """A mount point of ours, as the shell completes it."""

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Offer what is mounted; where nothing fits, let the shell complete a path."""
        from attachfs.mount import mountinfo

        points = [str(mount.point) for mount in mountinfo.mounts() if mount.is_ours]
        fitting = [CompletionItem(point) for point in points if point.startswith(incomplete)]
        return fitting or super().shell_complete(ctx, param, incomplete)


paths = click.argument("paths", nargs=-1, required=True, type=AnyPath(), metavar="PATH…")
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, one object per line.")
yes = click.option("--yes", is_flag=True, help="Do not ask.")
jobs = click.option(
    "-j", "--jobs", type=click.IntRange(1, 256), default=8, show_default=True, help="Files at once."
)
o_words = click.option(
    "-o", "o_words", multiple=True, metavar="NAME[=VALUE],…", help="Any option in mount(8)'s form."
)


def mount_options(command: F) -> F:
    """Give a command every option of the configuration."""
    return _options(command, {option.name for option in options.OPTIONS})


def locating_options(*names: str) -> Callable[[F], F]:
    """Give a command those options of the configuration; `settings` takes the rest from where mount does."""
    return lambda command: _options(command, set(names))


def _options(command: F, names: set[str]) -> F:
    for option in reversed(options.OPTIONS):
        if option.name not in names:
            continue
        help_text = option.help if option.default is None else f"{option.help} [default: {option.default}]"
        if option.flag:
            decorate = click.option(
                f"--{option.name}", is_flag=True, flag_value="yes", default=None, help=option.help
            )
        elif option.repeatable:
            decorate = click.option(
                f"--{option.name}",
                metavar=option.metavar,
                help=help_text,
                multiple=True,
                callback=_comma_separated,
                shell_complete=_completion_of(option),
            )
        else:
            decorate = click.option(
                f"--{option.name}",
                metavar=option.metavar,
                help=help_text,
                shell_complete=_completion_of(option),
            )
        command = decorate(command)
    return command


def _completion_of(option: Option) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]]:
    """Return what completes an option's value: its choices, profiles, files or directories."""

    def complete(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        if option.metavar in ("FILE", "DIR", "BAG"):
            return [CompletionItem(incomplete, type="file" if option.metavar == "FILE" else "dir")]
        words = option.metavar.split("|") if "|" in option.metavar else []
        if option.name == "profile":
            words = _profiles(ctx.params.get("config"))
        return [CompletionItem(word) for word in words if word.startswith(incomplete)]

    return complete


def _profiles(named: str | None) -> list[str]:
    try:
        path = Path(named).expanduser() if named else config_file.default_path()
        return config_file.ConfigFile(path, required=False).profiles
    except (UsageError, RuntimeError):
        return []  # it is told where the command runs


def _comma_separated(_ctx: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> str | None:
    return ":".join(values) if values else None


def settings(given: dict[str, str | None], words: dict[str, str] | None = None) -> config_settings.Config:
    """Return the settings from a command's options, and from wherever else mount takes them."""
    return config_settings.load({key: value for key, value in given.items() if value is not None}, words)


def words_of(arguments: tuple[str, ...]) -> dict[str, str]:
    """Return the options in the values of every -o."""
    words: dict[str, str] = {}
    for argument in arguments:
        words |= config_settings.parse_o_words(argument)
    return words
