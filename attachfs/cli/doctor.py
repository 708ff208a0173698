"""`attachfs doctor`: what is missing on this machine or wrong in this set-up, and the remedy in a line each.

One small request is made of the ledger, with the credentials that a mount would use. Nothing is changed.
"""

import errno
import importlib
import logging
import os
import platform
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import trio

from attachfs.archive.folder import BagFolder
from attachfs.archive.manifest import check_declaration
from attachfs.archive.report import Report
from attachfs.blobs.pins import Pins
from attachfs.cache.disk_cache import DiskCache
from attachfs.cache.lock_file import lock_holder
from attachfs.cli import arguments, doctor_ledger, output, shared_cache
from attachfs.cli.findings import Finding, State, usage_finding
from attachfs.cli.pins import DATABASE, stands
from attachfs.config.settings import Config
from attachfs.errors import (
    AttachfsError,
    UsageError,
)
from attachfs.mount import mountinfo, probe
from attachfs.mount.mountinfo import Mount
from attachfs.text import printable
from attachfs.units import format_size

_PYTHON = (3, 11)
_DEVICE = Path("/dev/fuse")
_FUSE_CONF = Path("/etc/fuse.conf")
_MOUNT_ANSWERS = 5.0  # seconds within which a running mount tells its figures


def run(config: Config, *, as_json: bool) -> int:
    """Print what each check found; 1 if something is wrong, else 3 if something could not be found out."""
    logging.getLogger("attachfs").addHandler(logging.NullHandler())  # what matters is printed here
    states = set()
    for finding in examine(config):
        states.add(finding.state)
        if as_json:
            output.say_json(finding._asdict())
            continue
        output.say(f"{finding.state:<8} {finding.check:<12} {printable(finding.detail)}")
        if finding.remedy:
            output.say(f"{'':<21} → {printable(finding.remedy)}")
    if State.WRONG in states:
        return output.DIFFERS
    return output.UNKNOWN if State.UNKNOWN in states else output.OK


def examine(config: Config) -> Iterator[Finding]:
    """Make all checks, one after the other."""
    yield python()
    yield library()
    yield device(_DEVICE)
    yield helper(shutil.which("fusermount3"))
    yield other_users(_FUSE_CONF, wanted=config.allow_other)
    if config.archive is None:
        yield from trio.run(doctor_ledger.check, config)
        yield cache_directory(config)
    else:
        yield archive(config.archive)
    yield pins(config)
    yield from shared_store(config)
    yield from running(mountinfo.mounts())


def shared_store(config: Config) -> Iterator[Finding]:
    """Whether the shared cache, if one is configured, can be reached, written to and read from."""

    async def probed() -> list[tuple[str, str]]:
        return [found async for found in shared_cache.probe(config)]

    try:
        found = trio.run(probed)
    except UsageError as error:
        yield usage_finding("shared cache", error, "see --shared-cache in attachfs(1)")
        return
    for state, detail in found:
        remedy = "" if state == "ok" else "mounts go on without it; see attachfs(1), --shared-cache"
        yield Finding("shared cache", State.OK if state == "ok" else State.WRONG, detail, remedy)


# -- this machine --------------------------------------------------------------------------------------


def python(version: tuple[int, ...] = sys.version_info[:3]) -> Finding:
    """Check the interpreter's version."""
    shown = ".".join(map(str, version))
    if version < _PYTHON:
        return Finding("Python", State.WRONG, shown, "install Python 3.11 or newer, and attachfs with it")
    return Finding("Python", State.OK, f"{shown} on {platform.system()} {platform.release()}")


def library(module: str = "attachfs.mount.serve") -> Finding:
    """Check that the part that speaks to the kernel can be loaded: pyfuse3, and with it libfuse3."""
    try:
        importlib.import_module(module)
    except ImportError as error:
        remedy = (
            "apt install libfuse3-dev pkg-config gcc python3-dev, then pip install --force-reinstall pyfuse3"
        )
        return Finding("pyfuse3", State.WRONG, f"it cannot be loaded: {error}", remedy)
    return Finding("pyfuse3", State.OK, "it can be loaded")


