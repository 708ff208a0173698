"""The program: finds a command's module, runs it, and turns failures into a sentence and an exit code.

Exit codes: 0 all well; 1 it failed, or something differs; 2 the command line or the configuration cannot
be used; 3 it could not be found out; 130 interrupted by Ctrl-C.
"""

import importlib
import sys
from collections.abc import Sequence
from typing import Any

import click

from attachfs import __version__
from attachfs.cli import output
from attachfs.errors import AttachfsError, UsageError

# Commands in the order in which a person meets them; each is `command` in the module of its name.
_COMMANDS = (
    "mount",
    "umount",
    "info",
    "verify",
    "prefetch",
    "manifest",
    "export",
    "prove",
    "cache",
    "pins",
    "doctor",
    "demo",
    "status",
    "config",
)


class _Commands(click.Group):
    """Commands, each loaded once it is called, so that none waits for what another one needs."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, _ctx: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"attachfs.cli.{name}").command
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # mount.fuse(8), behind `mount -t fuse.attachfs`, runs `attachfs SOURCE /MOUNTPOINT -o …`.
        if _is_mount_fuse(args):
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


def _is_mount_fuse(args: Sequence[str]) -> bool:
    return len(args) > 1 and args[0] not in _COMMANDS and args[0][0:1] != "-" and args[1][0:1] == "/"


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


def mount_helper() -> None:
    """Be mount(8)'s helper; see cli/mount_helper.py."""
    from attachfs.cli import mount_helper as cli_mount_helper

    sys.exit(cli_mount_helper.main())
