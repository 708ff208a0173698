"""A mount with little of what a machine gives: descriptors, standard streams, a state directory."""

import contextlib
import errno
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from attachfs.demo.spawn import DemoServer
from attachfs.mount.mountinfo import mount_at
from tests.mount.conftest import ENDS_WITHIN, Mounted, run_mount
from tests.services.threaded_ledger import Handler, ScriptedLedger, send, serve

_LIMIT = "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))\n"


@contextlib.contextmanager
def many_files(base: Path, count: int, soft: int, hard: int) -> Iterator[tuple[Mounted, list[str]]]:
    ledger, token = ScriptedLedger(), base / "token.txt"
    token.write_text(ledger.token)
    token.chmod(0o600)
    paths = [ledger.add(f"file {i}", f"content {i}".encode()) for i in range(count)]
    prelude = _LIMIT.format(soft=soft, hard=hard)
    with serve(ledger, token) as served, run_mount(base, server=served, prelude=prelude) as mounted:
        yield mounted, paths


def test_six_hundred_files_are_held_open_with_a_soft_limit_of_256(tmp_path: Path) -> None:
    with many_files(tmp_path, 600, 256, 4096) as (mounted, paths), contextlib.ExitStack() as stack:
        files = [stack.enter_context((mounted.point / path).open("rb")) for path in paths]
        for number, file in enumerate(files):
            assert file.read() == f"content {number}".encode()
        assert mounted.status()["open_files"] == 600


def test_without_a_descriptor_an_open_fails_with_emfile_and_the_log_says_what_helps(tmp_path: Path) -> None:
    with many_files(tmp_path, 120, 100, 100) as (mounted, paths):
        with contextlib.ExitStack() as stack:

            def open_all() -> None:
                for path in paths:
                    stack.enter_context((mounted.point / path).open("rb"))

            with pytest.raises(OSError, match="Too many open files") as caught:
                open_all()
        assert caught.value.errno == errno.EMFILE
        line = mounted.wait_for_log("all of the 100 files that the mount may open are open")
        assert "LimitNOFILE=" in line
        # Once others are closed it is over, and what was open has been served all the same.
        file = mounted.point / paths[0]
        for _ in range(100):
            with contextlib.suppress(OSError):
                assert file.read_bytes() == b"content 0"
                break
        else:
            pytest.fail("it is not over")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&-", "<&- 2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_a_mount_lives_whichever_standard_descriptors_are_closed(
    tmp_path: Path, ledger: DemoServer, closed: str
) -> None:
    point = tmp_path / "mnt"
    point.mkdir()
    command = (
        f"exec {sys.executable} -m attachfs mount --url={ledger.url} --token-file={ledger.token_file} "
        f"--cache-dir={tmp_path}/cache {point} {closed}"
    )
    environ = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state"), "XDG_CONFIG_HOME": str(tmp_path)}
    assert subprocess.run(["bash", "-c", command], env=environ, check=False).returncode == 0
    try:
        assert (point / ledger.story["pdf"]).read_bytes().startswith(b"%PDF")
        pid = re.search(r'"pid": (\d+)', os.getxattr(point, "user.attachfs.status").decode())
        assert pid is not None
        assert all(
            Path(f"/proc/{pid[1]}/fd/{number}").readlink() == Path("/dev/null") for number in (0, 1, 2)
        )
    finally:
        subprocess.run([sys.executable, "-m", "attachfs", "umount", str(point)], check=True)
    assert mount_at(point) is None


@contextlib.contextmanager
def tmpfs(path: Path, options: str) -> Iterator[None]:
    path.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", path], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount what is read-only or full")
@pytest.mark.parametrize("state", ["read-only", "full"])
def test_a_state_directory_that_cannot_be_written_costs_a_warning_and_what_can_be_read_is_read(
    tmp_path: Path, ledger: DemoServer, state: str
) -> None:
    options = "ro,mode=700" if state == "read-only" else "size=64k,mode=700"
    with tmpfs(tmp_path / "state" / "attachfs", options):
        if state == "full":
            with contextlib.suppress(OSError):
                (tmp_path / "state" / "attachfs" / "ballast").write_bytes(bytes(10**6))
        with run_mount(tmp_path, server=ledger) as mounted:
            assert (mounted.point / ledger.story["pdf"]).read_bytes().startswith(b"%PDF")
            assert mounted.status()["opened"] == 1
            assert any(" WARNING " in line and "/state/attachfs" in line for line in mounted.log), mounted.log


def garbage(database: Path) -> None:
    database.write_bytes(b"SQLite format 3\0" + bytes(range(256)) * 100)


def cut(database: Path) -> None:
    database.write_bytes(database.read_bytes()[:5000])


def directory(database: Path) -> None:
    database.unlink()
    (database / "something").mkdir(parents=True)


