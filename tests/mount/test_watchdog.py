"""The event loop is never blocked for long, whatever it is asked."""

import contextlib
import json
import os
import signal
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from attachfs.demo.spawn import DemoServer
from tests.mount.conftest import WATCHED, Mounted, run_mount
from tests.services.threaded_ledger import Handler, ScriptedLedger, send, serve

ROOT = Path(__file__).parents[2]
Watched = Callable[..., contextlib.AbstractContextManager[Mounted]]


@pytest.fixture
def scripted() -> ScriptedLedger:
    return ScriptedLedger()


@pytest.fixture
def watched(tmp_path: Path, scripted: ScriptedLedger) -> Watched:
    """Return a function that mounts the scripted ledger; nothing may have blocked the loop at its end."""

    @contextlib.contextmanager
    def start(*options: str, prelude: str = "", blocked: str = "") -> Iterator[Mounted]:
        token, report = tmp_path / "token.txt", tmp_path / "blocked"
        token.write_text(scripted.token)
        token.chmod(0o600)
        watch = (
            f"import sys\nfrom pathlib import Path\nsys.path.insert(0, {str(ROOT)!r})\n"
            f"from tests.mount.watchdog import watch\nwatch(Path({str(report)!r}))\n{prelude}\n"
        )
        with (
            serve(scripted, token) as served,
            run_mount(tmp_path, *options, server=served, prelude=watch, may_block=bool(blocked)) as one,
        ):
            yield one
        found = report.read_text() if report.exists() else ""
        assert blocked in found if blocked else not found, found

    return start


COMPUTES = "[None for _ in iter(lambda: time.thread_time() < began + 0.4, False)]"


@pytest.mark.parametrize("blocks", ["time.sleep(0.6)", COMPUTES, "__import__('zlib').compress(b'x' * 10**8)"])
def test_the_watchdog_sees_a_step_that_sleeps_or_computes(watched: Watched, blocks: str) -> None:
    prelude = f"""
import time
from attachfs.fuse.operations import Filesystem
works = Filesystem.statfs
async def statfs(self, ctx):
    began = time.thread_time()
    {blocks}
    return await works(self, ctx)
Filesystem.statfs = statfs
"""
    with watched(prelude=prelude, blocked="statfs") as mounted:
        os.statvfs(mounted.point)


COMPUTES_IN_STATFS = """
import time
from attachfs.fuse.operations import Filesystem
works = Filesystem.statfs
async def statfs(self, ctx):
    began = time.thread_time()
    while time.thread_time() < began + 0.5:
        pass
    return await works(self, ctx)
Filesystem.statfs = statfs
"""


@pytest.mark.parametrize("entry", ["prelude", "-m attachfs"])
def test_every_mounted_test_fails_if_a_step_computes_for_long(
    tmp_path: Path, ledger: DemoServer, entry: str
) -> None:
    environ, prelude = {}, COMPUTES_IN_STATFS
    if entry == "-m attachfs":  # as most tests start it: what is broken comes by way of Python's own start
        both = f"import runpy\nrunpy.run_path({str(WATCHED / 'sitecustomize.py')!r})\n{COMPUTES_IN_STATFS}"
        (tmp_path / "sitecustomize.py").write_text(both)
        environ, prelude = {"PYTHONPATH": str(tmp_path)}, ""
    with pytest.raises(AssertionError, match=r"(?s)pyfuse-.* turns\n.*in statfs"):  # noqa: SIM117
        with run_mount(tmp_path, server=ledger, prelude=prelude, environ=environ) as mounted:
            os.statvfs(mounted.point)


def test_ordinary_work_blocks_nothing(watched: Watched, scripted: ScriptedLedger) -> None:
    for number in range(200):
        scripted.add(f"file {number}", os.urandom(20_000))
    with watched() as mounted:
        mounted.sh("cp -r assets ../copy && ls -lR . >/dev/null && cp -rL by-name ../more")
        os.kill(mounted.process.pid, signal.SIGHUP)
        os.kill(mounted.process.pid, signal.SIGUSR1)
        mounted.wait_for_log("status: ")
        mounted.status()


