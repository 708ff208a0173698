"""The disk cache, one promise at a time; faults of the disk; things planted in its directory."""

import contextlib
import errno
import logging
import os
import shutil
import stat
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from attachfs.cache import files as cache_files
from attachfs.cache import scan
from attachfs.cache.directory import CacheDir
from attachfs.cache.disk_cache import DiskCache
from attachfs.cache.quarantine import QuarantineNote
from attachfs.errors import NoSpace, Unexpected, UsageError
from attachfs.model import Digest
from attachfs.units import MinFree
from tests.unit.cache.blobs import blob_of, digest_of, get, path_of, put

# The children touch nothing that another thread could hold; later Pythons warn of any fork beside threads.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

MIB = 1 << 20


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def note(expected: bytes, got: bytes) -> QuarantineNote:
    return QuarantineNote(
        path="assets/a/b",
        url_path="/archivist/v2/x",
        expected=digest_of(expected),
        got=digest_of(got),
        expected_size=len(expected),
        got_size=len(got),
        time=1_700_000_000.5,
        reason="the bytes differ",
    )


def disk_usage(root: Path) -> int:
    total = root.lstat().st_blocks * 512
    for folder, names, files in os.walk(root):
        total += sum((Path(folder) / name).lstat().st_blocks * 512 for name in names + files)
    return total


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., DiskCache]]:
    made = []

    def factory(
        max_bytes: int = 4 * MIB,
        min_free: MinFree = MinFree(),  # noqa: B008 - immutable
        root: Path | None = None,
        *,
        exclusive: bool = True,
        index: bool = True,
    ) -> DiskCache:
        cache = DiskCache(root or tmp_path / "cache", max_bytes, min_free)
        made.append(cache)
        cache.start("/mnt/ledger", exclusive=exclusive)
        if index:
            cache.index()
        return cache

    yield factory
    for cache in made:
        cache.close()
        stats = cache.stats()
        assert (stats.open_files, stats.loose_bytes, stats.spilled_bytes) == (0, 0, 0)
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            assert not fd.readlink().is_relative_to(tmp_path)


Make = Callable[..., DiskCache]


# ---- admitted blobs


def test_a_blob_is_found_again_also_by_the_next_run(make: Make) -> None:
    cache = make()
    data = blob_of(1)
    assert get(cache, data) is None
    put(cache, data)
    assert get(cache, data) == data
    assert path_of(cache, data).read_bytes() == data
    cache.close()
    again = make()
    assert get(again, data) == data
    assert again.stats().rehashed == 0


def test_an_empty_blob_is_cached_like_any_other(make: Make) -> None:
    cache = make()
    put(cache, b"")
    assert get(cache, b"") == b""


@pytest.mark.parametrize("alg", ["sha384", "sha512"])
def test_sha384_and_sha512_are_cached_like_sha256(make: Make, alg: str) -> None:
    cache = make()
    put(cache, b"data", alg)
    blob = cache.open(digest_of(b"data", alg), 4)
    assert blob is not None
    blob.close()
    assert path_of(cache, b"data", alg).exists()
    cache.close()
    assert [entry.digest.alg for entry in make().entries()] == [alg]


def test_folders_and_files_are_private(make: Make) -> None:
    old = os.umask(0)
    try:
        cache = make()
        put(cache, blob_of(1))
        cache.reserve(3).quarantine(note(b"abc", b""))
    finally:
        os.umask(old)
    for folder, _, files in os.walk(cache.root):
        assert stat.S_IMODE(os.lstat(folder).st_mode) == 0o700, folder
        for name in files:
            mode = stat.S_IMODE((Path(folder) / name).lstat().st_mode)
            assert mode == (0o400 if folder.endswith("quarantine") else 0o600), name


def test_one_blob_on_disk_however_often_it_is_fetched(make: Make) -> None:
    """Two writers of the same digest: the second gets the first one's file."""
    cache = make()
    data = blob_of(1)
    first, second = cache.reserve(len(data)), cache.reserve(len(data))
    first.write(data, 0)
    second.write(data, 0)
    one, two = first.admit(digest_of(data)), second.admit(digest_of(data))
    assert os.fstat(one.fd).st_ino == os.fstat(two.fd).st_ino
    one.close()
    two.close()
    assert cache.stats().blobs == 1
    assert names_in(cache.root / "tmp") == []


