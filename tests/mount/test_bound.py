"""The cache's bound, and disks that are full, read-only, gone or booby-trapped: reads go on."""

import concurrent.futures
import contextlib
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.conftest import Mounted, run_mount
from tests.services.threaded_ledger import Handler, ScriptedLedger, serve

KiB, MiB = 1024, 2**20


def filled(ledger: ScriptedLedger, count: int, size: int) -> dict[str, bytes]:
    """Attach `count` files of about `size` bytes; return their contents by path."""
    contents = [random.Random(n).randbytes(size - n) for n in range(count)]
    return {ledger.add(f"file {n}", content): content for n, content in enumerate(contents)}


def warnings(mounted: Mounted) -> list[str]:
    return [line for line in mounted.log if " WARNING " in line or " ERROR " in line]


def snapshot(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Return what can be told of everything below a folder."""
    return {
        str(path): (
            path.lstat().st_mode,
            path.lstat().st_mtime_ns,
            path.read_bytes() if path.is_file() else b"",
        )
        for path in sorted(folder.rglob("*"))
    }


class Sampler:
    """Measures what a cache takes on the disk, with names and without, while its mount holds still."""

    def __init__(self, mounted: Mounted) -> None:
        self._pid = mounted.process.pid
        self._root = mounted.cache
        self._lock = threading.Lock()
        self.sizes: list[int] = []

    def sample(self) -> None:
        with self._lock:
            os.kill(self._pid, signal.SIGSTOP)
            try:
                os.waitid(os.P_PID, self._pid, os.WSTOPPED)  # until every thread stands
                taken = {path.lstat().st_ino: path.lstat().st_blocks for path in self._root.rglob("*")}
                taken[self._root.stat().st_ino] = self._root.stat().st_blocks
                for link in Path(f"/proc/{self._pid}/fd").iterdir():
                    target = str(link.readlink())
                    if target.startswith(f"{self._root}/") and target.endswith(" (deleted)"):
                        taken[link.stat().st_ino] = link.stat().st_blocks
            finally:
                os.kill(self._pid, signal.SIGCONT)
            self.sizes.append(sum(taken.values()) * 512)


def test_four_hundred_reads_of_more_than_fits_never_exceed_the_bound(tmp_path: Path) -> None:
    """200 files through a cache that holds 50, by eight readers at once.

    Promise 13: "The cache never takes more of the disk than its limit, including what is being written and
    what was removed but is still open; room is made before a byte is written, and the least recently opened
    blobs go first."
    """
    ledger = ScriptedLedger()
    contents = filled(ledger, 200, 64 * KiB)
    bound = 3584 * KiB
    order = [path for n in range(2) for path in random.Random(n).sample(list(contents), len(contents))]
    with (
        serve(ledger, tmp_path / "token") as server,
        run_mount(tmp_path, f"--cache-size={bound}", "--cache-min-free=0", server=server) as mounted,
        concurrent.futures.ThreadPoolExecutor(8) as pool,
    ):
        sampler = Sampler(mounted)

        def send_and_sample(request: Handler) -> bool:
            """Look before the body, in its middle, and, as others come and go, at every other moment."""
            content = ledger.blobs[request.path.rpartition("/")[2]]
            sampler.sample()
            request.send_response(200)
            request.send_header("Content-Length", str(len(content)))
            request.end_headers()
            request.wfile.write(content[: len(content) // 2])
            sampler.sample()
            request.wfile.write(content[len(content) // 2 :])
            return True

        def read_and_sample(path: str) -> bytes:
            content = (mounted.point / path).read_bytes()
            sampler.sample()
            return content

        ledger.bend["blob"] = send_and_sample
        for path, content in zip(order, pool.map(read_and_sample, order), strict=True):
            assert content == contents[path]
        assert max(sampler.sizes) <= bound
        assert len(sampler.sizes) == len(order) + 2 * ledger.counts["blob"]
        assert 45 <= len(mounted.cached()) <= 55
        stats = mounted.status()["cache"]
        assert stats["spills"] == 0
        assert stats["evicted"] >= 145
        # The last one read is still there, and is not asked for again.
        asked = ledger.counts["blob"]
        assert (mounted.point / order[-1]).read_bytes() == contents[order[-1]]
        assert ledger.counts["blob"] == asked


def test_a_blob_larger_than_the_cache_is_readable_and_leaves_nothing(tmp_path: Path) -> None:
    """In strict verification too, where it is kept whole before it opens.

    Promise 14: "A blob for which no room can be made in the cache is read through an unnamed temporary
    file, and verified all the same."
    """
    ledger = ScriptedLedger()
    content = random.Random(1).randbytes(5 * MiB)
    good = ledger.add("good", content)
    bad = ledger.add("bad", content[::-1])
    ledger.blobs[bad.rpartition("/")[2]] = content
    with (
        serve(ledger, tmp_path / "token") as server,
        run_mount(
            tmp_path, "--cache-size=2M", "--cache-min-free=0", "--verify=strict", server=server
        ) as mounted,
    ):
        assert (mounted.point / good).read_bytes() == content
        assert (mounted.point / good).read_bytes() == content
        with pytest.raises(OSError, match="Bad message"):
            (mounted.point / bad).read_bytes()
        assert mounted.cached() == []
        assert ledger.counts["blob"] == 3
        assert mounted.status()["cache"]["spilled_bytes"] == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Have the cache on a filesystem of 64 MiB; return where that is."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "attachfs-test", disk], check=True)
    try:
        (tmp_path / "cache").symlink_to(disk / "cache")
        (disk / "cache").mkdir(mode=0o700)
        yield disk
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def fill(disk: Path) -> Path:
    """Leave no byte free."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(64 * KiB))
    with filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(512))
    return filler


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
@pytest.mark.parametrize("verify", ["strict", "stream"])
@pytest.mark.parametrize("min_free", ["0", "5%"])
def test_a_full_disk_costs_one_warning_and_no_read(
    tmp_path: Path, small_disk: Path, min_free: str, verify: str
) -> None:
    """Full before, full in the middle of a blob, and with room again.

    Promise 15: "A cache directory that is full, read-only, deleted or booby-trapped with links keeps nobody
    from reading: it costs one warning and speed, and nothing outside it is touched."
    """
    ledger = ScriptedLedger()
    contents = filled(ledger, 12, 2 * MiB)
    paths = list(contents)
    filler = []

    def fill_in_the_middle(request: Handler) -> bool:
        content = ledger.blobs[request.path.rpartition("/")[2]]
        request.send_response(200)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content[:MiB])
        filler.append(fill(small_disk))
        request.wfile.write(content[MiB:])
        return True

    with (
        serve(ledger, tmp_path / "token") as server,
        run_mount(tmp_path, f"--cache-min-free={min_free}", f"--verify={verify}", server=server) as mounted,
    ):
        assert (mounted.point / paths[0]).read_bytes() == contents[paths[0]]
        ledger.bend["blob"] = fill_in_the_middle
        assert (mounted.point / paths[1]).read_bytes() == contents[paths[1]]
        ledger.bend.clear()
        for path in paths[:10]:
            assert (mounted.point / path).read_bytes() == contents[path]
        assert len(warnings(mounted)) == 1, warnings(mounted)
        assert len(mounted.cached()) <= 2
        filler[0].unlink()
        assert (mounted.point / paths[11]).read_bytes() == contents[paths[11]]
        assert hashlib.sha256(contents[paths[11]]).hexdigest() in {path.name for path in mounted.cached()}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may bind")
