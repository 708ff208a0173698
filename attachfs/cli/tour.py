"""The tour of the demo ledger: commands to try, each with what it shows; printed, or walked through."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import click

from attachfs.cli import output

_BOX = '"$L/by-name/Container ATFU 284417 3"'
_SEAL = '"$L/by-name/Container ATFU 284417 3/events/2026-03-05 1408 Customs inspection/seal-intact.jpg"'
_SHIP = '"$L/by-name/MV Northern Tern"'


class Step(NamedTuple):
    """A command, what it shows, and the exit status that it has if all is well."""

    what: str
    command: str
    status: int = 0


def steps(program: str) -> list[Step]:
    """Return the tour. It needs nothing besides attachfs and coreutils.

    `$L` is the mount point, `$K` the key that seals the demo ledger's transparency logs.
    """
    return [
        Step("what the ledger has, under the names that people gave it", f"{program} ls $L/by-name"),
        Step(
            "a container's journey: each file with size, type and scan result, without a download",
            f"{program} ls -R {_BOX}",
        ),
        Step("all that is recorded of one document", f"{program} info {_BOX}/bill-of-lading.pdf"),
        Step(
            "a picture that was replaced after it was recorded: Bad message, and no byte of it",
            f"cat {_SEAL}",
            1,
        ),
        Step("why: the log has both hashes", f"{program} logs $L"),
        Step(
            "every byte read, hashed and compared; the replaced picture differs",
            f"{program} verify {_BOX}",
            1,
        ),
        Step(
            "a copy, checked by sha256sum alone against what the ledger records",
            f'(cd "$(mktemp -d)" && cp -rL --no-preserve=mode {_SHIP} copy && cd copy && '
            f"{program} manifest {_SHIP} | sha256sum -c)",
        ),
        Step("64 MiB of footage fetched ahead of time", f'{program} prefetch "$L/by-name/North gate camera"'),
        Step(
            "evidence to take home: a bag that others can check, and that mounts again without the service",
            f'(cd "$(mktemp -d)" && {program} export {_SHIP} bag && mkdir home && '
            f"{program} mount --archive bag home && {program} ls home/by-name && {program} umount home)",
        ),
        Step(
            "an event whose record was changed after it went into the transparency log: leaf differs",
            f'(cd "$(mktemp -d)" && {program} export {_SHIP} bag && {program} prove --log-key "$K" bag)',
            1,
        ),
        Step("what the mount did meanwhile", f"{program} status $L"),
    ]


def show(point: Path, log_key: Path) -> None:
    """Print the tour."""
    output.say(f"\nThe demo ledger is mounted on {point}. In another terminal, try:\n")
    output.say(f"  L={shlex.quote(str(point))} K={shlex.quote(str(log_key))}\n")
    for number, step in enumerate(steps(program()), 1):
        output.say(f"  # {number}. {step.what}\n  {step.command}\n")
    output.say("Ctrl-C here unmounts and cleans up.")


def present(point: Path, log_key: Path) -> None:
    """Go through the tour, a step for each Enter; without a terminal, without waiting."""
    output.say(f"\nThe demo ledger is mounted on {point}.")
    for number, step in enumerate(steps(program()), 1):
        output.say(f"\n# {number}. {step.what}\n$ {step.command}")
        if sys.stdin.isatty():
            click.prompt("Enter", default="", show_default=False, prompt_suffix=" … ", err=True)
        sys.stdout.flush()
        done = subprocess.run(  # noqa: S603 - our own words
            ["/bin/sh", "-c", step.command],
            env=_environment(point, log_key),
            stdin=subprocess.DEVNULL,
            check=False,
        )
        if done.returncode != step.status:
            output.complain(f"exit status {done.returncode} instead of {step.status}")


def _environment(point: Path, log_key: Path) -> dict[str, str]:
    return {**os.environ, "L": str(point), "K": str(log_key), "TMPDIR": str(log_key.parent)}


def program() -> str:
    """Return how this program is called from where the user is."""
    if shutil.which("attachfs"):
        return "attachfs"
    started = Path(sys.argv[0])
    if started.name == "__main__.py" or os.sep not in sys.argv[0]:
        return f"{shlex.quote(sys.executable)} -m attachfs"
    return shlex.quote(str(started.absolute()))