def test_two_admits_that_did_not_see_each_other(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both looked before either had renamed: the later name wins, the earlier reader reads on."""
    cache = make()
    data = blob_of(1)
    monkeypatch.setattr(cache._reader, "lookup", lambda *_: None)
    blobs = []
    for _ in range(2):
        writer = cache.reserve(len(data))
        writer.write(data, 0)
        blobs.append(writer.admit(digest_of(data)))
    assert cache.stats().blobs == 1
    assert cache.stats().loose_bytes > 0
    blobs[1].close()
    assert blobs[0].pread(len(data), 0) == data
    blobs[0].close()
    assert cache.stats().loose_bytes == 0
    assert disk_usage(cache.root) <= cache.stats().used_bytes
    assert cache.clear() == 1
    assert cache._store.index.blobs.folders == {}
    assert cache._store.index.blobs.folder_bytes == 0


def test_bytes_are_synced_before_the_name_and_names_soon_after(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = make()
    data = blob_of(1)
    writer = cache.reserve(len(data))
    writer.write(data, 0)
    steps = []
    real_fsync, real_rename, real_utime = os.fsync, os.rename, os.utime

    def fsync(fd: int) -> None:
        steps.append(f"sync {Path(f'/proc/self/fd/{fd}').readlink().relative_to(cache.root)}")
        real_fsync(fd)

    def rename(*args: Any, **kwargs: Any) -> None:
        steps.append("rename")
        real_rename(*args, **kwargs)

    def utime(*args: Any, **kwargs: Any) -> None:
        steps.append("seal")
        real_utime(*args, **kwargs)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    monkeypatch.setattr(os, "utime", utime)
    temporary = f"sync tmp/{names_in(cache.root / 'tmp')[0]}"
    writer.admit(digest_of(data)).close()
    shard = f"sync blobs/sha256/{digest_of(data).hex[:2]}"
    cache.close()
    assert steps == ["seal", temporary, "rename", shard, "sync blobs/sha256", "sync blobs"]


def test_folders_are_synced_for_many_names_at_a_time(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = make(max_bytes=32 * MIB)
    synced = []
    real = os.fsync

    def fsync(fd: int) -> None:
        path = Path(f"/proc/self/fd/{fd}").readlink()
        if path.is_dir():
            synced.append(str(path.relative_to(cache.root)))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr("attachfs.cache.store._SYNC_AFTER", 30)
    for number in range(20):
        put(cache, blob_of(number))
    assert synced == []
    cache.close()
    assert sorted(synced) == sorted(set(synced))
    assert {"blobs", "blobs/sha256"} < set(synced)
    assert {f"blobs/sha256/{digest_of(blob_of(number)).hex[:2]}" for number in range(20)} < set(synced)


def test_incomplete_bytes_are_never_admitted(make: Make) -> None:
    cache = make()
    data = blob_of(1)
    hole = cache.reserve(len(data))
    hole.write(data[:100], 0)
    hole.write(data[200:], 200)
    short = cache.reserve(len(data))
    short.write(data[:-1], 0)
    for writer in (hole, short):
        with pytest.raises(Unexpected):
            writer.admit(digest_of(data))
        writer.abort()
    assert get(cache, data) is None
    assert names_in(cache.root / "tmp") == []


def test_a_name_that_is_no_digest_reaches_no_path(make: Make) -> None:
    cache = make()
    bad = [Digest("sha256", "../" * 21 + "a"), Digest("sha256", "A" * 64), Digest("..", "a" * 64)]
    for digest in bad:
        assert cache.open(digest, 0) is None
        assert not cache.remove(digest)
        assert not cache.contains(digest, 0)
        with pytest.raises(Unexpected):
            cache.reserve(0).admit(digest)


def test_a_writer_ends_once(make: Make) -> None:
    cache = make()
    data = blob_of(1)
    writer = cache.reserve(len(data))
    writer.write(data, 0)
    blob = writer.admit(digest_of(data))
    writer.abort()
    assert writer.quarantine(note(data, data)) is None
    with pytest.raises(Unexpected):
        writer.admit(digest_of(data))
    with pytest.raises(Unexpected):
        writer.write(b"x", 0)
    assert blob.pread(len(data), 0) == data
    blob.close()
    assert blob.fd == -1
    with pytest.raises(Unexpected):
        blob.pread(1, 0)
    assert not blob.unchanged()


def test_a_reader_follows_a_download_and_outlives_it(make: Make) -> None:
    cache = make()
    data = blob_of(1)
    writer = cache.reserve(len(data))
    reader = writer.dup_reader()
    writer.write(data[:5000], 0)
    assert reader.pread(5000, 0) == data[:5000]
    writer.abort()
    assert reader.pread(5000, 0) == data[:5000]
    assert cache.stats().loose_bytes > 0
    reader.close()
    assert cache.stats().loose_bytes == 0


def test_a_descriptor_stays_open_until_its_last_user_is_done(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer aborted while a thread writes: the number must not become another file's under the thread."""
    cache = make()
    writer = cache.reserve(10)
    number = writer.fd
    entered, go_on = threading.Event(), threading.Event()
    real = os.pwrite

    def slow(fd: int, data: bytes, offset: int) -> int:
        entered.set()
        assert go_on.wait(30)
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", slow)
    thread = threading.Thread(target=writer.write, args=(b"0123456789", 0))
    thread.start()
    assert entered.wait(30)
    writer.abort()
    other = cache.reserve(10)
    assert other.fd != number
    assert cache.stats().open_files == 2
    go_on.set()
    thread.join()
    assert cache.stats().open_files == 1
    other.abort()


# ---- changes behind the cache's back


def flip(path: Path) -> None:
    with path.open("r+b") as file:
        first = file.read(1)
        file.seek(0)
        file.write(bytes([first[0] ^ 1]))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def extend(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def swap(path: Path) -> None:
    size = path.stat().st_size
    path.unlink()
    path.write_bytes(bytes(size))


@pytest.mark.parametrize("change", [flip, cut, extend, swap])
@pytest.mark.parametrize("restart", [False, True])
def test_a_changed_blob_is_quarantined_and_not_served(
    make: Make, change: Callable[[Path], None], *, restart: bool, caplog: pytest.LogCaptureFixture
) -> None:
    cache = make()
    data = blob_of(1)
    put(cache, data)
    if restart:
        cache.close()
    change(path_of(cache, data))
    changed = path_of(cache, data).read_bytes()
    if restart:
        cache = make()
    assert get(cache, data) is None
    assert not path_of(cache, data).exists()
    assert len([text for text in warnings_in(caplog) if "changed on disk" in text]) == 1
    kept = list((cache.root / "quarantine").glob("*.blob"))
    assert [path.read_bytes() for path in kept] == [changed]
    put(cache, data)
    assert get(cache, data) == data


def test_right_bytes_with_another_time_or_inode_are_hashed_once(make: Make) -> None:
    """A copied-back cache or a `touch` costs one hashing, then the seal is as before."""
    cache = make()
    data = blob_of(1)
    put(cache, data)
    path = path_of(cache, data)
    copy = path.with_name("copy")
    shutil.copy2(path, copy)
    copy.rename(path)
    for _ in range(3):
        assert get(cache, data) == data
    assert cache.stats().rehashed == 1
    os.utime(path)
    for _ in range(3):
        assert get(cache, data) == data
    assert cache.stats().rehashed == 2
    cache.close()
    again = make()
    assert get(again, data) == data
    assert again.stats().rehashed == 0


def test_a_blob_replaced_by_a_larger_file_is_counted_anew(make: Make) -> None:
    cache = make()
    data = blob_of(1)
    put(cache, data)
    cache.close()
    cache = make()
    path = path_of(cache, data)
    path.unlink()
    path.write_bytes(data + bytes(500_000))
    assert get(cache, data) is None
    assert disk_usage(cache.root) <= cache.stats().used_bytes


def test_coarse_timestamps_cost_one_hashing_in_each_run(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.utime

    def coarse(target: Any, *, ns: tuple[int, int]) -> None:
        real(target, ns=(ns[0], ns[1] // 10**9 * 10**9))

    monkeypatch.setattr(os, "utime", coarse)
    cache = make()
    data = blob_of(1)
    put(cache, data)
    for _ in range(3):
        assert get(cache, data) == data
    assert cache.stats().rehashed == 0
    cache.close()
    again = make()
    for _ in range(3):
        assert get(again, data) == data
    assert again.stats().rehashed == 1


def test_an_open_blob_tells_that_it_was_written_to(make: Make) -> None:
    cache = make()
    data = blob_of(1)
    put(cache, data)
    blob = cache.open(digest_of(data), len(data))
    assert blob is not None
    again = cache.open(digest_of(data), len(data))  # moves the access time only
    assert again is not None
    assert blob.unchanged()
    flip(path_of(cache, data))
    assert not blob.unchanged()
    blob.close()
    again.close()


def test_a_blob_asked_for_with_a_wrong_size_stays(make: Make) -> None:
    cache = make()
    data = blob_of(1)
    put(cache, data)
    assert cache.open(digest_of(data), len(data) - 1) is None
    assert get(cache, data) == data


def test_verify_all_hashes_even_what_is_sealed(make: Make) -> None:
    cache = make()
    good, bad = blob_of(1), blob_of(2)
    put(cache, good)
    put(cache, bad)
    path = path_of(cache, bad)
    st = path.stat()
    flip(path)
    os.utime(path, ns=(st.st_atime_ns, st.st_mtime_ns))  # as a failing disk would: nothing shows
    read: list[int] = []
    results = {result.digest: result for result in cache.verify_all(read.append)}
    assert sum(read) == 20_000
    assert results[digest_of(good)].ok
    assert not results[digest_of(bad)].ok
    assert results[digest_of(bad)].quarantined is not None
    assert get(cache, bad) is None
    assert get(cache, good) == good


def test_a_good_blob_that_takes_the_place_of_a_bad_one_stays(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the bad one is hashed, it is removed and fetched again: only what was hashed is put aside."""
    cache = make()
    data = blob_of(1)
    put(cache, data)
    flip(path_of(cache, data))
    real = cache_files.hash_file

    def slow(*args: Any) -> Any:
        found = real(*args)
        monkeypatch.undo()
        cache.remove(digest_of(data))
        put(cache, data)
        return found

    monkeypatch.setattr(cache_files, "hash_file", slow)
    assert get(cache, data) is None
    assert get(cache, data) == data
    assert names_in(cache.root / "quarantine") == []


# ---- the bound


def test_least_recently_opened_goes_first_also_after_a_restart(make: Make) -> None:
    cache = make(300_000)
    blobs = [blob_of(number, 40_000) for number in range(4)]
    for data in blobs:
        put(cache, data)
    assert get(cache, blobs[0]) is not None
    cache.close()
    cache = make(300_000)
    put(cache, blob_of(9, 40_000))
    put(cache, blob_of(10, 40_000))
    assert cache.contains(digest_of(blobs[0]), 40_000)
    assert not cache.contains(digest_of(blobs[1]), 40_000)
    assert cache.entries()[0].digest != digest_of(blobs[0])


def test_listing_and_closing_do_not_count_as_opening(make: Make) -> None:
    cache = make()
    blobs = [blob_of(number) for number in range(3)]
    for data in blobs:
        put(cache, data)
    held = cache.open(digest_of(blobs[0]), 10_000)
    assert get(cache, blobs[1]) is not None
    assert held is not None
    held.close()
    order = [digest_of(blobs[n]) for n in (2, 0, 1)]
    assert [entry.digest for entry in cache.entries()] == order
    cache.resize(1)
    assert cache.stats().blobs == 0


def test_an_open_blob_stays_readable_and_counted_after_removal(make: Make) -> None:
    cache = make()
    data = blob_of(1)
    put(cache, data)
    blob = cache.open(digest_of(data), len(data))
    assert blob is not None
    assert cache.remove(digest_of(data))
    assert not cache.remove(digest_of(data))
    assert blob.pread(len(data), 0) == data
    assert cache.stats().loose_bytes >= len(data)
    blob.close()
    assert cache.stats().loose_bytes == 0


def test_what_is_in_use_is_not_evicted_for_nothing(make: Make) -> None:
    cache = make(1_000_000)  # room for four, on tmpfs too, where folders take none
    held = []
    for number in range(4):
        data = blob_of(number, 220_000)
        writer = cache.reserve(len(data))
        writer.write(data, 0)
        held.append(writer.admit(digest_of(data)))
    with pytest.raises(NoSpace, match="in use"):
        cache.reserve(220_000)
    assert cache.stats().blobs == 4
    held.pop().close()
    cache.reserve(220_000).abort()
    assert cache.stats().blobs == 3
    for blob in held:
        blob.close()


def test_reservations_count_before_a_byte_is_written(make: Make) -> None:
    cache = make(300_000)
    writers = [cache.reserve(45_000) for _ in range(4)]
    with pytest.raises(NoSpace):
        cache.reserve(45_000)
    for writer in writers:
        writer.abort()
    cache.reserve(180_000).abort()


def test_a_blob_larger_than_the_cache_goes_through_an_unlinked_file(make: Make) -> None:
    cache = make(200_000)
    data = blob_of(1, 300_000)
    with pytest.raises(NoSpace, match="larger than the cache"):
        cache.reserve(len(data))
    writer = cache.spill(len(data))
    writer.write(data, 0)
    assert cache.stats().spilled_bytes >= len(data)
    with writer.admit(digest_of(data)) as blob:
        assert blob.pread(len(data), 0) == data
        assert os.fstat(blob.fd).st_nlink == 0
    assert cache.stats().spilled_bytes == 0
    assert get(cache, data) is None


def test_folders_count_towards_the_size_limit(make: Make) -> None:
    """Many tiny blobs: what `du` says of the directory stays below the bound."""
    cache = make(1_000_000)
    for number in range(400):
        put(cache, b"%d" % number)
        if number % 20 == 0:
            assert disk_usage(cache.root) <= cache.stats().used_bytes <= 1_000_000
    cache.resize(150_000)
    assert disk_usage(cache.root) <= cache.stats().used_bytes <= 150_000


def test_resize_evicts_at_once_and_the_rest_as_files_are_closed(make: Make) -> None:
    cache = make()
    for number in range(5):
        put(cache, blob_of(number))
    blob = cache.open(digest_of(blob_of(0)), 10_000)
    assert blob is not None
    cache.resize(1)
    assert cache.stats().blobs == 1
    blob.close()
    assert cache.stats().blobs == 0


def test_a_smaller_bound_than_last_time(make: Make) -> None:
    cache = make()
    for number in range(50):
        put(cache, blob_of(number))
    cache.close()
    cache = make(200_000)
    assert disk_usage(cache.root) <= 200_000


def test_clear_leaves_the_quarantine(make: Make) -> None:
    cache = make()
    put(cache, blob_of(1))
    writer = cache.reserve(4)
    writer.write(b"evil", 0)
    kept = writer.quarantine(note(b"good", b"evil"))
    assert kept is not None
    cache.clear()
    assert cache.entries() == []
    assert kept.read_bytes() == b"evil"


def test_quarantine_from_a_spill_is_copied_within_its_bound(make: Make) -> None:
    cache = make(2 * MIB)
    for size, kept in ((50_000, True), (500_000, False)):
        writer = cache.spill(size)
        writer.write(bytes(size), 0)
        path = writer.quarantine(note(b"good", bytes(size)))
        assert (path is not None) is kept
    assert len(list((cache.root / "quarantine").glob("*.json"))) == 2
    assert disk_usage(cache.root) <= cache.stats().used_bytes


# ---- starting


def test_lookups_before_the_index_look_at_the_disk(make: Make) -> None:
    cache = make()
    put(cache, blob_of(1))
    put(cache, blob_of(2))
    cache.close()
    cache = make(index=False)
    assert not cache.indexed.is_set()
    assert get(cache, blob_of(1)) == blob_of(1)
    assert len(cache.entries()) == 2
    assert cache.remove(digest_of(blob_of(2)))
    cache.index()
    assert cache.indexed.is_set()
    assert [entry.digest for entry in cache.entries()] == [digest_of(blob_of(1))]


def twenty_not_indexed(make: Make) -> DiskCache:
    """Return a cache with twenty blobs of an earlier one, not walked yet."""
    earlier = make()
    for number in range(20):
        put(earlier, blob_of(number))
    earlier.close()
    return make(index=False)


def test_what_is_opened_or_removed_while_the_walk_goes_on(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = twenty_not_indexed(make)
    real = scan.scan_blobs
    oldest = blob_of(0)

    def walk(*args: Any) -> Iterator[Any]:
        yield from real(*args)
        assert get(cache, oldest) == oldest
        assert cache.remove(digest_of(blob_of(7)))

    monkeypatch.setattr(scan, "scan_blobs", walk)
    cache.index()
    entries = [entry.digest for entry in cache.entries()]
    assert len(entries) == 19
    assert digest_of(blob_of(7)) not in entries
    assert entries[-1] == digest_of(oldest)
    assert cache.stats().used_bytes >= disk_usage(cache.root)


def test_closing_waits_for_the_walk_that_goes_on_and_ends_it_early(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Once the lock is given back the directory may be another mount's: its files are not to be swept."""
    cache = twenty_not_indexed(make)
    walking, closing = threading.Event(), threading.Event()
    real_scan, real_stop = scan.scan_blobs, scan.Indexer.stop
    folders = list[scan.Scanned]()
    detached = list[bool]()

    def walk(home: CacheDir) -> Iterator[scan.Scanned]:
        for folder in real_scan(home):
            folders.append(folder)
            walking.set()
            assert closing.wait(30)
            yield folder
            detached.append(home.identity() is None)

    def stop(indexer: scan.Indexer) -> None:
        indexer._stopped = True
        closing.set()
        real_stop(indexer)

    monkeypatch.setattr(scan, "scan_blobs", walk)
    monkeypatch.setattr(scan.Indexer, "stop", stop)
    index = threading.Thread(target=cache.index)
    index.start()
    assert walking.wait(30)
    cache.close()
    assert cache._indexer._scanning.acquire(blocking=False)
    cache._indexer._scanning.release()
    index.join(30)
    assert len(folders) == 1
    assert not any(detached)
    cache.index()  # a thread that only now gets its turn
    assert len(folders) == 1
    assert not warnings_in(caplog)


def test_clearing_forgets_what_went_with_a_removed_directory(make: Make) -> None:
    cache = make()
    put(cache, b"x")
    shutil.rmtree(cache.root)
    assert cache.clear() == 0
    assert cache.entries() == []
    assert cache.stats().blobs == 0


def test_a_writer_waits_for_the_index(make: Make) -> None:
    cache = make()
    for number in range(20):
        put(cache, blob_of(number))
    cache.close()
    cache = make(200_000, index=False)
    cache.reserve(10_000).abort()
    assert cache.indexed.is_set()
    assert disk_usage(cache.root) <= 200_000


@pytest.mark.parametrize("broken", ["identity", "sweep"])
def test_an_index_that_fails_in_whatever_way_holds_up_nobody(
    make: Make, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """Its own task tells what happened; writers go on with what is known."""
    cache = make(index=False)

    def fail(_: CacheDir) -> None:
        raise RuntimeError("something foreign")

    with monkeypatch.context() as patch:
        patch.setattr(CacheDir, broken, fail)
        with pytest.raises(RuntimeError, match="something foreign"):
            cache.index()
    assert cache.indexed.is_set()
    cache.wait_for_index()
    put(cache, b"x")
    assert get(cache, b"x") == b"x"


def test_left_over_temporary_files_go_and_foreign_files_stay(make: Make, tmp_path: Path) -> None:
    cache = make()
    put(cache, blob_of(1))
    cache.close()
    outside = tmp_path / "outside"
    outside.write_text("mine")
    (cache.root / "tmp" / "left-over").write_text("x")
    (cache.root / "tmp" / "link").symlink_to(outside)
    os.mkfifo(cache.root / "tmp" / "fifo")
    foreign = [
        cache.root / "README",
        cache.root / "blobs" / "note.txt",
        path_of(cache, blob_of(1)).with_name("foreign"),
        path_of(cache, blob_of(1)).with_name("f" * 64),
    ]
    for path in foreign:
        path.write_text("x")
    cache = make()
    assert names_in(cache.root / "tmp") == []
    assert outside.read_text() == "mine"
    assert cache.stats().blobs == 1
    cache.clear()
    assert all(path.exists() for path in foreign)


def test_a_second_mount_is_told_who_holds_the_directory(make: Make, tmp_path: Path) -> None:
    make()
    with pytest.raises(UsageError) as caught:
        make()
    for text in (str(os.getpid()), "/mnt/ledger", str(tmp_path / "cache"), "--cache-dir"):
        assert text in caught.value.reason


def test_the_lock_ends_with_its_process(make: Make) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            make()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    make()


def test_commands_work_beside_a_mount(make: Make) -> None:
    mount = make()
    put(mount, blob_of(1))
    put(mount, blob_of(2))
    command = make(exclusive=False)
    assert len(command.entries()) == 2
    assert all(result.ok for result in command.verify_all())
    with pytest.raises(NoSpace):
        command.reserve(1)
    assert command.remove(digest_of(blob_of(1)))
    assert get(mount, blob_of(1)) is None
    command.clear()
    assert get(mount, blob_of(2)) is None
    put(mount, blob_of(1))
    assert get(mount, blob_of(1)) == blob_of(1)
    assert disk_usage(mount.root) <= mount.stats().used_bytes


def test_a_command_with_a_smaller_bound_evicts_nothing(make: Make) -> None:
    """The bound is the mount's; a command that is told another one leaves blobs and quarantine alone."""
    mount = make()
    for number in range(20):
        put(mount, blob_of(number))
    for number in range(3):
        writer = mount.reserve(50_000)
        writer.write(bytes(50_000), 0)
        assert writer.quarantine(note(b"good", bytes(number))) is not None
    flip(path_of(mount, blob_of(0)))
    command = make(1000, exclusive=False)
    assert [result.ok for result in command.verify_all()].count(False) == 1
    command.close()
    assert mount.stats().blobs == 20  # it has not noticed yet that one is gone
    assert all(get(mount, blob_of(number)) for number in range(1, 20))
    assert len(list((mount.root / "quarantine").glob("*.blob"))) == 4


def test_a_command_makes_no_cache(make: Make, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        make(exclusive=False)
    assert not (tmp_path / "cache").exists()


def test_a_newer_layout_is_refused(make: Make, tmp_path: Path) -> None:
    make().close()
    (tmp_path / "cache" / "VERSION").write_text("attachfs cache 2\n")
    with pytest.raises(UsageError, match="--cache-dir"):
        make()


def test_a_directory_with_other_things_in_it_is_refused(make: Make, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "thesis.odt").write_text("x")
    with pytest.raises(UsageError, match="other files"):
        make()
    assert names_in(tmp_path / "cache") == ["thesis.odt"]


def test_a_file_in_place_of_the_directory_is_refused(make: Make, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("x")
    with pytest.raises(UsageError, match="cannot be used"):
        make()


def test_modes_of_an_existing_directory(make: Make, tmp_path: Path) -> None:
    root = tmp_path / "cache"
    root.mkdir()
    root.chmod(0o775)
    make().close()
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    root.chmod(0o770)
    with pytest.raises(UsageError, match="written by others"):
        make()
    root.chmod(0o755)
    make()
    assert stat.S_IMODE(root.stat().st_mode) == 0o700


def test_somebody_elses_directory_is_refused(make: Make, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to give the directory away")
    make().close()
    os.chown(tmp_path / "cache", 12345, -1)
    with pytest.raises(UsageError, match="belongs to user 12345"):
        make()


# ---- things planted


def plant_symlink(path: Path, outside: Path) -> None:
    path.symlink_to(outside)


def plant_hard_link(path: Path, outside: Path) -> None:
    os.link(outside, path)


def plant_fifo(path: Path, outside: Path) -> None:  # noqa: ARG001 - all take the same
    os.mkfifo(path)


def plant_folder(path: Path, outside: Path) -> None:  # noqa: ARG001
    path.mkdir()
    (path / "x").write_text("x")


@pytest.mark.parametrize("plant", [plant_symlink, plant_hard_link, plant_fifo, plant_folder])
def test_what_is_planted_as_a_blob_is_not_used(
    make: Make, tmp_path: Path, plant: Callable[[Path, Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    """Right bytes or not: only a plain file of ours, with one name, is a blob."""
    cache = make()
    data = blob_of(1)
    put(cache, data)
    outside = tmp_path / "outside"
    outside.write_bytes(data)
    before = outside.stat()
    path_of(cache, data).unlink()
    plant(path_of(cache, data), outside)
    for _ in range(3):
        assert cache.open(digest_of(data), len(data)) is None
    assert len(warnings_in(caplog)) == 1
    writer = cache.reserve(len(data))
    writer.write(data, 0)
    with writer.admit(digest_of(data)) as blob:  # takes the name, or goes without one
        assert blob.pread(len(data), 0) == data
    cache.remove(digest_of(data))
    cache.clear()
    cache.close()
    make().clear()
    after = outside.stat()
    assert outside.read_bytes() == data
    assert (after.st_mtime_ns, after.st_mode) == (before.st_mtime_ns, before.st_mode)


@pytest.mark.parametrize("place", ["blobs", "blobs/sha256", "tmp", "quarantine", "shard"])
def test_a_symlinked_folder_is_not_followed(make: Make, tmp_path: Path, place: str) -> None:
    cache = make()
    data = blob_of(1)
    put(cache, data)
    folder = path_of(cache, data).parent if place == "shard" else cache.root / place
    elsewhere = tmp_path / "elsewhere"
    folder.rename(elsewhere)
    before = sorted(path.relative_to(elsewhere) for path in elsewhere.rglob("*"))
    folder.symlink_to(elsewhere)
    if place.startswith(("blobs", "shard")):
        assert get(cache, data) is None
    if place == "tmp":
        with pytest.raises(NoSpace):
            cache.reserve(len(data))
        writer = cache.spill(len(data))
    else:
        writer = cache.reserve(len(data))
    writer.write(data, 0)
    with writer.admit(digest_of(data)) as blob:
        assert blob.pread(len(data), 0) == data
    cache.remove(digest_of(data))
    with contextlib.suppress(NoSpace):
        cache.reserve(4).quarantine(note(b"good", b""))
    with contextlib.suppress(Unexpected):
        cache.clear()
    assert sorted(path.relative_to(elsewhere) for path in elsewhere.rglob("*")) == before
    cache.close()
    if place not in {"shard", "blobs/sha256"}:
        with pytest.raises(UsageError):
            make()


def test_a_symlinked_lock_or_version_is_refused(make: Make, tmp_path: Path) -> None:
    for name in ("lock", "VERSION"):
        make().close()
        outside = tmp_path / f"outside-{name}"
        outside.write_text("mine")
        (tmp_path / "cache" / name).unlink()
        (tmp_path / "cache" / name).symlink_to(outside)
        with pytest.raises(UsageError):
            make()
        assert outside.read_text() == "mine"
        (tmp_path / "cache" / name).unlink()


def test_the_directory_may_be_reached_through_a_symlink(make: Make, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    cache = make(root=tmp_path / "link" / "cache")
    put(cache, blob_of(1))
    assert cache.root == tmp_path / "real" / "cache"


# ---- a disk in trouble


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_write_that_fails_leaves_nothing_behind(
    make: Make, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    cache = make()
    writer = cache.reserve(10)

    def fail(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", fail)
        with pytest.raises(Unexpected if code == errno.EIO else NoSpace):
            writer.write(b"0123456789", 0)
    writer.abort()
    put(cache, b"0123456789")


def test_short_writes_are_completed(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = make()
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: real(fd, data[:1000], offset))
    put(cache, blob_of(1))
    assert get(cache, blob_of(1)) == blob_of(1)


@pytest.mark.parametrize("call", ["fsync", "utime"])
def test_a_disk_that_does_not_take_the_bytes(
    make: Make, monkeypatch: pytest.MonkeyPatch, call: str, caplog: pytest.LogCaptureFixture
) -> None:
    """After a failed fsync nobody knows what a later read returns: such a blob is not served."""
    cache = make()
    data = blob_of(1)

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    for _ in range(3):
        writer = cache.reserve(len(data))
        writer.write(data, 0)
        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail)
            with pytest.raises(Unexpected):
                writer.admit(digest_of(data))
    assert get(cache, data) is None
    assert len(warnings_in(caplog)) == 1
    assert cache.stats().troubles == {"write": 3}
    put(cache, data)


def test_a_name_that_cannot_be_given(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache = make()
    data = blob_of(1)

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    writer = cache.reserve(len(data))
    writer.write(data, 0)
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", fail)
        blob = writer.admit(digest_of(data))
    assert blob.pread(len(data), 0) == data
    assert cache.stats().loose_bytes >= len(data)
    assert len(warnings_in(caplog)) == 1
    blob.close()
    assert names_in(cache.root / "tmp") == []


def test_a_cached_blob_that_cannot_be_read(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = make()
    data = blob_of(1)
    put(cache, data)
    os.utime(path_of(cache, data), ns=(0, 0))

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", fail)
        assert get(cache, data) is None
        assert [result.problem for result in cache.verify_all()] == ["it cannot be read: Input/output error"]
    assert get(cache, data) == data


def test_the_directory_is_deleted_while_it_is_in_use(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    cache = make()
    one, two, three = blob_of(1), blob_of(2), blob_of(3)
    put(cache, one)
    opened = cache.open(digest_of(one), len(one))
    writer = cache.reserve(len(two))
    writer.write(two, 0)
    shutil.rmtree(cache.root)
    assert opened is not None
    assert opened.pread(len(one), 0) == one
    with writer.admit(digest_of(two)) as blob:
        assert blob.pread(len(two), 0) == two
    assert get(cache, one) is None
    put(cache, three)
    assert get(cache, three) == three
    assert stat.S_IMODE(cache.root.stat().st_mode) == 0o700
    opened.close()
    assert cache.stats().blobs == 1
    assert disk_usage(cache.root) <= cache.stats().used_bytes
    assert any("deleted" in text for text in warnings_in(caplog))
    with pytest.raises(UsageError):
        make()  # the new one is locked as well


def test_another_cache_is_put_in_its_place(make: Make, tmp_path: Path) -> None:
    """What lies in the directory that has taken the old one's place counts."""
    other = make(root=tmp_path / "other")
    for number in range(20):
        put(other, blob_of(number))
    other.close()
    cache = make(300_000)
    put(cache, blob_of(100))
    shutil.rmtree(cache.root)
    (tmp_path / "other").rename(cache.root)
    put(cache, blob_of(101))
    assert cache.stats().blobs > 5
    assert disk_usage(cache.root) <= cache.stats().used_bytes <= 300_000


def test_a_directory_taken_over_by_another_mount(make: Make) -> None:
    cache = make()
    data = blob_of(1)
    shutil.rmtree(cache.root)
    other = make()
    with pytest.raises(NoSpace, match="in use by"):
        cache.reserve(len(data))
    assert get(cache, data) is None
    cache.spill(len(data)).abort()
    other.close()
    put(cache, data)


def test_warnings_come_once_and_repeats_are_counted(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    cache = make()
    cache._warnings.warn("odd", "something is odd")
    cache._warnings.warn("odd", "something else is odd")
    cache.close()
    assert warnings_in(caplog) == ["something is odd", "trouble with the cache (odd) occurred 2 times in all"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a filesystem of 2 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m,mode=700", "tmpfs", str(place)],
        capture_output=True,
        check=False,
    )
    if done.returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_on_a_full_disk_the_cache_evicts_and_refuses_what_cannot_fit(make: Make, small_disk: Path) -> None:
    """The cache may grow to 100 MiB, the disk holds 2: it evicts, and a blob too large goes elsewhere."""
    cache = make(100 * MIB, root=small_disk / "cache")
    for number in range(30):
        put(cache, blob_of(number, 300_000))
        assert get(cache, blob_of(number, 300_000)) == blob_of(number, 300_000)
    assert cache.stats().evicted > 20
    data = blob_of(1, 3 * MIB)
    with pytest.raises(NoSpace):
        cache.reserve(len(data))
    assert cache.stats().blobs > 0  # nothing was evicted in vain
    writer = cache.spill(len(data))
    writer.write(data, 0)
    with writer.admit(digest_of(data)) as blob:
        assert blob.pread(len(data), 0) == data


def test_a_disk_filled_by_somebody_else(make: Make, small_disk: Path) -> None:
    cache = make(100 * MIB, root=small_disk / "cache")
    data = blob_of(1, 100_000)
    writer = cache.reserve(len(data))
    with (small_disk / "filler").open("wb") as filler, contextlib.suppress(OSError):
        filler.write(bytes(3 * MIB))
    with pytest.raises(NoSpace):
        writer.write(data, 0)
    writer.abort()
    with pytest.raises(NoSpace):
        cache.reserve(len(data))
    cache.spill(len(data)).abort()
    (small_disk / "filler").unlink()
    put(cache, data)
    assert get(cache, data) == data


def test_min_free_is_left_free(make: Make, small_disk: Path) -> None:
    cache = make(100 * MIB, MinFree(percent=50), root=small_disk / "cache")
    for number in range(20):
        put(cache, blob_of(number, 200_000))
        vfs = os.statvfs(small_disk)
        assert vfs.f_bavail * vfs.f_frsize >= MIB
    one = cache.reserve(400_000)
    two = cache.reserve(400_000)
    with pytest.raises(NoSpace):
        cache.reserve(400_000)  # two are promised already, though not written
    one.abort()
    two.abort()
    with pytest.raises(NoSpace):
        cache.reserve(MIB + 300_000)


def test_a_filesystem_that_gives_room_back_late(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """It never shows what eviction gained; the whole cache must not go for one blob."""
    cache = make(4 * MIB, MinFree(bytes=MIB))
    for number in range(20):
        put(cache, blob_of(number, 20_000))
    real = os.fstatvfs

    def late(fd: int) -> Any:
        found = list(real(fd))
        found[4] = (MIB + 40_000) // found[1]  # f_bavail
        return os.statvfs_result(found)

    monkeypatch.setattr(os, "fstatvfs", late)
    cache.reserve(100_000).abort()
    assert 14 <= cache.stats().blobs <= 17


def test_a_disk_made_read_only(make: Make, small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = make(MIB, root=small_disk / "cache")
    data = blob_of(1)
    put(cache, data)
    cache.close()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    cache = make(MIB, root=small_disk / "cache")
    assert get(cache, data) == data
    for _ in range(3):
        with pytest.raises(NoSpace):
            cache.reserve(10)
    cache.spill(10).abort()
    assert not cache.remove(digest_of(data))
    cache.clear()
    assert get(cache, data) == data
    assert len([text for text in warnings_in(caplog) if "cannot be written" in text]) == 1
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    put(cache, blob_of(2))
    assert get(cache, blob_of(2)) == blob_of(2)
    assert cache.stats().writable
    assert cache.stats().blobs == 2


def test_a_directory_of_mode_0(make: Make) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to become somebody else")
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="attachfs-test-") as top:
        place, out = Path(top) / "cache", Path(top) / "out"
        place.mkdir()
        Path(top).chmod(0o755)
        os.chown(place, 65534, 65534)
        place.chmod(0)
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(BaseException), out.open("w") as report:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
                cache = make(root=place)
                assert get(cache, b"abc") is None
                with pytest.raises(NoSpace):
                    cache.reserve(10)
                writer = cache.spill(3)
                writer.write(b"abc", 0)
                report.write(f"{writer.pread(3, 0)!r} {list(cache.stats().troubles)}")
            os._exit(0)
        os.waitpid(pid, 0)
        assert out.read_text() == "b'abc' ['directory']"
