"""`attachfs logs`: show what a mount has logged, wherever it logs to."""

import json
import os
import sys
from pathlib import Path

import click

from attachfs.cli import arguments
from attachfs.config.directories import absolute, user_directory
from attachfs.errors import AttachfsError


@click.command("logs")
@click.argument("mountpoint", type=arguments.MountPoint())
def command(mountpoint: Path) -> None:
    """Show what the mount on MOUNTPOINT has logged.

    The log is in the journal, in syslog (the command says where to look) or in a file. It outlives the mount.
    """
    from attachfs.mount import log_place, probe

    point = absolute(mountpoint)
    said = probe.probe(point)[1]
    status = json.loads(said) if said else None
    found = log_place.command_for(status, user_directory("STATE"), point)
    if isinstance(found, list):
        sys.stdout.flush()
        os.execv(found[0], found)  # noqa: S606 - journalctl, found on the path, and fixed words
    if isinstance(found, str):
        raise AttachfsError(f"{mountpoint}: {found}")
    shown = False
    for path in (found.with_name(f"{found.name}.1"), found):  # what was put aside comes first
        if path.is_file():
            shown = True
            with path.open(encoding="utf-8", errors="backslashreplace") as lines:
                for line in lines:
                    click.echo(line, nl=False)
    if not shown:
        raise AttachfsError(f"{mountpoint}: nothing has been logged yet; the log would be in {found}")
