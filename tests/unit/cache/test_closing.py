"""Closing from the event loop takes no time, whatever is closed and whoever holds the cache's lock.

Mutants that these tests catch: `close_soon` that closes at once; that waits for the lock; that evicts; a
reservation that does not wait for what is about to be closed.
"""

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from attachfs.cache.disk_cache import DiskCache, Writer
from attachfs.errors import TooManyFiles
from attachfs.units import MinFree
from tests.unit.cache.blobs import blob_of, digest_of, put

MIB = 2**20


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[DiskCache]:
    cache = DiskCache(tmp_path / "cache", 4 * MIB, MinFree())
    cache.start("test")
    cache.index()
    yield cache
    cache.close()
    assert cache.stats().open_files == 0


class SlowClose:
    """Lets `os.close` of one number wait until it may go on; says which threads closed it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fd: int) -> None:
        self.may = threading.Event()
        self.threads: list[str] = []
        real = os.close

        def close(number: int) -> None:
            if number == fd:
                self.threads.append(threading.current_thread().name)
                assert self.may.wait(30)
            real(number)

        monkeypatch.setattr(os, "close", close)


def test_a_removed_large_blob_is_closed_in_a_thread(
    cache: DiskCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = blob_of(1, 2 * MIB)
    put(cache, data)
    blob = cache.open(digest_of(data), len(data))
    assert blob is not None
    cache.remove(digest_of(data))
    slow = SlowClose(monkeypatch, blob.fd)
    blob.close_soon()  # returns though the close has not
    assert cache.stats().loose_bytes > 0
    slow.may.set()
    cache._store.closer.wait()
    assert slow.threads == ["attachfs-closer"]
    assert cache.stats().loose_bytes == 0


def test_a_blob_that_stays_is_closed_at_once(cache: DiskCache) -> None:
    """A thread for each small file would cost more than all the rest."""
    data = blob_of(1, 2 * MIB)
    put(cache, data)
    blob = cache.open(digest_of(data), len(data))
    assert blob is not None
    blob.close_soon()
    assert blob.fd == -1
    assert cache.stats().open_files == 0
    assert not cache._store.closer.wait()


def test_whoever_holds_the_lock_holds_up_no_close(cache: DiskCache) -> None:
    data = blob_of(1)
    put(cache, data)
    blob = cache.open(digest_of(data), len(data))
    assert blob is not None
    with cache._store.lock:
        blob.close_soon()
        assert cache.stats().open_files == 1  # nor do figures wait
    cache._store.closer.wait()
    assert cache.stats().open_files == 0


def test_a_close_evicts_nothing_itself(cache: DiskCache, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = [blob_of(number, MIB) for number in range(3)]
    for data in blobs:
        put(cache, data)
    held = [cache.open(digest_of(data), len(data)) for data in blobs]
    cache.resize(2 * MIB)
    threads: list[str] = []
    real = cache._store.shrink

    def shrink() -> None:
        threads.append(threading.current_thread().name)
        real()

    monkeypatch.setattr(cache._store, "shrink", shrink)
    for blob in held:
        assert blob is not None
        blob.close_soon()
    cache._store.closer.wait()
    assert set(threads) == {"attachfs-closer"}
    assert cache.stats().used_bytes <= 2 * MIB


def test_room_that_a_close_is_about_to_give_back_is_waited_for(
    cache: DiskCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = cache.reserve(3 * MIB)
    writer.write(bytes(3 * MIB), 0)
    slow = SlowClose(monkeypatch, writer.fd)
    writer.abort_soon()
    made: list[Writer] = []
    thread = threading.Thread(target=lambda: made.append(cache.reserve(3 * MIB)))
    thread.start()
    slow.may.set()
    thread.join()
    assert len(made) == 1
    made[0].abort()


def test_a_job_is_done_where_no_thread_can_be_made(cache: DiskCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    writer = cache.reserve(3 * MIB)
    writer.write(bytes(3 * MIB), 0)
    writer.abort_soon()
    assert cache.stats().loose_bytes == 0


# ---- no descriptor left


def no_descriptor(*_: object, **__: object) -> int:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def test_without_a_descriptor_the_limit_is_named_and_not_the_room(
    cache: DiskCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = blob_of(1)
    put(cache, data)
    monkeypatch.setattr(os, "open", no_descriptor)
    for attempt in (
        lambda: cache.open(digest_of(data), len(data)),
        lambda: cache.reserve(10),
        lambda: cache.spill(10),
    ):
        with pytest.raises(TooManyFiles, match="limit of open files"):
            attempt()
    monkeypatch.undo()
    writer = cache.reserve(10)
    monkeypatch.setattr(os, "dup", no_descriptor)
    with pytest.raises(TooManyFiles):
        writer.dup_reader()
    monkeypatch.undo()
    writer.abort()
    blob = cache.open(digest_of(data), len(data))
    assert blob is not None
    blob.close()
