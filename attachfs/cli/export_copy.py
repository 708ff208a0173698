"""Copying one attachment from a mount into a bag, compared with its record on the way."""

import errno
import fcntl
import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from attachfs import model
from attachfs.archive import layout
from attachfs.archive.entries import Exported, name_of
from attachfs.archive.writer import cannot_write
from attachfs.cache.files import folder_of
from attachfs.cli import output
from attachfs.cli.export_scan import Source
from attachfs.model import Digest
from attachfs.mount import mountinfo

_CHUNK = 1 << 20  # bytes read and hashed at a time
_SHARED = 1 << 16  # bytes from which on a copy is shared with the cache, where the filesystem can do that
_FICLONE = 0x40049409  # linux/fs.h

Progress = Callable[[int], object]


class Copier:
    """Copies attachments. Thread-safe.

    Args:
        source: the mount.
        bag: the bag's directory.
        work: where files are written before they get their names.
        cache: the mount's cache directory, from which bytes may be shared; None if it has none.
    """

    def __init__(self, source: Source, bag: Path, work: Path, cache: Path | None) -> None:
        self._source = source
        self._point = source.point
        self._bag = bag
        self._work = work
        self._cache = cache

    def copy(self, entry: Exported, progress: Progress) -> tuple[Exported, str]:
        """Bring one attachment into the bag; return what became of it, and its file's stamp.

        What is refused has an errno in its entry, and nothing of it is left in the bag.

        Raises:
            NoRoom, Unexpected: the bag cannot be written to, or the mount has gone.
        """
        target = self._bag / layout.PAYLOAD / entry.path
        found = self._found(target, entry)
        if found is not None:
            progress(entry.size)
            return self._done(entry, target, found)
        try:
            fd = os.open(self._point / entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            return self._refused(entry, target, error)
        try:
            return self._copy(entry, fd, target, progress)
        finally:
            os.close(fd)

    def stamp(self, path: str) -> str:
        """Return the stamp of an attachment's file in the bag: another one tells of a change. "": none."""
        return stamp_of(self._bag / layout.PAYLOAD / path)

    def _found(self, target: Path, entry: Exported) -> dict[str, str] | None:
        """Return the hashes of a file that is in the bag already, if it is the right one."""
        with suppress(OSError):
            fd = os.open(target, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                if os.fstat(fd).st_size == entry.size:
                    hashes = _hash(fd, entry.alg or "sha256")
                    return hashes if _differs(entry, entry.size, hashes) is None else None
            finally:
                os.close(fd)
        return None

    def _copy(self, entry: Exported, fd: int, target: Path, progress: Progress) -> tuple[Exported, str]:
        temporary = self._work / "tmp" / hashlib.sha256(target.as_posix().encode()).hexdigest()
        try:
            out = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise cannot_write(self._bag, error) from error
        try:
            attested = _mount_attribute(fd, "attested")
            hashes = self._share(entry, fd, out)
            size = entry.size
            if hashes is None:
                try:
                    size, hashes = self._stream(entry, fd, out, progress)
                except OSError as error:
                    return self._refused(entry, target, error)
            else:
                progress(size)
            wrong = _differs(entry, size, hashes)
            if wrong is not None or attested == "mismatch":
                reason = wrong or "two records of it differ"
                return self._refused(entry, target, OSError(errno.EBADMSG, reason))
            try:
                time = model.parse_time_ns(entry.accepted)
                if time:
                    os.utime(out, ns=(time, time))
                target.parent.mkdir(parents=True, exist_ok=True)
                temporary.replace(target)
            except OSError as error:
                raise cannot_write(self._bag, error) from error
        finally:
            os.close(out)
            temporary.unlink(missing_ok=True)
        return self._done(msgspec.structs.replace(entry, attested=attested), target, hashes)

    def _stream(self, entry: Exported, fd: int, out: int, progress: Progress) -> tuple[int, dict[str, str]]:
        """Read through the mount, hash and write. OSError: reading failed."""
        hashers = {alg: hashlib.new(alg) for alg in {entry.alg or "sha256", "sha256"}}
        size = 0
        while data := os.read(fd, _CHUNK):
            for hasher in hashers.values():
                hasher.update(data)
            size += len(data)
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(out, view) :]
            except OSError as error:
                raise cannot_write(self._bag, error) from error
            progress(len(data))
        return size, {alg: hasher.hexdigest() for alg, hasher in hashers.items()}

    def _share(self, entry: Exported, fd: int, out: int) -> dict[str, str] | None:
        """Have the bytes shared with, or copied inside the kernel from, the cache's file; None: not possible.

        They are hashed where they have come to lie; if they are not right, the mount is read instead.
        """
        digest = entry.digest
        if (
            self._cache is None
            or digest is None
            or entry.size < _SHARED
            or _mount_attribute(fd, "cached") != "yes"
        ):
            return None
        path = self._cache / "blobs" / Path(*folder_of(digest)) / digest.hex
        try:
            source = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            if os.fstat(source).st_size == entry.size and _share_bytes(source, out, entry.size):
                hashes = _hash(out, digest.alg)
                if _differs(entry, os.fstat(out).st_size, hashes) is None:
                    return hashes
            os.ftruncate(out, 0)
            os.lseek(out, 0, os.SEEK_SET)
        except OSError as error:
            raise cannot_write(self._bag, error) from error
        finally:
            os.close(source)
        return None

    def _done(self, entry: Exported, target: Path, hashes: dict[str, str]) -> tuple[Exported, str]:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        attested = entry.attested or _mount_attribute(self._point / entry.path, "attested")
        done = msgspec.structs.replace(
            entry, sha256=hashes["sha256"], attested=attested, exported=now, errno="", reason=""
        )
        return done, stamp_of(target)

    def _refused(self, entry: Exported, target: Path, error: OSError) -> tuple[Exported, str]:
        self._source.check()
        target.unlink(missing_ok=True)
        reason = _mounts_reason(self._point, entry.path) or output.reason_of(error)
        return msgspec.structs.replace(
            entry, sha256="", attested="", errno=name_of(error.errno), reason=reason[:1000]
        ), ""


def stamp_of(path: Path) -> str:
    """Return what tells whether a file was changed; "" if it is not there."""
    try:
        st = path.lstat()
    except OSError:
        return ""
    return f"{st.st_ino}.{st.st_size}.{st.st_mtime_ns}"


def _hash(fd: int, alg: str) -> dict[str, str]:
    hashers: dict[str, Any] = {name: hashlib.new(name) for name in {alg, "sha256"}}
    offset = 0
    while data := os.pread(fd, _CHUNK, offset):
        for hasher in hashers.values():
            hasher.update(data)
        offset += len(data)
    return {name: hasher.hexdigest() for name, hasher in hashers.items()}


def _differs(entry: Exported, size: int, hashes: dict[str, str]) -> str | None:
    """Return how bytes differ from their record; None if they do not."""
    if size != entry.size:
        return f"it has {size} bytes, the ledger records {entry.size}"
    if entry.digest is None:
        return "the ledger records no hash that it can be compared with"
    found = Digest(entry.alg, hashes[entry.alg])
    return None if found == entry.digest else f"its bytes hash to {found}, the ledger records {entry.digest}"


def _share_bytes(source: int, out: int, size: int) -> bool:
    """Whether all bytes of one file could be shared with another, or copied without leaving the kernel."""
    with suppress(OSError):
        fcntl.ioctl(out, _FICLONE, source)
        return True
    done = 0
    with suppress(OSError):
        while done < size:
            count = os.copy_file_range(source, out, size - done)
            if count == 0:
                break
            done += count
    return done == size


def _mount_attribute(path: Path | int, name: str) -> str:
    try:
        return os.getxattr(path, f"user.attachfs.{name}").decode("ascii", "replace")
    except OSError:
        return ""


def _mounts_reason(point: Path, path: str) -> str:
    """Return why the mount refused a file, in its own words."""
    latest = (mountinfo.status(point) or {}).get("last_errors")
    for one in reversed(latest if isinstance(latest, list) else []):
        if isinstance(one, dict) and one.get("path") == path and isinstance(one.get("reason"), str):
            return str(one["reason"]).removeprefix(f"{path}: ")
    return ""
