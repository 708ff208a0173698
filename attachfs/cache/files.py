"""What the cache and the quarantine do with single files and folders: no index, no policy.

Every folder and file is reached from an open folder, one name at a time and never through a symbolic link,
so that nothing planted inside the cache's directory leads out of it.
"""

import ctypes
import errno
import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from attachfs.errors import AttachfsError, NoRoom, Unexpected
from attachfs.model import Digest

BLOCK = 4096  # bytes; the unit in which files and folders take room on common filesystems
FILE_MODE = 0o600
DIR_MODE = 0o700

_DIR_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Without O_NONBLOCK, a planted FIFO would hang the open.
_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_CREATE_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_CHUNK = 1 << 20  # bytes hashed or copied at a time
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_ELSE = {errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO}
_HEX_LENGTH = {"sha256": 64, "sha384": 96, "sha512": 128}
_HEX_RE = re.compile("[0-9a-f]+")

# sync_file_range(2), which Python does not offer.
_SYNC_FILE_RANGE = getattr(ctypes.CDLL(None), "sync_file_range", None)
_SYNC_FILE_RANGE_WRITE = 2

ALGORITHMS = tuple(_HEX_LENGTH)

Progress = Callable[[int], None]


class Stamp(NamedTuple):
    """What changes when a file is written, replaced or copied over."""

    inode: int
    size: int
    mtime_ns: int


def stamp_of(st: os.stat_result) -> Stamp:
    """Return the stamp of a file."""
    return Stamp(st.st_ino, st.st_size, st.st_mtime_ns)


def is_digest(digest: Digest) -> bool:
    """Whether `digest` is well formed, and so fit to be a file's name."""
    return _HEX_LENGTH.get(digest.alg) == len(digest.hex) and _HEX_RE.fullmatch(digest.hex) is not None


def folder_of(digest: Digest) -> tuple[str, str]:
    """Return the names of the folders, below blobs/, in which a blob lies."""
    return digest.alg, digest.hex[:2]


