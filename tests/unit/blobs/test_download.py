"""One download: who may read how far, and that it ends with everything given back."""

import hashlib
import os
import stat
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from attachfs.blobs.download import WITHHELD, Download
from attachfs.blobs.pins import Pins
from attachfs.blobs.staging import Staging
from attachfs.cache.descriptor import Descriptor
from attachfs.cache.disk_cache import CachedBlob, DiskCache, Writer
from attachfs.errors import BadAnswer, IntegrityError, NoSpace, Unexpected, Unreachable
from attachfs.model import AttachmentRef, Digest
from attachfs.units import MinFree
from tests.services.memory_source import FakeBytes, Piece, Transfer, file_ref

REF = file_ref()
DATA = bytes(range(256)) * 4096  # 1 MiB
LIMIT = len(DATA) - WITHHELD


def digest_of(data: bytes) -> Digest:
    return Digest("sha256", hashlib.sha256(data).hexdigest())


def left_over(cache: DiskCache) -> tuple[int, int, int, int]:
    """Return what must be nothing once all is over: open blobs, their room, descriptors of their files."""
    cache._store.closer.wait()
    stats = cache.stats()
    held = 0
    for fd in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the one that lists them is gone by now
            target = fd.readlink()
            held += (
                target.is_relative_to(cache.root)
                and stat.S_ISREG(fd.stat().st_mode)
                and target.name != "lock"
            )
    return stats.open_files, stats.loose_bytes, stats.spilled_bytes, held


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[DiskCache]:
    cache = DiskCache(tmp_path / "cache", 64 * 2**20, MinFree())
    cache.start("test")
    cache.index()
    yield cache
    cache.close()


class Unpinned(Staging):
    """Where a download's bytes go, without pins."""

    def __init__(self, cache: DiskCache) -> None:
        super().__init__(cache, Pins(cache.root.parent / "pins.sqlite"), "ledger.example")

    def pin(self, ref: AttachmentRef, digest: Digest, size: int) -> None:
        """Pin nothing."""

    async def pin_all(self, refs: set[AttachmentRef], digest: Digest, size: int) -> None:
        """Pin nothing."""


class Running:
    """A download under way, with the follower that keeps it so."""

    def __init__(
        self,
        cache: DiskCache,
        nursery: trio.Nursery,
        data: bytes,
        digest: Digest | None,
        *,
        early_readers: bool = True,
    ) -> None:
        self.source = FakeBytes()
        self.download = Download(
            REF, digest, len(data), self.source, Unpinned(cache), early_readers=early_readers
        )
        self.download.acquire()
        self.ended = trio.Event()
        nursery.start_soon(self._run)

    async def _run(self) -> None:
        await self.download.run(lambda _: None)
        self.ended.set()

    async def transfer(self) -> Transfer:
        return await self.source.next()


@pytest.fixture
async def running(cache: DiskCache, nursery: trio.Nursery) -> AsyncIterator[Running]:
    running = Running(cache, nursery, DATA, digest_of(DATA))
    with trio.fail_after(30):
        yield running


class Reach:
    """Somebody who waits for the bytes before `end`."""

    def __init__(self, nursery: trio.Nursery, download: Download, end: int) -> None:
        self.there = trio.Event()
        nursery.start_soon(self._wait, download, end)

    async def _wait(self, download: Download, end: int) -> None:
        await download.wait_until(end)
        self.there.set()


async def test_bytes_may_be_read_as_they_are_stored(running: Running) -> None:
    transfer = await running.transfer()
    transfer.put(DATA[:1000])
    await running.download.wait_until(1000)
    assert running.download.pread(1000, 0) == DATA[:1000]
    assert not running.download.gate.can_serve(1001)
    transfer.put(DATA[1000:5000], offset=1000)
    await running.download.wait_until(5000)
    assert not running.download.verified
    running.download.release()


