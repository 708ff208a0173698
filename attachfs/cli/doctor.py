"""`attachfs doctor`: what is missing on this machine or wrong in this set-up, and the remedy in a line each.

One small request is made of the ledger, with the credentials that a mount would use. Nothing is changed.
"""

import errno
import importlib
import logging
import os
import platform
import re
import shutil
import socket
import ssl
import stat
import sys
import time
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

import click
import trio

from attachfs.archive.folder import BagFolder
from attachfs.archive.manifest import check_declaration
from attachfs.archive.report import Report
from attachfs.blobs.pins import Pins
from attachfs.cache.disk_cache import DiskCache
from attachfs.cli import arguments, output, shared_cache
from attachfs.cli.cache import holder
from attachfs.cli.pins import DATABASE, stands
from attachfs.config.settings import Config
from attachfs.errors import (
    AccessDenied,
    AttachfsError,
    BadAnswer,
    NotFound,
    RateLimited,
    UsageError,
    causes_of,
    first_of,
)
from attachfs.mount import credentials, mountinfo, probe
from attachfs.mount.mountinfo import Mount
from attachfs.service.auth import Auth, ClientCredentials, NoAuth, jwt_expiry
from attachfs.service.client import Client, open_http
from attachfs.text import printable
from attachfs.units import format_size

_PYTHON = (3, 11)
_DEVICE = Path("/dev/fuse")
_FUSE_CONF = Path("/etc/fuse.conf")
_PATIENCE = 10.0  # seconds for the request to the ledger, retries included, and no more than --timeout
_MOUNT_ANSWERS = 5.0  # seconds within which a running mount tells its figures
_SOON = 600  # seconds; a token that expires within them is worth a word


class State(StrEnum):
    """How a check went. A note is neither wrong nor as usual."""

    OK = "ok"
    NOTE = "note"
    WRONG = "WRONG"
    UNKNOWN = "unknown"


class Finding(NamedTuple):
    """What a check found, and what to do about it."""

    check: str
    state: State
    detail: str
    remedy: str = ""


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
        yield from trio.run(ledger, config)
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
        yield _usage("shared cache", error, "see --shared-cache in attachfs(1)")
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
    trouble = State.NOTE if root else State.WRONG
    if path is None:
        return Finding("fusermount3", trouble, "it is not there; only root can mount", "apt install fuse3")
    mode = Path(path).stat()
    if not mode.st_mode & stat.S_ISUID or mode.st_uid != 0:
        remedy = f"sudo chown root {path} && sudo chmod u+s {path}"
        return Finding("fusermount3", trouble, f"{path} is not set-uid root; only root can mount", remedy)
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


# -- the ledger ----------------------------------------------------------------------------------------


async def ledger(config: Config) -> list[Finding]:
    """Check the credentials as such, then ask the ledger with them for one asset."""
    if config.offline:
        return [Finding("ledger", State.NOTE, "it is not asked: --offline")]
    try:
        http = open_http(url=config.url, ca_file=config.ca_file, max_connections=1)
    except UsageError as error:
        return [_usage("ledger", error, "check --ca-file, and the proxy's variables in the environment")]
    async with http:
        auth, problem = await _credentials(
            config, lambda client_id, secret: ClientCredentials(client_id, secret, config.url, http)
        )
        patience = min(config.timeout, _PATIENCE)
        client = Client(http, config.url, auth, timeout=patience, max_connections=1, page_size=1)
        answer: BaseException | None = None
        try:
            await client.assets_page()
        except (AttachfsError, BaseExceptionGroup) as failure:
            answer = first_of(failure)
    there, accepted = explain(answer, config.url, anonymous=config.no_auth)
    if problem is not None:
        return [there, problem]
    return [there, accepted]


async def _credentials(
    config: Config, log_in: Callable[..., ClientCredentials]
) -> tuple[Auth, Finding | None]:
    """Return the credentials, or none of any use and what is wrong with them."""
    remedy = "save a bearer token in the token file, readable by you only (chmod 600)"
    try:
        auth = credentials.choose(config, log_in)
        header = await auth.header()
    except UsageError as error:
        return NoAuth(), _usage("credentials", error, remedy)
    except AccessDenied as error:
        wrong = Finding(
            "credentials", State.WRONG, error.reason, "check --client-id and --client-secret-file"
        )
        return NoAuth(), wrong
    except AttachfsError as error:
        return NoAuth(), Finding("credentials", State.UNKNOWN, error.reason, "see what is said of the ledger")
    expiry = jwt_expiry(header.rpartition(" ")[2]) if header is not None else None
    if expiry is not None and expiry <= time.time() and not isinstance(auth, ClientCredentials):
        detail = f"the token expired at {output.moment(expiry)}"
        return auth, Finding("credentials", State.WRONG, detail, f"save a new token in {config.token_file}")
    if expiry is not None and expiry - time.time() < _SOON and not isinstance(auth, ClientCredentials):
        detail = f"the token expires at {output.moment(expiry)}"
        return auth, Finding(
            "credentials", State.NOTE, detail, f"save a new token in {config.token_file} soon"
        )
    return auth, None


