"""The first hash seen of an attachment is the one that counts, whatever the service says later."""

import errno
import logging
import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from attachfs.blobs.pins import Pins, PinStatus
from attachfs.errors import TooManyFiles, Unexpected
from attachfs.model import Digest

# The children touch nothing that another thread could hold; later Pythons warn of any fork beside threads.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

A, B, C = (Digest("sha256", letter * 64) for letter in "abc")
NEW, SAME, CHANGED = PinStatus.NEW, PinStatus.SAME, PinStatus.CHANGED


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "pins.db"


@pytest.fixture
def pins(path: Path) -> Iterator[Pins]:
    made = Pins(path, clock=lambda: 1000.0)
    yield made
    made.close()


def test_the_first_record_is_pinned(pins: Pins, path: Path) -> None:
    assert pins.check("host/1", A, 5).status is NEW
    assert pins.check("host/1", A, 5).status is SAME
    assert pins.check("host/2", B, 5).status is NEW
    pins.close()
    later = Pins(path, clock=lambda: 2000.0)
    result = later.check("host/1", A, 5)
    assert (result.status, result.pin.first_seen) == (SAME, 1000.0)
    assert later.count() == 2
    later.close()


@pytest.mark.parametrize(
    ("digest", "size"), [(B, 5), (A, 6), (Digest("sha384", "a" * 96), 5)], ids=["hash", "size", "algorithm"]
)
@pytest.mark.parametrize("restart", [False, True])
def test_another_record_is_a_change(
    pins: Pins, path: Path, digest: Digest, size: int, *, restart: bool
) -> None:
    pins.check("host/1", A, 5)
    if restart:
        pins.close()
        pins = Pins(path, clock=lambda: 2000.0)
    for _ in range(2):
        result = pins.check("host/1", digest, size)
        assert result.status is CHANGED
        assert (result.pin.digest, result.pin.size) == (A, 5)
    assert pins.check("host/1", A, 5).status is SAME
    (conflict,) = pins.conflicts()
    assert (conflict.key, conflict.pinned, conflict.pinned_size) == ("host/1", A, 5)
    assert (conflict.seen, conflict.seen_size, conflict.times) == (digest, size, 2)
    pins.close()


def test_asking_for_a_conflict_pins_nothing(pins: Pins) -> None:
    assert pins.conflict("host/1", A, 5) is None
    assert pins.count() == 0
    pins.check("host/1", A, 5)
    assert pins.conflict("host/1", A, 5) is None
    pin = pins.conflict("host/1", B, 5)
    assert pin is not None
    assert str(pin) == f"sha256:{'a' * 64} (5 bytes)"
    assert len(pins.conflicts()) == 1


def test_a_released_pin_is_made_anew_and_the_conflict_stays_on_record(pins: Pins) -> None:
    pins.check("host/1", A, 5)
    pins.check("host/1", B, 5)
    assert pins.release("host/1")
    assert not pins.release("host/1")
    assert pins.get("host/1") is None
    assert pins.check("host/1", B, 5).status is NEW
    assert pins.check("host/1", A, 5).status is CHANGED
    assert {(conflict.pinned, conflict.seen) for conflict in pins.conflicts()} == {(A, B), (B, A)}


def test_conflicts_come_latest_first(path: Path) -> None:
    times = iter([1.0, 2.0, 3.0, 4.0, 5.0])
    pins = Pins(path, clock=lambda: next(times))
    pins.check("k", A, 1)
    for digest in (B, C, B):
        pins.check("k", digest, 1)
    found = [(item.seen, item.first_when, item.last_when, item.times) for item in pins.conflicts()]
    assert found == [(B, 2.0, 4.0, 2), (C, 3.0, 3.0, 1)]
    pins.close()