async def strict(
    cache: DiskCache, nursery: trio.Nursery, data: bytes
) -> tuple[Download, Transfer, FakeBytes]:
    source = FakeBytes()
    download = Download(REF, digest_of(data), len(data), source, Unpinned(cache), early_readers=False)
    download.acquire()
    nursery.start_soon(download.run, lambda _: None)
    return download, await source.next(), source


@pytest.mark.parametrize("length", [1000, 2**20 + 1], ids=["in one go", "as it comes"])
async def test_a_source_may_take_back_bytes_that_nobody_was_served(
    cache: DiskCache, nursery: trio.Nursery, length: int
) -> None:
    data = os.urandom(length)
    running = Running(cache, nursery, data, digest_of(data), early_readers=False)
    transfer = await running.transfer()
    assert running.source.digests == [digest_of(data)]
    transfer.put(b"wrong" + data[5:]).put(Piece(0, data, discards=True)).end()
    with trio.fail_after(30):
        await running.download.finished()
    assert running.download.pread(length, 0) == data
    running.download.release()


async def test_a_source_may_not_take_back_what_somebody_may_have_read(running: Running) -> None:
    transfer = await running.transfer()
    assert running.source.digests == [None]
    transfer.put(DATA[:1000]).put(Piece(0, DATA, discards=True)).end()
    with pytest.raises(Unexpected, match="took back"):
        await running.download.finished()
    running.download.release()


async def test_a_reader_ahead_waits(running: Running, nursery: trio.Nursery) -> None:
    transfer = await running.transfer()
    transfer.put(DATA[:1000])
    await running.download.wait_until(1000)
    ahead = Reach(nursery, running.download, 1001)
    await wait_all_tasks_blocked()
    assert not ahead.there.is_set()
    transfer.put(DATA[1000:1001], offset=1000)
    await ahead.there.wait()
    running.download.release()


async def test_the_last_part_is_withheld_until_the_whole_is_verified(
    running: Running, nursery: trio.Nursery
) -> None:
    transfer = await running.transfer()
    transfer.put(DATA)
    await running.download.wait_until(LIMIT)
    last = Reach(nursery, running.download, LIMIT + 1)
    while running.download.staged.written < len(DATA):
        await trio.lowlevel.checkpoint()
    await wait_all_tasks_blocked()
    assert running.download.gate.can_serve(LIMIT)
    assert not running.download.gate.can_serve(LIMIT + 1)
    assert not last.there.is_set()
    transfer.end()
    await running.download.finished()
    await last.there.wait()
    assert running.download.verified
    assert running.download.gate.can_serve(len(DATA))
    running.download.release()


@pytest.mark.parametrize("size", [0, 1, 100, WITHHELD, WITHHELD + 1, 3 * WITHHELD, 3 * WITHHELD + 5])
async def test_what_is_withheld_begins_at_a_request_of_the_kernels_and_is_never_nothing(
    cache: DiskCache, size: int
) -> None:
    download = Download(REF, digest_of(b""), size, FakeBytes(), Unpinned(cache))
    download.staged.written = size
    readable = max((end for end in range(0, size + 1, 1) if download.gate.can_serve(end)), default=0)
    assert readable % WITHHELD == 0
    if size:
        assert 1 <= size - readable <= WITHHELD


