"""The benchmark's processes: servers, mounts, and what they cost. All end with the benchmark."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
_STARTS_WITHIN = 60.0  # seconds
_ENDS_WITHIN = 30.0
_TICKS = os.sysconf("SC_CLK_TCK")
_WITH_US = ["setpriv", "--pdeathsig", "TERM", "--"]  # ends with its parent, however that ends


class Failed(Exception):
    """A part of the benchmark did not do what it is there for. The text says what."""


class Ran(NamedTuple):
    """A command that has ended well: seconds it took, and CPU seconds it used."""

    seconds: float
    cpu: float
    output: str


def environment(base: Path) -> dict[str, str]:
    """Return an environment in which nothing of this user's settings is found."""
    foreign = ("ATTACHFS_", "DATATRAILS_", "RCLONE_", "XDG_")
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(foreign) and not name.lower().endswith("_proxy")
    }
    homes = {f"XDG_{name}_HOME": str(base / name.lower()) for name in ("STATE", "CONFIG", "CACHE")}
    return {**kept, **homes, "HOME": str(base), "PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8"}


def run(command: Sequence[str | os.PathLike[str]], *, feed: str | None = None) -> Ran:
    """Run a command to its end.

    Raises:
        Failed: its exit status was not 0.
    """
    began = time.perf_counter()
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL if feed is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        faults: list[bytes] = []
        assert process.stdout is not None
        assert process.stderr is not None
        listener = threading.Thread(target=lambda: faults.append(process.stderr.read()))  # type: ignore[union-attr]
        listener.start()
        if feed is not None:
            assert process.stdin is not None
            process.stdin.write(feed.encode())
            process.stdin.close()
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        listener.join()
    if process.returncode:
        said = b"".join(faults).decode(errors="replace").strip()[-500:]
        raise Failed(f"{command[0]} ended with status {process.returncode}: {said}")
    return Ran(seconds, usage.ru_utime + usage.ru_stime, output.decode(errors="replace"))


@contextlib.contextmanager
def server(module: str, *arguments: str) -> Iterator[int]:
    """Run one of our own servers to the end of the block; return its port."""
    command = [sys.executable, "-m", module, *arguments]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            if not line:
                raise Failed(f"{module} did not start")
            yield int(json.loads(line)["port"])
        except OSError as error:
            status = process.poll()
            raise Failed(f"{module}: {error}; exit status {status}") from error
        finally:
            process.stdin.close()
            _end(process)


def ask(port: int, path: str) -> Any:
    """Ask one of our own servers for JSON."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{port}/{path}", timeout=_STARTS_WITHIN) as answer:
        return json.loads(answer.read())


@dataclass(frozen=True)
class Mount:
    """A mount that is there, and the process behind it."""

    point: Path
    pid: int
    started: float  # seconds from its start to its first answer

    def cpu(self) -> float:
        """Return the CPU seconds used so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def memory(self, *, peak: bool = False) -> float:
        """Return the resident memory in MiB, now or at most so far."""
        wanted = "VmHWM:" if peak else "VmRSS:"
        for line in Path(f"/proc/{self.pid}/status").read_text(encoding="ascii").splitlines():
            if line.startswith(wanted):
                return int(line.split()[1]) / 1024
        raise Failed(f"process {self.pid} has no {wanted}")


@contextlib.contextmanager
def mount(command: Sequence[str], point: Path, base: Path) -> Iterator[Mount]:
    """Run a mount in the foreground to the end of the block.

    Raises:
        Failed: it did not come.
    """
    point.mkdir(parents=True, exist_ok=True)
    log = base / "log"
    began = time.perf_counter()
    with log.open("ab") as messages:
        process = subprocess.Popen(
            [*_WITH_US, *command],
            stdin=subprocess.DEVNULL,
            stdout=messages,
            stderr=messages,
            env=environment(base),
        )
    try:
        while not _answers(point):
            if process.poll() is not None or time.perf_counter() - began > _STARTS_WITHIN:
                said = log.read_text(encoding="utf-8", errors="replace").strip()[-1000:]
                raise Failed(f"{command[0]} did not mount: {said}")
            time.sleep(0.002)
        yield Mount(point, process.pid, time.perf_counter() - began)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        _end(process)
        if is_mounted(point):
            unmount(point)


def _answers(point: Path) -> bool:
    """Whether a mount is there and answers."""
    try:
        return point.stat().st_dev != point.parent.stat().st_dev
    except OSError:
        return False


def is_mounted(point: Path) -> bool:
    """Whether something is mounted there, alive or dead."""
    return str(point) in mounts_below(point)


def mounts_below(base: Path) -> list[str]:
    """Return the mount points at or below a directory, the latest first."""
    lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    points = [line.split()[4].encode().decode("unicode_escape") for line in lines]
    return [point for point in reversed(points) if Path(point).is_relative_to(base)]


def unmount(point: Path | str) -> None:
    """Take a mount away, whoever uses it."""
    command = ["umount", "-l"] if os.geteuid() == 0 else ["fusermount3", "-u", "-z"]
    subprocess.run([*command, str(point)], check=False)


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(_ENDS_WITHIN)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def drop_caches(what: int) -> None:
    """Drop what the kernel caches: 1 file contents, 2 names and inodes, 3 both.

    Raises:
        Failed: this is not root.
    """
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text(str(what), encoding="ascii")
    except OSError as error:
        raise Failed(f"the kernel's caches cannot be dropped ({error.strerror}): it takes root") from error
