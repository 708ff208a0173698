"""`attachfs umount`: unmount, having waited until the files are closed."""

from pathlib import Path

import click

from attachfs.cli import arguments


@click.command("umount")
@click.argument("mountpoint", type=arguments.MountPoint())
@click.option("-l", "--lazy", is_flag=True, help="Detach at once; open files stay readable.")
def command(mountpoint: Path, lazy: bool) -> None:
    """Unmount the ledger from MOUNTPOINT, and wait until its files are closed.

    If programs use it, they are named, and it stays mounted.
    """
    from attachfs.mount import unmount

    unmount.unmount(mountpoint, lazy=lazy)
