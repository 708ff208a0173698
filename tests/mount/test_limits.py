"""A mount with little of what a machine gives: descriptors, standard streams, a state directory."""

import contextlib
import errno
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from attachfs.demo.spawn import DemoServer
from attachfs.mount.mountinfo import mount_at
from tests.mount.conftest import Mounted, run_mount
from tests.services.threaded_ledger import ScriptedLedger, serve

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


def test_a_damaged_offline_database_costs_an_online_mount_a_warning(
    tmp_path: Path, ledger: DemoServer
) -> None:
    with run_mount(tmp_path, server=ledger) as mounted:
        assert (mounted.point / ledger.story["pdf"]).read_bytes().startswith(b"%PDF")
    for database in (tmp_path / "state" / "attachfs").glob("127*.sqlite"):
        database.write_bytes(b"SQLite format 3\0" + bytes(range(256)) * 100)
    with run_mount(tmp_path, server=ledger) as mounted:
        assert (mounted.point / ledger.story["pdf"]).read_bytes().startswith(b"%PDF")
        mounted.sh("ls -lR assets", check=False)
        assert any(" WARNING " in line and ".sqlite" in line for line in mounted.log), mounted.log
