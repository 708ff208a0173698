"""What the cache and the quarantine do with single files and folders: no index, no policy.

Every folder and file is reached from an open folder, one name at a time and never through a symbolic link,
so that nothing planted inside the cache's directory leads out of it.
"""

import ctypes
import errno
import fcntl
import hashlib
import os
import re
import signal
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from attachfs.errors import AttachfsError, NoSpace, TooManyFiles, Unexpected
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
TOO_MANY_FILES = frozenset({errno.EMFILE, errno.ENFILE})
_ELSE = {errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO}
_HEX_LENGTH = {"sha256": 64, "sha384": 96, "sha512": 128}
_HEX_RE = re.compile("[0-9a-f]+")

# sync_file_range(2) and futimens(3) with UTIME_OMIT, which Python does not offer.
_LIBC = ctypes.CDLL(None, use_errno=True)
_SYNC_FILE_RANGE = getattr(_LIBC, "sync_file_range", None)
_SYNC_FILE_RANGE_WRITE = 2
_UTIME_OMIT = (1 << 30) - 2

_TICK = 0.01  # seconds; the longest tick of the clock that file times are taken from
_TICKS = 10  # for which to wait until nobody writes
_LONG_AGO = 60 * 10**9  # nanoseconds; more than a file server's clock may differ

# openat2(2), which Python does not offer either: Linux 5.6; the number is that of most processors.
_OPENAT2 = 437
_RESOLVE_NO_SYMLINKS = 0x04
_RESOLVE_BENEATH = 0x08
_NO_OPENAT2 = {errno.ENOSYS, errno.EPERM, errno.EINVAL, errno.E2BIG}  # an older kernel, or a sandbox
_openat2_works = os.uname().machine in {"x86_64", "aarch64"}

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


def disk_usage_of(size: int) -> int:
    """Return the room that a file of `size` bytes takes on disk."""
    return -(-size // BLOCK) * BLOCK


def disk_usage_of_stat(st: os.stat_result) -> int:
    """Return the room that a file or folder takes, whichever is more: by its length or by its blocks."""
    return max(0 if stat.S_ISDIR(st.st_mode) else disk_usage_of(st.st_size), st.st_blocks * 512)


def translate(error: OSError, what: str) -> AttachfsError:
    """Return the exception that tells callers of a local disk's error: no room, no descriptor, or a fault."""
    if error.errno in TOO_MANY_FILES:
        limit = "raise it with ulimit -n, or LimitNOFILE= in a unit"
        return TooManyFiles(f"{what}: the limit of open files is reached: {limit}")
    kind = NoSpace if error.errno in _NO_ROOM else Unexpected
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


def open_folder(dir_fd: int, names: tuple[str, ...]) -> int:
    """Open the folder `names` below an open one, in one system call where the kernel has openat2(2).

    Raises:
        OSError: it is not there, or a link is in its place or on the way (ELOOP, ENOTDIR).
    """
    if _openat2_works:
        how = _OpenHow(_DIR_FLAGS, 0, _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS)
        fd = int(
            _LIBC.syscall(_OPENAT2, dir_fd, "/".join(names).encode(), ctypes.byref(how), ctypes.sizeof(how))
        )
        if fd >= 0:
            return fd
        code = ctypes.get_errno()
        if code not in _NO_OPENAT2:
            raise OSError(code, os.strerror(code))
    return descend(os.dup(dir_fd), names)


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


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


def set_atime(fd: int, ns: int) -> None:
    """Set a file's access time and nothing else; os.utime would overwrite the mtime of a write just made."""
    access = _Timespec(ns // 1_000_000_000, ns % 1_000_000_000)
    times = (_Timespec * 2)(access, _Timespec(0, _UTIME_OMIT))
    if _LIBC.futimens(fd, times):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def stable_stat(fd: int) -> os.stat_result | None:
    """Return the file's stat at a moment from which on each write gives it another time.

    File times move in ticks: a write within the tick of the one before leaves mtime and ctime as they are.

    Returns:
        None if the file is being written all the time.
    """
    st = os.fstat(fd)
    if 0 <= st.st_ctime_ns < time.time_ns() - _LONG_AGO:
        return st
    for _ in range(_TICKS):
        time.sleep(_TICK)
        before, st = st, os.fstat(fd)
        if same_file_state(before, st):
            return st
    return None


def same_file_state(one: os.stat_result, other: os.stat_result) -> bool:
    """Whether nobody has written to the file between the two, nor set its times, which shows in its ctime."""
    return stamp_of(one) == stamp_of(other) and one.st_ctime_ns == other.st_ctime_ns


@contextmanager
def without_writers(fd: int) -> Iterator[None]:
    """Hold a read lease: nobody has the file open for writing or mapped so, nor can before the block ends.

    Args:
        fd: open for reading only.

    Raises:
        BlockingIOError: somebody has it open for writing.
        OSError: this filesystem knows no leases.
    """
    fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)  # to whoever is asked to let go; the default would kill
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    try:
        yield
    finally:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)


def _seal_ns(digest: Digest, st: os.stat_result) -> int:
    seconds = st.st_mtime_ns // 1_000_000_000
    text = f"{digest}:{st.st_ino}:{st.st_size}:{seconds}"
    below = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % 1_000_000_000
    return seconds * 1_000_000_000 + below


def seal(fd: int, digest: Digest) -> os.stat_result:
    """Set the file's mtime so that its part below a second is derived from digest, inode and size.

    A write sets mtime to the time of day, a copy has another inode: either breaks the seal, by which the next
    open knows that the bytes must be hashed again. It guards against accidents and ordinary programs, not
    against somebody with the owner's rights who sets mtime back. Where the filesystem keeps coarser times,
    the seal does not hold and each run hashes a blob once.

    The caller knows that the bytes are right, and that nobody else can be writing to the file: a file without
    its name yet, or one inside `without_writers`.

    Raises:
        OSError: the time cannot be set; EBUSY: somebody wrote to the file all the same.
    """
    st = os.fstat(fd)
    mtime_ns = _seal_ns(digest, st)
    os.utime(fd, ns=(st.st_atime_ns, mtime_ns))
    sealed = os.fstat(fd)
    if sealed.st_size != st.st_size or not _rounds_to(mtime_ns, sealed.st_mtime_ns):
        raise OSError(errno.EBUSY, "another program wrote to it")
    return sealed


def _rounds_to(ns: int, kept: int) -> bool:
    """Whether a filesystem may have kept `ns` as `kept`: exactly, or in coarser units, of 2 s at most."""
    return any(ns // unit * unit == kept for unit in (1, 100, 1_000, 1_000_000, 10**7, 10**9, 2 * 10**9))


def seal_again(fd: int, digest: Digest, before: os.stat_result) -> Stamp | None:
    """Seal a file whose bytes were found right, unless somebody has written to it since, or may any moment.

    Args:
        fd: open for reading only.
        digest: what the bytes were found to be.
        before: `stable_stat` from before they were hashed.

    Returns:
        The stamp by which this run knows the file from now on; None: it was, or may be, written to.
        Where it cannot be sealed (no leases, read-only), that is the stamp of `before`: each run hashes once.
    """
    try:
        with without_writers(fd):
            if not same_file_state(os.fstat(fd), before):
                return None
            return stamp_of(seal(fd, digest))
    except BlockingIOError:
        return None
    except OSError:
        return stamp_of(before) if same_file_state(os.fstat(fd), before) else None


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
