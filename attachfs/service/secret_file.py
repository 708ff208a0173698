"""Secrets, and the files they are kept in.

Owns: which files may hold a secret, and how one is read without being shown.
"""

import codecs
import os
import stat
from pathlib import Path
from typing import NamedTuple

from attachfs.errors import UsageError

_FILE_LIMIT = 16 * 1024  # bytes; servers refuse headers of half that


class Secret:
    """A secret that does not show itself in logs, tracebacks and debuggers' lists of variables."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the secret itself."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(…)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._value == other._value

    __hash__ = None  # type: ignore[assignment]


class Version(NamedTuple):
    """What tells one version of a file from another."""

    mtime_ns: int
    ctime_ns: int  # moves with the permissions too
    size: int
    inode: int


def version_of(path: Path) -> Version:
    """Return a file's present version."""
    status = path.stat()
    return Version(status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino)


def read_private(path: Path, what: str) -> tuple[str, Version]:
    """Return a secret file's only line, stripped, and the file's version.

    Raises:
        UsageError: it is missing, open to others, no text file, or more than a line; the message says
            what to do, and quotes nothing of it.
    """
    try:
        # Not blocking, should it be a FIFO.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise UsageError(
            f"{what} {path} does not exist: make it, with mode 0600, or let 'attachfs login' make it"
        ) from error
    except OSError as error:
        raise UsageError(f"{what} {path} cannot be opened ({error.strerror})") from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(f"{what} {path} is not a file")
        if status.st_mode & 0o044 and not _guarded(path):
            raise UsageError(f"{what} {path} can be read by other users: run: chmod 600 {path}")
        raw = os.read(fd, _FILE_LIMIT + 1)
    except OSError as error:
        raise UsageError(f"{what} {path} cannot be read ({error.strerror})") from error
    finally:
        os.close(fd)
    version = Version(status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino)
    return _only_line(raw, f"{what} {path}"), version


def _only_line(raw: bytes, named: str) -> str:
    if len(raw) > _FILE_LIMIT:
        raise UsageError(f"{named} is too long to be one")
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UsageError(f"{named} was saved as UTF-16: save it as plain text")
    try:
        text = raw.removeprefix(codecs.BOM_UTF8).decode("ascii").strip()
    except UnicodeDecodeError:
        raise UsageError(f"{named} holds characters other than plain ASCII") from None
    if not text:
        raise UsageError(f"{named} is empty")
    if not text.isprintable():
        raise UsageError(f"{named} holds more than one line, or control characters")
    return text


def _guarded(path: Path) -> bool:
    """Whether systemd guards the file: access lists there look like group permissions."""
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    return bool(directory) and path.parent == Path(directory or "")
