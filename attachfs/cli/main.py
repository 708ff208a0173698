"""The command line: commands and exit codes. Builds a frozen `Config` and hands it down.

Exit codes: 0 all well; 1 it failed, or something differs; 2 the command line or the configuration cannot
be used; 3 it could not be found out; 130 interrupted by Ctrl-C.
"""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from attachfs import __version__
from attachfs.cli import output
from attachfs.config import options
from attachfs.config import settings as config_settings
from attachfs.errors import AttachfsError, UsageError
from attachfs.units import parse_size

F = TypeVar("F", bound=Callable[..., Any])


def mount_options(command: F) -> F:
    """Give a command every option of the configuration."""
    return _options(command, {option.name for option in options.OPTIONS})


def locating_options(*names: str) -> Callable[[F], F]:
    """Give a command those options of the configuration; `_settings` takes the rest from where mount does."""
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
        else:
            decorate = click.option(f"--{option.name}", metavar=option.metavar, help=help_text)
        command = decorate(command)
    return command


def _settings(given: dict[str, str | None], words: dict[str, str] | None = None) -> config_settings.Config:
    return config_settings.load({key: value for key, value in given.items() if value is not None}, words)


def _words(arguments: tuple[str, ...]) -> dict[str, str]:
    words: dict[str, str] = {}
    for argument in arguments:
        words |= config_settings.parse_o_words(argument)
    return words


