"""Taking a mount down: who uses it, within which time, and dead ones that a crash left behind.

A mount whose daemon hangs would hang whoever touches it. So nothing here touches one but for a child
process that can be left behind; everything else is read from /proc.
"""

import contextlib
import logging
import os
import re
import select
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from attachfs.errors import AttachfsError, UsageError
from attachfs.mount.mountinfo import Mount, mount_at, mounts
from attachfs.mount.probe import State, probe
from attachfs.text import excerpt

log = logging.getLogger(__name__)

_UNMOUNTS_WITHIN = 20.0
_HELD_AFTER = 2.0  # seconds, after which it is found out what keeps a daemon
_ENDS_WITHIN = 20.0  # seconds a daemon may take to close its files once it has been unmounted
_NAMED = 5  # processes named in a message


class User(NamedTuple):
    """A process that keeps a mount busy, and what with."""

    pid: int
    name: str
    what: str

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid}, {self.what})"


def users(mount: Mount) -> list[User]:
    """Return the processes that keep a mount busy, as far as we may look into them."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                what = next(_uses(entry, mount), None)
                if what is not None:
                    name = (entry / "comm").read_text(encoding="utf-8", errors="replace").strip()
                    found.append(User(int(entry.name), excerpt(name), what))
    return sorted(found)


def _uses(process: Path, mount: Mount) -> Iterator[str]:
    """Yield what a process uses of a mount, without touching the mount."""
    for link, what in (
        ("cwd", "its working directory"),
        ("root", "its root directory"),
        ("exe", "its program"),
    ):
        with contextlib.suppress(OSError):
            if _below(str((process / link).readlink()), mount.point):
                yield what
    with contextlib.suppress(OSError):
        for descriptor in (process / "fd").iterdir():
            with contextlib.suppress(OSError):
                info = (process / "fdinfo" / descriptor.name).read_text(encoding="ascii", errors="replace")
                if re.search(rf"^mnt_id:\s*{mount.mount_id}$", info, re.MULTILINE):
                    yield f"open: {excerpt(str(descriptor.readlink()))}"
    with contextlib.suppress(OSError):
        device = f"{mount.device_major:02x}:{mount.device_minor:02x}"
        for line in (process / "maps").read_text(encoding="utf-8", errors="replace").split("\n"):
            fields = line.split(maxsplit=5)
            if len(fields) == 6 and fields[3] == device and _below(fields[5], mount.point):
                yield f"mapped: {excerpt(fields[5])}"


def _below(path: str, point: Path) -> bool:
    return Path(path.removesuffix(" (deleted)")).is_relative_to(point)


def who(found: Sequence[User]) -> str:
    """Return a clause that names the processes; "" if there are none."""
    if not found:
        return ""
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return f"used by {', '.join(str(user) for user in found[:_NAMED])}{more}"


def unmount(point: Path, *, lazy: bool = False) -> None:
    """Take down the attachfs mount at `point` and wait for its daemon to end, for a bounded time.

    Raises:
        UsageError: no attachfs mount is there.
        AttachfsError: it is busy, or may not be unmounted.
    """
    there = mount_at(point)
    if there is None or not there.is_ours:
        raise UsageError(f"{point} is not an attachfs mount")
    watch = None
    if not lazy:
        state, said = probe(there.point)
        if state is State.HUNG:
            raise AttachfsError(
                f"{point} does not answer; detach it with: attachfs umount --lazy {point}. To free the "
                f"programs that wait for it: echo 1 >/sys/fs/fuse/connections/{there.device_minor}/abort"
            )
        watch = _watch(said)
    try:
        reason = _detach(there, lazy=lazy)
        if reason:
            found = who(users(there))
            hint = "" if lazy else f"; to detach it all the same: attachfs umount --lazy {point}"
            raise AttachfsError(f"cannot unmount {point}: {found or reason}{hint}")
        if watch is not None and not _ends(watch, _HELD_AFTER):
            held = held_elsewhere(there)
            if held:
                raise AttachfsError(f"{point} is unmounted, but its process goes on: it is still {held}")
            if not _ends(watch, _ENDS_WITHIN):
                raise AttachfsError(f"{point} is unmounted, but its process has not ended yet")
    finally:
        if watch is not None:
            os.close(watch)


def clear_dead(point: Path, source: str) -> bool:
    """Take away what a mount of `source` left at `point` when its daemon was killed; return whether.

    Nothing else is touched: no other filesystem, no other source, no other user's, nothing that answers.
    """
    cleared = False
    while (there := mount_at(point)) is not None and there.is_ours and there.source == source:
        mine = os.getuid() in (0, there.user_id)
        if not mine or probe(there.point)[0] is not State.DEAD or _detach(there, lazy=True):
            break
        log.warning("%s held a dead mount of %s, which is replaced", point, source)
        cleared = True
    return cleared


def ours() -> list[Mount]:
    """Return attachfs' mounts, each directory's uppermost; a part that is mounted elsewhere is none."""
    return list({mount.point: mount for mount in mounts() if mount.is_ours and mount.root == "/"}.values())


def _ends(watch: int, within: float) -> bool:
    poll = select.poll()
    poll.register(watch, select.POLLIN)
    return bool(poll.poll(1000 * within))


def held_elsewhere(mount: Mount) -> str:
    """Return where else a filesystem is mounted, in words: by a bind mount, or in another mount namespace."""
    here = [excerpt(one.point) for one in mounts() if one.device == mount.device]
    if here:
        return f"mounted on {', '.join(here)} (umount there too)"
    own, seen = _namespace(Path("/proc/self")), dict[str, str]()
    device = f" {mount.device_major}:{mount.device_minor} ".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            namespace = _namespace(entry)
            if namespace != own and namespace not in seen and device in (entry / "mountinfo").read_bytes():
                name = (entry / "comm").read_text(encoding="utf-8", errors="replace").strip()
                seen[namespace] = f"{excerpt(name)} (pid {entry.name})"
    return f"mounted in the mount namespace of {', '.join(seen.values())}" if seen else ""


def _namespace(process: Path) -> str:
    return str((process / "ns" / "mnt").readlink())


def _detach(mount: Mount, *, lazy: bool) -> str:
    """Unmount; return why it could not be done, "" if it was: which of them, mountinfo decides."""
    reason = _run_umount(mount, lazy=lazy)
    # A mount's number alone says nothing: the kernel gives it to the next mount, wherever that is.
    if (mount.mount_id, mount.point) not in ((one.mount_id, one.point) for one in mounts()):
        return ""  # a helper may complain about /etc/mtab when all is done
    if Path("/etc/mtab").exists():
        return reason or "it is still mounted, though the helper saw no fault"
    # A minimal container has none: without it, fusermount3 unmounts nothing for an ordinary user.
    return f"it is still mounted ({reason or 'without a word'}); as root: ln -s /proc/self/mounts /etc/mtab"


def _run_umount(mount: Mount, *, lazy: bool) -> str:
    """Call umount(8) or fusermount3(1); return what was said against it."""
    if os.getuid() == 0:
        # -i: no helper, -n: no mtab; -c would not help, as the path is one from mountinfo.
        command = ["umount", "-i", *(["-l"] if lazy else []), str(mount.point)]
    else:
        tool = shutil.which("fusermount3") or shutil.which("fusermount") or "fusermount3"
        command = [tool, "-u", *(["-z"] if lazy else []), "--", str(mount.point)]
    try:
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)  # noqa: S603 - fixed words and a path
    except OSError as error:
        return f"{command[0]}: {error.strerror}"
    try:
        _, said = process.communicate(timeout=_UNMOUNTS_WITHIN)
    except subprocess.TimeoutExpired:
        process.kill()
        return f"{command[0]} did not end within {_UNMOUNTS_WITHIN:g} s"
    return "" if process.returncode == 0 else said.strip() or f"{command[0]} exited with {process.returncode}"


def _watch(status: bytes) -> int | None:
    """Return a descriptor that becomes readable once the daemon has ended."""
    found = re.search(rb'"pid":\s*(\d{1,10})', status)
    try:
        return os.pidfd_open(int(found[1])) if found else None
    except OSError:
        return None
