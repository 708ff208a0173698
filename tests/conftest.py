"""What holds for every test."""

import gc
import os
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import suppress

import pytest
from hypothesis import settings

# A shell without job control starts what it puts into the background with SIGINT ignored, and children
# inherit that. The programs under test are to be interruptible wherever the suite is run from.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The suite starts this program about a thousand times: it is compiled once only, whatever the shell that runs
# the suite has set.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# The same examples each time: a run says something about the change, not about luck. To look for new ones:
# scripts/test --hypothesis-profile=default
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")

# Nearly all that tests make goes with its last reference; looking for cycles often costs a tenth.
gc.set_threshold(100_000, 20, 50)


@pytest.fixture(autouse=True)
def databases_close_with_the_test(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close each database that a test has left open.

    Pins and answers keep one for the life of a mount, which ends with its process. A test's process goes on,
    and from Python 3.13 on an unclosed database is a warning, in whatever test the collector happens to run.
    """
    opened: list[sqlite3.Connection] = []
    connect = sqlite3.connect

    def connect_and_note(*args: object, **kwargs: object) -> sqlite3.Connection:
        opened.append(connect(*args, **kwargs))  # type: ignore[call-overload]
        return opened[-1]

    monkeypatch.setattr(sqlite3, "connect", connect_and_note)
    yield
    for database in opened:
        with suppress(sqlite3.ProgrammingError):  # a thread's own, which only that thread may close
            database.close()