def test_a_read_only_cache_directory_is_read_from_and_costs_one_warning(tmp_path: Path) -> None:
    ledger = ScriptedLedger()
    contents = filled(ledger, 6, 200 * KiB)
    paths = list(contents)
    cache = tmp_path / "cache"
    with serve(ledger, tmp_path / "token") as server:
        with run_mount(tmp_path, server=server) as mounted:
            for path in paths[:3]:
                assert (mounted.point / path).read_bytes() == contents[path]
        before = snapshot(cache)
        subprocess.run(["mount", "--bind", cache, cache], check=True)
        try:
            subprocess.run(["mount", "-o", "remount,ro,bind", cache], check=True)
            with run_mount(tmp_path, server=server) as mounted:
                for path in [*paths, *paths]:
                    assert (mounted.point / path).read_bytes() == contents[path]
                assert len(warnings(mounted)) == 1, warnings(mounted)
        finally:
            subprocess.run(["umount", "-l", cache], check=True)
        assert snapshot(cache) == before
        assert ledger.counts["blob"] == 3 + 2 * 3


def test_a_cache_directory_deleted_while_mounted_is_made_anew_with_one_warning(tmp_path: Path) -> None:
    ledger = ScriptedLedger()
    contents = filled(ledger, 6, 200 * KiB)
    paths = list(contents)
    with serve(ledger, tmp_path / "token") as server, run_mount(tmp_path, server=server) as mounted:
        for path in paths[:3]:
            assert (mounted.point / path).read_bytes() == contents[path]
        fd = os.open(mounted.point / paths[0], os.O_RDONLY | os.O_DIRECT)
        try:
            shutil.rmtree(mounted.cache)
            for path in [*paths, *paths]:
                assert (mounted.point / path).read_bytes() == contents[path]
            assert os.pread(fd, 200 * KiB, 0) == contents[paths[0]]
        finally:
            os.close(fd)
        assert len(warnings(mounted)) == 1, warnings(mounted)
        assert {path.name for path in mounted.cached()} == {
            hashlib.sha256(content).hexdigest() for content in contents.values()
        }
        assert ledger.counts["blob"] == 9