def _usage(check: str, error: UsageError, remedy: str) -> Finding:
    """Return a finding for an error whose sentence is 'what is wrong: what to do'."""
    detail, colon, own = error.reason.partition(": ")
    return Finding(check, State.WRONG, detail, own if colon else remedy)


def explain(error: BaseException | None, url: str, *, anonymous: bool = False) -> tuple[Finding, Finding]:
    """Return what the answer to the one request says of the ledger, and of the credentials."""
    if error is None:
        accepted = "they are accepted" if not anonymous else "none are sent, and none are asked for"
        return Finding("ledger", State.OK, f"{url} answers"), Finding("credentials", State.OK, accepted)
    if isinstance(error, AccessDenied):
        return Finding("ledger", State.OK, f"{url} answers"), _denied(error, anonymous=anonymous)
    state, remedy = _trouble(error, url)
    reason = error.reason if isinstance(error, AttachfsError) else f"{type(error).__name__}: {error}"
    unasked = Finding(
        "credentials", State.UNKNOWN, "they could not be tried", "see what is said of the ledger"
    )
    if anonymous:
        unasked = Finding("credentials", State.OK, "none are sent (--no-auth)")
    return Finding("ledger", state, f"{url}: {reason}", remedy), unasked


def _denied(error: AccessDenied, *, anonymous: bool) -> Finding:
    if anonymous:
        return Finding("credentials", State.OK, "none are sent (--no-auth): only public assets can be read")
    if "(403)" in error.reason:
        remedy = "ask the ledger's administrator for an access policy that lets you read assets"
    else:
        remedy = "save a new token in the token file; check that it is for this ledger (--url)"
    return Finding("credentials", State.WRONG, error.reason, remedy)


def _trouble(error: BaseException, url: str) -> tuple[State, str]:
    """Return how bad it is that the ledger did not answer as it should, and the remedy."""
    remedy = next(filter(None, map(_connection_remedy, causes_of(error))), "")
    if remedy:
        return State.WRONG, remedy
    if isinstance(error, RateLimited):
        return State.UNKNOWN, "wait a minute; mount with a lower --max-connections, or ask for a higher limit"
    if isinstance(error, BadAnswer) and re.search("answered 5[0-9][0-9]", error.reason):
        return State.UNKNOWN, "the service is unwell: try again later, or ask its operator"
    remedy = "check the host and port in --url, the network, its proxies and firewalls"
    if isinstance(error, NotFound | BadAnswer):
        remedy = "something else than a ledger answers there: check --url"
        remedy += "; is it https:// ?" if url.startswith("http:") else ""
    return State.WRONG, remedy


# By OpenSSL's reason to refuse it (x509_vfy.h).
_CERTIFICATE = {
    **dict.fromkeys((62, 64), "the certificate is another host's: check --url"),
    10: "the certificate has expired: its operator must renew it, unless this machine's clock is wrong",
    9: "the certificate is not valid yet: check this machine's clock (date)",
    **dict.fromkeys(
        (18, 19, 20, 21),
        "nobody this machine trusts has signed it: if the ledger is yours, give its CA with --ca-file",
    ),
}


def _connection_remedy(cause: BaseException) -> str:
    match cause:
        case ssl.SSLCertVerificationError():
            return _CERTIFICATE.get(
                cause.verify_code, "the certificate is refused: check --url and --ca-file"
            )
        case ssl.SSLError():
            return "the port does not speak TLS: check the port in --url; is it http:// ?"
        case socket.gaierror():
            return "check the host in --url, and that this machine can look up names (DNS)"
        case ConnectionRefusedError():
            return "nothing listens there: check the host and port in --url, and that the service runs"
    return ""


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
    held = holder(root)
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
        return Finding("first-seen", State.WRONG, detail, remedy or f"look after {path}, or restore a backup")
    finally:
        database.close()
    hashes = f"{number:,} {'hash is' if number == 1 else 'hashes are'} pinned"
    if standing:
        detail = f"{hashes}, and {output.count(standing, 'record')} changed since"
        remedy = "review: attachfs pins conflicts; then, to believe one: attachfs pins release KEY"
        return Finding("first-seen", State.WRONG, detail, remedy)
    return Finding("first-seen", State.OK, f"{hashes}, no conflicts")


# -- mounts --------------------------------------------------------------------------------------------


def running(found: list[Mount], patience: float = _MOUNT_ANSWERS) -> Iterator[Finding]:
    """Check each attachfs mount: alive, dead, or without an answer."""
    ours = [mount for mount in found if mount.is_ours]
    if not ours:
        yield Finding("mounts", State.OK, "none")
    for mount in ours:
        yield _running(mount, patience)


def _running(mount: Mount, patience: float) -> Finding:
    state, _ = probe.ask(mount.point, patience)
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