def test_two_thousand_files_of_one_asset_block_nothing(watched: Watched, scripted: ScriptedLedger) -> None:
    for number in range(2_000):
        scripted.add(f"file {number}", b"x")
    with watched() as mounted:
        assert mounted.sh("ls assets/* | wc -l").stdout.split() == ["2001"]
        mounted.sh("ls -U assets/* | head -4 | while read one; do cat assets/*/$one; done")


def test_a_database_that_another_process_has_locked_blocks_nothing(
    watched: Watched, scripted: ScriptedLedger, tmp_path: Path
) -> None:
    files = [scripted.add(f"file {number}", b"content") for number in range(20)]
    with watched() as mounted:
        mounted.sh(f"cat {files[0]}")
        for database in (tmp_path / "state" / "attachfs").glob("*.sqlite"):
            if database.name != "pins.sqlite":
                break
        with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            for file in files:
                mounted.sh(f"cat {file}")
            assert json.loads(os.getxattr(mounted.point, "user.attachfs.status"))
            other.execute("ROLLBACK")


def test_a_database_that_another_process_keeps_to_itself_from_the_start_blocks_nothing(
    watched: Watched, scripted: ScriptedLedger, tmp_path: Path
) -> None:
    """Locked so that it cannot even be read."""
    files = [scripted.add(f"file {number}", b"content") for number in range(3)]
    with watched() as mounted:
        mounted.sh(f"cat {files[0]}")
    found = (tmp_path / "state" / "attachfs").glob("*.sqlite")
    (database,) = [path for path in found if path.name != "pins.sqlite"]
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode=EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        with (
            contextlib.closing(sqlite3.connect(database, timeout=0)) as reader,
            pytest.raises(sqlite3.OperationalError, match="locked"),
        ):
            reader.execute("SELECT COUNT(*) FROM answers")
        with watched() as mounted:
            for file in files:
                assert mounted.sh(f"cat {file}").stdout == "content"
            assert json.loads(os.getxattr(mounted.point, "user.attachfs.status"))
        other.execute("ROLLBACK")


# As on a filesystem that takes its time to give back the room of a large file.
SLOW_REMOVAL = """
import os, stat, time
close, unlink = os.close, os.unlink
def takes_time(found, links):
    if stat.S_ISREG(found.st_mode) and found.st_nlink == links and found.st_size > 2**20:
        time.sleep(0.6)
def slow_close(fd):
    name = f"/proc/self/fd/{fd}"
    if " (deleted)" in os.readlink(name):
        links = [f"/proc/self/fd/{one}" for one in os.listdir("/proc/self/fd")]
        same = [one for one in links if os.path.exists(one) and os.path.samefile(one, name)]
        if len(same) == 1:  # the last one
            takes_time(os.fstat(fd), 0)
    close(fd)
def slow_unlink(path, *, dir_fd=None):
    takes_time(os.stat(path, dir_fd=dir_fd, follow_symlinks=False), 1)
    unlink(path, dir_fd=dir_fd)
os.close, os.unlink = slow_close, slow_unlink
"""


def test_large_files_that_are_evicted_or_closed_after_it_block_nothing(
    watched: Watched, scripted: ScriptedLedger
) -> None:
    files = [scripted.add(f"file {number}", os.urandom(3 * 2**20)) for number in range(6)]
    with watched("--cache-size=10M", prelude=SLOW_REMOVAL) as mounted:
        with (mounted.point / files[0]).open("rb") as kept:
            kept.read(1)
            (blob,) = mounted.cached()
            blob.unlink()
            for file in files[1:]:
                mounted.sh(f"cat {file} >/dev/null")
        for file in files:
            mounted.sh(f"cat {file} >/dev/null")
        assert mounted.status()["cache"]["evicted"] > 0


def test_an_absurd_page_blocks_nothing(watched: Watched, scripted: ScriptedLedger) -> None:
    page = b'{"assets":[' + b"{}," * 10_000_000 + b'{}],"next_page_token":""}'

    def absurd(request: Handler) -> bool:
        send(request, 200, page)
        return True

    file = scripted.add("file", b"content")
    with watched("--timeout=30") as mounted:
        scripted.bend["assets"] = absurd
        mounted.sh("ls assets", check=False)
        assert mounted.sh(f"cat {file}").stdout == "content"
