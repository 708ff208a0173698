"""What `attachfs mount` says on stderr when the ledger cannot be used: a warning, and the mount is there."""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from attachfs.demo.spawn import DemoServer
from attachfs.mount.mountinfo import mount_at


@contextlib.contextmanager
def mounted(base: Path, url: str, token: str) -> Iterator[str]:
    """Mount in the background; yield what was said on stderr."""
    point, file = base / "mnt", base / "token.txt"
    point.mkdir()
    file.write_text(token)
    file.chmod(0o600)
    command = [sys.executable, "-m", "attachfs", "mount", f"--url={url}", f"--token-file={file}"]
    environ = {**os.environ, "XDG_STATE_HOME": str(base / "state"), "XDG_CONFIG_HOME": str(base / "config")}
    done = subprocess.run(
        [*command, "--timeout=10", f"--cache-dir={base}/cache", str(point)],
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    try:
        assert done.returncode == 0, done.stderr
        assert mount_at(point) is not None
        yield done.stderr
    finally:
        if mount_at(point) is not None:
            subprocess.run([sys.executable, "-m", "attachfs", "umount", str(point)], check=True)


@pytest.fixture
def closed_port() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield int(taken.getsockname()[1])


def one_warning(said: str, *words: str) -> None:
    assert said.count("\n") == 1, said
    assert said.startswith("attachfs: warning: mounting anyway: ")
    assert all(word in said for word in words), said


def test_nothing_where_nothing_is_wrong(tmp_path: Path, ledger: DemoServer) -> None:
    assert ledger.token_file is not None
    with mounted(tmp_path, ledger.url, ledger.token_file.read_text()) as said:
        assert said == ""


def test_a_mount_warns_that_its_token_is_refused(tmp_path: Path, ledger: DemoServer) -> None:
    with mounted(tmp_path, ledger.url, "wr0ngt0ken") as said:
        one_warning(said, ledger.url, "refuses the credentials (401)", "has the token expired")
        assert "wr0ng" not in said


def test_a_mount_warns_that_the_port_is_closed(tmp_path: Path, closed_port: int) -> None:
    with mounted(tmp_path, f"http://127.0.0.1:{closed_port}", "t0ken") as said:
        one_warning(said, "Connection refused", "is the address right")


def test_a_mount_warns_that_the_host_is_unknown(tmp_path: Path) -> None:
    with mounted(tmp_path, "https://ledger.invalid", "t0ken") as said:
        one_warning(said, "ledger.invalid")


def test_a_mount_warns_that_it_speaks_https_to_an_http_server(tmp_path: Path, ledger: DemoServer) -> None:
    with mounted(tmp_path, ledger.url.replace("http:", "https:"), "t0ken") as said:
        one_warning(said, "is it http://?")


def test_a_mount_warns_that_the_service_does_not_answer(tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        mounted(tmp_path, f"http://127.0.0.1:{silent.getsockname()[1]}", "t0ken") as said,
    ):
        one_warning(said, "has not answered yet")


def test_a_mount_refuses_a_state_directory_that_is_open_to_others(tmp_path: Path, ledger: DemoServer) -> None:
    state = tmp_path / "state" / "attachfs"
    state.mkdir(parents=True)
    state.chmod(0o777)
    with (
        pytest.raises(AssertionError, match=f"chmod 700 {state}"),
        mounted(tmp_path, ledger.url, "t0ken"),
    ):
        pytest.fail("it is mounted")


@pytest.mark.skipif(Path("/dev/log").exists(), reason="this machine has a system log")
def test_logs_shows_the_log_of_a_mount_that_runs_and_of_one_that_has_ended(
    tmp_path: Path, ledger: DemoServer
) -> None:
    point = tmp_path / "mnt"
    environ = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state")}
    command = [sys.executable, "-m", "attachfs", "logs", str(point)]
    with mounted(tmp_path, ledger.url, "wr0ngt0ken"):
        shown = subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout
        assert "refuses the credentials" in shown
        assert f"{point} is mounted" in shown
    shown = subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout
    assert f"{point} is unmounted" in shown
