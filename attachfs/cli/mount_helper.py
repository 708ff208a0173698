"""The helper behind `mount -t attachfs` and fstab lines: mount(8)'s arguments, words and exit codes.

mount(8) runs `mount.attachfs SOURCE DIRECTORY [-sfnvrw] [-o WORDS]`, mount.fuse(8) `attachfs SOURCE
DIRECTORY -o WORDS`. SOURCE is the ledger's address, a profile of the configuration file, or `none` for
what the configuration says by itself.
"""

import functools
import getopt
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from attachfs import __version__
from attachfs.cli import output
from attachfs.config import directories
from attachfs.config import settings as config_settings
from attachfs.config.settings import Config
from attachfs.errors import UsageError
from attachfs.mount.mountinfo import mount_at
from attachfs.mount.probe import State, probe

# Exit codes of mount(8).
DONE = 0
USAGE = 1
SYSTEM = 2
FAILED = 32

_SYNOPSIS = "usage: mount.attachfs SOURCE DIRECTORY [-sfnvrw] [-o name[=value],…]"
_NO_SOURCE = ("none", "attachfs", "-")


class Call(NamedTuple):
    """What mount(8) asked for."""

    source: str
    point: Path
    words: dict[str, str]
    fake: bool
    verbose: bool


def main(arguments: Sequence[str] | None = None) -> int:
    """Mount as mount(8) asks; return its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if list(arguments) in (["-h"], ["--help"]):
        output.say(_SYNOPSIS)
        return DONE
    if list(arguments) in (["-V"], ["--version"]):
        output.say(f"mount.attachfs {__version__}")
        return DONE
    try:
        call = parse(arguments)
        settings = config_settings.load({}, call.words)
    except UsageError as error:
        _say(error.reason)
        return USAGE
    if call.verbose:
        _say(f"{settings.url} on {call.point}, settings from {settings.config or 'no file'}")
    if call.fake:
        return DONE
    return _mount(call, settings)


def parse(arguments: Sequence[str]) -> Call:
    """Return what mount(8)'s arguments mean.

    Raises:
        UsageError: nothing that mount(8) would say, or words that are not known.
    """
    try:
        options, operands = getopt.gnu_getopt(list(arguments), "sfnvrwN:o:t:")
    except getopt.GetoptError as error:
        raise UsageError(f"{error}; {_SYNOPSIS}") from error
    if len(operands) != 2 or not all(operands):
        raise UsageError(_SYNOPSIS)
    flags = {name for name, _ in options}
    words: dict[str, str] = {}
    for name, value in options:
        if name == "-o":
            words |= config_settings.parse_o_words(value, sloppy="-s" in flags)
    source, point = operands
    if "://" in source:
        words.setdefault("url", source)
    elif source not in _NO_SOURCE:
        words.setdefault("profile", source.removeprefix("profile="))
    # What fstab says is what mount(8) compares with, so that `mount -a` does not mount twice.
    words.setdefault("fsname", source)
    return Call(source, directories.absolute(Path(point)), words, "-f" in flags, "-v" in flags)


def _mount(call: Call, settings: Config) -> int:
    from attachfs.mount import daemon

    there = mount_at(call.point)
    mounted = there is not None and there.is_ours and there.source == settings.source
    if mounted and probe(call.point)[0] is not State.DEAD:
        _say(f"{call.point} is mounted already")
        return DONE
    cwd = directories.here()
    try:
        code = daemon.run_background(
            settings, call.point, functools.partial(config_settings.load, {}, call.words, cwd=cwd)
        )
    except OSError as error:
        _say(f"no process for the mount: {error.strerror}")
        return SYSTEM
    return FAILED if code else DONE


def _say(text: str) -> None:
    output.note(f"mount.attachfs: {text}")