async def test_a_byte_that_is_wrong_anywhere_is_never_read_to_the_end(
    cache: DiskCache, nursery: trio.Nursery
) -> None:
    for position in (0, len(DATA) // 2, LIMIT - 1, LIMIT, len(DATA) - 1):
        running = Running(cache, nursery, DATA, digest_of(DATA))
        wrong = bytearray(DATA)
        wrong[position] ^= 1
        (await running.transfer()).put(bytes(wrong)).end()
        with pytest.raises(IntegrityError, match="do not match"):
            await running.download.finished()
        with pytest.raises(IntegrityError):
            await running.download.wait_until(1)
        running.download.release()
    assert cache.stats().blobs == 0


@pytest.mark.parametrize("cut", [1, 500_000])
async def test_a_body_that_ends_early_is_a_bad_answer(running: Running, cache: DiskCache, cut: int) -> None:
    (await running.transfer()).put(DATA[:cut]).end()
    with pytest.raises(BadAnswer, match=f"{cut} came"):
        await running.download.finished()
    running.download.release()
    assert cache.stats().blobs == 0


async def test_a_gap_is_a_bad_answer(running: Running) -> None:
    (await running.transfer()).put(Piece(0, DATA[:1000]), Piece(1001, DATA[1001:])).end()
    with pytest.raises(BadAnswer, match="1 bytes are missing at 1000"):
        await running.download.finished()
    running.download.release()


@pytest.mark.parametrize("size", [1, 100, 65_536, len(DATA)])
async def test_any_pieces_make_up_the_whole(running: Running, cache: DiskCache, size: int) -> None:
    pieces = [Piece(start, DATA[start : start + size]) for start in range(0, len(DATA), size)]
    if size == 1:
        pieces = [*pieces[:500], Piece(500, DATA[500:])]
    transfer = await running.transfer()
    for piece in pieces:
        while transfer._send.statistics().current_buffer_used > 900:
            await trio.lowlevel.checkpoint()
        transfer.put(piece)
    transfer.end()
    await running.download.finished()
    assert running.download.pread(len(DATA), 0) == DATA
    running.download.release()
    assert cache.contains(digest_of(DATA), len(DATA))


class TestBeganAnew:
    async def test_an_answer_begun_anew_with_the_same_bytes_goes_on(
        self, running: Running, cache: DiskCache
    ) -> None:
        transfer = await running.transfer()
        transfer.put(DATA[:700_000])
        await running.download.wait_until(700_000)
        transfer.put(DATA[:300_000], DATA[300_000:]).end()
        await running.download.finished()
        assert running.download.pread(len(DATA), 0) == DATA
        running.download.release()
        assert cache.contains(digest_of(DATA), len(DATA))

    async def test_what_was_readable_stays_so(self, running: Running) -> None:
        transfer = await running.transfer()
        transfer.put(DATA[:700_000])
        await running.download.wait_until(700_000)
        transfer.put(DATA[:10])
        await wait_all_tasks_blocked()
        assert running.download.gate.can_serve(700_000)
        running.download.release()

    async def test_an_answer_begun_anew_with_other_bytes_fails(
        self, running: Running, cache: DiskCache
    ) -> None:
        transfer = await running.transfer()
        transfer.put(DATA[:700_000])
        await running.download.wait_until(700_000)
        wrong = bytearray(DATA)
        wrong[699_999] ^= 1
        transfer.put(bytes(wrong)).end()
        with pytest.raises(BadAnswer, match="other bytes the second time"):
            await running.download.finished()
        running.download.release()
        assert cache.stats().blobs == 0

    async def test_an_answer_may_begin_anew_more_than_once(self, running: Running) -> None:
        transfer = await running.transfer()
        for end in (100, 5000, 200_000, len(DATA)):
            transfer.put(DATA[:end])
        transfer.end()
        await running.download.finished()
        running.download.release()

    async def test_an_answer_begun_anew_that_ends_early_is_a_bad_answer(self, running: Running) -> None:
        (await running.transfer()).put(DATA[:700_000]).put(DATA[:100]).end()
        with pytest.raises(BadAnswer, match="700000 came"):
            await running.download.finished()
        running.download.release()


class TestFailures:
    @pytest.mark.parametrize("error", [Unreachable("x"), BadAnswer("x")], ids=lambda e: type(e).__name__)
    async def test_the_sources_error_reaches_every_follower(
        self, running: Running, cache: DiskCache, error: Exception
    ) -> None:
        running.download.acquire()
        (await running.transfer()).put(DATA[:1000], error)
        for _ in range(2):
            with pytest.raises(type(error)):
                await running.download.finished()
            running.download.release()
        assert left_over(cache) == (0, 0, 0, 0)
        assert cache.stats().blobs == 0

    async def test_a_fault_of_our_own_is_told_as_such(
        self, running: Running, caplog: pytest.LogCaptureFixture
    ) -> None:
        (await running.transfer()).put(DATA[:1000], KeyError("x"))
        with pytest.raises(Unexpected, match="KeyError"):
            await running.download.finished()
        running.download.release()
        assert "unexpected error in its download" in caplog.text

    async def test_no_room_is_told(self, nursery: trio.Nursery, cache: DiskCache) -> None:
        class Full(Unpinned):
            async def reserve(self, *_: object) -> Writer:
                raise NoSpace("full")

        source = FakeBytes()
        download = Download(REF, digest_of(DATA), len(DATA), source, Full(cache))
        download.acquire()
        await download.run(lambda _: None)
        with pytest.raises(NoSpace):
            await download.finished()
        download.release()
        assert source.transfers == []
        assert not nursery.child_tasks

    async def test_no_byte_is_readable_after_a_failure(self, running: Running) -> None:
        transfer = await running.transfer()
        transfer.put(DATA[:1000])
        await running.download.wait_until(1000)
        transfer.put(Unreachable("x"))
        with pytest.raises(Unreachable):
            await running.download.finished()
        with pytest.raises(Unreachable):
            await running.download.wait_until(1000)
        running.download.release()


class TestLeaving:
    async def test_the_last_follower_ends_it(self, running: Running, cache: DiskCache) -> None:
        running.download.acquire()
        transfer = await running.transfer()
        transfer.put(DATA[:1000])
        await running.download.wait_until(1000)
        running.download.release()
        await wait_all_tasks_blocked()
        assert running.source.live == 1
        running.download.release()
        assert not running.download.joinable
        await running.ended.wait()
        assert running.source.live == 0
        assert left_over(cache) == (0, 0, 0, 0)
        assert cache.stats().blobs == 0
        assert list((cache.root / "tmp").iterdir()) == []

    async def test_leaving_a_download_after_it_ended_gives_everything_back(
        self, running: Running, cache: DiskCache
    ) -> None:
        (await running.transfer()).put(DATA).end()
        await running.download.finished()
        assert cache.stats().open_files == 1
        running.download.release()
        assert left_over(cache) == (0, 0, 0, 0)
        assert cache.stats().blobs == 1


class TestUnverified:
    """Under --verify=off nobody vouches for the bytes: none is withheld, and none is kept."""

    async def test_the_last_part_is_not_withheld(self, cache: DiskCache, nursery: trio.Nursery) -> None:
        running = Running(cache, nursery, DATA, None)
        transfer = await running.transfer()
        transfer.put(DATA)
        with trio.fail_after(30):
            await running.download.wait_until(len(DATA))
        assert running.download.pread(len(DATA), 0) == DATA
        transfer.end()
        await running.ended.wait()
        assert not running.download.verified
        assert running.download.gate.can_serve(len(DATA))
        running.download.release()
        assert left_over(cache) == (0, 0, 0, 0)
        assert cache.stats().blobs == 0

    async def test_a_short_body_is_a_bad_answer_still(self, cache: DiskCache, nursery: trio.Nursery) -> None:
        running = Running(cache, nursery, DATA, None)
        (await running.transfer()).put(DATA[:-1]).end()
        with trio.fail_after(30), pytest.raises(BadAnswer):
            await running.download.wait_until(len(DATA))
        running.download.release()
        assert cache.stats().spilled_bytes == 0


def opened(path: Path) -> CachedBlob:
    return CachedBlob(path.stat().st_size, Descriptor(os.open(path, os.O_RDONLY)))


class TestReadWithoutWaiting:
    def test_what_was_just_written_is_read(self, tmp_path: Path) -> None:
        (tmp_path / "x").write_bytes(DATA)
        with opened(tmp_path / "x") as blob:
            found = blob.pread_nowait(1000, 5)
            assert found is None or bytes(found) == DATA[5:1005]

    def test_a_read_without_waiting_never_gives_less_than_asked(self, tmp_path: Path) -> None:
        (tmp_path / "x").write_bytes(b"abc")
        with opened(tmp_path / "x") as blob:
            assert blob.pread_nowait(4, 0) is None

    def test_a_closed_blob_reads_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "x").write_bytes(b"abc")
        blob = opened(tmp_path / "x")
        blob.close()
        assert blob.pread_nowait(1, 0) is None


