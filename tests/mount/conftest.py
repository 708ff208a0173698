"""Real mounts: the program as a process of its own, on the real kernel, and a demo ledger over a socket."""

import contextlib
import functools
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from attachfs.demo.spawn import DemoServer, spawn_server
from attachfs.mount.mountinfo import mount_at
from tests.services.threaded_ledger import Served

ENDS_WITHIN = 30  # seconds
WATCHED = Path(__file__).parent / "watched"  # has a sitecustomize, which Python imports at its start


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this directory uses a real mount."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.mount)


@dataclass
class Mounted:
    """A mount and its process. `log` grows while it runs."""

    point: Path
    process: subprocess.Popen[str]
    server: DemoServer | Served | None
    cache: Path
    archive: Path | None = None
    log: list[str] = field(default_factory=list)

    def sh(self, command: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a shell command in the mount point."""
        return subprocess.run(
            ["bash", "-c", command], cwd=self.point, capture_output=True, text=True, timeout=120, check=check
        )

    def status(self) -> dict[str, Any]:
        """Return the running mount's figures."""
        found: dict[str, Any] = json.loads(os.getxattr(self.point, "user.attachfs.status"))
        return found

    def counts(self) -> dict[str, int]:
        """Return how many requests of each kind the ledger has seen since the last reset."""
        assert isinstance(self.server, DemoServer)
        counts: dict[str, int] = self.server.requests()["counts"]
        return counts

    def wait_for_log(self, words: str) -> str:
        """Wait until a line of the log has these words; return it."""
        for _ in range(ENDS_WITHIN * 50):
            for line in list(self.log):
                if words in line:
                    return line
            threading.Event().wait(0.02)
        raise AssertionError(f"{words!r} is not in {self.log}")

    def cached(self) -> list[Path]:
        """Return the blobs on the disk."""
        return [path for path in (self.cache / "blobs").rglob("*") if path.is_file()]


def watched(report: Path) -> dict[str, str]:
    """Return the environment in which a mount writes to `report` what has blocked its event loop."""
    path = [str(WATCHED), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(path), "LOOP_WATCHDOG_REPORT": str(report)}


Mount = Callable[..., contextlib.AbstractContextManager[Mounted]]


@contextlib.contextmanager
def run_mount(
    base: Path,
    *options: str,
    server: DemoServer | Served | None = None,
    environ: dict[str, str] | None = None,
    prelude: str = "",
    tracebacks: bool = False,
    archive: Path | None = None,
    may_block: bool = False,
) -> Iterator[Mounted]:
    """Mount below `base`, wait until it answers, and unmount at the end: nothing may have blocked its loop.

    Args:
        base: where everything of it is kept.
        options: of `attachfs mount`.
        server: the ledger.
        environ: more environment variables.
        prelude: Python code that runs in the mount's process before anything else.
        tracebacks: whether the log may have some.
        archive: a bag that is mounted instead; `server` then only counts what it is asked all the same.
        may_block: whether the event loop may be blocked; see watchdog.py.
    """
    point, cache, report = base / "mnt", base / "cache", base / "blocked-the-loop"
    point.mkdir(exist_ok=True)
    arguments = [f"--cache-dir={cache}" if archive is None else f"--archive={archive}", *options]
    if server is not None and archive is None:
        arguments += [f"--url={server.url}"]
        arguments += [f"--token-file={server.token_file}"] if server.token_file else ["--no-auth"]
    program = (
        ["-c", f"{prelude}\nfrom attachfs.cli.main import main\nmain()"] if prelude else ["-m", "attachfs"]
    )
    process = subprocess.Popen(
        [sys.executable, *program, "mount", "-f", *arguments, str(point)],
        stderr=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "XDG_STATE_HOME": str(base / "state"),
            "XDG_CONFIG_HOME": str(base / "config"),
            **watched(report),
            **(environ or {}),
        },
    )
    mounted = Mounted(point, process, server, cache, archive)
    ready = threading.Event()

    def listen() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            mounted.log.append(line.rstrip("\n"))
            if re.search(r' is mounted("}?)?$', line):
                ready.set()
        ready.set()

    listener = threading.Thread(target=listen)
    listener.start()
    try:
        assert ready.wait(ENDS_WITHIN), "the mount did not answer"
        assert process.poll() is None, mounted.log
        yield mounted
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(ENDS_WITHIN)
        except subprocess.TimeoutExpired:
            process.kill()
            subprocess.run(["umount", "-l", str(point)], check=False)
            raise
        finally:
            listener.join(ENDS_WITHIN)
            if process.stderr is not None:
                process.stderr.close()
            if mount_at(point) is not None:  # it was killed, and the test did not come to clear it
                subprocess.run(["umount", "-l", str(point)], check=False)
    assert process.returncode in (0, -signal.SIGKILL), mounted.log
    assert tracebacks or not any("Traceback" in line for line in mounted.log), "\n".join(mounted.log)
    assert not report.exists() or may_block, report.read_text()


