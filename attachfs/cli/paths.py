"""The files a command was given: on a mount or not, found in directories, and what is recorded of them."""

import errno
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from attachfs import model
from attachfs.errors import AttachfsError, UsageError
from attachfs.model import UUID, Digest
from attachfs.mount import mountinfo
from attachfs.mount.mountinfo import Mount

_ATTACHMENTS = "/archivist/v2/attachments/"
_PLACE = re.compile(rf"(?:public)?assets/{UUID}(?:/events/{UUID})?/{UUID}")
_NONE = (errno.ENODATA, errno.EOPNOTSUPP)
_PIECE = 65_536  # bytes: what an extended attribute can have, and what a piece of a longer record has
_PIECES = 1024
_TRIES = 5


class Found(NamedTuple):
    """A file, or a path that could not be looked at, and why."""

    path: Path
    problem: OSError | None = None


class Record(NamedTuple):
    """What is recorded of an attachment: `problem` says why there is no digest."""

    digest: Digest | None
    problem: str
    size: int | None


class Mounts:
    """The attachfs mounts of this moment."""

    def __init__(self) -> None:
        # A bind mount of a subtree has the same device, and neither the figures nor all of the tree.
        self._by_device = {
            os.makedev(0, mount.device_minor): mountinfo.whole(mount)
            for mount in mountinfo.mounts()
            if mount.is_ours
        }
        self._by_url: dict[str, Path] | None = None

    def of(self, path: Path) -> Mount | None:
        """Return the mount that a path is on.

        Raises:
            OSError: there is no such path.
        """
        return self._by_device.get(path.stat().st_dev)

    def require(self, paths: Iterable[Path]) -> list[Mount]:
        """Return the mounts of all the paths.

        Raises:
            UsageError: one is not on a mount.
        """
        found = {}
        for path in paths:
            try:
                mount = self.of(path)
            except OSError as error:
                raise UsageError(f"{path}: {error.strerror}") from error
            if mount is None:
                raise UsageError(
                    f"{path} is not on an attachfs mount; mount the ledger first: attachfs mount"
                )
            found[mount.point] = mount
        return list(found.values())

    def live(self, url: str) -> Path | None:
        """Return where a mount shows the attachment that an address names; None if none does."""
        if self._by_url is None:
            by_url: dict[str, Path] = {}
            for mount in self._by_device.values():
                if mount.root != "/":
                    continue  # a part, and the rest cannot be seen from here
                status = mountinfo.status(mount.point)
                if status is not None:
                    by_url.setdefault(str(status.get("url")), mount.point)
            self._by_url = by_url  # whole, as several threads look at it
        base, found, place = url.partition(_ATTACHMENTS)
        # The address stands in a file's attribute, where anybody can have written anything.
        if not found or _PLACE.fullmatch(place) is None or base not in self._by_url:
            return None
        return self._by_url[base] / place


def walk(paths: Iterable[Path]) -> Iterator[Found]:
    """Yield the files at and below the paths, in order.

    Links to directories are followed only where they were given; links to files also below, unless the file
    itself was met before.
    """
    met: set[tuple[int, int]] = set()
    for path in paths:
        try:
            is_directory = stat.S_ISDIR(path.stat().st_mode)
        except OSError as error:
            yield Found(path, error)
            continue
        if is_directory:
            yield from _walk(path, met)
        else:
            yield Found(path)


def _walk(directory: Path, met: set[tuple[int, int]]) -> Iterator[Found]:
    try:
        device = directory.stat().st_dev
        with os.scandir(directory) as entries:
            inside = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        yield Found(directory, error)
        return
    for entry in inside:
        path = directory / entry.name
        try:
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(path, met)
            elif entry.is_file(follow_symlinks=False):
                met.add((device, entry.inode()))
                yield Found(path)
            elif entry.is_file():
                status = path.stat()
                if (status.st_dev, status.st_ino) not in met:
                    met.add((status.st_dev, status.st_ino))
                    yield Found(path)
        except OSError as error:
            yield Found(path, error)


def text_xattr(path: Path, name: str) -> str | None:
    """Return an extended attribute as text, None if there is none.

    Raises:
        OSError: it could not be asked.
    """
    try:
        return os.getxattr(path, name).decode("utf-8", "replace")
    except OSError as error:
        if error.errno in _NONE:
            return None
        raise


def read_record(path: Path, kind: str) -> bytes:
    """Return the record (of an `attachment`, `asset` or `event`) that a path's attributes have, whole.

    What is longer than an attribute may be comes in pieces, and twice: it might change in between.

    Raises:
        OSError: it could not be asked, or changes all the time.
    """
    name = f"user.{kind}.json"
    try:
        return os.getxattr(path, name)
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise
    before = None
    for _ in range(_TRIES):
        record = b"".join(_pieces(path, name))
        if record == before:
            return record
        before = record
    raise OSError(errno.EIO, "the record changes while it is read")


def _pieces(path: Path, name: str) -> Iterator[bytes]:
    for number in range(_PIECES):
        piece = os.getxattr(path, f"{name}.{number}")
        yield piece
        if len(piece) < _PIECE:
            return
    raise OSError(errno.EFBIG, "the record is too long")


def live_record(path: Path) -> Record:
    """Return what the ledger records of an attachment on a mount.

    Raises:
        OSError: it could not be asked.
    """
    raw = text_xattr(path, "user.attachment.json")
    if raw is None:
        return copied_record(path)
    try:
        body = model.decode(raw.encode(), str(path))
    except AttachfsError as error:
        return Record(None, error.reason, None)
    recorded = body.get("hash")
    recorded = recorded if isinstance(recorded, dict) else {}
    size = body.get("size")
    return _record(
        recorded.get("alg") or recorded.get("algorithm"),
        recorded.get("value"),
        size if isinstance(size, int) else None,
    )


def copied_record(path: Path) -> Record:
    """Return the record that a file's own attributes carry, as `cp -a` and `rsync -X` copy them.

    Raises:
        OSError: they could not be read.
    """
    prefix = "user.attachment."
    alg = text_xattr(path, f"{prefix}hash.alg") or text_xattr(path, f"{prefix}hash.algorithm")
    size = text_xattr(path, f"{prefix}size") or ""
    return _record(
        alg,
        text_xattr(path, f"{prefix}hash.value"),
        int(size) if re.fullmatch("[0-9]{1,19}", size) else None,
    )


def _record(alg: object, value: object, size: int | None) -> Record:
    try:
        return Record(model.parse_digest(alg, value), "", size)
    except ValueError as error:
        return Record(None, str(error), size)