class TestFullDisk:
    async def test_a_download_goes_on_in_a_temporary_file_when_the_disk_takes_no_more(
        self, running: Running, cache: DiskCache, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write = Writer.write

        def full(writer: Writer, data: bytes, offset: int) -> None:
            if offset + len(data) > LIMIT // 2 and not writer.spilled:
                raise NoSpace("the disk is full")
            write(writer, data, offset)

        monkeypatch.setattr(Writer, "write", full)
        transfer = await running.transfer()
        transfer.put(*(DATA[start : start + 65536] for start in range(0, len(DATA), 65536)))
        transfer.end()
        await running.download.finished()
        assert running.download.pread(len(DATA), 0) == DATA
        assert cache.stats().blobs == 0
        running.download.release()
        assert left_over(cache) == (0, 0, 0, 0)

    async def test_who_reads_while_the_bytes_move_is_given_them_and_never_another_files(
        self, running: Running, cache: DiskCache, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The old file is closed under a reader, and its number is at once another file's."""
        download = running.download
        transfer = await running.transfer()
        transfer.put(DATA[:LIMIT])
        await download.wait_until(LIMIT)
        before = download.staged.reader
        assert before is not None
        moved = threading.Event()

        def move() -> None:
            download.staged._relocate(NoSpace("the disk is full"), lambda: cache.spill(len(DATA)))
            moved.set()

        real = os.preadv

        def preadv(fd: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
            if not moved.is_set():
                threading.Thread(target=move).start()
                assert moved.wait(30)
                # One takes the number that the reader is about to use, if that is free.
                others.extend(os.open("/dev/zero", os.O_RDONLY) for _ in range(10))
            return real(fd, buffers, offset, flags)

        others: list[int] = []
        monkeypatch.setattr(os, "preadv", preadv)
        try:
            found = download.pread_nowait(1000, 5)
        finally:
            for fd in others:
                os.close(fd)
        assert moved.is_set()
        assert found is None or bytes(found) == DATA[5:1005]
        assert before.pread_nowait(1000, 5) is None  # closed by now
        assert download.pread(1000, 5) == DATA[5:1005]
        transfer.put(DATA[LIMIT:], offset=LIMIT).end()
        await download.finished()
        download.release()

    async def test_a_slow_read_goes_on_where_the_bytes_have_moved_to(
        self, running: Running, cache: DiskCache, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        download = running.download
        transfer = await running.transfer()
        transfer.put(DATA[:LIMIT])
        await download.wait_until(LIMIT)
        before = download.staged.reader
        real = CachedBlob.pread

        def pread(blob: CachedBlob, length: int, offset: int) -> bytes:
            if blob is before and download.staged.reader is before:
                monkeypatch.undo()
                download.staged._relocate(NoSpace("the disk is full"), lambda: cache.spill(len(DATA)))
            return real(blob, length, offset)

        monkeypatch.setattr(CachedBlob, "pread", pread)
        assert download.pread(1000, 5) == DATA[5:1005]
        transfer.put(DATA[LIMIT:], offset=LIMIT).end()
        await download.finished()
        download.release()

    async def test_a_blob_that_could_not_be_admitted_is_verified_again_from_a_temporary_file(
        self, running: Running, cache: DiskCache, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        admit = Writer.admit

        def failing(writer: Writer, digest: Digest) -> CachedBlob:
            if not writer.spilled:
                raise Unexpected("fsync failed")
            return admit(writer, digest)

        monkeypatch.setattr(Writer, "admit", failing)
        transfer = await running.transfer()
        transfer.put(DATA)
        transfer.end()
        await running.download.finished()
        assert running.download.pread(len(DATA), 0) == DATA
        running.download.release()
        assert left_over(cache) == (0, 0, 0, 0)
