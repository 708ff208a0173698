"""Whatever goes wrong behind a mount, it lives: each task and handler is made to raise something foreign."""

import contextlib
import errno
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from attachfs.demo.spawn import DemoServer
from tests.mount.conftest import Mounted, run_mount
from tests.services.threaded_ledger import Handler, ScriptedLedger, serve

# In the mount's process: this function raises what no part of attachfs expects, the first `times` times.
_BREAK = """
import functools, importlib, inspect
def _break(target, times):
    module, _, name = target.partition(":")
    owner = importlib.import_module(module)
    *path, last = name.split(".")
    for one in path:
        owner = getattr(owner, one)
    works, left = getattr(owner, last), [None] * times
    @functools.wraps(works)
    def breaks(*args, **kwargs):
        if left:
            left.pop()
            raise UnicodeError("label empty or too long")
        return works(*args, **kwargs)
    @functools.wraps(works)
    async def breaks_async(*args, **kwargs):
        return await breaks(*args, **kwargs)
    setattr(owner, last, breaks_async if inspect.iscoroutinefunction(works) else breaks)
_break({target!r}, {times})
"""
_ALWAYS = 10**6
# What breaks, and what the log says has failed.
TASKS = {
    "attachfs.mount.origin:try_out": "trying the ledger out",
    "attachfs.service.client:Client.watch": "watching whether the ledger answers",
    "attachfs.cache.scan:Indexer._learn": "the index of the cache",
    "attachfs.fuse.kernel_cache:KernelCache.trim_dentries": "trimming the kernel's entries",
    "attachfs.fuse.deadlines:RequestDeadlines.watch": "looking for killed callers",
    "attachfs.ledger.offline:AnswerStore.keep_writing": "writing records down for --offline",
    "attachfs.fuse.readahead:ReadAhead._asset": "reading ahead",
}
HANDLERS = ("lookup", "opendir", "readdir", "open", "read", "release", "releasedir", "statfs")


@contextlib.contextmanager
def broken(
    base: Path, ledger: DemoServer, target: str, times: int = _ALWAYS, **environ: str
) -> Iterator[Mounted]:
    prelude = _BREAK.format(target=target, times=times)
    with run_mount(base, server=ledger, prelude=prelude, tracebacks=True, environ=environ) as mounted:
        yield mounted
        assert mounted.process.poll() is None


def works(mounted: Mounted, ledger: DemoServer) -> None:
    assert (mounted.point / ledger.story["pdf"]).read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(("target", "words"), TASKS.items())
def test_a_background_task_that_raises_something_foreign_costs_a_line_in_the_log(
    tmp_path: Path, ledger: DemoServer, target: str, words: str
) -> None:
    with broken(tmp_path, ledger, target, 1) as mounted:
        mounted.sh("ls -lR assets >/dev/null", check=False)  # some of the demo is refused
        line = mounted.wait_for_log(f"{words} failed (UnicodeError: label empty or too long)")
        assert " ERROR " in line
        works(mounted, ledger)


# What only some mounts do: what breaks, what the log says has failed, and the options that it takes.
OPTIONAL = {
    "attachfs.mount.custody:CustodyRecorder.keep_synced": (
        "bringing the custody log to the disk",
        {"ATTACHFS_CUSTODY_LOG": "{base}/custody"},
    ),
    "attachfs.mount.metrics:serve_metrics": ("serving metrics", {"ATTACHFS_METRICS": "{port}"}),
    "attachfs.shared_cache.uploads:Uploader.run": (
        "filling the shared cache",
        {"ATTACHFS_SHARED_CACHE": "http://127.0.0.1:9/blobs", "ATTACHFS_SHARED_CACHE_WRITE": "true"},
    ),
}


@pytest.mark.parametrize("target", OPTIONAL)
def test_a_background_task_that_only_some_mounts_have_ends_nothing_either(
    tmp_path: Path, ledger: DemoServer, target: str
) -> None:
    words, options = OPTIONAL[target]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environ = {name: value.format(base=tmp_path, port=port) for name, value in options.items()}
    with broken(tmp_path, ledger, target, 1, **environ) as mounted:
        line = mounted.wait_for_log(
            f"{words} failed (UnicodeError: label empty or too long): it starts again"
        )
        assert " ERROR " in line
        works(mounted, ledger)


def test_figures_that_cannot_be_had_end_nothing(tmp_path: Path, ledger: DemoServer) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        address = str(tmp_path / "notify")
        manager.bind(address)
        manager.settimeout(30)
        target = "attachfs.mount.status:StatusReport.as_dict"
        with broken(tmp_path, ledger, target, NOTIFY_SOCKET=address) as mounted:
            assert manager.recv(4096).startswith(b"READY=1")
            os.kill(mounted.process.pid, signal.SIGUSR1)
            mounted.wait_for_log("SIGUSR1 failed (UnicodeError: label empty or too long)")
            with pytest.raises(OSError, match=os.strerror(errno.EIO)):
                mounted.status()
            works(mounted, ledger)
            os.kill(mounted.process.pid, signal.SIGHUP)
            assert manager.recv(4096).startswith(b"RELOADING=1")
            assert manager.recv(4096).startswith(b"READY=1")