@pytest.fixture(scope="session")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoServer]:
    """Serve the demo ledger with its stories, shared by the whole session."""
    token = tmp_path_factory.mktemp("token") / "token.txt"
    with spawn_server(["--token-file", str(token)]) as server:
        yield server


@pytest.fixture
def mount(tmp_path: Path, ledger: DemoServer) -> Mount:
    """Return a function that mounts the demo ledger with an empty cache."""

    @contextlib.contextmanager
    def start(*options: str, **kwargs: Any) -> Iterator[Mounted]:
        kwargs.setdefault("server", ledger)
        with run_mount(tmp_path, *options, **kwargs) as mounted:
            ledger.reset()  # what mounting itself asks is not counted
            yield mounted

    return start


@pytest.fixture(scope="session")
def bag(tmp_path_factory: pytest.TempPathFactory, ledger: DemoServer) -> Path:
    """Export the demo ledger, once for the whole session."""
    base = tmp_path_factory.mktemp("bag")
    with run_mount(base, server=ledger) as mounted:
        command = [sys.executable, "-m", "attachfs", "export", str(mounted.point), str(base / "ledger")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 1, done.stderr  # the story has files that do not open
    return base / "ledger"


@pytest.fixture(params=["ledger", "archive"])
def either(request: pytest.FixtureRequest, mount: Mount) -> Mount:
    """Return a function that mounts the demo ledger, or the bag to which it was exported."""
    if request.param == "ledger":
        return mount
    return functools.partial(mount, archive=request.getfixturevalue("bag"))


class Program:
    """The program, at home in a directory of its own."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.report = base / "blocked-the-loop"  # of the mounts that it starts
        self.environ = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("ATTACHFS_", "DATATRAILS_"))},
            "HOME": str(base),
            "XDG_STATE_HOME": str(base / "state"),
            "XDG_CACHE_HOME": str(base / "xdg-cache"),
            "XDG_CONFIG_HOME": str(base / "config"),
            "ATTACHFS_CACHE_MIN_FREE": "0",  # however full this machine's disk is
            **watched(self.report),
        }

    def __call__(self, *arguments: object, check: int | None = None) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "attachfs", *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=60,
            env=self.environ,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert "Traceback" not in done.stderr, done.stderr
        if check is not None:
            assert done.returncode == check, done.stdout + done.stderr
        return done

    def doctor(self, *arguments: object) -> tuple[int, dict[str, dict[str, str]]]:
        """Return the exit code and the findings by what was checked, as if ours were the only mounts."""
        done = self("doctor", "--json", *arguments)
        findings = [json.loads(line) for line in done.stdout.splitlines()]
        assert done.returncode == exit_code(findings), done.stdout
        ours = [one for one in findings if one["check"] != "mount" or str(self.base) in one["detail"]]
        return exit_code(ours), {one["check"]: one for one in ours}


def exit_code(findings: list[dict[str, str]]) -> int:
    states = {one["state"] for one in findings}
    return 1 if "WRONG" in states else 3 if "unknown" in states else 0


@pytest.fixture
def attachfs(tmp_path: Path) -> Iterator[Program]:
    """Return the program, at home in the test's own directory. Its mounts may not block their loops."""
    program = Program(tmp_path)
    yield program
    assert not program.report.exists(), program.report.read_text()