class _Commands(click.Group):
    """Commands in the order in which a person meets them, and failures told in one line."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return list(self.commands)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # mount.fuse(8), behind `mount -t fuse.attachfs`, runs `attachfs SOURCE /MOUNTPOINT -o …`.
        if len(args) > 1 and args[0] not in self.commands and args[0][0:1] != "-" and args[1][0:1] == "/":
            from attachfs.cli import mount_helper as cli_mount_helper

            ctx.exit(cli_mount_helper.main(args))
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UsageError as error:
            output.complain(error.reason)
            ctx.exit(output.USAGE)
        except AttachfsError as error:
            output.complain(error.reason)
            ctx.exit(output.DIFFERS)


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
    from attachfs.mount import daemon

    words = _words(o_words)
    layers = {key: output for key, output in given.items() if output is not None}
    load = functools.partial(config_settings.load, layers, words, cwd=Path.cwd())
    settings, point = load(), mountpoint.absolute()
    if foreground:
        sys.exit(daemon.run_foreground(settings, point, reload=load))
    sys.exit(daemon.run_background(settings, point, load))


@main.command()
@click.argument("mountpoint", type=click.Path(path_type=Path))
@click.option("-l", "--lazy", is_flag=True, help="Detach at once; open files stay readable.")
def umount(mountpoint: Path, lazy: bool) -> None:
    """Unmount the ledger from MOUNTPOINT, and wait until its files are closed.

    If programs use it, they are named, and it stays mounted.
    """
    from attachfs.mount import unmount

    unmount.unmount(mountpoint, lazy=lazy)


_paths = click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="PATH…")
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, an object a line.")
_yes = click.option("--yes", is_flag=True, help="Do not ask.")
_jobs = click.option(
    "-j", "--jobs", type=click.IntRange(1, 256), default=8, show_default=True, help="Files at once."
)


@main.command()
@_paths
@_json
def info(paths: tuple[Path, ...], as_json: bool) -> None:
    """Show what the ledger records of files, assets and events, without downloading anything."""
    from attachfs.cli import info as command

    sys.exit(command.run(paths, as_json=as_json))


@main.command()
@_paths
@_json
@click.option("--live", is_flag=True, help="Copies too must be compared with the ledger itself.")
@_jobs
def verify(paths: tuple[Path, ...], as_json: bool, live: bool, jobs: int) -> None:
    """Read files again, hash them, and compare with the ledger.

    PATH is a file or directory on a mount, or a copy made with 'cp -a' or 'rsync -X', which carries its
    record along. Copies are compared with the ledger itself where a mount of it is running.

    Exit status: 0 all are right, 1 something differs, 3 something could not be found out.
    """
    from attachfs.cli import verify as command

    sys.exit(command.run(paths, as_json=as_json, live=live, jobs=jobs))


@main.command()
@_paths
@_jobs
def prefetch(paths: tuple[Path, ...], jobs: int) -> None:
    """Fill a mount's cache with the files at and below PATH.

    What is cached already is skipped: after Ctrl-C (exit status 130), run it again to go on.
    """
    from attachfs.cli import prefetch as command

    sys.exit(command.run(paths, jobs=jobs))


@main.command()
@_paths
@_json
def manifest(paths: tuple[Path, ...], as_json: bool) -> None:
    """Print lines for 'sha256sum -c' from the ledger's records, without downloading anything.

    Names are relative to PATH, so that the lines can be checked in a copy of it.
    """
    from attachfs.cli import manifest as command

    sys.exit(command.run(paths, as_json=as_json))


_cache_options = locating_options("url", "cache-dir", "cache-size", "cache-min-free", "profile", "config")


@main.group()
def cache() -> None:
    """Look at the cache on the disk, check it, and remove from it, beside a running mount or without."""


@cache.command("stat")
@_json
@_cache_options
def cache_stat(as_json: bool, **given: str | None) -> None:
    """Show how much is cached, and who uses the cache."""
    from attachfs.cli import cache as command

    sys.exit(command.stat(_settings(given), as_json=as_json))


@cache.command("list")
@_json
@_cache_options
def cache_list(as_json: bool, **given: str | None) -> None:
    """List what is cached, the least recently opened first."""
    from attachfs.cli import cache as command

    sys.exit(command.list_blobs(_settings(given), as_json=as_json))


@cache.command("verify")
@_json
@_cache_options
def cache_verify(as_json: bool, **given: str | None) -> None:
    """Hash everything that is cached again, and put aside what is wrong.

    Exit status: 0 all is right, 1 something was not, 3 something could not be read.
    """
    from attachfs.cli import cache as command

    sys.exit(command.verify(_settings(given), as_json=as_json))


def _size(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> int | None:
    try:
        return None if value is None else parse_size(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@cache.command("evict")
@click.argument("digests", nargs=-1, metavar="[DIGEST…]")
@click.option("--older-than", type=click.FloatRange(0), metavar="DAYS", help="Not opened for so long.")
@click.option("--to", callback=_size, metavar="SIZE", help="The least recently opened beyond this size.")
@_cache_options
def cache_evict(
    digests: tuple[str, ...], older_than: float | None, to: int | None, **given: str | None
) -> None:
    """Remove some of what is cached. Programs that have it open read on."""
    from attachfs.cli import cache as command

    sys.exit(command.evict(_settings(given), digests, older_than=older_than, to=to))


@cache.command("clear")
@_yes
@_cache_options
def cache_clear(yes: bool, **given: str | None) -> None:
    """Remove all that is cached. First-seen hashes and the quarantine stay."""
    from attachfs.cli import cache as command

    sys.exit(command.clear(_settings(given), sure=yes))


@main.group()
def pins() -> None:
    """Review the hashes that were first seen, and release one so that another is believed."""


@pins.command("list")
@click.argument("pattern", default="")
@_json
def pins_list(pattern: str, as_json: bool) -> None:
    """List first-seen hashes whose key has PATTERN in it, or matches it (with *, ? or [)."""
    from attachfs.cli import pins as command

    sys.exit(command.list_pins(_settings({}), pattern, as_json=as_json))


@pins.command("conflicts")
@_json
def pins_conflicts(as_json: bool) -> None:
    """List attachments whose record has changed since. Exit status 1 if one of them is still refused."""
    from attachfs.cli import pins as command

    sys.exit(command.conflicts(_settings({}), as_json=as_json))


@pins.command("release")
@click.argument("keys", nargs=-1, required=True, metavar="KEY…")
@_yes
def pins_release(keys: tuple[str, ...], yes: bool) -> None:
    """Forget first-seen hashes, so that what the ledger records next is believed.

    KEY is as 'attachfs pins list' shows it, or an attachment's path or identity.
    """
    from attachfs.cli import pins as command

    sys.exit(command.release(_settings({}), keys, sure=yes))


@main.command()
@_json
@mount_options
def doctor(as_json: bool, **given: str | None) -> None:
    """Find out what is missing on this machine or wrong in this set-up, and say what to do about it.

    Give the options that you mount with. Exit status: 0 all well, 1 something is wrong, 3 something could
    not be found out.
    """
    from attachfs.cli import doctor as command

    sys.exit(command.run(_settings(given), as_json=as_json))


@main.command()
@click.argument("mountpoint", required=False, type=click.Path(path_type=Path))
def demo(mountpoint: Path | None) -> None:
    """Run a demo ledger on this machine and mount it: no account, nothing leaves the machine.

    Without MOUNTPOINT a new directory is made, and removed at the end. Ctrl-C ends it.
    """
    from attachfs.demo import tour

    sys.exit(tour.run(mountpoint))


@main.command()
@click.argument("mountpoint", required=False, type=click.Path(path_type=Path))
@_json
@click.option("--watch", is_flag=True, help="Show them live, until q or Ctrl-C.")
def status(mountpoint: Path | None, as_json: bool, watch: bool) -> None:
    """Show the figures of the mount at MOUNTPOINT, or of all running mounts."""
    from attachfs.cli import status as command

    sys.exit(command.run(mountpoint, as_json=as_json, watch=watch))


@main.group("config")
def config_group() -> None:
    """Show the settings that a mount would use, and where they come from."""


@config_group.command("show")
@_json
@click.option("-o", "o_words", multiple=True, metavar="NAME[=VALUE],…", help="Any option in mount(8)'s form.")
@mount_options
def config_show(as_json: bool, o_words: tuple[str, ...], **given: str | None) -> None:
    """Show every setting with its value, and where that was given. Secrets are never shown."""
    from attachfs.cli import settings as command

    sys.exit(command.show(_settings(given, _words(o_words)), as_json=as_json))


@config_group.command("path")
@locating_options("config", "profile")
def config_path(**given: str | None) -> None:
    """Show where the configuration file is, or would be."""
    from attachfs.cli import settings as command

    sys.exit(command.path(_settings(given)))


def mount_helper() -> None:
    """Be mount(8)'s helper; see cli/mount_helper.py."""
    from attachfs.cli import mount_helper as cli_mount_helper

    sys.exit(cli_mount_helper.main())
