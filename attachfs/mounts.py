"""What is mounted where: reading /proc/self/mountinfo, and taking a mount down."""

import errno
import json
import os
import re
import select
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

from attachfs.errors import AttachfsError, UsageError

SUBTYPE = "attachfs"
_FSTYPE = f"fuse.{SUBTYPE}"
_ENDS_WITHIN = 20.0  # seconds a daemon may take to close its files once it has been unmounted


class Mount(NamedTuple):
    """One line of mountinfo: the mount point, the type, the source, and the FUSE connection's number."""

    point: Path
    fstype: str
    source: str
    device_minor: int

    @property
    def is_ours(self) -> bool:
        """Whether attachfs made it."""
        return self.fstype == _FSTYPE


def mounts() -> list[Mount]:
    """Return what is mounted, in the order in which it was; see proc_pid_mountinfo(5)."""
    found = []
    text = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    for line in text.split("\n")[:-1]:
        before, _, after = line.partition(" - ")
        fields, tail = before.split(" "), after.split(" ")
        point = Path(_unescape(fields[4]))
        found.append(Mount(point, tail[0], _unescape(tail[1]), int(fields[2].split(":")[1])))
    return found


def mount_at(point: Path) -> Mount | None:
    """Return the uppermost mount on exactly this directory."""
    point = real_path(point)
    return next((mount for mount in reversed(mounts()) if mount.point == point), None)


def mount_above(path: Path) -> Mount | None:
    """Return the mount that `path` is in."""
    path = real_path(path)
    within = [mount for mount in mounts() if path.is_relative_to(mount.point)]
    return max(reversed(within), key=lambda mount: len(mount.point.parts), default=None)


def real_path(path: Path) -> Path:
    """Return the path without symlinks, touching the last component as little as a dead mount allows."""
    path = path.absolute()
    return Path(os.path.realpath(path.parent)) / path.name if path.name else path


def is_dead(point: Path) -> bool:
    """Whether the daemon behind a mount is gone. `stat` may still answer from the kernel's memory."""
    try:
        os.statvfs(point)
    except OSError as error:
        return error.errno != errno.EACCES  # another user's, and alive
    return False


def status(point: Path) -> dict[str, Any] | None:
    """Return a running mount's figures; None where none is mounted there, or it does not tell us."""
    try:
        found = json.loads(os.getxattr(point, "user.attachfs.status"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def check_mountpoint(point: Path, kept_outside: dict[str, Path | None]) -> None:
    """Make sure that `point` can be mounted on.

    Args:
        point: the directory.
        kept_outside: what the daemon itself reads and writes, by name; below the mount it would deadlock.

    Raises:
        UsageError: it cannot; the message says what to do.
    """
    there = mount_at(point)
    if there is not None and there.fstype.startswith("fuse") and is_dead(point):
        raise UsageError(f"{point} holds a dead mount; clear it with: attachfs umount {point}")
    if there is not None and there.is_ours:
        raise UsageError(f"{point} is mounted already ({there.source}); first: attachfs umount {point}")
    if not point.exists():
        raise UsageError(f"{point} does not exist; make it first: mkdir {point}")
    if not point.is_dir():
        raise UsageError(f"{point} is not a directory")
    if not os.access(point, os.W_OK) and os.getuid() != 0:
        raise UsageError(f"{point} is not yours to mount on: it must be writable by you")
    resolved = Path(os.path.realpath(point))
    for name, path in kept_outside.items():
        if path is not None and Path(os.path.realpath(path)).is_relative_to(resolved):
            raise UsageError(f"{name} {path} is below the mount point {point}: choose another place for it")


def unmount(point: Path, *, lazy: bool = False) -> None:
    """Take down the attachfs mount at `point` and wait for its daemon to end.

    Raises:
        UsageError: no attachfs mount is there.
        AttachfsError: it is busy, or may not be unmounted.
    """
    there = mount_at(point)
    if there is None or not there.is_ours:
        raise UsageError(f"{point} is not an attachfs mount")
    pid = _daemon(point)
    watch = os.pidfd_open(pid) if pid is not None else None
    command = ["umount"] if os.getuid() == 0 else [shutil.which("fusermount3") or "fusermount3", "-u"]
    if lazy:
        command.append("-l" if os.getuid() == 0 else "-z")
    try:
        done = subprocess.run([*command, str(point)], capture_output=True, text=True, check=False)  # noqa: S603 - fixed words and a path
        if done.returncode != 0:
            reason = done.stderr.strip() or f"{command[0]} exited with {done.returncode}"
            hint = "" if lazy else f"; if a program keeps it busy: attachfs umount --lazy {point}"
            raise AttachfsError(f"cannot unmount {point}: {reason}{hint}")
        if watch is not None and not lazy:
            select.select([watch], [], [], _ENDS_WITHIN)  # readable once the process has ended
    finally:
        if watch is not None:
            os.close(watch)


def _daemon(point: Path) -> int | None:
    """Return the daemon's process id, which the mount itself tells."""
    try:
        status = os.getxattr(point, "user.attachfs.status")
    except OSError:
        return None
    found = re.search(rb'"pid":\s*(\d+)', status)
    pid = int(found[1]) if found else None
    try:
        if pid is not None:
            os.kill(pid, 0)
    except (ProcessLookupError, PermissionError):
        return None
    return pid


def _unescape(text: str) -> str:
    """Undo the octal escapes of mountinfo (space, tab, newline, backslash)."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)