DAMAGE = [
    (garbage, "is damaged (file is not a database): it is set aside"),
    (cut, "is damaged (database disk image is malformed): it is set aside"),
    (directory, "cannot be used (Is a directory): answers are not kept for --offline and outages; move "),
]


def state_of(base: Path, pattern: str) -> Path:
    (database,) = (base / "state" / "attachfs").glob(pattern)
    assert not database.with_name(f"{database.name}-wal").exists()  # it was closed well
    return database


@pytest.mark.parametrize(("damage", "words"), DAMAGE)
def test_a_damaged_offline_database_costs_an_online_mount_a_warning(
    tmp_path: Path, ledger: DemoServer, damage: Callable[[Path], None], words: str
) -> None:
    with run_mount(tmp_path, server=ledger) as mounted:
        mounted.sh("ls -lR assets", check=False)  # so that there is something to be cut off
    database = state_of(tmp_path, "127*.sqlite")
    damage(database)
    with run_mount(tmp_path, server=ledger) as mounted:
        assert (mounted.point / ledger.story["pdf"]).read_bytes().startswith(b"%PDF")
        mounted.sh("ls -lR assets", check=False)
        mounted.sh("cat assets/*/* >/dev/null", check=False)
        assert mounted.status()["opened"] > 1
    lines = [line for line in mounted.log if ".sqlite" in line and (" WARNING " in line or " ERROR " in line)]
    assert len(lines) == 1, lines
    assert f"{database} {words}" in lines[0]


@pytest.mark.parametrize(
    ("damage", "words"),
    [(garbage, "THE PINNED HASHES ARE DAMAGED"), (cut, "THE PINNED HASHES ARE DAMAGED"), (directory, "")],
)
def test_damaged_pins_are_said_once_and_reading_goes_on_once_there_is_a_backup_in_their_place(
    tmp_path: Path, ledger: DemoServer, damage: Callable[[Path], None], words: str
) -> None:
    """Whether a record has changed since it was first read is not known meanwhile: nothing is believed."""
    with run_mount(tmp_path, server=ledger) as mounted:
        file = mounted.point / ledger.story["pdf"]
        assert file.read_bytes().startswith(b"%PDF")
    database = state_of(tmp_path, "pins.sqlite")
    backup = database.read_bytes()
    damage(database)
    with run_mount(tmp_path, server=ledger) as mounted:
        for _ in range(3):
            with pytest.raises(OSError, match="Input/output error"):
                file.read_bytes()
        mounted.wait_for_log("a backup in")
        assert len([line for line in mounted.log if " ERROR " in line and words in line]) == bool(words)
        mounted.sh("ls -lR assets", check=False)  # all else works
        if database.is_dir():
            database.rename(tmp_path / "away")
        for aside in database.parent.glob("pins.sqlite.damaged-*"):
            aside.unlink()
        database.write_bytes(backup)
        assert file.read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize("then", ["it is answered", "its token is refused"])
def test_an_info_that_is_under_way_at_sighup_ends_well_and_is_not_believed_after_it(
    tmp_path: Path, then: str
) -> None:
    scripted, token = ScriptedLedger(), tmp_path / "token.txt"
    token.write_text("first-t0ken")
    token.chmod(0o600)
    scripted.token = "first-t0ken"
    path = scripted.add("file", b"content")
    under_way, goes_on = threading.Event(), threading.Event()
    tokens: list[str] = []

    def info(request: Handler) -> bool:
        tokens.append(request.headers["Authorization"].removeprefix("Bearer "))
        if len(tokens) > 1:
            return False
        answer = json.dumps(scripted.infos[path.rpartition("/")[2]]).encode()
        under_way.set()
        goes_on.wait(ENDS_WITHIN)
        if then == "it is answered":
            send(request, 200, answer)
        return then == "it is answered"

    scripted.bend["info"] = info
    with (
        serve(scripted, token) as served,
        run_mount(tmp_path, server=served) as mounted,
        ThreadPoolExecutor() as pool,
    ):
        file = mounted.point / path
        asking = pool.submit(file.stat)
        try:
            assert under_way.wait(ENDS_WITHIN)
            scripted.token = "second-t0ken"
            token.write_text(scripted.token)
            mounted.process.send_signal(signal.SIGHUP)
            mounted.wait_for_log("names and attributes are forgotten")
            scripted.infos[path.rpartition("/")[2]]["scanned_status"] = "SCANNED_BAD"
        finally:
            goes_on.set()
        assert asking.result(ENDS_WITHIN).st_size == len(b"content")
        with pytest.raises(PermissionError):
            file.read_bytes()
        assert os.getxattr(file, "user.attachment.scanned_status") == b"SCANNED_BAD"
        assert tokens[0] == "first-t0ken"
        assert set(tokens[1:]) == {"second-t0ken"}
    assert not any(" ERROR " in line for line in mounted.log), mounted.log