def test_a_part_of_the_figures_that_cannot_be_had_is_left_out(tmp_path: Path, ledger: DemoServer) -> None:
    with broken(tmp_path, ledger, "attachfs.ledger.offline:AnswerStore.stats") as mounted:
        status = mounted.status()
        assert status["memory"] == {}
        assert "unreachable_since" in status["requests"]
        mounted.wait_for_log("the stats lack memory: UnicodeError")


@pytest.mark.parametrize(
    "target", ["attachfs.mount.signals:unmount.users", "attachfs.mount.signals:mount_at"]
)
def test_a_mount_that_is_to_end_ends_even_if_nobody_can_say_who_uses_it(
    tmp_path: Path, ledger: DemoServer, target: str
) -> None:
    with broken(tmp_path, ledger, target) as mounted:
        works(mounted, ledger)
    assert mounted.process.returncode == 0
    assert any(line.endswith("is unmounted") for line in mounted.log)


def test_credentials_that_cannot_be_read_again_leave_those_in_use(tmp_path: Path, ledger: DemoServer) -> None:
    assert ledger.token_file is not None
    token = tmp_path / "token.txt"
    token.write_bytes(ledger.token_file.read_bytes())
    token.chmod(0o600)
    with run_mount(tmp_path, f"--url={ledger.url}", f"--token-file={token}", tracebacks=True) as mounted:
        token.write_bytes(b"\xff\xfe\x00" * 100_000)
        os.kill(mounted.process.pid, signal.SIGHUP)
        mounted.wait_for_log("names and attributes are forgotten")
        token.unlink()
        token.mkdir()
        os.kill(mounted.process.pid, signal.SIGHUP)
        mounted.wait_for_log("the credentials in use are kept")
        works(mounted, ledger)


def test_a_handler_that_raises_something_foreign_answers_eio(tmp_path: Path, ledger: DemoServer) -> None:
    # What the guard itself needs to name the path is broken as well.
    prelude = f"""
from pathlib import Path
from attachfs.fuse import guard, operations
def _broken_path(*_):
    raise UnicodeError("label empty or too long")
def _break_now_and_then(name):
    works = getattr(operations.Filesystem, name)
    async def fails(self, first, *args):
        raise UnicodeError("label empty or too long")
    fails.__name__ = name
    fails = guard.guard(_broken_path)(fails)
    async def now_and_then(self, first, *args):
        broken = Path({str(tmp_path / "broken")!r}).read_text() == name
        return await (fails if broken else works)(self, first, *args)
    setattr(operations.Filesystem, name, now_and_then)
for _name in {HANDLERS}:
    _break_now_and_then(_name)
"""
    broken, file = tmp_path / "broken", ledger.story["pdf"]
    broken.write_text("")
    with run_mount(tmp_path, server=ledger, prelude=prelude, tracebacks=True) as mounted:
        for handler in HANDLERS:
            broken.write_text(handler)
            mounted.sh(f"cat {file} | head -c 5; ls -l assets; stat -f .; ls nowhere", check=False)
            mounted.wait_for_log(f"{handler} failed")
            broken.write_text("")
            works(mounted, ledger)
            os.kill(mounted.process.pid, signal.SIGHUP)  # the kernel shall ask again
            mounted.wait_for_log("names and attributes are forgotten")
            mounted.log.clear()


def test_an_answer_that_points_to_a_host_that_cannot_be_is_an_error_and_no_more(tmp_path: Path) -> None:
    ledger = ScriptedLedger()
    file = ledger.add("file", b"x" * 100)

    def elsewhere(request: Handler) -> bool:
        request.send_response(302)
        request.send_header("Location", "http://xn--a/archivist/v2/")
        request.send_header("Content-Length", "0")
        request.end_headers()
        return True

    token = tmp_path / "token.txt"
    token.write_text(ledger.token)
    token.chmod(0o600)
    with serve(ledger, token) as served, run_mount(tmp_path, server=served, tracebacks=True) as mounted:
        mounted.sh("ls -l assets/*")
        ledger.bend["info"] = elsewhere
        os.kill(mounted.process.pid, signal.SIGHUP)
        mounted.wait_for_log("names and attributes are forgotten")
        assert mounted.sh(f"ls -l {Path(file).parent}; cat {file}", check=False).returncode != 0
        del ledger.bend["info"]
        os.kill(mounted.process.pid, signal.SIGHUP)
        assert mounted.process.poll() is None
