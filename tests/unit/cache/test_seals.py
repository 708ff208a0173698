"""A program that writes to a cached file at any instant: no seal and no stamp may vouch for what it wrote.

Mutants of `attachfs/cache` that these tests catch: setting mtime together with atime at open; sealing without
a lease, or without a look at the file's state before; leaving ctime out of that look, or the wait for the
clock's next tick; taking an open blob's stamp after its bytes were looked at; a seal over a later write.
"""

import fcntl
import hashlib
import mmap
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from attachfs.cache import files
from attachfs.cache.disk_cache import DiskCache
from attachfs.model import Digest
from attachfs.units import MinFree

DATA = b"evidence" * 1000
DIGEST = Digest("sha256", hashlib.sha256(DATA).hexdigest())
SYSTEM_CALLS = [(os, "open"), (os, "fstat"), (os, "preadv"), (os, "utime"), (fcntl, "fcntl")]


def filesystem_of(path: Path) -> str:
    return subprocess.run(
        ["stat", "-f", "-c", "%T", path], capture_output=True, text=True, check=True
    ).stdout.strip()


class Writer:
    """Writes wrong bytes to a file when it is told to, with the file opened before or at that moment."""

    def __init__(self, path: Path, how: str) -> None:
        self.how = how
        self.path = path
        self.wrote = False
        self.fd = -1 if how == "opens" else os.open(path, os.O_RDWR)
        self.map: mmap.mmap | None = None
        if how == "maps":
            self.map = mmap.mmap(self.fd, 0)
            self.map[0] = self.map[0]  # from now on a store changes no time: the page is dirty already

    def write(self) -> None:
        if self.map is not None:
            self.map[0] ^= 1
        elif self.fd >= 0:
            os.pwrite(self.fd, b"E", 0)
        else:
            try:
                fd = os.open(self.path, os.O_WRONLY | os.O_NONBLOCK)
            except BlockingIOError:
                return  # it has to wait: a lease keeps it out
            os.pwrite(fd, b"E", 0)
            os.close(fd)
        self.wrote = True

    def close(self) -> None:
        if self.map is not None:
            self.map.close()
        if self.fd >= 0:
            os.close(self.fd)


class Steps:
    """Calls `act` before the system call of this number."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], None]) -> None:
        self.left = number
        self.act = act
        for module, name in SYSTEM_CALLS:
            monkeypatch.setattr(module, name, self._wrap(getattr(module, name)))
        monkeypatch.setattr(files, "set_atime", self._wrap(files.set_atime))

    @property
    def reached(self) -> bool:
        return self.left < 0

    def _wrap(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.left -= 1
            if self.left == -1:
                self.act()
            return real(*args, **kwargs)

        return call


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[[], DiskCache]]:
    made: list[DiskCache] = []

    def factory() -> DiskCache:
        if made:
            made[-1].close()
        made.append(DiskCache(tmp_path / "cache", 1 << 20, MinFree()))
        made[-1].start()
        made[-1].index()
        return made[-1]

    yield factory
    made[-1].close()


def put(cache: DiskCache) -> Path:
    writer = cache.reserve(len(DATA))
    writer.write(DATA, 0)
    writer.admit(DIGEST).close()
    return cache.root / "blobs" / "sha256" / DIGEST.hex[:2] / DIGEST.hex


def get(cache: DiskCache) -> bytes | None:
    """Read the blob as a program does: what was read counts only if the file is unchanged afterwards."""
    blob = cache.open(DIGEST, len(DATA))
    if blob is None:
        return None
    with blob:
        data = blob.pread(len(DATA), 0)
        return data if blob.unchanged() else None


@pytest.mark.parametrize("how", ["opens", "has it open", "maps"])
@pytest.mark.parametrize("before", ["sealed", "touched"])
def test_a_write_at_any_step_of_an_open_is_found_by_that_open_or_the_next(
    make: Callable[[], DiskCache], how: str, before: str
) -> None:
    number, reached, wrote = 0, True, 0
    while reached:
        cache = make()
        cache.clear()
        path = put(cache)
        if how == "maps" and filesystem_of(path) == "tmpfs":
            pytest.skip("tmpfs moves no time of a file that is changed through a mapping")
        if before == "touched":
            os.utime(path)
        writer = Writer(path, how)
        with pytest.MonkeyPatch.context() as patch:
            steps = Steps(patch, number, writer.write)
            blob = cache.open(DIGEST, len(DATA))
        reached = steps.reached
        if blob is not None:
            with blob:
                assert blob.pread(len(DATA), 0) == DATA or not blob.unchanged(), f"step {number}"
        wrote += writer.wrote
        writer.close()
        hashed = cache.stats().rehashed
        assert get(cache) in (None, DATA), f"step {number}"
        assert cache.stats().rehashed > hashed or not writer.wrote or not path.exists(), f"step {number}"
        assert get(make()) in (None, DATA), f"step {number}: in the next run"
        number += 1
    assert wrote >= 4  # the steps were those of an open


def test_a_write_while_bytes_are_hashed_is_noticed_even_within_one_tick(
    make: Callable[[], DiskCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer writes just before the look at the file, and once its bytes have been read."""
    cache = make()
    path = put(cache)
    writer = Writer(path, "has it open")
    os.pwrite(writer.fd, DATA[:1], 0)
    real = files.hash_file

    def hash_file(*args: Any) -> tuple[Digest, int]:
        found = real(*args)
        writer.write()
        writer.close()
        return found

    slept: list[float] = []
    real_sleep = time.sleep

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        real_sleep(seconds)

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(files, "hash_file", hash_file)
    assert cache.open(DIGEST, len(DATA)) is None
    assert slept  # the file's time is its last tick's: the next write has another one for certain
    monkeypatch.setattr(files, "hash_file", real)
    assert get(cache) is None


