"""The table of errors, as programs see it: every row of it, over a real socket and through the kernel."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from attachfs import errors
from attachfs.errors import ERRNO, AttachfsError, errno_of
from tests.mount.lane import Lane, lane
from tests.services.faulty_ledger import TOKEN, Case, Exchange, serving, status

TIMEOUT = 2
SLACK = 3
Prepare = Callable[[Lane, Case], None]
Act = Callable[[Path, Case], object]


@dataclass(frozen=True)
class Row:
    """What happened, the class that stands for it, and the errno of the design's table."""

    name: str
    stands_for: type[AttachfsError]
    errno: int
    prepare: Prepare
    act: Act
    told: str = ""
    requests: tuple[str, int] = ("blob", 1)
    options: tuple[str, ...] = ()
    within: float = 0


def read(point: Path, case: Case) -> object:
    return (point / case.path).read_bytes()


def stat(point: Path, case: Case) -> object:
    return (point / case.path).stat()


def answers(kind: str, script: Callable[[Exchange], None]) -> Prepare:
    def prepare(mounted: Lane, case: Case) -> None:
        mounted.ledger.scripts[kind, case.asset] = script

    return prepare


SOON = {errno.EBUSY: (errno.EBUSY, errno.ETIMEDOUT), errno.EHOSTUNREACH: (errno.EHOSTUNREACH,)}


def nothing(_: Lane, __: Case) -> None:
    """Leave everything as it should be."""


def records(change: Callable[[Case], None]) -> Prepare:
    return lambda _, case: change(case)


def expire(mounted: Lane, _: Case) -> None:
    """Let the token expire; the file still holds it, so that one renewal brings nothing else."""
    mounted.ledger.accepted = {"another"}


def go_away(mounted: Lane, _: Case) -> None:
    mounted.ledger.stop()


def write(point: Path, case: Case) -> object:
    return (point / case.path).write_bytes(b"x")


NO_INFO = ("info", 0)
INFO = ("info", 1)
ROWS = (
    Row("404", errors.NotFound, errno.ENOENT, answers("info", status(404)), stat, requests=INFO),
    Row(
        "a name that is no identity",
        errors.NotFound,
        errno.ENOENT,
        nothing,
        lambda p, c: (p / "assets" / c.name).stat(),
        requests=NO_INFO,
    ),
    Row(
        "401 after one renewal",
        errors.AccessDenied,
        errno.EACCES,
        expire,
        stat,
        "refuses the credentials",
        INFO,
    ),
    Row("403", errors.AccessDenied, errno.EACCES, answers("blob", status(403)), read, "access policy"),
    Row(
        "the scan policy",
        errors.ScanRefused,
        errno.EPERM,
        records(lambda case: case.info.update(scanned_status="SCANNED_BAD")),
        read,
        "the ledger's scan found it bad",
        ("blob", 0),
    ),
    Row(
        "429 and patience used up",
        errors.RateLimited,
        errno.EBUSY,
        answers("blob", lambda x: x.reply(429, b"", ("Retry-After", "3")) if x.number == 1 else x.serve()),
        read,
        "asks to wait",
    ),
    Row(
        "no answer in time",
        errors.TimedOut,
        errno.ETIMEDOUT,
        answers("blob", Exchange.stall),
        read,
        "no answer within 2 s",
        within=TIMEOUT,
    ),
    Row(
        "cannot connect", errors.Unreachable, errno.EHOSTUNREACH, go_away, stat, "Connection refused", NO_INFO
    ),
    Row("another 4xx", errors.BadAnswer, errno.EIO, answers("blob", status(418)), read, "answered 418"),
    Row("5xx", errors.BadAnswer, errno.EIO, answers("blob", status(500)), read, "answered 500", ("blob", 4)),
    Row(
        "an unreadable answer",
        errors.BadAnswer,
        errno.EIO,
        answers("info", lambda x: x.reply(200, b"<html>")),
        stat,
        "not readable JSON",
        INFO,
    ),
    Row(
        "a short body",
        errors.BadAnswer,
        errno.EIO,
        answers("blob", lambda x: x.reply(200, x.good.body[:-1])),
        read,
        "1999 came",
    ),
    Row(
        "a long body",
        errors.BadAnswer,
        errno.EIO,
        answers("blob", lambda x: x.reply(200, x.good.body + b"x")),
        read,
        "2001 bytes are announced",
    ),
    Row(
        "bytes that differ",
        errors.IntegrityError,
        errno.EBADMSG,
        answers("blob", lambda x: x.reply(200, bytes(2000))),
        read,
        "do not match the record",
    ),
    Row(
        "records that differ",
        errors.IntegrityError,
        errno.EBADMSG,
        records(lambda case: case.info["hash"].update(value="ab" * 32)),
        read,
        "two records differ",
        ("blob", 0),
    ),
    Row(
        "an unknown attribute",
        errors.NoAttribute,
        errno.ENODATA,
        nothing,
        lambda p, c: os.getxattr(p / c.path, "user.attachment.nothing"),
        requests=INFO,
    ),
    Row(
        "an attribute of others",
        errors.NoAttribute,
        errno.ENODATA,
        nothing,
        lambda p, c: os.getxattr(p / c.path, "user.comment"),
        requests=INFO,
    ),
    Row(
        "a file where a directory was expected",
        errors.NotDirectory,
        errno.ENOTDIR,
        nothing,
        lambda p, c: list((p / c.path).iterdir()),
        requests=INFO,
    ),
    Row(
        "a directory where a file was expected",
        errors.IsDirectory,
        errno.EISDIR,
        nothing,
        lambda p, c: (p / "assets" / c.asset).read_bytes(),
        requests=NO_INFO,
    ),
    Row("a write", errors.ReadOnly, errno.EROFS, nothing, write, requests=("blob", 0)),
    Row(
        "a new file",
        errors.ReadOnly,
        errno.EROFS,
        nothing,
        lambda p, c: (p / "assets" / c.asset / "new").touch(),
        requests=("blob", 0),
    ),
    Row(
        "an unlink",
        errors.ReadOnly,
        errno.EROFS,
        nothing,
        lambda p, c: (p / c.path).unlink(),
        requests=("blob", 0),
    ),
    Row(
        "a new mode",
        errors.ReadOnly,
        errno.EROFS,
        nothing,
        lambda p, c: (p / c.path).chmod(0o600),
        requests=("blob", 0),
    ),
    Row(
        "a new attribute",
        errors.ReadOnly,
        errno.EROFS,
        nothing,
        lambda p, c: os.setxattr(p / c.path, "user.x", b"y"),
        requests=("blob", 0),
    ),
)

