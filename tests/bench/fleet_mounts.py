"""A fleet of real mounts, each with a cache of its own. They need a machine with many processors."""

import contextlib
import random
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.mount.conftest import run_mount
from tests.services.threaded_ledger import Served

_PATIENCE = 3600.0  # seconds


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


def read_all(
    base: Path, count: int, served: Served, options: Sequence[str], paths: Sequence[str]
) -> tuple[int, float]:
    """Have each of so many mounts read everything; return how many reads that were, and the seconds."""
    with _fleet(base, count, served, options) as points:
        began = time.monotonic()
        with ThreadPoolExecutor(count) as pool:
            list(pool.map(lambda pair: _read(pair[1], paths, pair[0]), enumerate(points)))
        return count * len(paths), time.monotonic() - began
