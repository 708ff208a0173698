"""`attachfs demo`: the demo ledger in a child, a mount of it here, and a tour of commands to try."""

import contextlib
import dataclasses
import os
import signal
import sys
import tempfile
import threading
from pathlib import Path

import click

from attachfs.cli import arguments, output, tour
from attachfs.config import directories
from attachfs.config import settings as config_settings
from attachfs.errors import UsageError


def run(mountpoint: Path | None, *, guided: bool) -> int:
    """Serve and mount until Ctrl-C, or until the guided tour ends; return the exit code.

    Args:
        mountpoint: an existing directory, or None for a new one that is removed at the end.
        guided: walk through the tour instead of printing it.
    """
    from attachfs.demo.spawn import spawn_server
    from attachfs.mount import daemon

    with contextlib.ExitStack() as stack:
        kept = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="attachfs-demo-")))
        if mountpoint is None:
            mountpoint = Path(tempfile.mkdtemp(prefix="ledger-"))
            stack.callback(_remove, mountpoint)
        elif not mountpoint.is_dir():
            raise UsageError(f"{mountpoint} is not a directory; make it first: mkdir {mountpoint}")
        point = directories.absolute(mountpoint)
        output.say("Making a demo ledger …")
        try:
            log_key = kept / "log-key.pem"
            given_to_server = ["--token-file", str(kept / "token.txt"), "--log-key-file", str(log_key)]
            server = stack.enter_context(spawn_server(given_to_server))
        except RuntimeError as error:
            raise UsageError(f"{error}; see its message above") from error
        given = {
            "url": server.url,
            "token_file": str(server.token_file),
            "cache_dir": str(kept / "cache"),
            "cache_size": "1G",
            "cache_min_free": "0",
            "log_file": str(kept / "log"),
            "config": os.devnull,
        }
        settings = dataclasses.replace(config_settings.load(given, environ={}), state_dir=kept / "state")
        ready = _guide if guided else tour.show
        code = daemon.run_foreground(settings, point, lambda: ready(point, log_key))
        output.say(f"\nUnmounted {point}; the demo ledger has ended and its files are gone.")
        return code


def _guide(point: Path, log_key: Path) -> None:
    def walk() -> None:
        try:
            tour.present(point, log_key)
        except click.Abort:
            pass  # Ctrl-C or the input's end at a prompt
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=walk, daemon=True).start()


def _remove(directory: Path) -> None:
    try:
        directory.rmdir()
    except OSError as error:
        output.complain(f"{directory} was left behind", output.reason_of(error))


@click.command("demo")
@click.argument("mountpoint", required=False, type=arguments.AnyPath())
@click.option("--tour", "guided", is_flag=True, help="Walk through the tour; press Enter for each step.")
def command(mountpoint: Path | None, guided: bool) -> None:
    """Run a demo ledger on this machine and mount it: no account, nothing leaves the machine.

    Without MOUNTPOINT, it mounts on a new directory and removes it at the end. Ctrl-C ends the demo.
    """
    sys.exit(run(mountpoint, guided=guided))
