"""The command line: commands and exit codes. Builds a frozen `Config` and hands it down.

Exit codes: 0 all well; 1 it failed, or something differs; 2 the command line or the configuration cannot
be used; 3 it could not be found out.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from attachfs import __version__, config
from attachfs.errors import AttachfsError, UsageError

F = TypeVar("F", bound=Callable[..., Any])

FAILED = 1
USAGE = 2
UNKNOWN = 3


def mount_options(command: F) -> F:
    """Give a command every option of the configuration."""
    for option in reversed(config.OPTIONS):
        help_text = option.help if option.default is None else f"{option.help} [default: {option.default}]"
        if option.flag:
            decorate = click.option(
                f"--{option.name}", is_flag=True, flag_value="yes", default=None, help=option.help
            )
        else:
            decorate = click.option(f"--{option.name}", metavar=option.metavar, help=help_text)
        command = decorate(command)
    return command


class _Commands(click.Group):
    """Commands in the order in which a person meets them, and failures told in one line."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UsageError as error:
            click.echo(f"attachfs: {error.reason}", err=True)
            ctx.exit(USAGE)
        except AttachfsError as error:
            click.echo(f"attachfs: {error.reason}", err=True)
            ctx.exit(FAILED)


_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(cls=_Commands, context_settings=_SETTINGS)
@click.version_option(__version__, prog_name="attachfs", message="%(prog)s %(version)s")
def main() -> None:
    r"""Mount an evidence ledger's attachments as a read-only, verified filesystem.

    \b
    Try it without an account:   attachfs demo
    Mount your own ledger:       attachfs mount ~/ledger
    Look at what is there:       ls ~/ledger/assets; attachfs info ~/ledger/assets/*/*
    Unmount:                     attachfs umount ~/ledger

    Nothing is downloaded before it is read, and a byte that does not match the ledger is never
    passed off as evidence.
    """


@main.command()
@click.argument("mountpoint", type=click.Path(path_type=Path))
@click.option("-f", "--foreground", is_flag=True, help="Stay in the foreground and log to stderr.")
@click.option("-o", "o_words", multiple=True, metavar="NAME[=VALUE],…", help="Any option in mount(8)'s form.")
@mount_options
def mount(mountpoint: Path, foreground: bool, o_words: tuple[str, ...], **given: str | None) -> None:
    """Mount the ledger on the directory MOUNTPOINT.

    Returns once the mount answers; the mount then goes on in the background until it is unmounted.

    Every option can also be given as -o name=value and as a variable ATTACHFS_NAME in the environment.
    """
    from attachfs import daemon

    words: dict[str, str] = {}
    for argument in o_words:
        words |= config.parse_o_words(argument)
    settings = config.load({key: text for key, text in given.items() if text is not None}, words)
    if foreground:
        sys.exit(daemon.run_foreground(settings, mountpoint.absolute()))
    sys.exit(daemon.run_background(settings, mountpoint.absolute()))


@main.command()
@click.argument("mountpoint", type=click.Path(path_type=Path))
@click.option("-l", "--lazy", is_flag=True, help="Detach at once; open files stay readable.")
def umount(mountpoint: Path, lazy: bool) -> None:
    """Unmount the ledger from MOUNTPOINT, and wait until its files are closed."""
    from attachfs import mounts

    mounts.unmount(mountpoint, lazy=lazy)


@main.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="PATH…")
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object a line, with all that is recorded."
)
def info(paths: tuple[Path, ...], as_json: bool) -> None:
    """Show what the ledger records of files, assets and events, without downloading anything."""
    from attachfs import describe

    sys.exit(describe.run(paths, as_json=as_json))


@main.command()
@click.argument("mountpoint", required=False, type=click.Path(path_type=Path))
def demo(mountpoint: Path | None) -> None:
    """Run a demo ledger on this machine and mount it: no account, nothing leaves the machine.

    Without MOUNTPOINT a new directory is made, and removed at the end. Ctrl-C ends it.
    """
    from attachfs.demo import tour

    sys.exit(tour.run(mountpoint))
