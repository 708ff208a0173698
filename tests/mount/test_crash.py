"""kill -9 a busy mount again and again, and look each time at what it left behind."""

import concurrent.futures
import errno
import hashlib
import itertools
import os
import random
import subprocess
import threading
from pathlib import Path

import pytest

from tests.mount.conftest import Mounted, run_mount
from tests.services.threaded_ledger import Handler, ScriptedLedger, Served, serve

# At random instants. Each step of the cache has its turn in tests/unit/cache/test_cache_crash.py, which kills
# before every system call; what is left for chance is readers, downloads and the mount around it.
KILLS = 40
CHAINS = 2  # each with a ledger and a cache of its own, side by side
READERS = 4
PIECE = 16 * 1024  # bytes sent at a time
CACHE = 3 * 2**20
SIZES = [random.Random(n).randrange(1, 40_000) for n in range(60)] + [300_000 + 170_000 * n for n in range(6)]
# Most deaths come early, while caches and readers are still warming up; some only after long work.
INSTANTS = [0, 50_000, 200_000, 1_000_000, 2_500_000]  # bytes sent


class Chain:
    """A ledger, and one mount of it after the other on the same cache."""

    def __init__(self, base: Path, seed: int) -> None:
        self.base = base
        self.random = random.Random(seed)
        self.ledger = ScriptedLedger()
        self.contents: dict[str, bytes] = {}
        for number, size in enumerate(SIZES):
            content = self.random.randbytes(size)
            self.contents[self.ledger.add(f"file {number}", content)] = content
        self.path_of = {hashlib.sha256(data).hexdigest(): path for path, data in self.contents.items()}
        self.sent = 0
        self.leftovers = 0
        self.ledger.bend["blob"] = self._send

    def _send(self, request: Handler) -> bool:
        content = self.ledger.blobs[request.path.rpartition("/")[2]]
        request.send_response(200)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        for offset in range(0, len(content), PIECE):
            request.wfile.write(content[offset : offset + PIECE])
            with self.ledger.changed:
                self.sent += min(PIECE, len(content) - offset)
                self.ledger.changed.notify_all()
        return True

    def live_and_die(self, server: Served) -> None:
        """Mount, serve what the last one left, work, and be killed at a random instant."""
        kept = self.check_cache()
        with run_mount(
            self.base,
            f"--cache-size={CACHE}",
            "--cache-min-free=0",
            "--strict-limit=128K",
            server=server,
        ) as mounted:
            self._serves_right_files(mounted, kept)
            until = self.sent + self.random.randrange(self.random.choice(INSTANTS) + PIECE)
            killed = threading.Event()
            seeds = [self.random.random() for _ in range(READERS)]
            with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
                reads = [pool.submit(self._read, mounted, seed, killed) for seed in seeds]
                try:
                    self.ledger.wait_for(lambda: self.sent >= until or any(read.done() for read in reads))
                finally:
                    killed.set()
                    mounted.process.kill()
                    mounted.process.wait()
                    try:
                        with pytest.raises(OSError) as caught:
                            list(mounted.point.iterdir())
                    finally:
                        subprocess.run(["umount", "-l", str(mounted.point)], check=True)
                assert caught.value.errno == errno.ENOTCONN
                for read in reads:
                    read.result(30)

    def _serves_right_files(self, mounted: Mounted, kept: list[str]) -> None:
        """Check that what is on the disk is served from there, and that all is right."""
        anything = self.random.choice(list(self.contents))
        assert (mounted.point / anything).read_bytes() == self.contents[anything]
        if kept:
            path = self.path_of[self.random.choice(kept)]
            asked = self.ledger.counts["blob"]
            cached = (mounted.cache / "blobs" / "sha256").joinpath(*self._name(path)).exists()
            assert (mounted.point / path).read_bytes() == self.contents[path]
            assert not cached or self.ledger.counts["blob"] == asked

    def _name(self, path: str) -> tuple[str, str]:
        digest = hashlib.sha256(self.contents[path]).hexdigest()
        return digest[:2], digest

    def _read(self, mounted: Mounted, seed: float, killed: threading.Event) -> None:
        """Read files in random order until the mount dies; whatever is read to its end is right."""
        order = random.Random(seed)
        for path in itertools.chain.from_iterable(
            iter(lambda: order.sample(list(self.contents), len(self.contents)), None)
        ):
            try:
                found = (mounted.point / path).read_bytes()
            except OSError:
                if killed.is_set():
                    return
                raise
            assert found == self.contents[path]

    def check_cache(self) -> list[str]:
        """Hash every admitted blob; return their names."""
        names = []
        for path in (self.base / "cache" / "blobs").rglob("*"):
            if path.is_file():
                assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
                assert path.name in self.path_of
                names.append(path.name)
        tmp = self.base / "cache" / "tmp"
        self.leftovers += tmp.exists() and any(tmp.iterdir())
        return names


@pytest.mark.slow
def test_forty_kills_lose_nothing_and_leave_nothing_wrong(tmp_path: Path) -> None:
    """Each death is of a mount of its own, and each next mount works.

    Promise 16: "Killing the program at any moment loses no verified blob and leaves nothing that a later
    run would serve wrongly."

    Promise 26: "A mount whose program has died fails with ENOTCONN, and is never an empty directory."
    """
    seed = int(os.environ.get("ATTACHFS_TEST_SEED") or random.SystemRandom().randrange(2**32))
    chains = []
    for number in range(CHAINS):
        (tmp_path / str(number)).mkdir()
        chains.append(Chain(tmp_path / str(number), seed + number))
    failed = threading.Event()

    def run(chain: Chain) -> None:
        with serve(chain.ledger, chain.base / "token") as server:
            for number in range(KILLS // CHAINS):
                if failed.is_set():
                    return
                try:
                    chain.live_and_die(server)
                except BaseException as error:
                    failed.set()
                    raise AssertionError(f"kill {number}, ATTACHFS_TEST_SEED={seed}") from error
            chain.check_cache()

    with concurrent.futures.ThreadPoolExecutor(CHAINS) as pool:
        for done in [pool.submit(run, chain) for chain in chains]:
            done.result()
    # The deaths were of the kind meant: in the middle of writing, and after making room.
    assert sum(chain.leftovers for chain in chains) >= KILLS // 20
    sent = [chain.sent for chain in chains]
    assert max(sent) > CACHE, sent
