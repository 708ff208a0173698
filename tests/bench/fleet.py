"""Simulates a fleet: many workstations read the same blobs, with and without a cache that they share.

    python -m tests.bench.fleet [--workstations 1,10,100] [--blobs 50] [--size 65536] [--rate 20]

Real mounts, each with a cache of its own, against one ledger that sends at most `--rate` blobs a second and
answers 429 beyond. The shared cache is nginx over https. One workstation has read everything before
(overnight, say); then all others read it at once, each in an order of its own. Prints a table in Markdown:
what the ledger sent, how many 429s it gave, and how long the whole fleet took.
"""

import argparse
import contextlib
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tests.mount.conftest import run_mount
from tests.services.shared_stores import run_nginx
from tests.services.threaded_ledger import Handler, ScriptedLedger, Served, serve

_PATIENCE = 3600.0  # seconds


class Row(NamedTuple):
    """What one run showed."""

    workstations: int
    shared: bool
    blobs: int
    bytes: int
    refused: int
    seconds: float


class Limit:
    """At most so many blobs a second; more are answered 429, with the seconds to wait."""

    def __init__(self, rate: float) -> None:
        self._every = 1 / rate
        self._next = time.monotonic()
        self._lock = threading.Lock()
        self.sent = 0
        self.refused = 0

    def bend(self, request: Handler) -> bool:
        """Answer a request for a blob if it comes too early."""
        with self._lock:
            now = time.monotonic()
            if now >= self._next - 1:  # a burst of a second
                self._next = max(now, self._next) + self._every
                self.sent += 1
                return False
            self.refused += 1
            wait = self._next - 1 - now
        request.send_response(429)
        request.send_header("Archivist-Rate-Limit-Reset", f"{wait:.3f}")
        request.send_header("Content-Length", "0")
        request.end_headers()
        return True


@contextlib.contextmanager
def _fleet(base: Path, count: int, served: Served, options: Sequence[str]) -> Iterator[list[Path]]:
    """Mount on so many workstations, side by side as far as the processors allow."""
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(8) as pool:

        def start(number: int) -> Path:
            place = base / f"w{number}"
            place.mkdir(parents=True)
            mounted = stack.enter_context(run_mount(place, "--timeout=3600", *options, server=served))
            return mounted.point

        yield list(pool.map(start, range(count)))


def _read(point: Path, paths: Sequence[str], seed: int) -> None:
    order = list(paths)
    random.Random(seed).shuffle(order)
    script = "".join(f"cat {point}/{path} >/dev/null || exit 1\n" for path in order)
    subprocess.run(["sh"], input=script, text=True, check=True, timeout=_PATIENCE)


def measure(base: Path, workstations: int, blobs: int, size: int, rate: float, *, shared: bool) -> Row:
    """Run a fleet once."""
    ledger = ScriptedLedger()
    paths = [ledger.add(f"blob {n}", random.Random(n).randbytes(size)) for n in range(blobs)]
    limit = Limit(rate)
    with contextlib.ExitStack() as stack:
        served = stack.enter_context(serve(ledger, base / "token"))
        options: list[str] = []
        if shared:
            options = [*stack.enter_context(run_nginx(base / "store")).options, "--shared-cache-write"]
            with _fleet(base / "first", 1, served, options) as (first,):
                _read(first, paths, 0)
                stored = base / "store" / "store" / "cas"
                while len(list(stored.iterdir())) < blobs:
                    time.sleep(0.05)  # uploads go on behind the reader's back
        before = ledger.counts["blob"]
        ledger.bend["blob"] = limit.bend
        points = stack.enter_context(_fleet(base / "others", workstations, served, options))
        began = time.monotonic()
        with ThreadPoolExecutor(workstations) as pool:
            list(pool.map(lambda pair: _read(pair[1], paths, pair[0]), enumerate(points)))
        seconds = time.monotonic() - began
        asked = ledger.counts["blob"] - before - limit.refused
    return Row(workstations, shared, asked, asked * size, limit.refused, seconds)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.fleet", description=__doc__)
    parser.add_argument("--workstations", default="1,10,100")
    parser.add_argument("--blobs", type=int, default=50)
    parser.add_argument("--size", type=int, default=65536)
    parser.add_argument("--rate", type=float, default=20)
    given = parser.parse_args(arguments)
    say = sys.stdout.write
    say("| workstations | shared cache | blobs that the ledger sent | MiB | 429s | seconds |\n")
    say("|---|---|---|---|---|---|\n")
    for count in map(int, given.workstations.split(",")):
        for shared in (False, True):
            with tempfile.TemporaryDirectory() as path:
                row = measure(Path(path), count, given.blobs, given.size, given.rate, shared=shared)
            size = row.bytes / 2**20
            used = "yes" if row.shared else "no"
            say(f"| {count} | {used} | {row.blobs} | {size:.1f} | {row.refused} | {row.seconds:.1f} |\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
