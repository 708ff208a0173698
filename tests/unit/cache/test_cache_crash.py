"""kill -9 at any instant loses no admitted blob and leaves nothing that a later run would serve wrongly."""

import functools
import hashlib
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attachfs.cache.disk_cache import DiskCache
from attachfs.cache.quarantine import QuarantineNote
from attachfs.errors import NoSpace
from attachfs.model import Digest
from attachfs.units import MinFree

# The children touch nothing that another thread could hold; later Pythons warn of any fork beside threads.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

_STEPS = ("open", "write", "pwrite", "fsync", "rename", "unlink", "utime", "mkdir", "rmdir", "ftruncate")
_SMALL, _LARGE = 300_000, 50_000_000


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def digest_of(data: bytes) -> Digest:
    return Digest("sha256", hashlib.sha256(data).hexdigest())


def blob(number: int) -> bytes:
    return random.Random(number).randbytes(1 + number * 7919 % 40_000)


def load(root: Path, bound: int, numbers: list[int], report: int) -> None:
    """Do what a busy mount does; report each blob's number once admit has returned."""
    cache = DiskCache(root, bound, MinFree())
    cache.start()
    cache.index()
    for number in numbers:
        data = blob(number)
        try:
            writer = cache.reserve(len(data))
        except NoSpace:
            continue
        half = len(data) // 2
        writer.write(data[:half], 0)
        if number % 7 == 3:
            got = digest_of(data[:half])
            writer.quarantine(QuarantineNote("p", "u", digest_of(data), got, len(data), half, 1.0, "short"))
            continue
        writer.write(data[half:], half)
        writer.admit(digest_of(data)).close()
        os.write(report, b"%d\n" % number)
        again = cache.open(digest_of(blob(number - 2)), len(blob(number - 2)))
        if again is not None:
            again.close()
        if number % 11 == 5:
            cache.remove(digest_of(data))


def in_child(work: Callable[[int], None]) -> tuple[int, int]:
    """Fork a child that does `work` with the writing end of a pipe; return its pid and the reading end."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(reading)
            work(writing)
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    return pid, reading


def read_up_to(fd: int, limit: int = 1 << 30) -> bytes:
    data = b""
    while len(data) < limit and (more := os.read(fd, min(65536, limit - len(data)))):
        data += more
    return data


def numbers_in(reports: bytes) -> list[int]:
    return [int(line) for line in reports.split(b"\n")[:-1]]


def check(root: Path, bound: int, expected: list[int]) -> None:
    """Look at the directory as the crash left it, then as the next run makes it."""
    names = set()
    for path in (root / "blobs").rglob("*"):
        if path.is_file():
            assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
            names.add(path.name)
    assert {digest_of(blob(number)).hex for number in expected} <= names
    cache = DiskCache(root, bound, MinFree())
    cache.start()
    cache.index()
    assert names_in(root / "tmp") == []
    assert {entry.digest.hex for entry in cache.entries()} == names
    for entry in cache.entries():
        opened = cache.open(entry.digest, entry.size)
        assert opened is not None
        opened.close()
    assert all(result.ok for result in cache.verify_all())
    stats = cache.stats()
    assert stats.used_bytes <= bound
    assert stats.rehashed == 0  # blobs get their names after their seals
    assert not stats.troubles
    cache.close()


@pytest.mark.parametrize("bound", [_SMALL, _LARGE])
def test_killed_while_it_runs(tmp_path: Path, bound: int) -> None:
    """The child dies wherever it is when the parent has read some of its reports; then the next goes on."""
    choice = random.Random(bound)
    kept: set[int] = set()
    number = 10
    for _ in range(20):
        numbers = list(range(number, number + 2000))
        pid, reading = in_child(functools.partial(load, tmp_path / "c", bound, numbers))
        reports = read_up_to(reading, choice.randrange(1, 60))
        os.kill(pid, signal.SIGKILL)
        done = numbers_in(reports + read_up_to(reading))
        os.close(reading)
        assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        kept.update(n for n in done if n % 11 != 5)
        check(tmp_path / "c", bound, sorted(kept) if bound == _LARGE else [])
        number = max([number, *done]) + 2
    assert number > 30


class Fuse:
    """Kills the process before the chosen one of its calls to the system."""

    def __init__(self, count: int) -> None:
        self.left = count

    def before(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: object, **kwargs: object) -> object:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return counted


def test_killed_before_every_system_call(tmp_path: Path) -> None:
    """One run through admits, evictions, removals and the quarantine, cut off at each step in turn."""
    numbers = [3, 12, 13, 14, 16, 17, 18, 21]
    bound = 170_000  # room for some of them only

    def cut_off(count: int, report: int) -> None:
        fuse = Fuse(count)
        for name in _STEPS:
            setattr(os, name, fuse.before(getattr(os, name)))
        load(tmp_path / str(count), bound, numbers, report)

    count, status = 0, 1
    while status:
        count += 1
        pid, reading = in_child(functools.partial(cut_off, count))
        done = numbers_in(read_up_to(reading))
        os.close(reading)
        status = os.waitpid(pid, 0)[1]
        assert os.WIFSIGNALED(status) or status == 0
        if (tmp_path / str(count)).exists():
            check(tmp_path / str(count), bound, [n for n in done[-1:] if n % 11 != 5])
    assert count > 100
    assert done == [12, 13, 14, 16, 18, 21]  # the run that was not cut off