def charge_of(size: int) -> int:
    """Return the room that a file of `size` bytes takes on disk."""
    return -(-size // BLOCK) * BLOCK


def charge_stat(st: os.stat_result) -> int:
    """Return the room that a file or folder takes, whichever is more: by its length or by its blocks."""
    return max(0 if stat.S_ISDIR(st.st_mode) else charge_of(st.st_size), st.st_blocks * 512)


def translate(error: OSError, what: str) -> AttachfsError:
    """Return the exception that tells callers of a local disk's error: no room, or a fault."""
    kind = NoRoom if error.errno in _NO_ROOM else Unexpected
    return kind(f"{what}: {error.strerror or error}")


def is_planted(error: OSError) -> bool:
    """Whether a file or folder could not be opened because it is something else, such as a link or a FIFO."""
    return error.errno in _ELSE


def descend(fd: int, names: tuple[str, ...], *, create: bool = False) -> int:
    """Trade an open folder for the one `names` below it; missing ones are made if `create` says so.

    `fd` is closed in any case.
    """
    try:
        for name in names:
            try:
                inner = os.open(name, _DIR_FLAGS, dir_fd=fd)
            except FileNotFoundError:
                if not create:
                    raise
                with suppress(FileExistsError):
                    os.mkdir(name, DIR_MODE, dir_fd=fd)
                inner = os.open(name, _DIR_FLAGS, dir_fd=fd)
            os.close(fd)
            fd = inner
    except BaseException:
        os.close(fd)
        raise
    return fd


@contextmanager
def folder(dir_fd: int, *names: str, create: bool = False) -> Iterator[int]:
    """Open the folder `names` below `dir_fd`, made on the way if `create`, while the block runs."""
    fd = descend(os.dup(dir_fd), names, create=create)
    try:
        yield fd
    finally:
        os.close(fd)


def names(dir_fd: int) -> list[str]:
    """Return the names in a folder."""
    return sorted(os.listdir(dir_fd))


def open_root(path: str) -> int:
    """Open the directory that everything else is reached from."""
    return os.open(path, _DIR_FLAGS)


def open_read(name: str, dir_fd: int) -> int:
    """Open a file for reading; what it is must still be asked with fstat."""
    return os.open(name, _READ_FLAGS, dir_fd=dir_fd)


def create(name: str, dir_fd: int, mode: int = FILE_MODE) -> int:
    """Create a file that did not exist and open it for reading and writing."""
    return os.open(name, _CREATE_FLAGS, mode, dir_fd=dir_fd)


def create_unlinked(dir_fd: int, name: str) -> int:
    """Open a new file that has no name; `name` is used for an instant where the filesystem needs one."""
    try:
        return os.open(".", os.O_RDWR | os.O_TMPFILE | os.O_EXCL | os.O_CLOEXEC, FILE_MODE, dir_fd=dir_fd)
    except OSError as error:
        if error.errno not in {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT}:
            raise
    fd = create(name, dir_fd)
    os.unlink(name, dir_fd=dir_fd)
    return fd


def write_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of `data` at `offset`."""
    view = memoryview(data)
    while view:
        count = os.pwrite(fd, view, offset)
        view = view[count:]
        offset += count


def start_writing_back(fd: int, offset: int, length: int) -> None:
    """Have the kernel begin to write a part of a file to its disk, so that a later fsync finds little to do.

    A hint: where it cannot be given (another C library, a filesystem without it) nothing happens.
    """
    if _SYNC_FILE_RANGE is not None:
        _SYNC_FILE_RANGE(fd, ctypes.c_int64(offset), ctypes.c_int64(length), _SYNC_FILE_RANGE_WRITE)


def hash_file(fd: int, alg: str, progress: Progress | None = None) -> tuple[Digest, int]:
    """Read a whole file and return its digest and length. May take long."""
    hasher = hashlib.new(alg)
    buffer = bytearray(_CHUNK)
    view = memoryview(buffer)
    size = 0
    while count := os.preadv(fd, [buffer], size):
        hasher.update(view[:count])
        size += count
        if progress is not None:
            progress(count)
    return Digest(alg, hasher.hexdigest()), size


def copy(source: int, target: int) -> None:
    """Copy all of one file to the start of another."""
    offset = 0
    while data := os.pread(source, _CHUNK, offset):
        write_all(target, data, offset)
        offset += len(data)


def _seal_ns(digest: Digest, st: os.stat_result) -> int:
    seconds = st.st_mtime_ns // 1_000_000_000
    text = f"{digest}:{st.st_ino}:{st.st_size}:{seconds}"
    below = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % 1_000_000_000
    return seconds * 1_000_000_000 + below


def seal(fd: int, digest: Digest) -> Stamp:
    """Set the file's mtime so that its part below a second is derived from digest, inode and size.

    A write sets mtime to the time of day, a copy has another inode: either breaks the seal, by which the next
    open knows that the bytes must be hashed again. It guards against accidents and ordinary programs, not
    against somebody with the owner's rights who sets mtime back. Where the filesystem keeps coarser times,
    the seal does not hold and each run hashes a blob once.
    """
    st = os.fstat(fd)
    os.utime(fd, ns=(st.st_atime_ns, _seal_ns(digest, st)))
    return stamp_of(os.fstat(fd))


def is_sealed(digest: Digest, st: os.stat_result) -> bool:
    """Whether nothing about the file has changed since it was sealed as `digest`."""
    return st.st_mtime_ns == _seal_ns(digest, st)


def foreign(st: os.stat_result) -> str:
    """Say what keeps a file from being a blob of ours, or nothing."""
    if not stat.S_ISREG(st.st_mode):
        return "it is not a plain file"
    if st.st_uid != os.geteuid():
        return f"it belongs to user {st.st_uid}"
    if st.st_nlink > 1:
        return "it has a second name (a hard link)"
    return ""
