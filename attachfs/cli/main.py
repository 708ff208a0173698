"""The program: finds a command's module, runs it, and turns failures into a sentence and an exit code.

Exit codes: 0 all well; 1 it failed, or something differs; 2 the command line or the configuration cannot
be used; 3 undecided; 130 interrupted by Ctrl-C.
"""

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from attachfs import __version__
from attachfs.cli import output, streams
from attachfs.cli.groups import Group
from attachfs.errors import AttachfsError, UsageError

# Commands in the order in which a person meets them, with what --help says; each is `command` in the module
# of its name. The words stand here so that --help need not load all of them.
_COMMANDS = {
    "demo": "Run a demo ledger on this machine and mount it: no account needed.",
    "login": "Store a token, or an application's secret, once the ledger accepts it.",
    "doctor": "Find what is missing or wrong, and the remedy.",
    "mount": "Mount the ledger on a directory.",
    "umount": "Unmount it, and wait until its files are closed.",
    "ls": "List files with size, type, date, scan status and what is verified.",
    "info": "Show what the ledger records of files, assets and events.",
    "verify": "Read files again, hash them, and compare with the ledger.",
    "manifest": "Print lines for sha256sum -c, without downloading anything.",
    "prefetch": "Fill the cache ahead of time.",
    "export": "Take evidence home, as a BagIt bag that others can check.",
    "prove": "Find out whether events are in the transparency log.",
    "custody": "Check or show a custody log.",
    "status": "Show what running mounts are doing.",
    "logs": "Show what a mount has logged.",
    "cache": "Look at the cache, check it, and remove from it.",
    "pins": "Review the hashes that were first seen, and release one.",
    "config": "Show the settings, and where each comes from.",
}


_COMPLETE = "_ATTACHFS_COMPLETE"
_COMPLETIONS = tuple(
    f"{shell}_{what}" for shell in ("bash", "zsh", "fish") for what in ("source", "complete")
)
_COMPLETED = ("COMP_WORDS", "COMP_CWORD")

_HELP = """Mount an evidence ledger's attachments as a read-only, verified filesystem.

\b
Try it without an account:   attachfs demo
Mount your own ledger:       attachfs mount ~/ledger
Look at what is there:       attachfs ls ~/ledger/by-name
Unmount:                     attachfs umount ~/ledger

Nothing is downloaded before it is read, and a byte that does not match the ledger is never passed off as
evidence.
"""


class _Commands(Group):
    """Commands, each loaded once it is called, so that none waits for what another one needs."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, _ctx: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"attachfs.cli.{name}").command
        return command

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))

    def main(self, *args: Any, **extra: Any) -> Any:
        streams.prepare()
        wanted = os.environ.get(_COMPLETE, "")
        if wanted and wanted not in _COMPLETIONS:
            output.complain(f"{_COMPLETE}={wanted} is none of {', '.join(_COMPLETIONS)}: unset it")
            sys.exit(output.USAGE)
        if wanted.endswith("_complete") and not {*_COMPLETED} <= os.environ.keys():
            output.complain(f"{_COMPLETE} is for shells, which set {' and '.join(_COMPLETED)} too: unset it")
            sys.exit(output.USAGE)
        extra.setdefault("prog_name", "attachfs")  # also as `python -m attachfs`
        try:
            with streams.output_failures_reported():
                return super().main(*args, **extra)
        finally:
            streams.finish()

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        with streams.output_failures_reported(), _interruption_reported():
            return super().make_context(*args, **extra)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # mount.fuse(8), behind `mount -t fuse.attachfs`, runs `attachfs SOURCE /MOUNTPOINT -o …`.
        if _is_mount_fuse(args):
            from attachfs.cli import mount_helper as cli_mount_helper

            ctx.exit(cli_mount_helper.main(args))
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        with streams.output_failures_reported(), _interruption_reported():
            try:
                return super().invoke(ctx)
            except UsageError as error:
                output.complain(error.reason)
                ctx.exit(output.USAGE)
            except AttachfsError as error:
                output.complain(error.reason)
                ctx.exit(output.DIFFERS)
            except OSError as error:
                if error.filename is None:
                    raise  # of standard output, which is reported on its own
                output.complain(os.fsdecode(error.filename), _why(error))
                ctx.exit(output.DIFFERS)


def _is_mount_fuse(args: Sequence[str]) -> bool:
    if len(args) < 3 or args[0] in _COMMANDS or args[0].startswith("-") or not args[1].startswith("/"):
        return False
    return "-o" in args[2:]


def _why(error: OSError) -> str:
    """Return the reason, and of what is not permitted whose it is: that is the remedy most often."""
    if not isinstance(error, PermissionError):
        return output.reason_of(error)
    path = Path(os.fsdecode(error.filename))
    for one in (path, *path.parents):
        with contextlib.suppress(OSError):
            if (owner := one.stat().st_uid) != os.geteuid():
                return f"{output.reason_of(error)}: {one} belongs to user {owner}; choose one of your own"
            break
    return f"{output.reason_of(error)}: its mode does not let you"


@contextlib.contextmanager
def _interruption_reported() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        output.note("attachfs: interrupted")
        sys.exit(output.INTERRUPTED)


_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(cls=_Commands, context_settings=_SETTINGS, help=_HELP)
@click.version_option(__version__, prog_name="attachfs", message="%(prog)s %(version)s")
def main() -> None:
    """Be the program; the commands do the work."""


def mount_helper() -> None:
    """Be mount(8)'s helper; see cli/mount_helper.py."""
    from attachfs.cli import mount_helper as cli_mount_helper

    streams.prepare()
    try:
        with streams.output_failures_reported(), _interruption_reported():
            sys.exit(cli_mount_helper.main())
    finally:
        streams.finish()
