"""`attachfs mount`: mount the ledger, in the background or the foreground."""

import functools
import sys
from pathlib import Path

import click

from attachfs.cli import arguments
from attachfs.config import directories
from attachfs.config import settings as config_settings


@click.command("mount")
@click.argument("mountpoint", type=arguments.AnyPath())
@click.option("-f", "--foreground", is_flag=True, help="Stay in the foreground and log to stderr.")
@arguments.o_words
@arguments.mount_options
def command(mountpoint: Path, foreground: bool, o_words: tuple[str, ...], **given: str | None) -> None:
    """Mount the ledger on the directory MOUNTPOINT.

    Returns once the mount answers; the mount then goes on in the background until it is unmounted.

    Every option can also be given as -o name=value and as a variable ATTACHFS_NAME in the environment.
    """
    from attachfs.mount import daemon

    words = arguments.words_of(o_words)
    layers = {key: value for key, value in given.items() if value is not None}
    load = functools.partial(config_settings.load, layers, words, cwd=directories.here())
    settings, point = load(), directories.absolute(mountpoint)
    if foreground:
        sys.exit(daemon.run_foreground(settings, point, reload=load))
    sys.exit(daemon.run_background(settings, point, load))
