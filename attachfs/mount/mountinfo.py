"""What is mounted where: reading /proc/self/mountinfo, and which places can be mounted on."""

import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from attachfs.errors import UsageError
from attachfs.mount import probe
from attachfs.mount.probe import State

SUBTYPE = "attachfs"
_FSTYPE = f"fuse.{SUBTYPE}"
_MAY_HANG = ("fuse", "nfs", "cifs", "smb", "9p")  # behind which is a process or another machine


class Mount(NamedTuple):
    """One line of mountinfo: the mount point, the type, the source, and the device.

    A FUSE connection's number is its device's minor one. `user_id` is who mounted, None where it is not said.
    """

    point: Path
    fstype: str
    source: str
    device_minor: int
    device_major: int = 0
    mount_id: int = 0
    user_id: int | None = None
    root: str = "/"  # of the filesystem; another one where only a part of it is mounted (mount --bind)

    @property
    def device(self) -> tuple[int, int]:
        """The number that all mounts of one filesystem share, in every namespace."""
        return self.device_major, self.device_minor

    @property
    def is_ours(self) -> bool:
        """Whether attachfs made it."""
        return self.fstype == _FSTYPE


def mounts() -> list[Mount]:
    """Return what is mounted, in the order in which it was; see proc_pid_mountinfo(5)."""
    found = []
    # As bytes: a carriage return in a name is no end of a line.
    text = os.fsdecode(Path("/proc/self/mountinfo").read_bytes())
    for line in text.split("\n")[:-1]:
        before, _, after = line.partition(" - ")
        fields, tail = before.split(" "), after.split(" ")
        point = Path(_unescape(fields[4]))
        major, minor = fields[2].split(":")
        user = re.search(r"(?:^|,)user_id=(\d+)", tail[2] if len(tail) > 2 else "")
        found.append(
            Mount(
                point,
                tail[0],
                _unescape(tail[1]),
                int(minor),
                int(major),
                int(fields[0]),
                int(user[1]) if user else None,
                _unescape(fields[3]),
            )
        )
    return found


def mount_at(point: Path) -> Mount | None:
    """Return the uppermost mount on exactly this directory."""
    point = real_path(point)
    return next((mount for mount in reversed(mounts()) if mount.point == point), None)


def whole(mount: Mount) -> Mount:
    """Return the mount of the whole filesystem of which `mount` shows a part; itself if there is none."""
    same = [one for one in mounts() if one.root == "/" and one.device == mount.device]
    return mount if mount.root == "/" or not same else same[-1]


def mount_above(path: Path) -> Mount | None:
    """Return the mount that `path` is in."""
    path = real_path(path)
    within = [mount for mount in mounts() if path.is_relative_to(mount.point)]
    return max(reversed(within), key=lambda mount: len(mount.point.parts), default=None)


def real_path(path: Path) -> Path:
    """Return the path without symlinks, touching the last component as little as a dead mount allows."""
    path = path.absolute()
    return Path(os.path.realpath(path.parent)) / path.name if path.name else path


def status(point: Path) -> dict[str, Any] | None:
    """Return a running mount's figures; None where none is mounted there, or it does not tell us."""
    return probe.stats(point)


def check_mountpoint(point: Path, kept_outside: dict[str, Path | None]) -> None:
    """Make sure that `point` can be mounted on.

    Args:
        point: the directory.
        kept_outside: what the daemon itself reads and writes, by name; below the mount it would deadlock.

    Raises:
        UsageError: it cannot; the message says what to do.
    """
    there = mount_at(point)
    if there is not None and there.fstype.startswith(_MAY_HANG):
        state, _ = probe.probe(point)
        if state is State.DEAD:
            raise UsageError(f"{point} holds a dead mount; clear it with: attachfs umount {point}")
        if state is State.HUNG:
            detach = "attachfs umount --lazy" if there.is_ours else "umount --lazy"
            raise UsageError(
                f"{point} is mounted ({there.source}) and does not answer; first: {detach} {point}"
            )
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


def _unescape(text: str) -> str:
    """Undo the octal escapes of mountinfo (space, tab, newline, backslash)."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)
