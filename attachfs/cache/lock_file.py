"""The cache directory's lock file: its text, and who holds it.

Owns: that the file says the holder's process and, in its own words, what it does.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from attachfs.text import printable

NAME = "lock"


class LockHolder(NamedTuple):
    """The process that has a cache directory to itself, and what it does, in its own words."""

    pid: int
    doing: str


def text_of(doing: str) -> str:
    """Return what a lock file says while this process holds it."""
    return f"{os.getpid()}\n{printable(doing)}\n"


def parse(text: str) -> LockHolder | None:
    """Return whom a lock file names; None if nobody has written it yet, or it is no lock file."""
    pid, _, doing = text.partition("\n")
    return LockHolder(int(pid), doing.strip()) if pid.isascii() and pid.isdigit() and len(pid) < 12 else None


def named_in(root: Path) -> LockHolder | None:
    """Return whom the lock file in a cache directory names, whether or not that process still holds it."""
    try:
        return parse((Path(os.path.realpath(root)) / NAME).read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None


def lock_holder(root: Path) -> LockHolder | None:
    """Return who holds the directory's lock, as far as we may see other processes; None: nobody.

    It is looked up rather than tried: trying would, for an instant, keep a mount from starting.
    """
    lock, named = Path(os.path.realpath(root)) / NAME, named_in(root)
    if named is None:
        return None
    try:
        links = list(Path(f"/proc/{named.pid}/fd").iterdir())
    except OSError:
        return None
    for link in links:
        with suppress(OSError):  # closed meanwhile
            if link.readlink() == lock:
                return named
    return None
