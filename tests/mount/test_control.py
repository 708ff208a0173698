"""Signals, busy and dead mounts, and what a service manager is told: real processes on the real kernel."""

import contextlib
import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from attachfs.demo.spawn import DemoServer
from attachfs.errors import AttachfsError
from attachfs.mount import probe, unmount
from attachfs.mount.mountinfo import mount_at
from attachfs.mount.probe import State
from attachfs.namespace.nodes import Place
from tests.mount.conftest import ENDS_WITHIN, Mount, Mounted

TOP = sorted(place.value for place in Place if place.value)


def attachfs(
    *arguments: str | Path, environ: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "attachfs", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **(environ or {})},
    )


def background(base: Path, ledger: DemoServer, *more: str) -> subprocess.CompletedProcess[str]:
    return attachfs(
        "mount",
        f"--url={ledger.url}",
        f"--token-file={ledger.token_file}",
        f"--cache-dir={base}/cache",
        *more,
        base / "mnt",
        environ={"XDG_STATE_HOME": str(base / "state"), "XDG_CONFIG_HOME": str(base / "config")},
    )


def daemon_of(point: Path) -> int:
    pid = json.loads(os.getxattr(point, "user.attachfs.status"))["pid"]
    assert isinstance(pid, int)
    return pid


def gone(pid: int) -> None:
    """Wait until a process that is not our child has ended."""
    with contextlib.suppress(ProcessLookupError):
        watch = os.pidfd_open(pid)
        try:
            assert select.select([watch], [], [], ENDS_WITHIN)[0]
        finally:
            os.close(watch)


def logged(mounted: Mounted, words: str) -> None:
    """Wait until the log has these words."""
    done = threading.Event()
    for _ in range(ENDS_WITHIN * 50):
        if any(words in line for line in list(mounted.log)):
            return
        done.wait(0.02)
    raise AssertionError(f"{words!r} is not in {mounted.log}")