def archive(bag: Path) -> Finding:
    """Check that an exported bag can be mounted."""
    try:
        with BagFolder(bag) as folder:
            check_declaration(folder)
            report = Report(folder)
    except UsageError as error:
        remedy = "name the directory that 'attachfs export' has made, or export again"
        return Finding("archive", State.WRONG, error.reason, remedy)
    return Finding("archive", State.OK, f"{bag} has {report.head.totals.get('files')} files")


def device(path: Path) -> Finding:
    """Check that the kernel's FUSE device is there and opens."""
    container = "in a container: start it with --device /dev/fuse --cap-add SYS_ADMIN"
    try:
        status = path.stat()
    except OSError as error:
        remedy = f"sudo modprobe fuse; {container}"
        return Finding("FUSE device", State.WRONG, f"{path}: {output.reason_of(error)}", remedy)
    mode = stat.filemode(status.st_mode)
    if not stat.S_ISCHR(status.st_mode):
        remedy = f"remove it, and: sudo mknod -m 666 {path} c 10 229"
        return Finding("FUSE device", State.WRONG, f"{path} is not a device ({mode})", remedy)
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        remedy = (
            f"sudo chmod 666 {path}" if error.errno == errno.EACCES else f"sudo modprobe fuse; {container}"
        )
        detail = f"{path} ({mode}) does not open: {output.reason_of(error)}"
        return Finding("FUSE device", State.WRONG, detail, remedy)
    if status.st_mode & 0o006 != 0o006:
        remedy = f"if others are to mount: sudo chmod 666 {path}"
        return Finding("FUSE device", State.NOTE, f"{path} ({mode}) opens, but not for everybody", remedy)
    return Finding("FUSE device", State.OK, f"{path} ({mode}) opens")


def helper(path: str | None, *, root: bool | None = None) -> Finding:
    """Check fusermount3, with which users other than root mount and unmount."""
    root = os.getuid() == 0 if root is None else root
    severity = State.NOTE if root else State.WRONG
    if path is None:
        return Finding("fusermount3", severity, "it is not there; only root can mount", "apt install fuse3")
    mode = Path(path).stat()
    if not mode.st_mode & stat.S_ISUID or mode.st_uid != 0:
        remedy = f"sudo chown root {path} && sudo chmod u+s {path}"
        return Finding("fusermount3", severity, f"{path} is not set-uid root; only root can mount", remedy)
    return Finding("fusermount3", State.OK, path)


def other_users(path: Path, *, wanted: bool, root: bool | None = None) -> Finding:
    """Check that --allow-other will be accepted."""
    root = os.getuid() == 0 if root is None else root
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    if any(line.strip() == "user_allow_other" for line in lines):
        return Finding("other users", State.OK, f"user_allow_other is set in {path}")
    if wanted and not root:
        remedy = f"echo user_allow_other | sudo tee -a {path}"
        return Finding("other users", State.WRONG, f"--allow-other needs user_allow_other in {path}", remedy)
    detail = f"user_allow_other is not set in {path}; only --allow-other of an ordinary user needs it"
    return Finding("other users", State.OK, detail)


# -- what is kept --------------------------------------------------------------------------------------


def cache_directory(config: Config) -> Finding:
    """Check that the cache can be used, has room, and who uses it."""
    root = config.cache_dir
    elsewhere = "choose another with --cache-dir"
    try:
        return _cache_directory(config, root, elsewhere) if root.exists() else _absent(root, elsewhere)
    except UsageError as error:
        detail, _, remedy = error.reason.partition(": ")
        return Finding("cache", State.WRONG, detail, remedy or elsewhere)
    except OSError as error:
        return Finding("cache", State.WRONG, f"{root}: {output.reason_of(error)}", elsewhere)


