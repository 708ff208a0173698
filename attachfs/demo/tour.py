"""`attachfs demo`: the demo ledger in a child, a mount of it here, and a tour of commands to try."""

import dataclasses
import os
import shlex
import shutil
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import click

from attachfs.config import settings as config_settings
from attachfs.demo.spawn import DemoServer, spawn_server
from attachfs.errors import UsageError
from attachfs.mount import daemon


def run(mountpoint: Path | None) -> int:
    """Serve and mount until Ctrl-C; return the exit code.

    Args:
        mountpoint: an existing directory, or None for a new one that is removed at the end.
    """
    with ExitStack() as stack:
        kept = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="attachfs-demo-")))
        if mountpoint is None:
            mountpoint = Path(tempfile.mkdtemp(prefix="ledger-"))
            stack.callback(_remove, mountpoint)
        elif not mountpoint.is_dir():
            raise UsageError(f"{mountpoint} is not a directory; make it first: mkdir {mountpoint}")
        point = mountpoint.absolute()
        arguments = ["--token-file", str(kept / "token.txt"), "--log-key-file", str(kept / "log-key.pem")]
        click.echo("Making a demo ledger …")
        try:
            server = stack.enter_context(spawn_server(arguments))
        except RuntimeError as error:
            raise UsageError(f"{error}; the demo needs its packages: pip install 'attachfs[demo]'") from error
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
        code = daemon.run_foreground(settings, point, lambda: _show(point, server, kept / "log"))
        click.echo(f"\nUnmounted {point}; the demo ledger has ended and its files are gone.")
        return code


def _show(point: Path, server: DemoServer, log: Path) -> None:
    """Print the tour: each command with what it will show."""
    at = {name: f"$L/{path}" for name, path in server.story.items()}
    container = "/".join(at["photo"].split("/")[:3])
    steps = [
        ("three stories as assets: a container, a door camera, software releases", "ls $L/assets"),
        ("one asset: its current attachments, and its events with theirs", f"ls -lR {container}"),
        ("what the ledger records of a photo, with no download", f"getfattr -d {at['photo']}"),
        ("the same as a table", f"{_program()} info {at['photo']}"),
        ("a PDF, fetched and verified as it is opened (or: xdg-open …)", f"file {at['pdf']}"),
        ("64 MiB of footage, copied while it is verified", f"cp {at['footage']} /tmp/footage.avi"),
        ("a list of components, with the tools you have", f"grep -m3 '\"name\"' {at['sbom']}"),
        ("swapped after it was recorded: it does not open (Bad message)", f"cat {at['tampered']}"),
        ("found bad by the ledger's scan: Operation not permitted", f"cat {at['infected']}"),
        ("a public asset, entered by its identity and without credentials", f"ls -l {at['public']}"),
        ("a copy of everything; those that cannot be read are named", "cp -r $L/assets /tmp/evidence"),
        (
            "the evidence to take home: a bag that others can check (look at its report.html)",
            f"{_program()} export $L /tmp/bag",
        ),
        (
            "the same ledger from that bag alone, with no service behind it",
            f"mkdir /tmp/home; {_program()} mount --archive /tmp/bag /tmp/home; ls /tmp/home/by-name",
        ),
    ]
    click.echo(f"\nThe demo ledger is mounted on {point}. In another terminal, try:\n")
    click.echo(f"  L={shlex.quote(str(point))}\n")
    for number, (what, command) in enumerate(steps, 1):
        click.echo(f"  # {number}. {what}\n  {command}\n")
    click.echo(f"What the mount has to say is in {log}.\nCtrl-C here unmounts and cleans up.")


def _program() -> str:
    """Return how this program is called from where the user is."""
    return "attachfs" if shutil.which("attachfs") else shlex.quote(str(Path(sys.argv[0]).absolute()))


def _remove(directory: Path) -> None:
    try:
        directory.rmdir()
    except OSError as error:
        click.echo(f"attachfs: {directory} was left behind: {error.strerror}", err=True)
