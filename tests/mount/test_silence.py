"""A service that is stopped (SIGSTOP): connections are accepted, and nothing is answered."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from attachfs.demo.spawn import spawn_server
from tests.mount.conftest import Mounted, run_mount
from tests.mount.oracle import directories_and_files

pytestmark = pytest.mark.mount


def taken(work: Callable[[], object]) -> float:
    begun = time.monotonic()
    work()
    return time.monotonic() - begun


def failed(path: Path) -> tuple[int, float]:
    """Return the errno with which reading fails, and after how many seconds."""
    begun = time.monotonic()
    with pytest.raises(OSError, match="Errno") as caught:
        path.read_bytes()
    assert caught.value.errno is not None
    return caught.value.errno, time.monotonic() - begun


def test_cached_files_open_while_the_service_is_stopped_and_all_is_well_once_it_goes_on(
    tmp_path: Path,
) -> None:
    with spawn_server(["--token-file", str(tmp_path / "token")]) as server:
        good = sorted(path for path, one in directories_and_files(server)[1].items() if one.good)
        cached, others = good[:3], good[-2:]
        options = ["--metadata-ttl=1", "--timeout=8"]
        with run_mount(tmp_path, *options, server=server) as mounted:
            content = {path: (mounted.point / path).read_bytes() for path in cached}
            time.sleep(1.5)  # the kernel's clock and the mount's: what is known is over
            os.kill(server.pid, signal.SIGSTOP)
            try:
                silent(mounted, content, others)
            finally:
                os.kill(server.pid, signal.SIGCONT)
            deadline = time.monotonic() + 40
            while time.monotonic() < deadline:
                if mounted.sh(f"cat {others[0]} {others[1]} >/dev/null", check=False).returncode == 0:
                    break
            assert (mounted.point / others[0]).read_bytes()
            for path, expected in content.items():
                assert (mounted.point / path).read_bytes() == expected
            while mounted.status()["stale"] and time.monotonic() < deadline:
                (mounted.point / cached[0]).read_bytes()
                time.sleep(0.2)
            assert mounted.status()["stale"] is False
            assert time.monotonic() < deadline + 1
    said = [line for line in mounted.log if "serving stale metadata" in line]
    assert len(said) == 1


def silent(mounted: Mounted, content: dict[str, bytes], others: list[str]) -> None:
    first, *rest = content
    assert taken((mounted.point / first).read_bytes) < 4
    for path in rest:
        assert taken((mounted.point / path).read_bytes) < 0.5
    for path, expected in content.items():
        assert (mounted.point / path).read_bytes() == expected
    outage = mounted.status()["outage"]
    assert outage["since"] is not None
    assert outage["oldest_s"] >= 1
    code, seconds = failed(mounted.point / others[0])
    assert code in (errno.ETIMEDOUT, errno.EHOSTUNREACH)
    assert seconds < 12
    code, seconds = failed(mounted.point / others[1])
    assert code == errno.EHOSTUNREACH
    assert seconds < 0.5


def test_a_mount_whose_service_is_stopped_shows_what_an_earlier_one_saw(tmp_path: Path) -> None:
    with spawn_server(["--token-file", str(tmp_path / "token")]) as server:
        good = sorted(path for path, one in directories_and_files(server)[1].items() if one.good)
        with run_mount(tmp_path, server=server) as mounted:
            content = (mounted.point / good[0]).read_bytes()
            listed = mounted.sh("ls assets").stdout
        os.kill(server.pid, signal.SIGSTOP)
        try:
            with run_mount(tmp_path, "--timeout=8", server=server) as mounted:
                assert mounted.sh("ls assets").stdout == listed
                assert (mounted.point / good[0]).read_bytes() == content
                told = subprocess.run(
                    [sys.executable, "-m", "attachfs", "status", str(mounted.point)],
                    capture_output=True,
                    text=True,
                    check=True,
                ).stdout
                assert "silent since" in told or "out of reach since" in told
        finally:
            os.kill(server.pid, signal.SIGCONT)


def missing(path: Path) -> int:
    """Return the errno with which a name that does not exist is looked up."""
    with pytest.raises(OSError, match="Errno") as caught:
        path.lstat()
    assert caught.value.errno is not None
    return caught.value.errno


def test_a_name_that_an_old_record_lacks_is_not_said_not_to_exist(tmp_path: Path) -> None:
    with spawn_server(["--token-file", str(tmp_path / "token")]) as server:
        good = sorted(path for path, one in directories_and_files(server)[1].items() if one.good)
        with run_mount(tmp_path, "--metadata-ttl=1", "--timeout=8", server=server) as mounted:
            found = mounted.sh("find by-name -type l").stdout.splitlines()
            links = {os.path.realpath(mounted.point / link): mounted.point / link for link in found}
            event_file = next(path for path in good if "/events/" in path)
            asset_file = next(path for path in good if "/events/" not in path)
            known = [links[str(mounted.point / path)] for path in (asset_file, event_file)]
            content = [link.read_bytes() for link in known]
            time.sleep(1.5)  # the kernel's clock and the mount's: what is known is over
            os.kill(server.pid, signal.SIGSTOP)
            try:
                for _ in range(2):  # the second time, the silence is known
                    for link in known:
                        error = missing(link.with_name("added since.jpg"))
                        assert error in (errno.ETIMEDOUT, errno.EHOSTUNREACH)
                assert [link.read_bytes() for link in known] == content
            finally:
                os.kill(server.pid, signal.SIGCONT)
            ends = time.monotonic() + 40
            for link in known:
                while (error := missing(link.with_name("added since.jpg"))) != errno.ENOENT:
                    assert error in (errno.ETIMEDOUT, errno.EHOSTUNREACH)
                    assert time.monotonic() < ends
