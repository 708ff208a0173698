"""`attachfs demo`: the demo ledger, and a mount of it."""

import sys
from pathlib import Path

import click

from attachfs.cli import arguments


@click.command("demo")
@click.argument("mountpoint", required=False, type=arguments.AnyPath())
def command(mountpoint: Path | None) -> None:
    """Run a demo ledger on this machine and mount it: no account, nothing leaves the machine.

    Without MOUNTPOINT a new directory is made, and removed at the end. Ctrl-C ends it.
    """
    from attachfs.demo import tour

    sys.exit(tour.run(mountpoint))