@pytest.mark.parametrize("planted", ["blobs", "blobs/sha256", "a shard", "tmp", "quarantine", "the whole"])
def test_links_planted_in_the_cache_lead_nowhere(tmp_path: Path, planted: str) -> None:
    """Not even to files that look like blobs."""
    ledger = ScriptedLedger()
    contents = filled(ledger, 4, 200 * KiB)
    bad = ledger.add("bad", b"recorded")
    ledger.blobs[bad.rpartition("/")[2]] = b"was sent"
    outside = tmp_path / "outside"
    with serve(ledger, tmp_path / "token") as server, run_mount(tmp_path, server=server) as mounted:
        paths = list(contents)
        for path in paths[:2]:
            assert (mounted.point / path).read_bytes() == contents[path]
        digest = hashlib.sha256(contents[paths[0]]).hexdigest()
        name = {"a shard": f"blobs/sha256/{digest[:2]}", "the whole": ""}.get(planted, planted)
        shutil.copytree(mounted.cache / name, outside)
        for file in outside.rglob("*"):
            if file.is_file():
                file.write_bytes(b"x" * file.stat().st_size)
        before = snapshot(outside)
        moved = mounted.cache / name
        moved.rename(tmp_path / "moved")
        moved.symlink_to(outside)
        for path in paths:
            assert (mounted.point / path).read_bytes() == contents[path]
        with pytest.raises(OSError, match="Bad message"):
            (mounted.point / bad).read_bytes()
        assert snapshot(outside) == before
        mounted.wait_for_log(" WARNING ")


def test_a_second_mount_on_the_same_cache_is_refused_and_told_who_has_it(tmp_path: Path) -> None:
    """And the first goes on.

    Promise 17: "One mount at a time uses a cache directory: a second mount is refused, with the process
    that uses it and where that is mounted."
    """
    ledger = ScriptedLedger()
    contents = filled(ledger, 1, 200 * KiB)
    (tmp_path / "second").mkdir()
    with serve(ledger, tmp_path / "token") as server, run_mount(tmp_path, server=server) as mounted:
        arguments = [
            f"--cache-dir={mounted.cache}",
            f"--url={server.url}",
            f"--token-file={server.token_file}",
        ]
        second = subprocess.run(
            [sys.executable, "-m", "attachfs", "mount", "-f", *arguments, tmp_path / "second"],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            env={**os.environ, "XDG_STATE_HOME": str(tmp_path / "state")},
        )
        assert second.returncode == 2
        assert str(mounted.process.pid) in second.stderr
        assert str(mounted.point) in second.stderr
        assert "--cache-dir" in second.stderr
        assert len(second.stderr.splitlines()) == 1
        for path, content in contents.items():
            assert (mounted.point / path).read_bytes() == content
