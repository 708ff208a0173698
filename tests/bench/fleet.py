"""Simulates a fleet: many workstations read the same blobs, with and without a cache that they share.

    python -m tests.bench.fleet [--write] [--mounts] [--workstations 1,10,100] [--blobs 500] [--size 65536]

Each workstation is a real client with a cache of its own (`fleet_clients`), without a kernel mount; with
`--mounts` it is a mount. The service answers at most `--rate` requests a second and 429 beyond: requests for
blobs (`--limit blobs`), or all of them (`--limit all`). The shared cache is nginx over https, and one
workstation has filled it before, overnight, say; what that took is not in the table.

So that many processors of a fleet can be simulated on few, only `--at-once` workstations read side by side
where there is a shared cache; else a busy processor looks like a slow store. Without one all read at once:
they mostly wait. What would take hours is run for `--seconds` and the rest computed from it; the table says
which rows those are. `--write` puts table and curve into docs/fleet.md and docs/fleet.svg.
"""

import argparse
import contextlib
import functools
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tests.bench import fleet_mounts
from tests.bench.fleet_clients import Done, Job
from tests.bench.fleet_picture import Row, draw, replace_block, table
from tests.services.shared_stores import SharedStore, run_nginx
from tests.services.threaded_ledger import Handler, ScriptedLedger, Served, serve

_KINDS = ("assets", "asset", "events", "event", "info", "blob")
_PATIENCE = 10  # times `--seconds`, for a fleet that does not wait for the service
_DOCS = Path(__file__).parents[2] / "docs"


class Limit:
    """At most so many requests a second; more are answered 429, with the seconds to wait."""

    def __init__(self, rate: float) -> None:
        self._every = 1 / rate
        self._next = time.monotonic()
        self._lock = threading.Lock()
        self.refused: Counter[str] = Counter()

    def bend(self, kind: str, request: Handler) -> bool:
        """Answer a request if it comes too early."""
        with self._lock:
            now = time.monotonic()
            if now >= self._next - 1:  # a burst of a second
                self._next = max(now, self._next) + self._every
                return False
            self.refused[kind] += 1
            wait = self._next - 1 - now
        request.send_response(429)
        request.send_header("Archivist-Rate-Limit-Reset", f"{wait:.3f}")
        request.send_header("Content-Length", "0")
        request.end_headers()
        return True


class Given(NamedTuple):
    """What is simulated."""

    blobs: int
    size: int
    rate: float
    limit: str  # blobs or all
    seconds: float
    at_once: int
    mounts: bool


def _client_options(served: Served, store: SharedStore | None) -> dict[str, str]:
    options = {"url": served.url, "token_file": str(served.token_file), "timeout": "3600"}
    for one in [] if store is None else store.options:
        name, _, value = one.removeprefix("--").partition("=")
        options[name.replace("-", "_")] = value
    return options


def _run_clients(base: Path, job: Job, processes: int) -> list[Done]:
    """Share the workstations out to processes, and return what each did."""

    def run(number: int) -> Done:
        mine: Job = {
            **job,
            "workstations": job["workstations"][number::processes],
            "at_once": max(1, job["at_once"] // processes),
        }
        path = base / f"job{number}"
        path.write_text(json.dumps(mine), encoding="utf-8")
        command = [sys.executable, "-m", "tests.bench.fleet_clients", str(path)]
        said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        done: Done = json.loads(said.splitlines()[-1])
        return done

    processes = min(processes, len(job["workstations"]))
    with ThreadPoolExecutor(processes) as pool:
        return list(pool.map(run, range(processes)))


def measure(base: Path, workstations: int, given: Given, *, shared: bool) -> Row:
    """Run a fleet once."""
    ledger = ScriptedLedger()
    contents = [random.Random(n).randbytes(given.size) for n in range(given.blobs)]
    paths = [ledger.add(f"blob {n}", data) for n, data in enumerate(contents)]
    files = {path: hashlib.sha256(data).hexdigest() for path, data in zip(paths, contents, strict=True)}
    limit = Limit(given.rate)
    with contextlib.ExitStack() as stack:
        served = stack.enter_context(serve(ledger, base / "token"))
        store = stack.enter_context(run_nginx(base / "store")) if shared else None
        options = _client_options(served, store)
        everything: Job = {
            "options": options,
            "files": files,
            "workstations": [0],
            "at_once": 1,
            "seconds": float("inf"),
            "upload": True,
        }
        if store is not None:
            filling: Job = {**everything, "options": {**options, "shared_cache_write": "yes"}}
            _run_clients(base, filling, 1)
            stored = len(store.objects())
            if stored != given.blobs:
                raise SystemExit(f"the shared cache has {stored} of {given.blobs} blobs")
        before = ledger.counts.copy()
        for kind in _KINDS if given.limit == "all" else ("blob",):
            ledger.bend[kind] = functools.partial(limit.bend, kind)
        if given.mounts:
            words = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
            extra = [one for one in words if one.startswith("--shared-cache")]
            reads, seconds = fleet_mounts.read_all(base / "mounts", workstations, served, extra, paths)
        else:
            # With a shared cache and no limit on records nothing has to be waited for but this machine.
            patience = _PATIENCE if shared and given.limit == "blobs" else 1
            job: Job = {
                **everything,
                "workstations": list(range(1, workstations + 1)),
                "at_once": given.at_once if shared else workstations,
                "seconds": given.seconds * patience,
                "upload": False,
            }
            done = _run_clients(base, job, os.cpu_count() or 1)
            reads = sum(one["reads"] for one in done)
            seconds = max(one["seconds"] for one in done)
        counts = ledger.counts - before
    answered = counts - limit.refused
    return Row(
        workstations,
        shared,
        given.limit,
        workstations * given.blobs,
        reads,
        answered["blob"],
        answered.total() - answered["blob"],
        limit.refused.total(),
        seconds,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.fleet", description=__doc__)
    parser.add_argument("--workstations", default="1,10,100")
    parser.add_argument("--blobs", type=int, default=500)
    parser.add_argument("--size", type=int, default=65536)
    parser.add_argument("--rate", type=float, default=20)
    parser.add_argument("--limit", default="blobs,all")
    parser.add_argument("--seconds", type=float, default=25)
    parser.add_argument("--at-once", type=int, default=4)
    parser.add_argument("--mounts", action="store_true")
    parser.add_argument("--write", action="store_true")
    words = parser.parse_args(arguments)
    rows = []
    for limit in words.limit.split(","):
        given = Given(words.blobs, words.size, words.rate, limit, words.seconds, words.at_once, words.mounts)
        for count in map(int, words.workstations.split(",")):
            for shared in (False, True):
                with tempfile.TemporaryDirectory() as path:
                    rows.append(measure(Path(path), count, given, shared=shared))
                sys.stderr.write(f"{rows[-1]}\n")
    made = table(rows, words.size)
    sys.stdout.write(made)
    if words.write:
        (_DOCS / "fleet.svg").write_text(draw(rows), encoding="utf-8")
        page = _DOCS / "fleet.md"
        page.write_text(replace_block(page.read_text(encoding="utf-8"), made), encoding="utf-8")


if __name__ == "__main__":
    main()
