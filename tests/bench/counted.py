"""attachfs with counters: what `costs.py` mounts to count what a file costs inside the process.

    python -m tests.bench.counted COUNTERS attachfs' arguments …

COUNTERS is a file of as many 64-bit numbers as there are `COUNTED`; whoever has mapped it can read it at any
time. Counting costs processor time itself: that is measured with a mount that counts nothing.
"""

import functools
import mmap
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from attachfs.cli import main as program
from attachfs.fuse.operations import Filesystem

TASKS, SCOPES, HAND_OVERS, STATEMENTS, REQUESTS = range(5)
COUNTED = ("tasks", "cancel scopes", "thread hand-overs", "SQLite statements", "kernel requests")
_HANDLERS = (
    *("lookup", "getattr", "readlink", "forget", "getxattr", "listxattr", "opendir", "readdir"),
    *("releasedir", "open", "read", "flush", "release", "statfs"),
)


class Counters:
    """Numbers in a mapped file. Each is only ever added to by one thread at a time."""

    def __init__(self, path: Path) -> None:
        size = 8 * len(COUNTED)
        with path.open("a+b") as file:
            file.truncate(size)
            self._numbers = memoryview(mmap.mmap(file.fileno(), size)).cast("q")

    def add(self, which: int) -> None:
        """Count one more."""
        self._numbers[which] += 1

    def read(self) -> list[int]:
        """Return them all."""
        return list(self._numbers)


class _Spawned(trio.abc.Instrument):
    """Counts tasks."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters

    def task_spawned(self, _task: trio.lowlevel.Task) -> None:
        """Count one."""
        self._counters.add(TASKS)


def _count(counters: Counters) -> None:
    """Have everything counted from now on."""

    def counting(which: int, work: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(work)
        def counted(*args: Any, **kwargs: Any) -> Any:
            counters.add(which)
            return work(*args, **kwargs)

        return counted

    connect, run = sqlite3.connect, trio.run

    def traced(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        db: sqlite3.Connection = connect(*args, **kwargs)
        db.set_trace_callback(lambda _statement: counters.add(STATEMENTS))
        return db

    patched: Any = sys.modules
    patched["sqlite3"].connect = traced
    patched["trio"].run = lambda *args, **kwargs: run(
        *args, **{**kwargs, "instruments": [_Spawned(counters)]}
    )
    patched["trio.to_thread"].run_sync = counting(HAND_OVERS, trio.to_thread.run_sync)
    patched["trio.lowlevel"].start_thread_soon = counting(HAND_OVERS, trio.lowlevel.start_thread_soon)
    patched["trio"].CancelScope.__enter__ = counting(SCOPES, trio.CancelScope.__enter__)
    for name in _HANDLERS:
        setattr(Filesystem, name, counting(REQUESTS, getattr(Filesystem, name)))


if __name__ == "__main__":
    _count(Counters(Path(sys.argv.pop(1))))
    program.main()
