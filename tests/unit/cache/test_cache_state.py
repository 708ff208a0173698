"""Arbitrary interleavings of everything a mount does with the cache, against a model."""

import contextlib
import hashlib
import os
import random
import shutil
import stat
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from attachfs.cache.descriptor import CachedBlob
from attachfs.cache.disk_cache import DiskCache, Writer
from attachfs.cache.quarantine import QuarantineNote
from attachfs.errors import NoSpace, Unexpected
from attachfs.model import Digest
from attachfs.units import MinFree

_random = random.Random(3)
BLOBS = [
    _random.randbytes(size)
    for size in (0, 1, 4095, 4096, 4097, 9000, 20_000, 33_000, 50_000, 70_000, 90_000, 150_000)
]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def digest_of(data: bytes) -> Digest:
    return Digest("sha256", hashlib.sha256(data).hexdigest())


def disk_usage(root: Path) -> int:
    """Return what `du -s` counts."""
    total = root.lstat().st_blocks * 512
    for folder, names, files in os.walk(root):
        total += sum((Path(folder) / name).lstat().st_blocks * 512 for name in names + files)
    return total


def open_under(root: Path) -> list[Path]:
    found = []
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(fd.readlink())
    return [target for target in found if target.is_relative_to(root)]


class Writing:
    def __init__(self, writer: Writer, data: bytes) -> None:
        self.writer = writer
        self.data = data
        self.done = 0
        self.ended = False


class Reading:
    def __init__(self, blob: CachedBlob, data: bytes) -> None:
        self.blob = blob
        self.data = data  # what can be read; of one that was still being written, its beginning


def _size_of(item: Writing | Reading) -> int:
    return len(item.data) if isinstance(item, Writing) else item.blob.size