def _cache_directory(config: Config, root: Path, elsewhere: str) -> Finding:
    if any(root.iterdir()):
        cache = DiskCache(root, config.cache_size, config.cache_min_free)
        cache.start(exclusive=False)
        cache.close()
    if not os.access(root, os.W_OK | os.X_OK):
        return Finding("cache", State.WRONG, f"{root} cannot be written", f"chmod 700 {root}, or {elsewhere}")
    vfs = os.statvfs(root)
    free, kept = vfs.f_bavail * vfs.f_frsize, config.cache_min_free.of(vfs.f_blocks * vfs.f_frsize)
    if vfs.f_blocks and free <= kept:
        detail = (
            f"{root}: {format_size(free)} are free on its disk, and {config.cache_min_free} are left alone"
        )
        remedy = f"make room there, lower --cache-min-free, or {elsewhere}"
        return Finding("cache", State.WRONG, detail, remedy)
    held = lock_holder(root)
    if held is None:
        return Finding("cache", State.OK, f"{root}, {format_size(free)} free")
    detail = f"{root} is in use by process {held.pid}, {held.doing}"
    return Finding("cache", State.NOTE, detail, "for another mount beside it: give it its own --cache-dir")


def _absent(root: Path, elsewhere: str) -> Finding:
    above = next(parent for parent in root.parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        return Finding("cache", State.WRONG, f"{root} cannot be made: {above} cannot be written", elsewhere)
    return Finding("cache", State.OK, f"{root} will be made by the first mount")


def pins(config: Config) -> Finding:
    """Count the hashes that were first seen, and the conflicts that stand."""
    path = config.state_dir / DATABASE
    if not path.exists() and not list(path.parent.glob(f"{path.name}.damaged-*Z")):
        return Finding("first-seen", State.OK, "no hashes have been pinned yet")
    database = Pins(path)
    try:
        number = database.count()
        standing = sum(stands(database, conflict) for conflict in database.conflicts())
    except AttachfsError as error:
        detail, _, remedy = error.reason.partition(": ")
        return Finding("first-seen", State.WRONG, detail, remedy or f"check {path}, or restore a backup")
    finally:
        database.close()
    hashes = f"{number:,} {'hash is' if number == 1 else 'hashes are'} pinned"
    if standing:
        detail = f"{hashes}, and {output.count(standing, 'record')} changed since"
        remedy = "review: attachfs pins conflicts; then, to believe one: attachfs pins release KEY"
        return Finding("first-seen", State.WRONG, detail, remedy)
    return Finding("first-seen", State.OK, f"{hashes}, no conflicts")


# -- mounts --------------------------------------------------------------------------------------------


def running(found: list[Mount], timeout: float = _MOUNT_ANSWERS) -> Iterator[Finding]:
    """Check each attachfs mount: alive, dead, or without an answer."""
    ours = [mount for mount in found if mount.is_ours]
    if not ours:
        yield Finding("mounts", State.OK, "none")
    for mount in ours:
        yield _running(mount, timeout)


def _running(mount: Mount, timeout: float) -> Finding:
    state, _ = probe.probe(mount.point, timeout)
    where = f"{mount.source} on {mount.point}"
    if state is probe.State.HUNG:
        abort = f"/sys/fs/fuse/connections/{mount.device_minor}/abort"
        remedy = f"end its process; if that fails, as root: echo 1 > {abort}"
        return Finding("mount", State.WRONG, f"{where} does not answer", remedy)
    if state is probe.State.DEAD:
        return Finding("mount", State.WRONG, f"{where} is dead", f"attachfs umount {mount.point}")
    return Finding("mount", State.OK, f"{where} answers")


@click.command("doctor")
@arguments.as_json
@arguments.mount_options
def command(as_json: bool, **given: str | None) -> None:
    """Find out what is missing on this machine or wrong in this set-up, and say what to do about it.

    Give the options that you mount with. Exit status: 0 all well, 1 something is wrong, 3 something could
    not be found out.
    """
    sys.exit(run(arguments.settings(given), as_json=as_json))