# Rows that need more than one program and one answer have tests of their own below.
ELSEWHERE = {errors.Interrupted, errors.NoSpace, errors.TooManyFiles, errors.Unexpected}
# A mistake on a command line ends the command: no handler raises it.
NOT_SEEN = {errors.UsageError}


def test_every_class_has_an_errno_and_every_errno_a_row() -> None:
    classes = {
        one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, AttachfsError)
    }
    assert set(ERRNO) == classes - {AttachfsError}
    assert {row.stands_for for row in ROWS} | ELSEWHERE | NOT_SEEN == set(ERRNO)
    for row in ROWS:
        assert errno_of(row.stands_for("")) == row.errno, row.name


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lane]:
    with lane(tmp_path_factory.mktemp("errno"), f"--timeout={TIMEOUT}", "--negative-ttl=0") as one:
        yield one


def fails(act: Callable[[], object]) -> tuple[int, float]:
    """Return the errno it fails with, and the seconds it takes."""
    began = time.monotonic()
    with pytest.raises(OSError, match="Errno") as caught:
        act()
    return caught.value.errno or -1, time.monotonic() - began


@pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in ROWS])
def test_what_happened_is_what_a_program_sees(row: Row, mounted: Lane) -> None:
    case = mounted.ledger.add(Case(row.name, 2000))
    row.prepare(mounted, case)
    try:
        number, took = fails(lambda: row.act(mounted.point, case))
    finally:
        mounted.ledger.accepted = {TOKEN}
        if row.prepare is go_away:
            mounted.ledger.start()
    assert errno.errorcode[number] == errno.errorcode[row.errno]
    assert took < row.within + SLACK
    assert mounted.ledger.count(row.requests[0], case) == row.requests[1]
    # A gate that has been shut opens by itself, and so does a circuit.
    mounted.serves_a_good_file_soon(SOON.get(number, ()))
    told = [line for line in mounted.log.told(case.asset) if "[E" in line]
    assert len(told) == bool(row.told), told
    assert all(row.told in line and f"[{errno.errorcode[row.errno]}]" in line for line in told)


# -- the caller has been killed --------------------------------------------------------------------

# What a program may be waiting in when it is killed, and which request it then waits for.
WAITS: dict[str, tuple[str, str]] = {
    "lookup of an asset": ("asset", "os.stat('assets/{0.asset}')"),
    "lookup of a file": ("info", "os.stat('{0.path}')"),
    "open": ("blob", "os.open('{0.path}', os.O_RDONLY)"),
    "getxattr": ("info", "os.getxattr('{0.path}', 'user.mime_type')"),
    "readdir": ("events", "os.listdir('{0.events}')"),
    "opendir": ("event", "os.listdir('{0.event_path}')"),
}


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lane]:
    with lane(tmp_path_factory.mktemp("patient"), "--timeout=60") as one:
        yield one