def test_pins_are_found_by_host_pattern_or_part_of_their_key(pins: Pins) -> None:
    for key in ("one.example/a%1", "one.example/b_1", "two.example/a%1"):
        pins.check(key, A, 1)
    assert len(pins.find()) == 3
    assert [pin.key for pin in pins.find("one.")] == ["one.example/a%1", "one.example/b_1"]
    assert [pin.key for pin in pins.find("*/b?1")] == ["one.example/b_1"]
    assert [pin.key for pin in pins.find("a%")] == ["one.example/a%1", "two.example/a%1"]
    assert pins.find("'; DROP TABLE pins; --") == []


def test_what_this_run_confirmed_needs_no_query(pins: Pins, path: Path) -> None:
    pins.check("host/1", A, 5)
    pins.close()
    path.unlink()
    assert pins.check("host/1", A, 5).status is SAME
    assert not path.exists()


def test_a_pin_is_on_disk_before_check_returns(pins: Pins, path: Path) -> None:
    """Another process sees it at once, and the database is set to sync each transaction."""
    pins.check("host/1", A, 5)
    other = Pins(path)
    assert other.check("host/1", B, 5).status is CHANGED
    other.close()
    assert pins._database._db is not None
    assert pins._database._db.execute("PRAGMA synchronous").fetchone() == (2,)
    assert pins._database._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_the_pin_database_is_private_whatever_the_umask(pins: Pins, path: Path) -> None:
    old = os.umask(0)
    try:
        pins.check("host/1", A, 5)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()} == {0o600}


def test_many_threads_agree_on_one_first_record(pins: Pins) -> None:
    digests = [Digest("sha256", f"{number:064x}") for number in range(16)]
    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(lambda digest: pins.check("host/1", digest, 5), digests * 4))
    winner = {result.pin.digest for result in results}
    assert len(winner) == 1
    assert sum(result.status is NEW for result in results) == 1
    assert {result.status for result in results} == {NEW, SAME, CHANGED}
    assert len(pins.conflicts()) == 15


def test_two_processes_share_the_pins(pins: Pins, path: Path) -> None:
    pids = []
    for number in range(4):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                mine = Pins(path)
                for key in range(100):
                    mine.check(f"host/{key}", A, 5)
                    mine.check(f"host/own-{number}-{key}", B, 5)
                mine.close()
                status = 0
            finally:
                os._exit(status)
        pids.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 4
    assert pins.count() == 500
    assert pins.conflicts() == []


@pytest.mark.parametrize("damage", ["garbage", "pages", "truncated"])
def test_a_damaged_database_is_moved_aside_and_nothing_is_believed(
    path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    pins = Pins(path)
    for number in range(300):
        pins.check(f"host/{number}", A, 5)
    backup = path.with_name("backup")
    pins.close()
    backup.write_bytes(path.read_bytes())
    data = bytearray(path.read_bytes())
    if damage == "garbage":
        data[:] = b"not a database at all" * 500
    elif damage == "pages":
        data[4096:-4096] = b"\xa5" * (len(data) - 8192)
    else:
        del data[6000:]
    path.write_bytes(data)

    pins = Pins(path)
    for _ in range(3):
        with pytest.raises(Unexpected, match="damaged"):
            pins.check("host/1", B, 5)
    with pytest.raises(Unexpected, match="damaged"):
        pins.count()
    loud = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(loud) == 1
    assert not path.exists()
    (aside,) = path.parent.glob("pins.db.damaged-*")
    assert aside.read_bytes() == data
    assert str(aside) in loud[0].getMessage()

    # The next run refuses as well, until somebody has decided; then no restart is needed.
    pins.close()
    pins = Pins(path)
    with pytest.raises(Unexpected, match="backup"):
        pins.check("host/1", B, 5)
    backup.rename(path)
    aside.with_name(aside.name + "-wal").touch()  # what SQLite left beside it decides nothing
    aside.unlink()
    assert pins.check("host/1", B, 5).status is CHANGED
    pins.close()


def test_damage_met_while_running(path: Path) -> None:
    pins = Pins(path)
    for number in range(300):
        pins.check(f"host/{number}", A, 5)
    assert pins._database._db is not None
    pins._database._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    pins._database._db.execute("PRAGMA cache_size = 0")
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (size - 4096))
    pins._database._db.execute("PRAGMA shrink_memory")
    with pytest.raises(Unexpected):
        pins.find("host")
    assert pins.check("host/1", A, 5).status is SAME  # confirmed before
    with pytest.raises(Unexpected):
        pins.check("host/1", B, 5)
    pins.close()