class CacheMachine(RuleBasedStateMachine):
    writings = Bundle("writings")
    readings = Bundle("readings")
    blobs = st.sampled_from(BLOBS)

    @initialize(size=st.integers(200_000, 600_000))
    def begin(self, size: int) -> None:
        self.top = Path(tempfile.mkdtemp(prefix="attachfs-state-"))
        self.root = self.top / "cache"
        self.max = size
        self.cache = DiskCache(self.root, size, MinFree())
        self.cache.start()
        self.old: list[DiskCache] = []
        self.held: list[Writing | Reading] = []

    def teardown(self) -> None:
        if not hasattr(self, "cache"):
            return
        for item in self.held:
            if isinstance(item, Writing):
                item.writer.abort()
            else:
                item.blob.close()
        stats = self.cache.stats()
        self.cache.close()
        assert stats.loose_bytes == 0
        assert stats.spilled_bytes == 0
        assert stats.open_files == 0
        if (self.root / "tmp").is_dir() and not self.old:
            assert names_in(self.root / "tmp") == []
        assert open_under(self.top) == []
        shutil.rmtree(self.top)

    # ---- writers

    @rule(target=writings, data=blobs)
    def reserve(self, data: bytes) -> object:
        try:
            writer = self.cache.reserve(len(data))
        except NoSpace:
            stats = self.cache.stats()
            in_use = sum(
                (_size_of(item) + 4 * 4096) // 4096 * 4096 + 4096
                for item in self.held
                if not isinstance(item, Writing) or not item.ended
            )
            # Only what is in use may be in the way, not what could be evicted.
            assert len(data) + in_use + stats.quarantine_bytes + 30 * 4096 > self.max
            return multiple()
        item = Writing(writer, data)
        self.held.append(item)
        return item

    @rule(target=writings, data=blobs)
    def spill(self, data: bytes) -> object:
        item = Writing(self.cache.spill(len(data)), data)
        self.held.append(item)
        return item

    @rule(item=writings, share=st.floats(0, 1))
    def write(self, item: Writing, share: float) -> None:
        if item.ended:
            return
        end = item.done + round((len(item.data) - item.done) * share)
        item.writer.write(memoryview(item.data)[item.done : end], item.done)
        item.done = end
        assert item.writer.pread(end, 0) == item.data[:end]

    @rule(item=writings)
    def write_beyond(self, item: Writing) -> None:
        with pytest.raises(Unexpected):
            item.writer.write(b"xx", len(item.data) - 1)

    @rule(target=readings, item=consumes(writings))
    def admit(self, item: Writing) -> object:
        if item.ended:
            return multiple()
        item.ended = True
        self.held.remove(item)
        item.writer.write(item.data[item.done :], item.done)
        reading = Reading(item.writer.admit(digest_of(item.data)), item.data)
        self.held.append(reading)
        return reading

    @rule(item=consumes(writings))
    def admit_incomplete(self, item: Writing) -> None:
        if item.ended or item.done == len(item.data):
            return
        item.ended = True
        with pytest.raises(Unexpected):
            item.writer.admit(digest_of(item.data))
        self.held.remove(item)

    @rule(item=consumes(writings))
    def abort(self, item: Writing) -> None:
        item.writer.abort()
        item.writer.abort()
        if not item.ended:
            item.ended = True
            self.held.remove(item)

    @rule(item=consumes(writings))
    def quarantine(self, item: Writing) -> None:
        if item.ended:
            return
        item.ended = True
        self.held.remove(item)
        got = digest_of(item.data[: item.done])
        path = item.writer.quarantine(
            QuarantineNote(
                "p", "u", digest_of(item.data), got, len(item.data), item.done, 1_700_000_000, "test"
            )
        )
        if path is not None and path.parent == self.root / "quarantine":
            assert path.read_bytes() == item.data[: item.done]
            assert stat.S_IMODE(path.lstat().st_mode) == 0o400

    @rule(target=readings, item=writings)
    def follow(self, item: Writing) -> object:
        if item.ended:
            return multiple()
        reading = Reading(item.writer.dup_reader(), item.data[: item.done])
        self.held.append(reading)
        return reading

    # ---- readers

    @rule(target=readings, data=blobs)
    def open(self, data: bytes) -> object:
        blob = self.cache.open(digest_of(data), len(data))
        if blob is None:
            return multiple()
        assert blob.unchanged()
        assert os.pread(blob.fd, len(data) + 1, 0) == data
        reading = Reading(blob, data)
        self.held.append(reading)
        return reading

    @rule(data=blobs)
    def open_with_wrong_size(self, data: bytes) -> None:
        assert self.cache.open(digest_of(data), len(data) + 1) is None

    @rule(item=readings)
    def read(self, item: Reading) -> None:
        if item in self.held:
            assert item.blob.pread(len(item.data), 0) == item.data

    @rule(item=consumes(readings))
    def close(self, item: Reading) -> None:
        item.blob.close()
        item.blob.close()
        if item in self.held:
            self.held.remove(item)

    # ---- the rest

    @rule(data=blobs)
    def remove(self, data: bytes) -> None:
        self.cache.remove(digest_of(data))
        assert not self.cache.contains(digest_of(data), len(data))
        assert self.cache.open(digest_of(data), len(data)) is None

    @rule()
    def clear(self) -> None:
        self.cache.clear()
        assert self.cache.entries() == []
        assert self.cache.stats().blobs == 0

    @rule(size=st.integers(100_000, 600_000))
    def resize(self, size: int) -> None:
        self.max = size
        self.cache.resize(size)

    @rule()
    def index(self) -> None:
        self.cache.index()

    @rule(size=st.integers(200_000, 600_000), indexed=st.booleans())
    def restart(self, size: int, *, indexed: bool) -> None:
        """As after a crash: what is open or half written stays as it is."""
        before = {entry.digest for entry in self.cache.entries()} if self.root.exists() else set()
        self.cache.close()
        self.old.append(self.cache)
        self.max = max(size, self.max)
        self.cache = DiskCache(self.root, self.max, MinFree())
        self.cache.start()
        if indexed:
            self.cache.index()
            assert names_in(self.root / "tmp") == []
            assert {entry.digest for entry in self.cache.entries()} == before
        for item in [item for item in self.held if isinstance(item, Writing)]:
            item.writer.abort()
            item.ended = True
            self.held.remove(item)

    @rule(data=blobs, how=st.sampled_from(["flip", "append", "cut", "replace", "touch"]))
    def tamper(self, data: bytes, how: str) -> None:
        """Somebody changes a cached file; it must never be served, unless its bytes are right."""
        digest = digest_of(data)
        path = self.root / "blobs" / "sha256" / digest.hex[:2] / digest.hex
        if not path.exists() or any(item.data == data for item in self.held) or not data:
            return
        if how == "flip":
            with path.open("r+b") as file:
                file.write(bytes([data[0] ^ 1]))
        elif how == "append":
            with path.open("ab") as file:
                file.write(b"x")
        elif how == "cut":
            os.truncate(path, len(data) - 1)
        elif how == "replace":
            path.unlink()
            path.write_bytes(bytes(len(data)))
        else:
            os.utime(path, ns=(1, 1))
        blob = self.cache.open(digest, len(data))
        if how == "touch":
            assert blob is not None
            assert os.pread(blob.fd, len(data), 0) == data
            blob.close()
        else:
            assert blob is None
            assert not path.exists()

    @precondition(lambda self: not self.held)
    @rule()
    def delete_directory(self) -> None:
        if self.root.exists():
            shutil.rmtree(self.root)

    @rule()
    def verify(self) -> None:
        assert all(result.ok for result in self.cache.verify_all())

    @invariant()
    def bound_holds(self) -> None:
        if not hasattr(self, "cache"):
            return
        stats = self.cache.stats()
        if not stats.indexed:
            return
        held_open = sum(1 for entry in self.cache.entries() if entry.open_count)
        assert stats.used_bytes <= self.max or stats.blobs == held_open
        if self.root.exists():
            assert disk_usage(self.root) <= stats.used_bytes


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(
    max_examples=45,
    stateful_step_count=35,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def fetch(cache: DiskCache, data: bytes) -> CachedBlob:
    """Return a blob as a mount would: from the cache, or through it, or past it."""
    blob = cache.open(digest_of(data), len(data))
    if blob is not None:
        return blob
    try:
        writer = cache.reserve(len(data))
    except NoSpace:
        writer = cache.spill(len(data))
    writer.write(data, 0)
    return writer.admit(digest_of(data))


def test_threads_share_one_cache(tmp_path: Path) -> None:
    """Eight threads fetch, read and evict at once: every byte is right and the bound holds at each rest."""
    bound, workers, rounds = 500_000, 8, 12
    cache = DiskCache(tmp_path / "cache", bound, MinFree())
    cache.start()
    usages: list[int] = []
    rest = threading.Barrier(workers, action=lambda: usages.append(disk_usage(cache.root)))

    def work(seed: int) -> None:
        choice = random.Random(seed)
        for step in range(rounds * 6):
            data = choice.choice(BLOBS)
            with fetch(cache, data) as blob:
                if choice.random() < 0.2:
                    cache.remove(digest_of(choice.choice(BLOBS)))
                assert blob.pread(len(data) + 1, 0) == data
            if step % 6 == 5:
                rest.wait(30)

    with ThreadPoolExecutor(workers) as pool:
        assert list(pool.map(work, range(workers))) == [None] * workers
    assert len(usages) == rounds
    assert max(usages) <= bound
    stats = cache.stats()
    assert (stats.open_files, stats.loose_bytes, stats.spilled_bytes) == (0, 0, 0)
    assert stats.used_bytes <= bound
    assert stats.admitted
    cache.close()
    assert open_under(tmp_path) == []