@pytest.mark.parametrize("name", WAITS)
@pytest.mark.parametrize("with_what", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_program_that_waits_can_be_killed_soon(name: str, with_what: signal.Signals, patient: Lane) -> None:
    kind, code = WAITS[name]
    case = patient.ledger.add(Case(f"{name} {with_what}"), **{kind: Exchange.stall})
    code = "import os, signal; signal.signal(signal.SIGINT, signal.SIG_DFL); " + code.format(case)
    program = subprocess.Popen([sys.executable, "-c", code], cwd=patient.point)
    patient.ledger.wait_for(lambda: patient.ledger.count(kind, case) == 1)
    began = time.monotonic()
    program.send_signal(with_what)
    assert program.wait(10) == -with_what
    assert time.monotonic() - began < 5  # half a second on a machine of its own; the timeout is a minute
    patient.log.wait_for("the caller was killed while waiting")
    assert not patient.log.told(case.asset)
    patient.serves_a_good_file()


def test_a_program_that_handles_its_signal_is_not_disturbed(tmp_path: Path) -> None:
    """EINTR without a pending fatal signal would make a Python program ask again for ever."""
    with lane(tmp_path, "--timeout=60") as mounted:
        go = tmp_path / "go"
        os.mkfifo(go)

        def gated(x: Exchange) -> None:
            go.read_bytes()
            x.serve()

        case = mounted.ledger.add(Case("slow"), info=gated)
        code = (
            "import os, signal; signal.signal(signal.SIGUSR1, lambda *_: print('noted', flush=True)); "
            f"print(os.stat({case.path!r}).st_size)"
        )
        program = subprocess.Popen(
            [sys.executable, "-c", code], cwd=mounted.point, stdout=subprocess.PIPE, text=True
        )
        mounted.ledger.wait_for(lambda: mounted.ledger.count("info", case) == 1)
        program.send_signal(signal.SIGUSR1)
        # Whoever waits is looked at four times a second; a program that is killed meanwhile shows that.
        other = mounted.ledger.add(Case("stalled"), info=Exchange.stall)
        victim = subprocess.Popen(["stat", other.path], cwd=mounted.point)
        mounted.ledger.wait_for(lambda: mounted.ledger.count("info", other) == 1)
        victim.kill()
        assert victim.wait(10) == -signal.SIGKILL
        go.write_bytes(b"")
        assert program.communicate(timeout=10)[0].split() == ["noted", "3000"]
        assert mounted.ledger.count("info", case) == 1


# -- no room, and faults of our own ----------------------------------------------------------------


@contextmanager
def small_disk(path: Path, size: str) -> Iterator[Path]:
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def test_without_room_in_the_cache_a_blob_is_read_through_a_temporary_file(tmp_path: Path) -> None:
    with lane(tmp_path, f"--timeout={TIMEOUT}", "--cache-size=1M") as mounted:
        case = mounted.fresh(3 * 2**20)
        assert (mounted.point / case.path).read_bytes() == case.content
        assert mounted.ledger.count("blob", case) == 1
        mounted.log.wait_for("is read through a temporary file")
        mounted.serves_a_good_file()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_read_without_room_for_a_temporary_file_either_is_enospc(tmp_path: Path) -> None:
    with ExitStack() as stack:
        disk = stack.enter_context(small_disk(tmp_path / "disk", "2M"))
        mounted = stack.enter_context(
            lane(
                tmp_path,
                f"--timeout={TIMEOUT}",
                "--cache-size=1M",
                f"--cache-dir={disk / 'cache'}",
                environ={"TMPDIR": str(disk)},
            )
        )
        case = mounted.fresh(8 * 2**20)
        number, took = fails((mounted.point / case.path).read_bytes)
        assert errno.errorcode[number] == "ENOSPC"
        assert took < SLACK
        mounted.log.wait_for("[ENOSPC]")
        assert [line for line in mounted.log.told(case.asset) if "[ENOSPC]" in line]
        mounted.serves_a_good_file()


def test_a_client_that_has_never_been_answered_is_no_reason_not_to_mount(tmp_path: Path) -> None:
    with serving({TOKEN}) as ledger:
        ledger.everything = status(500)
        with lane(tmp_path, f"--timeout={TIMEOUT}", ledger=ledger) as mounted:
            case = mounted.fresh()
            assert fails((mounted.point / case.path).stat)[0] == errno.EIO
            ledger.everything = None
            mounted.serves_a_good_file(case)