@pytest.fixture
def point(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "mnt"
    path.mkdir()
    yield path
    while mount_at(path) is not None:
        subprocess.run(["umount", "-l", path], check=True)


class TestUnmounting:
    def test_who_uses_it_is_named_and_lazily_it_goes(
        self, tmp_path: Path, point: Path, ledger: DemoServer
    ) -> None:
        assert background(tmp_path, ledger).returncode == 0
        pid = daemon_of(point)
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE, cwd=point) as holder:
            there = mount_at(point)
            assert there is not None
            busy = attachfs("umount", point)
            assert busy.returncode == 1
            assert f"used by cat (pid {holder.pid}, its working directory)" in busy.stderr
            assert f"attachfs umount --lazy {point}" in busy.stderr
            assert [user.pid for user in unmount.users(there)] == [holder.pid]
            assert attachfs("umount", "--lazy", point).returncode == 0
            assert mount_at(point) is None
            assert holder.stdin is not None
            holder.stdin.close()
        gone(pid)

    def test_an_open_file_is_named(self, tmp_path: Path, point: Path, ledger: DemoServer) -> None:
        assert background(tmp_path, ledger).returncode == 0
        file = point / ledger.story["pdf"]
        with file.open("rb"):
            there = mount_at(point)
            assert there is not None
            with subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=()) as other:
                users = unmount.users(there)
                assert other.pid not in [user.pid for user in users]
            with file.open("rb") as inherited, subprocess.Popen(["sleep", "1000"], stdin=inherited) as holder:
                assert f"open: {file}" in [
                    user.what for user in unmount.users(there) if user.pid == holder.pid
                ]
                holder.kill()
        assert attachfs("umount", point).returncode == 0

    def test_unmount_and_mount_again_at_once(self, tmp_path: Path, point: Path, ledger: DemoServer) -> None:
        for _ in range(3):
            assert background(tmp_path, ledger).returncode == 0
            subprocess.run(["umount", point], check=True)

    def test_a_stopped_daemon_does_not_hang_umount(
        self, tmp_path: Path, point: Path, ledger: DemoServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert background(tmp_path, ledger).returncode == 0
        pid = daemon_of(point)
        os.kill(pid, signal.SIGSTOP)
        try:
            assert probe.probe(point, within=0.2)[0] is State.HUNG
            monkeypatch.setattr(probe, "ANSWERS_WITHIN", 0.2)
            with pytest.raises(AttachfsError, match="does not answer"):
                unmount.unmount(point)
            assert len(probe._unreaped) == 1  # one process waits there, however often it is asked
        finally:
            os.kill(pid, signal.SIGCONT)
        gone(next(iter(probe._unreaped)))
        assert probe.probe(point)[0] is State.ALIVE
        assert probe._unreaped == {}
        assert attachfs("umount", point).returncode == 0

    def test_mounting_on_a_mount_that_hangs_says_so_and_does_not_wait(
        self, tmp_path: Path, point: Path, ledger: DemoServer
    ) -> None:
        assert background(tmp_path, ledger).returncode == 0
        pid = daemon_of(point)
        os.kill(pid, signal.SIGSTOP)
        try:
            again = background(tmp_path, ledger)
            assert again.returncode == 2
            assert f"does not answer; first: attachfs umount --lazy {point}" in again.stderr
        finally:
            os.kill(pid, signal.SIGCONT)
        assert attachfs("umount", point).returncode == 0

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root may bind")
    def test_a_part_that_is_bound_elsewhere_is_no_mount_of_its_own_and_is_named_if_it_holds(
        self, tmp_path: Path, point: Path, ledger: DemoServer
    ) -> None:
        assert background(tmp_path, ledger).returncode == 0
        pid, part = daemon_of(point), tmp_path / "part"
        part.mkdir()
        subprocess.run(["mount", "--bind", point / "assets", part], check=True)
        try:
            assert part not in [mount.point for mount in unmount.ours()]
            told = attachfs("status", "--json", part)
            assert json.loads(told.stdout)["pid"] == pid, told.stderr
            busy = attachfs("umount", point)
            assert busy.returncode == 1
            assert f"it is still mounted on {part} (umount there too)" in busy.stderr
        finally:
            subprocess.run(["umount", part], check=True)
        gone(pid)

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root may make a mount namespace here")
    def test_a_mount_namespace_that_holds_it_is_named(
        self, tmp_path: Path, point: Path, ledger: DemoServer
    ) -> None:
        assert background(tmp_path, ledger).returncode == 0
        pid = daemon_of(point)
        command = ["unshare", "--mount", "sh", "-c", "echo; exec cat"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
            assert holder.stdout is not None
            assert holder.stdin is not None
            holder.stdout.readline()
            busy = attachfs("umount", point)
            assert busy.returncode == 1
            assert f"in the mount namespace of cat (pid {holder.pid})" in busy.stderr
            holder.stdin.close()
        gone(pid)

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_a_signal_ends_it_and_names_who_used_it(self, mount: Mount, number: signal.Signals) -> None:
        with (
            mount() as mounted,
            subprocess.Popen(["cat"], stdin=subprocess.PIPE, cwd=mounted.point) as holder,
        ):
            mounted.process.send_signal(number)
            assert mounted.process.wait(ENDS_WITHIN) == 0
            assert mount_at(mounted.point) is None
            assert holder.stdin is not None
            holder.stdin.close()
        logged(mounted, f"used by cat (pid {holder.pid}, its working directory), and detached anyway")

    def test_fusermount_ends_the_mount_process_with_zero(self, mount: Mount) -> None:
        with mount() as mounted:
            subprocess.run(["fusermount3", "-u", mounted.point], check=True)
            assert mounted.process.wait(ENDS_WITHIN) == 0


class TestDeadMounts:
    def crash(self, base: Path, point: Path, ledger: DemoServer) -> None:
        assert background(base, ledger).returncode == 0
        pid = daemon_of(point)
        os.kill(pid, signal.SIGKILL)
        gone(pid)
        assert probe.probe(point)[0] is State.DEAD

    def test_our_own_is_replaced(self, tmp_path: Path, point: Path, ledger: DemoServer) -> None:
        self.crash(tmp_path, point, ledger)
        again = background(tmp_path, ledger, f"--log-file={tmp_path}/log")
        assert again.returncode == 0, again.stderr
        assert sorted(path.name for path in point.iterdir()) == TOP
        assert "held a dead mount" in (tmp_path / "log").read_text()
        assert attachfs("umount", point).returncode == 0
        assert mount_at(point) is None

    def test_a_dead_mount_of_another_source_is_left_alone(
        self, tmp_path: Path, point: Path, ledger: DemoServer
    ) -> None:
        self.crash(tmp_path, point, ledger)
        other = background(tmp_path, ledger, "--fsname=another")
        assert other.returncode == 2
        assert "dead mount" in other.stderr
        assert attachfs("umount", point).returncode == 0

    def test_a_mount_of_another_kind_or_alive_is_left_alone(
        self, tmp_path: Path, point: Path, ledger: DemoServer
    ) -> None:
        assert not unmount.clear_dead(point, ledger.url)
        assert background(tmp_path, ledger).returncode == 0
        assert not unmount.clear_dead(point, ledger.url)
        again = background(tmp_path, ledger)
        assert again.returncode == 2
        assert "mounted already" in again.stderr
        assert attachfs("umount", point).returncode == 0


class TestSignals:
    def test_sighup_reads_the_configuration_and_drops_what_is_known(
        self, mount: Mount, tmp_path: Path
    ) -> None:
        file = tmp_path / "config.toml"
        file.write_text("metadata-ttl = 3600\n")
        with mount(f"--config={file}") as mounted:
            mounted.sh("ls -lR assets >/dev/null", check=False)
            before = mounted.counts()
            mounted.sh("ls -lR assets >/dev/null", check=False)
            assert mounted.counts() == before
            file.write_text('metadata-ttl = 1800\nlog-level = "debug"\ncache-size = "1G"\n')
            mounted.process.send_signal(signal.SIGHUP)
            logged(mounted, "names and attributes are forgotten")
            logged(mounted, "metadata-ttl is now 1800.0")
            logged(mounted, "only a new mount will use it: cache-size")
            mounted.sh("ls -lR assets >/dev/null", check=False)
            after = mounted.counts()
            assert after["assets"] > before["assets"]
            assert after["info"] > before["info"]

    def test_sighup_with_a_mistake_in_the_file_changes_nothing(self, mount: Mount, tmp_path: Path) -> None:
        file = tmp_path / "config.toml"
        file.write_text("timeout = 50\n")
        with mount(f"--config={file}") as mounted:
            file.write_text("timeout = 40\nscan-polcy = 1\n")
            mounted.process.send_signal(signal.SIGHUP)
            logged(
                mounted,
                f"nothing was changed: {file}:2: scan-polcy: no such key; did you mean 'scan-policy'?",
            )
            logged(mounted, "names and attributes are forgotten")
            assert mounted.sh("ls").stdout.split() == TOP

    def test_sighup_takes_another_token_and_keeps_a_good_one(
        self, mount: Mount, ledger: DemoServer, tmp_path: Path
    ) -> None:
        assert ledger.token_file is not None
        file, token = tmp_path / "config.toml", tmp_path / "token"
        file.write_text("")
        token.write_text("not a token at all")
        token.chmod(0o600)
        with mount(f"--config={file}") as mounted:
            file.write_text(f'token-file = "{token}"\n')
            mounted.process.send_signal(signal.SIGHUP)
            logged(mounted, "names and attributes are forgotten")
            assert mounted.sh("ls assets").returncode == 0

    def test_sighup_leaves_working_directories_and_open_files_alone(
        self, mount: Mount, ledger: DemoServer
    ) -> None:
        with mount() as mounted, (mounted.point / ledger.story["pdf"]).open("rb") as file:
            before = file.read()
            for folder in ("assets", str(Path(ledger.story["pdf"]).parent)):
                script = "echo; read -r _; pwd -P; ls >/dev/null && echo fine"
                with subprocess.Popen(
                    ["bash", "-c", script],
                    cwd=mounted.point / folder,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                ) as shell:
                    assert shell.stdout is not None
                    shell.stdout.readline()
                    told = len([line for line in mounted.log if "are forgotten" in line])
                    mounted.process.send_signal(signal.SIGHUP)
                    for _ in range(ENDS_WITHIN * 50):
                        if len([line for line in mounted.log if "are forgotten" in line]) > told:
                            break
                        threading.Event().wait(0.02)
                    said, _ = shell.communicate("go\n", timeout=ENDS_WITHIN)
                    assert said.split() == [str(mounted.point / folder), "fine"]
            file.seek(0)
            assert file.read() == before

    def test_sighup_from_a_terminal_that_has_gone_ends_it(
        self, tmp_path: Path, point: Path, ledger: DemoServer
    ) -> None:
        pid, terminal = pty.fork()
        if pid == 0:
            os.environ.update(
                XDG_STATE_HOME=str(tmp_path / "state"), XDG_CONFIG_HOME=str(tmp_path / "config")
            )
            options = [
                f"--url={ledger.url}",
                f"--token-file={ledger.token_file}",
                f"--cache-dir={tmp_path}/c",
            ]
            command = [sys.executable, "-m", "attachfs", "mount", "-f", *options, str(point)]
            os.execv(sys.executable, command)
        said = b""
        while b"is mounted" not in said:
            assert select.select([terminal], [], [], ENDS_WITHIN)[0], said
            said += os.read(terminal, 65536)
        os.kill(pid, signal.SIGHUP)  # the terminal is still there
        while b"are forgotten" not in said:
            assert select.select([terminal], [], [], ENDS_WITHIN)[0], said
            said += os.read(terminal, 65536)
        assert mount_at(point) is not None
        os.close(terminal)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert mount_at(point) is None

    def test_sigusr1_writes_the_figures_into_the_log(self, mount: Mount) -> None:
        with mount() as mounted:
            mounted.process.send_signal(signal.SIGUSR1)
            logged(mounted, "status: {")
            line = next(line for line in mounted.log if "status: {" in line)
            assert json.loads(line.partition("status: ")[2])["pid"] == mounted.process.pid


class TestServiceManager:
    @pytest.mark.parametrize("abstract", [False, True])
    def test_the_service_manager_is_told_when_it_is_mounted(
        self, mount: Mount, tmp_path: Path, *, abstract: bool
    ) -> None:
        name = f"@attachfs-test-{os.getpid()}-{tmp_path.name}" if abstract else str(tmp_path / "notify")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind("\0" + name[1:] if abstract else name)
            manager.settimeout(ENDS_WITHIN)

            def next_with(key: str) -> dict[str, str]:
                while True:
                    lines = manager.recv(4096).decode().split("\n")
                    fields = dict(line.split("=", 1) for line in lines)
                    if key in fields:
                        return fields

            with mount(environ={"NOTIFY_SOCKET": name}) as mounted:
                ready = next_with("READY")
                assert ready["MAINPID"] == str(mounted.process.pid)
                assert ready["STATUS"].startswith(f"{mounted.point}: http://")
                mounted.process.send_signal(signal.SIGHUP)
                assert int(next_with("RELOADING")["MONOTONIC_USEC"]) > 0
                assert next_with("READY")["READY"] == "1"
            assert next_with("STOPPING")["STATUS"] == "unmounting"


def test_the_log_as_json(mount: Mount, ledger: DemoServer) -> None:
    with mount("--log-format=json") as mounted:
        refused = mounted.point / ledger.story["tampered"]
        with pytest.raises(OSError, match="Bad message"):
            refused.read_bytes()
    lines = [json.loads(line) for line in mounted.log]
    assert all({"time", "level", "logger", "message"} <= set(line) for line in lines)
    fault = next(line for line in lines if line["level"] == "error")
    assert (fault["path"], fault["errno"]) == (ledger.story["tampered"], 74)