def test_a_conflict_that_cannot_be_written_down_is_still_one(
    pins: Pins, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("attachfs.blobs.pin_database._BUSY_TIMEOUT", 0.01)
    pins.check("host/1", A, 5)
    pins.close()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert pins.check("host/1", B, 5).status is CHANGED
    other.execute("ROLLBACK")
    other.close()
    assert "cannot be recorded" in caplog.text
    assert pins.conflicts() == []


def test_a_newer_database_is_left_alone(path: Path) -> None:
    path.parent.mkdir()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 2")
    db.close()
    before = path.read_bytes()
    pins = Pins(path)
    with pytest.raises(Unexpected, match="newer"):
        pins.check("host/1", A, 5)
    assert path.read_bytes() == before


def test_a_directory_that_cannot_be_written(path: Path) -> None:
    path.parent.write_text("not a directory")
    pins = Pins(path)
    with pytest.raises(Unexpected):
        pins.check("host/1", A, 5)
    path.parent.unlink()
    assert pins.check("host/1", A, 5).status is NEW
    pins.close()


def test_a_symlinked_database_is_refused(path: Path, tmp_path: Path) -> None:
    path.parent.mkdir()
    (tmp_path / "outside").write_text("mine")
    path.symlink_to(tmp_path / "outside")
    with pytest.raises(Unexpected):
        Pins(path).check("host/1", A, 5)
    assert (tmp_path / "outside").read_text() == "mine"


def test_another_process_that_holds_the_database_for_too_long(
    pins: Pins, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("attachfs.blobs.pin_database._BUSY_TIMEOUT", 0.01)
    pins.check("host/1", A, 5)
    pins.close()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unexpected, match="locked"):
        pins.check("host/2", A, 5)
    other.execute("ROLLBACK")
    other.close()
    assert pins.check("host/2", A, 5).status is NEW


# ---- where nothing can be written


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def _refuse(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_on_a_full_disk_pins_are_compared_with_and_one_warning_says_what_to_do(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """New pins are held in memory, and written once that can be done again."""
    now = 0.0
    before = Pins(path)
    before.check("host/old", A, 5)
    before.close()
    monkeypatch.setattr("attachfs.blobs.pin_database.PinDatabase._open_to_write", _refuse)
    pins = Pins(path, elapsed=lambda: now)
    assert pins.conflict("host/old", B, 5) is not None
    assert pins.check("host/old", A, 5).status is SAME
    pins.check("host/new", A, 5)
    assert pins.check("host/new", B, 5).status is CHANGED
    assert pins.conflict("host/new", A, 5) is None
    warned = [text for text in warnings_in(caplog) if "first-seen" in text]
    assert len(warned) == 1
    assert "No space left on device" in warned[0]
    assert "XDG_STATE_HOME" in warned[0]
    monkeypatch.undo()
    now = 61.0
    pins.check("host/other", C, 1)
    pins.check("host/new", A, 5)
    pins.close()
    later = Pins(path)
    assert sorted(pin.key for pin in later.find()) == ["host/new", "host/old", "host/other"]
    later.close()


def test_without_a_database_and_without_room_for_one_there_is_nothing_to_compare_with(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("attachfs.blobs.pin_database.PinDatabase._open_to_write", _refuse)
    pins = Pins(path)
    assert pins.conflict("host/1", A, 5) is None
    pins.check("host/1", A, 5)
    assert pins.conflict("host/1", B, 5) is not None
    assert not path.exists()
    pins.close()


def test_a_database_that_becomes_read_only_while_it_is_used(
    pins: Pins, caplog: pytest.LogCaptureFixture
) -> None:
    pins.check("host/1", A, 5)
    assert pins._database._db is not None
    pins._database._db.execute("PRAGMA query_only = 1")  # what a filesystem remounted read-only comes to
    assert pins.check("host/2", B, 6).pin.digest == B
    assert pins.check("host/2", C, 6).status is CHANGED
    assert pins.conflict("host/1", B, 5) is not None
    assert len([text for text in warnings_in(caplog) if "first-seen" in text]) == 1


def test_a_database_in_a_directory_that_can_only_be_read(path: Path, tmp_path: Path) -> None:
    """As an ordinary user meets it, in a process of its own; root may write anywhere."""
    before = Pins(path)
    before.check("host/1", A, 5)
    before.close()
    tmp_path.chmod(0o755)
    path.chmod(0o444)
    path.parent.chmod(0o555)
    code = (
        "import os, sys; from pathlib import Path; from attachfs.blobs.pins import Pins;"
        "from attachfs.model import Digest;"
        "os.getuid() or os.setuid(65534);"
        "pins = Pins(Path(sys.argv[1]));"
        "print(pins.conflict('host/1', Digest('sha256', 'b' * 64), 5) is not None,"
        " pins.check('host/2', Digest('sha256', 'b' * 64), 5).pin.size)"
    )
    try:
        for parent in list(tmp_path.parents)[:-2]:
            if parent.stat().st_uid == os.getuid() and not parent.stat().st_mode & 0o001:
                parent.chmod(parent.stat().st_mode | 0o011)
        done = subprocess.run(
            [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
        )
    finally:
        path.parent.chmod(0o755)
    assert done.stdout == "True 5\n", done.stderr
    assert done.stderr.count("first-seen") == 1


def test_a_log_that_was_never_merged_is_not_overlooked_where_nothing_can_be_written(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash left it; the shared index that reading it takes cannot be made."""
    first = Pins(path)
    first.check("host/1", A, 5)
    copies = {name: path.with_name(name).read_bytes() for name in (path.name, f"{path.name}-wal")}
    first.close()
    for name, content in copies.items():
        path.with_name(name).write_bytes(content)
    monkeypatch.setattr("attachfs.blobs.pin_database.PinDatabase._open_to_write", _refuse)
    pins = Pins(path)
    assert pins.conflict("host/1", B, 5) is not None
    pins.close()


def test_without_a_descriptor_the_limit_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr("attachfs.blobs.pin_database.PinDatabase._open_to_write", refuse)
    with pytest.raises(TooManyFiles, match="ulimit"):
        Pins(path).check("host/1", A, 5)


# ---- what is known without asking the database


def test_a_key_that_was_never_pinned_is_surely_new_once_the_database_was_looked_at(
    pins: Pins, path: Path
) -> None:
    assert not pins.surely_new("host/1")
    assert pins.get("host/0") is None
    assert pins.surely_new("host/1")
    pins.check("host/1", A, 5)
    assert not pins.surely_new("host/1")
    later = Pins(path)
    later.get("host/0")
    assert not later.surely_new("host/1")
    assert later.surely_new("host/2")
    pins.check("host/2", A, 5)  # by another process: it is found when this one is to be pinned
    assert later.check("host/2", B, 5).status is CHANGED
    later.close()
    assert not later.surely_new("host/3")  # the database may be another when it is opened again


def test_of_many_pins_nothing_is_known_without_asking(pins: Pins, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attachfs.blobs.pins._KEYS_MAX", 1)
    for number in range(2):
        pins.check(f"host/{number}", A, 5)
    pins.get("host/0")
    assert not pins.surely_new("host/9")
