"""Where a user's files live: the XDG directories, and the home directory that may not be there.

A variable that is no absolute path is ignored, as the XDG Base Directory Specification wants it; taken for a
path, it would mean another place in each directory that a command is called from.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from attachfs.errors import UsageError

APP = "attachfs"
_BELOW_HOME = {"CONFIG": ".config", "CACHE": ".cache", "STATE": ".local/state"}


def user_directory(kind: str, environ: Mapping[str, str] = os.environ) -> Path:
    """Return attachfs' own directory of a kind: CONFIG, CACHE or STATE.

    Raises:
        UsageError: the user has no home directory, and the kind's variable is not set.
    """
    variable = f"XDG_{kind}_HOME"
    named = environ.get(variable, "")
    if named.startswith("/") and "\0" not in named:
        return Path(named) / APP
    home = home_directory()
    if home is None:
        wrong = "HOME is not an absolute path" if environ.get("HOME") else "this user has no home directory"
        raise UsageError(f"{wrong}: set HOME, or {variable}, to an absolute path")
    return home / _BELOW_HOME[kind] / APP


def home_directory() -> Path | None:
    """Return the user's home directory: $HOME if it is absolute, else as the user database says."""
    try:
        home = Path.home()
    except RuntimeError:
        return None
    return home if home.is_absolute() else None


def here() -> Path | None:
    """Return the current directory; None if it has been removed."""
    try:
        return Path.cwd()
    except OSError:
        return None


def current_directory(path: str) -> Path:
    """Return the current directory, to which `path` is relative.

    Raises:
        UsageError: it has been removed.
    """
    directory = here()
    if directory is None:
        raise UsageError(
            f"{path} is relative to the current directory, which is gone: give an absolute path, or cd first"
        )
    return directory


def absolute(path: Path) -> Path:
    """Return a path as an absolute one.

    Raises:
        UsageError: it is relative to a current directory that has been removed.
    """
    return path if path.is_absolute() else current_directory(str(path)) / path