def test_times_set_back_while_bytes_are_hashed_do_not_hide_a_write(
    make: Callable[[], DiskCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a copy in place does that keeps times: mtime is as before, ctime is not."""
    cache = make()
    path = put(cache)
    os.utime(path)
    real = files.hash_file

    def hash_file(*args: Any) -> tuple[Digest, int]:
        found = real(*args)
        st = path.stat()
        with path.open("r+b") as file:
            file.write(b"E")
        os.utime(path, ns=(st.st_atime_ns, st.st_mtime_ns))
        return found

    monkeypatch.setattr(files, "hash_file", hash_file)
    assert cache.open(DIGEST, len(DATA)) is None
    monkeypatch.setattr(files, "hash_file", real)
    assert get(cache) is None


def test_opening_sets_the_access_time_and_no_other(make: Callable[[], DiskCache]) -> None:
    cache = make()
    path = put(cache)
    os.utime(path, ns=(1, path.stat().st_mtime_ns))
    before = path.stat()
    assert get(cache) == DATA
    after = path.stat()
    assert after.st_atime_ns > before.st_atime_ns
    assert after.st_mtime_ns == before.st_mtime_ns


def test_where_there_are_no_leases_each_run_hashes_once(
    make: Callable[[], DiskCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fcntl.fcntl

    def no_leases(fd: int, command: int, argument: int = 0) -> int:
        if command == fcntl.F_SETLEASE:
            raise OSError(22, "Invalid argument")
        return real(fd, command, argument)

    monkeypatch.setattr(fcntl, "fcntl", no_leases)
    cache = make()
    os.utime(put(cache))
    for _ in range(3):
        assert get(cache) == DATA
    assert cache.stats().rehashed == 1
    cache = make()
    assert get(cache) == DATA
    assert cache.stats().rehashed == 1


def test_a_file_under_download_that_another_program_wrote_to_is_not_sealed_as_if_it_had_not(
    make: Callable[[], DiskCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write comes after the seal is set and before it is looked at."""
    cache = make()
    writer = cache.reserve(len(DATA))
    writer.write(DATA, 0)
    (path,) = (cache.root / "tmp").iterdir()
    real = os.utime

    def utime(*args: Any, **kwargs: Any) -> None:
        real(*args, **kwargs)
        with path.open("r+b") as file:
            file.write(b"E")

    monkeypatch.setattr(os, "utime", utime)
    with pytest.raises(Exception, match="another program wrote to it"):
        writer.admit(DIGEST)
    assert get(cache) is None
