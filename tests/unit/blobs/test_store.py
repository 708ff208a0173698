"""What opens, what does not, and that no wrong byte is handed out or kept."""

import errno
import functools
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from attachfs.blobs import store as store_module
from attachfs.blobs.download import WITHHELD
from attachfs.blobs.handle import BlobHandle
from attachfs.blobs.pins import Pins
from attachfs.errors import (
    AccessDenied,
    AttachfsError,
    BadAnswer,
    IntegrityError,
    NoAttribute,
    NoSpace,
    NotFound,
    ScanRefused,
    Unexpected,
    Unreachable,
    errno_of,
)
from attachfs.model import AttachmentRef
from tests.services.memory_source import (
    as_json,
    asset_record,
    asset_ref,
    attribute,
    file_ref,
    info_body,
)
from tests.services.wrong_bodies import WRONG_BODIES, WrongBody, flipped
from tests.unit.blobs.world import MakeWorld, World, Worlds, descriptors, digest_of

FILE, OTHER = file_ref(3), file_ref(4)
SMALL = b"evidence" * 1000
DATA = bytes(range(256)) * 2048  # 512 KiB
LIMIT = len(DATA) - WITHHELD
WRONG = pytest.mark.parametrize("wrong", WRONG_BODIES.values(), ids=WRONG_BODIES)


@pytest.fixture
async def make(worlds: Worlds, nursery: trio.Nursery) -> MakeWorld:
    return functools.partial(worlds, nursery)


@pytest.fixture
async def world(make: MakeWorld) -> World:
    return make()


class Opening:
    """Somebody who opens a file, in a task of their own."""

    def __init__(self, nursery: trio.Nursery, world: World, ref: AttachmentRef = FILE) -> None:
        self.scope = trio.CancelScope()
        self.blob: BlobHandle | None = None
        self.error: AttachfsError | None = None
        self.done = trio.Event()
        nursery.start_soon(self._open, world, ref)

    async def _open(self, world: World, ref: AttachmentRef) -> None:
        with self.scope:
            try:
                self.blob = await world.blobs.open(ref)
            except AttachfsError as error:
                self.error = error
        self.done.set()


async def settled(world: World) -> None:
    """Wait until no download is under way."""
    with trio.fail_after(30):
        while world.blobs.downloading:
            await trio.lowlevel.checkpoint()


def kept_of(sent: bytes) -> list[bytes]:
    """Return what is put aside of a wrong body: all of it, unless it is too long to be taken in at all."""
    return [sent] if len(sent) <= len(DATA) else []


class TestStrict:
    async def test_a_strict_open_waits_until_the_whole_is_verified(
        self, world: World, nursery: trio.Nursery
    ) -> None:
        world.record(FILE, DATA)
        opening = Opening(nursery, world)
        transfer = await world.bytes.next()
        assert (transfer.ref, transfer.size) == (FILE, len(DATA))
        transfer.put(DATA)
        await wait_all_tasks_blocked()
        assert not opening.done.is_set()
        transfer.end()
        await opening.done.wait()
        assert opening.blob is not None
        assert opening.blob.verified
        assert await opening.blob.read(0, len(DATA)) == DATA
        opening.blob.close()
        assert world.cache.contains(digest_of(DATA), len(DATA))

    async def test_the_second_open_comes_from_the_cache(self, world: World) -> None:
        world.serve(FILE, DATA)
        assert await world.read(FILE) == DATA
        assert await world.read(FILE) == DATA
        assert (world.gets, world.blobs.opened, world.blobs.hits) == (1, 2, 1)

    async def test_the_same_content_under_another_id_comes_from_the_cache(self, world: World) -> None:
        world.serve(FILE, DATA)
        assert await world.read(FILE) == DATA
        world.serve(OTHER, DATA)
        assert await world.read(OTHER) == DATA
        assert world.gets == 1

    @pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, WITHHELD, WITHHELD + 1])
    async def test_a_blob_of_any_size_is_served(self, world: World, size: int) -> None:
        world.serve(FILE, DATA[:size])
        for _ in range(2):
            assert await world.read(FILE) == DATA[:size]

    async def test_reads_are_exact_and_cut_at_the_end(self, world: World) -> None:
        world.serve(FILE, DATA)
        blob = await world.blobs.open(FILE)
        for offset, size in (
            (0, 1),
            (5, 10),
            (len(DATA) - 1, 1),
            (len(DATA) - 5, 100),
            (len(DATA), 1),
            (10**9, 1),
        ):
            assert await blob.read(offset, size) == DATA[offset : offset + size]
            now = blob.read_nowait(offset, size)
            assert now is None or bytes(now) == DATA[offset : offset + size]
        blob.close()
        blob.close()  # as often as one likes

    @WRONG
    async def test_a_wrong_body_does_not_open_is_not_cached_and_is_put_aside(
        self, world: World, wrong: WrongBody
    ) -> None:
        sent = wrong.of(DATA)
        world.serve(FILE, DATA, sent)
        with pytest.raises(AttachfsError) as caught:
            await world.blobs.open(FILE)
        assert errno_of(caught.value) == wrong.errno
        await settled(world)
        assert not world.cache.contains(digest_of(DATA), len(DATA))
        assert not world.cache.contains(digest_of(sent), len(sent))
        assert world.cache.stats().blobs == 0
        assert world.quarantined == kept_of(sent)
        assert world.pins.count() == 0

    async def test_a_blob_cut_on_the_disk_while_open_is_not_served(self, world: World) -> None:
        world.serve(FILE, DATA)
        await world.read(FILE)
        blob = await world.blobs.open(FILE)
        (stored,) = (world.cache.root / "blobs").rglob("*" + digest_of(DATA).hex[2:])
        os.truncate(stored, 10)
        with pytest.raises(IntegrityError):
            await blob.read(0, 5)
        with pytest.raises(IntegrityError):
            blob.read_nowait(0, 5)
        blob.close()
        assert await world.read(FILE) == DATA  # the next open notices and fetches it again
        assert world.gets == 2


class TestOneDownload:
    async def test_many_who_open_at_once_share_one_download(
        self, world: World, nursery: trio.Nursery
    ) -> None:
        world.record(FILE, DATA)
        openings = [Opening(nursery, world) for _ in range(20)]
        (await world.bytes.next()).put(DATA).end()
        for opening in openings:
            await opening.done.wait()
            assert opening.blob is not None
            assert await opening.blob.read(0, len(DATA)) == DATA
            opening.blob.close()
        assert world.gets == 1
        await settled(world)
        assert world.cache.stats().open_files == 0

    async def test_two_attachments_with_one_content_share_one_download(
        self, world: World, nursery: trio.Nursery
    ) -> None:
        world.record(FILE, DATA)
        first = Opening(nursery, world)
        transfer = await world.bytes.next()
        world.record(OTHER, DATA)
        second = Opening(nursery, world, OTHER)
        await wait_all_tasks_blocked()
        transfer.put(DATA).end()
        for opening in (first, second):
            await opening.done.wait()
            assert opening.blob is not None
            opening.blob.close()
        assert world.gets == 1

    async def test_an_attachment_does_not_fail_because_its_twin_did(
        self, world: World, nursery: trio.Nursery
    ) -> None:
        world.record(FILE, DATA)
        first = Opening(nursery, world)
        transfer = await world.bytes.next()
        world.serve(OTHER, DATA)
        second = Opening(nursery, world, OTHER)
        with trio.fail_after(30):
            while next(iter(world.blobs._downloads.table.values()))._readers.count < 2:
                await trio.lowlevel.checkpoint()
        transfer.put(AccessDenied("403"))
        await first.done.wait()
        await second.done.wait()
        assert isinstance(first.error, AccessDenied)
        assert second.blob is not None
        assert await second.blob.read(0, len(DATA)) == DATA
        second.blob.close()
        assert [t.ref for t in world.bytes.transfers] == [FILE, OTHER]

    async def test_a_reader_who_leaves_does_not_stop_the_download_for_the_others(
        self, world: World, nursery: trio.Nursery
    ) -> None:
        world.record(FILE, DATA)
        openings = [Opening(nursery, world) for _ in range(2)]
        transfer = await world.bytes.next()
        transfer.put(DATA[:1000])
        with trio.fail_after(30):
            while next(iter(world.blobs._downloads.table.values()))._readers.count < 2:
                await trio.lowlevel.checkpoint()
        openings[0].scope.cancel()
        await openings[0].done.wait()
        assert not transfer.ended
        transfer.put(DATA[1000:], offset=1000).end()
        await openings[1].done.wait()
        assert openings[1].blob is not None
        openings[1].blob.close()
        assert world.gets == 1

    async def test_the_last_who_leaves_ends_it_and_a_new_opener_starts_anew(
        self, world: World, nursery: trio.Nursery
    ) -> None:
        world.record(FILE, DATA)
        opening = Opening(nursery, world)
        first = await world.bytes.next()
        first.put(DATA[:1000])
        await wait_all_tasks_blocked()
        opening.scope.cancel()
        await opening.done.wait()
        again = Opening(nursery, world)  # while the first may still be on its way down
        second = await world.bytes.next()
        second.put(DATA).end()
        await again.done.wait()
        assert first.ended
        assert again.blob is not None
        assert await again.blob.read(0, len(DATA)) == DATA
        again.blob.close()
        await settled(world)
        assert world.gets == 2
        assert list((world.cache.root / "tmp").iterdir()) == []

    async def test_a_hundred_readers_of_a_bad_blob_share_one_download(self, world: World) -> None:
        world.record(FILE, DATA)

        async def one() -> None:
            with pytest.raises(IntegrityError):
                await world.read(FILE)

        async with trio.open_nursery() as readers:
            for _ in range(100):
                readers.start_soon(one)
            transfer = await world.bytes.next()
            with trio.fail_after(30):
                while next(iter(world.blobs._downloads.table.values()))._readers.count < 100:
                    await trio.lowlevel.checkpoint()
            transfer.put(flipped(DATA, 7)).end()
        assert world.gets == 1


class TestStream:
    @pytest.fixture
    async def world(self, make: MakeWorld) -> World:
        return make(verify="stream")

    async def test_a_stream_opens_at_once_and_serves_bytes_as_they_come(self, world: World) -> None:
        world.record(FILE, DATA)
        blob = await world.blobs.open(FILE)
        transfer = await world.bytes.next()
        transfer.put(DATA[:5000])
        assert await blob.read(0, 5000) == DATA[:5000]
        assert not blob.verified
        assert not world.cache.contains(digest_of(DATA), len(DATA))
        blob.close()
        await settled(world)

    async def test_a_reader_ahead_waits_and_gets_all_it_asked_for(
        self, world: World, nursery: trio.Nursery
    ) -> None:
        world.record(FILE, DATA)
        blob = await world.blobs.open(FILE)
        transfer = await world.bytes.next()
        transfer.put(DATA[:5000])
        assert await blob.read(0, 5000) == DATA[:5000]
        got: list[bytes] = []

        async def ahead() -> None:
            got.append(await blob.read(4000, 4000))

        nursery.start_soon(ahead)
        await wait_all_tasks_blocked()
        assert got == []
        assert blob.read_nowait(4000, 4000) is None
        transfer.put(DATA[5000:7999], offset=5000)
        assert await blob.read(0, 7999) == DATA[:7999]
        assert got == []
        transfer.put(DATA[7999:9000], offset=7999)
        with trio.fail_after(30):
            while not got:
                await trio.lowlevel.checkpoint()
        assert got == [DATA[4000:8000]]
        blob.close()
        await settled(world)

    async def test_the_last_part_waits_for_the_verdict(self, world: World, nursery: trio.Nursery) -> None:
        world.record(FILE, DATA)
        blob = await world.blobs.open(FILE)
        transfer = await world.bytes.next()
        transfer.put(DATA)
        assert await blob.read(0, LIMIT) == DATA[:LIMIT]
        got: list[bytes] = []

        async def last() -> None:
            got.append(await blob.read(LIMIT, WITHHELD))

        nursery.start_soon(last)
        await wait_all_tasks_blocked()
        assert got == []
        assert blob.read_nowait(LIMIT, 1) is None
        assert blob.read_nowait(len(DATA) - 1, 1) is None
        transfer.end()
        with trio.fail_after(30):
            while not got:
                await trio.lowlevel.checkpoint()
        assert got == [DATA[LIMIT:]]
        assert blob.verified
        blob.close()
        await settled(world)
        assert world.cache.contains(digest_of(DATA), len(DATA))

    @WRONG
    async def test_a_wrong_body_is_never_read_to_its_end(self, world: World, wrong: WrongBody) -> None:
        sent = wrong.of(DATA)
        world.serve(FILE, DATA, sent)
        blob = await world.blobs.open(FILE)
        for offset, size in ((LIMIT, WITHHELD), (0, 1)):
            with pytest.raises(AttachfsError) as caught:
                await blob.read(offset, size)
            assert errno_of(caught.value) == wrong.errno
        with pytest.raises(AttachfsError):
            blob.read_nowait(0, 1)
        assert not blob.verified
        blob.close()
        await settled(world)
        assert world.cache.stats().blobs == 0
        assert world.quarantined == kept_of(sent)

    @pytest.mark.parametrize("size", [1, WITHHELD])
    async def test_what_would_be_withheld_whole_is_verified_at_open(self, world: World, size: int) -> None:
        world.serve(FILE, DATA[:size], flipped(DATA[:size], 0))
        with pytest.raises(IntegrityError):
            await world.blobs.open(FILE)

    async def test_an_empty_stream_with_a_wrong_hash_is_refused(self, world: World) -> None:
        world.serve(FILE, b"", hash={"alg": "SHA256", "value": digest_of(b"something").hex})
        world.ledger_source.records.clear()
        with pytest.raises(IntegrityError):
            await world.read(FILE)

    async def test_a_cut_transfer_is_an_error_where_it_was_cut(self, world: World) -> None:
        world.record(FILE, DATA)
        blob = await world.blobs.open(FILE)
        transfer = await world.bytes.next()
        transfer.put(DATA[:5000])
        assert await blob.read(0, 5000) == DATA[:5000]
        transfer.put(Unreachable("reset"))
        with pytest.raises(Unreachable):
            await blob.read(5000, 1)
        blob.close()

    async def test_a_restarted_transfer_with_the_same_bytes_goes_on(self, world: World) -> None:
        world.record(FILE, DATA)
        blob = await world.blobs.open(FILE)
        transfer = await world.bytes.next()
        transfer.put(DATA[:5000])
        await blob.read(0, 5000)
        transfer.put(DATA).end()
        assert await blob.read(0, len(DATA)) == DATA
        blob.close()

    async def test_a_restarted_transfer_with_other_bytes_fails(self, world: World) -> None:
        world.record(FILE, DATA)
        blob = await world.blobs.open(FILE)
        transfer = await world.bytes.next()
        transfer.put(DATA[:5000])
        await blob.read(0, 5000)
        transfer.put(flipped(DATA, 100)).end()
        with pytest.raises(BadAnswer):
            await blob.read(0, len(DATA))
        blob.close()

    async def test_the_last_reader_who_closes_ends_the_download(self, world: World) -> None:
        world.record(FILE, DATA)
        first, second = await world.blobs.open(FILE), await world.blobs.open(FILE)
        transfer = await world.bytes.next()
        transfer.put(DATA[:5000])
        await first.read(0, 5000)
        first.close()
        await wait_all_tasks_blocked()
        assert world.bytes.live == 1
        assert await second.read(0, 5000) == DATA[:5000]
        second.close()
        await settled(world)
        assert world.bytes.live == 0
        assert world.gets == 1

    async def test_the_cache_is_preferred(self, world: World) -> None:
        world.serve(FILE, DATA)
        assert await world.read(FILE) == DATA
        blob = await world.blobs.open(FILE)
        assert blob.verified
        blob.close()
        assert world.gets == 1


async def test_auto_is_strict_up_to_its_limit_and_streams_above(
    make: MakeWorld, nursery: trio.Nursery
) -> None:
    world = make(verify="auto", strict_limit=200_000)
    world.record(FILE, DATA[:200_000])
    strict = Opening(nursery, world)
    transfer = await world.bytes.next()
    await wait_all_tasks_blocked()
    assert not strict.done.is_set()
    transfer.put(DATA[:200_000]).end()
    await strict.done.wait()
    assert strict.blob is not None
    strict.blob.close()
    world.record(OTHER, DATA[:200_001])
    with trio.fail_after(30):
        blob = await world.blobs.open(OTHER)
    assert not blob.verified
    blob.close()


async def test_strict_is_strict_whatever_the_size(make: MakeWorld, nursery: trio.Nursery) -> None:
    world = make(verify="strict", strict_limit=0)
    world.record(FILE, DATA)
    opening = Opening(nursery, world)
    transfer = await world.bytes.next()
    await wait_all_tasks_blocked()
    assert not opening.done.is_set()
    transfer.put(DATA).end()
    await opening.done.wait()
    assert opening.blob is not None
    opening.blob.close()


class TestUnverified:
    @pytest.fixture
    async def world(self, make: MakeWorld) -> World:
        return make(verify="off")

    @pytest.mark.parametrize("served", [DATA, flipped(DATA, 5)], ids=["right", "wrong"])
    async def test_an_unverified_blob_is_served_and_never_cached(self, world: World, served: bytes) -> None:
        world.serve(FILE, DATA, served)
        for _ in range(2):
            assert await world.read(FILE) == served
            await settled(world)
        assert world.gets == 2
        assert (world.cache.stats().blobs, world.cache.stats().spilled_bytes) == (0, 0)
        assert world.quarantined == []
        assert world.pins.count() == 0

    async def test_an_unknown_algorithm_is_served(self, world: World) -> None:
        world.serve(FILE, DATA, hash={"alg": "md5", "value": "0" * 32})
        assert await world.read(FILE) == DATA

    async def test_an_unverified_blob_is_never_called_verified(self, world: World) -> None:
        world.serve(FILE, DATA)
        blob = await world.blobs.open(FILE)
        await blob.read(0, len(DATA))
        await settled(world)
        assert not blob.verified
        blob.close()

    async def test_a_short_body_is_an_error_still(self, world: World) -> None:
        world.serve(FILE, DATA, DATA[:-1])
        with pytest.raises(BadAnswer):
            await world.read(FILE)


class TestRecords:
    async def test_an_unknown_algorithm_is_refused_without_a_request(self, world: World) -> None:
        world.serve(FILE, DATA, hash={"alg": "md5", "value": "0" * 32})
        with pytest.raises(BadAnswer, match="not known"):
            await world.blobs.open(FILE)
        assert world.gets == 0

    @pytest.mark.parametrize("recorded", [None, {}, {"alg": "SHA256", "value": "123"}])
    async def test_a_missing_or_malformed_hash_is_refused(self, world: World, recorded: object) -> None:
        world.serve(FILE, DATA, hash=recorded)
        with pytest.raises(BadAnswer):
            await world.blobs.open(FILE)
        assert world.gets == 0

    async def test_the_owners_hash_differs_from_infos(self, world: World) -> None:
        world.serve(FILE, DATA)
        world.record(FILE, DATA, anchor=b"another")
        with pytest.raises(IntegrityError, match="two records differ") as caught:
            await world.blobs.open(FILE)
        assert digest_of(DATA).hex in caught.value.reason
        assert digest_of(b"another").hex in caught.value.reason
        assert world.gets == 0

    async def test_the_owners_hash_differs_from_a_cached_blobs(self, world: World) -> None:
        world.serve(FILE, DATA)
        await world.read(FILE)
        world.record(FILE, DATA, anchor=b"another")
        with pytest.raises(IntegrityError):
            await world.blobs.open(FILE)

    async def test_the_owners_hashes_differ_among_themselves(self, world: World) -> None:
        world.serve(FILE, DATA)
        attributes = {"a": attribute(3, digest_of(DATA).hex), "b": attribute(3, digest_of(b"x").hex)}
        world.ledger_source.records[asset_ref()] = as_json(asset_record(asset_ref(), attributes))
        world.ledger.clear()
        with pytest.raises(IntegrityError):
            await world.blobs.open(FILE)

    @pytest.mark.parametrize("answer", [NotFound("404"), AccessDenied("403")], ids=lambda e: type(e).__name__)
    async def test_an_owner_that_may_not_be_read_does_not_keep_it_from_opening(
        self, world: World, answer: Exception
    ) -> None:
        world.serve(FILE, DATA)
        world.ledger_source.records[asset_ref()] = answer
        assert await world.read(FILE) == DATA

    async def test_an_owner_that_could_not_be_asked_does(self, world: World) -> None:
        world.serve(FILE, DATA)
        world.ledger_source.records[asset_ref()] = Unreachable("x")
        with pytest.raises(Unreachable):
            await world.blobs.open(FILE)
        assert world.gets == 0

    async def test_a_record_that_changed_since_it_was_first_read_is_a_conflict(self, world: World) -> None:
        world.serve(FILE, DATA)
        assert await world.read(FILE) == DATA
        assert world.pins.count() == 1
        world.serve(FILE, SMALL)
        with pytest.raises(IntegrityError, match="the record has changed"):
            await world.blobs.open(FILE)
        assert world.gets == 1
        assert len(world.pins.conflicts()) == 1

    async def test_a_size_that_changed_is_a_conflict_too(self, world: World) -> None:
        world.serve(FILE, DATA)
        await world.read(FILE)
        world.serve(FILE, DATA, size=5)
        with pytest.raises(IntegrityError, match="the record has changed"):
            await world.blobs.open(FILE)

    async def test_a_pin_counts_on_every_path_and_after_a_restart(self, make: MakeWorld) -> None:
        world = make()
        world.serve(FILE, DATA)
        await world.read(FILE)
        world.close()
        again = make()
        elsewhere = FILE._replace(asset=OTHER.asset, event=file_ref(event=9).event)
        again.serve(elsewhere, SMALL)
        with pytest.raises(IntegrityError, match="the record has changed"):
            await again.blobs.open(elsewhere)

    async def test_what_was_never_verified_is_not_pinned(self, world: World) -> None:
        world.serve(FILE, DATA, flipped(DATA, 0))
        with pytest.raises(IntegrityError):
            await world.blobs.open(FILE)
        await settled(world)
        assert world.pins.count() == 0

    async def test_without_pins_that_can_be_read_nothing_opens(self, world: World) -> None:
        world.serve(FILE, DATA)
        world.pins.path.mkdir()
        with pytest.raises(Unexpected):
            await world.blobs.open(FILE)
        assert world.gets == 0


class TestScanPolicy:
    @pytest.mark.parametrize(
        ("policy", "status", "opens"),
        [
            *(("off", status, True) for status in ("SCANNED_BAD", "SCANNED_OK", "NOT_SCANNED", "")),
            *(("warn", status, True) for status in ("SCANNED_BAD", "SCANNED_OK", "NOT_SCANNED", "")),
            ("block-bad", "SCANNED_BAD", False),
            *(("block-bad", status, True) for status in ("SCANNED_OK", "NOT_SCANNED", "", "NEW_STATUS")),
            *(("require-ok", status, False) for status in ("SCANNED_BAD", "NOT_SCANNED", "", "scanned_ok")),
            ("require-ok", "SCANNED_OK", True),
        ],
    )
    async def test_the_scan_policy_decides_at_open(
        self, make: MakeWorld, policy: str, status: str, *, opens: bool
    ) -> None:
        world = make(scan_policy=policy)
        world.serve(FILE, SMALL, scanned_status=status)
        if opens:
            assert await world.read(FILE) == SMALL
            return
        with pytest.raises(ScanRefused) as caught:
            await world.blobs.open(FILE)
        assert errno.errorcode[errno_of(caught.value)] == "EPERM"
        assert world.gets == 0

    async def test_the_scan_policy_warn_logs_and_serves(
        self, make: MakeWorld, caplog: pytest.LogCaptureFixture
    ) -> None:
        world = make(scan_policy="warn")
        world.serve(FILE, SMALL, scanned_status="SCANNED_BAD", scanned_bad_reason="eicar\n\x1b[31m")
        await world.read(FILE)
        assert "eicar" in caplog.text
        assert "\x1b" not in caplog.text

    async def test_the_scan_policy_holds_for_what_is_cached(self, world: World) -> None:
        world.serve(FILE, SMALL)
        await world.read(FILE)
        world.serve(FILE, SMALL, scanned_status="SCANNED_BAD", scanned_bad_reason="eicar")
        with pytest.raises(ScanRefused, match="eicar"):
            await world.blobs.open(FILE)

    async def test_the_scan_status_is_asked_for_again_once_it_is_old(
        self, world: World, mock_clock: MockClock
    ) -> None:
        world.serve(FILE, SMALL)
        await world.read(FILE)
        world.ledger_source.infos[FILE] = info_body(FILE, SMALL, scanned_status="SCANNED_BAD")
        assert await world.read(FILE) == SMALL
        mock_clock.jump(61)
        with pytest.raises(ScanRefused):
            await world.blobs.open(FILE)


class TestFailuresAreRemembered:
    @pytest.mark.parametrize("served", [flipped(DATA, 3), DATA[:-1]], ids=["wrong", "short"])
    async def test_failures_are_remembered_for_five_seconds(
        self, world: World, mock_clock: MockClock, served: bytes
    ) -> None:
        world.serve(FILE, DATA, served)
        for _ in range(5):
            with pytest.raises((IntegrityError, BadAnswer)):
                await world.blobs.open(FILE)
        assert world.gets == 1
        mock_clock.jump(4.9)
        with pytest.raises((IntegrityError, BadAnswer)):
            await world.blobs.open(FILE)
        assert world.gets == 1
        mock_clock.jump(0.2)
        world.bytes.contents[FILE] = DATA
        assert await world.read(FILE) == DATA
        assert world.gets == 2

    @pytest.mark.parametrize(
        "error", [Unreachable("x"), AccessDenied("x"), NotFound("x")], ids=lambda e: type(e).__name__
    )
    async def test_outages_and_refusals_are_not_remembered(self, world: World, error: Exception) -> None:
        world.serve(FILE, DATA, error)
        with pytest.raises(type(error)):
            await world.blobs.open(FILE)
        world.bytes.contents[FILE] = DATA
        assert await world.read(FILE) == DATA

    async def test_a_failure_says_nothing_of_other_files(self, world: World) -> None:
        world.serve(FILE, DATA, flipped(DATA, 3))
        with pytest.raises(IntegrityError):
            await world.blobs.open(FILE)
        world.serve(OTHER, DATA)
        assert await world.read(OTHER) == DATA

    async def test_failures_are_remembered_within_a_bound(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(store_module, "_FAILURES", 3)
        for number in range(10, 20):
            world.serve(file_ref(number), DATA, b"")
            with pytest.raises(BadAnswer):
                await world.blobs.open(file_ref(number))
        assert len(world.blobs._failures) <= 3


class TestRoom:
    async def test_a_blob_larger_than_the_cache_is_read_through_a_temporary_file(
        self, make: MakeWorld
    ) -> None:
        world = make(cache_size=400_000)
        world.serve(FILE, DATA)
        assert await world.read(FILE) == DATA
        await settled(world)
        stats = world.cache.stats()
        assert (stats.blobs, stats.spills, stats.spilled_bytes) == (0, 1, 0)

    async def test_a_blob_there_is_no_room_for_is_streamed_too(self, make: MakeWorld) -> None:
        world = make(cache_size=400_000, verify="stream")
        world.serve(FILE, DATA)
        assert await world.read(FILE) == DATA

    async def test_a_blob_there_is_no_room_for_is_verified_all_the_same(self, make: MakeWorld) -> None:
        world = make(cache_size=400_000)
        world.serve(FILE, DATA, flipped(DATA, 9))
        with pytest.raises(IntegrityError):
            await world.blobs.open(FILE)
        await settled(world)
        assert world.cache.stats().spilled_bytes == 0

    async def test_the_least_recently_opened_makes_room(self, make: MakeWorld) -> None:
        world = make(cache_size=len(DATA) + 400_000)
        world.serve(FILE, DATA)
        await world.read(FILE)
        world.serve(OTHER, DATA[::-1])
        await world.read(OTHER)
        assert not world.cache.contains(digest_of(DATA), len(DATA))
        assert world.cache.contains(digest_of(DATA[::-1]), len(DATA))


class TestClaims:
    async def test_what_is_claimed_of_a_blob_before_and_after_it_is_cached(self, world: World) -> None:
        world.serve(FILE, DATA)
        assert [await world.blobs.mount_attribute(FILE, name) for name in ("cached", "verified")] == [
            b"no",
            b"no",
        ]
        assert world.gets == 0
        await world.read(FILE)
        assert [await world.blobs.mount_attribute(FILE, name) for name in ("cached", "verified")] == [
            b"yes",
            b"yes",
        ]

    async def test_a_cached_blob_that_was_changed_is_not_verified_until_it_was_compared_again(
        self, world: World
    ) -> None:
        world.serve(FILE, DATA)
        await world.read(FILE)
        (blob,) = (path for path in world.cache.root.rglob("*") if path.name == digest_of(DATA).hex)
        st = blob.stat()
        os.utime(blob, ns=(st.st_atime_ns, st.st_mtime_ns + 1))  # as any write would
        assert [await world.blobs.mount_attribute(FILE, name) for name in ("cached", "verified")] == [
            b"yes",
            b"no",
        ]
        await world.read(FILE)
        assert [await world.blobs.mount_attribute(FILE, name) for name in ("cached", "verified")] == [
            b"yes",
            b"yes",
        ]

    async def test_what_is_claimed_of_an_attested_blob(self, world: World) -> None:
        world.record(FILE, DATA)
        assert await world.blobs.mount_attribute(FILE, "attested") == b"match"
        world.record(FILE, DATA, anchor=b"x")
        assert await world.blobs.mount_attribute(FILE, "attested") == b"mismatch"
        world.ledger_source.records.clear()
        world.ledger.clear()
        assert await world.blobs.mount_attribute(FILE, "attested") == b"unavailable"

    async def test_nothing_is_claimed_without_a_usable_hash(self, world: World) -> None:
        world.record(FILE, DATA, hash={"alg": "md5", "value": "0" * 32})
        claims = [
            await world.blobs.mount_attribute(FILE, name) for name in ("cached", "verified", "attested")
        ]
        assert claims == [b"no", b"no", b"unavailable"]

    async def test_a_claim_of_another_name_does_not_exist(self, world: World) -> None:
        world.record(FILE, DATA)
        for name in ("", "json", "cachedx", "status"):
            with pytest.raises(NoAttribute):
                await world.blobs.mount_attribute(FILE, name)
        assert world.ledger_source.calls == []


async def test_nothing_is_left_open(make: MakeWorld, nursery: trio.Nursery) -> None:
    """After hits, misses, failures, spills, and openers who leave, descriptors are back where they were."""
    world = make(verify="strict")
    finish = world.cache._store.finish
    world.serve(FILE, SMALL)
    await world.read(FILE)
    await settled(world)
    await trio.to_thread.run_sync(finish)  # folders to be synced are held open for a while
    before = descriptors()
    await world.read(FILE)
    world.serve(OTHER, DATA, flipped(DATA, 1))
    with pytest.raises(IntegrityError):
        await world.read(OTHER)
    world.serve(file_ref(5), DATA, DATA[:-1])
    with pytest.raises(BadAnswer):
        await world.read(file_ref(5))
    world.serve(file_ref(6), DATA, Unreachable("x"))
    with pytest.raises(Unreachable):
        await world.read(file_ref(6))
    world.record(file_ref(7), DATA[1:])
    while world.bytes._next.statistics().current_buffer_used:
        await world.bytes.next()
    opening = Opening(nursery, world, file_ref(7))
    (await world.bytes.next()).put(DATA[1:1000])
    opening.scope.cancel()
    await opening.done.wait()
    await settled(world)
    await trio.to_thread.run_sync(finish)
    assert descriptors() == before
    stats = world.cache.stats()
    assert (stats.open_files, stats.loose_bytes, stats.spilled_bytes) == (0, 0, 0)
    assert world.bytes.live == 0


class TestNewFiles:
    async def test_each_new_file_after_the_first_takes_one_thread(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        world.serve(FILE, SMALL)
        assert await world.read(FILE) == SMALL
        world.serve(OTHER, DATA)
        used: list[object] = []
        run_sync, start = trio.to_thread.run_sync, trio.lowlevel.start_thread_soon

        def counted(work: Any) -> Any:
            def do(*args: Any, **kwargs: Any) -> Any:
                used.append(args[0])
                return work(*args, **kwargs)

            return do

        monkeypatch.setattr(trio.to_thread, "run_sync", counted(run_sync))
        monkeypatch.setattr(trio.lowlevel, "start_thread_soon", counted(start))
        blob = await world.blobs.open(OTHER)
        assert len(used) == 1
        blob.close()

    async def test_stored_together_are_pinned_together_and_one_that_is_wrong_harms_no_other(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        world.serve(FILE, SMALL)
        assert await world.read(FILE) == SMALL
        files = [file_ref(number) for number in range(10, 20)]
        for number, ref in enumerate(files):
            data = SMALL + bytes([number])
            world.serve(ref, data, flipped(data, 3) if number == 4 else data)
        other = Pins(world.pins.path)
        other.check(f"ledger.example/{files[7].attachment}", digest_of(b"before"), 6)
        other.close()
        pinned: list[int] = []
        real = world.pins._check_batch

        def counted(batch: list[Any]) -> None:
            pinned.append(len(batch))
            real(batch)

        monkeypatch.setattr(world.pins, "_check_batch", counted)
        outcomes: dict[int, bytes | type[Exception]] = {}

        async def read(number: int) -> None:
            try:
                outcomes[number] = await world.read(files[number])
            except IntegrityError:
                outcomes[number] = IntegrityError

        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(read, number)
        wrong = {4: IntegrityError, 7: IntegrityError}  # its bytes; its record, which another process pinned
        assert outcomes == {number: wrong.get(number, SMALL + bytes([number])) for number in range(10)}
        assert sum(pinned) == 9
        assert len(pinned) < 9
        assert world.pins.count() == 10
        await settled(world)
        assert world.cache.stats().open_files == 0

    async def test_whose_record_another_process_has_pinned_otherwise_meanwhile_does_not_open(
        self, world: World, tmp_path: Path
    ) -> None:
        world.serve(FILE, SMALL)
        assert await world.read(FILE) == SMALL
        other = Pins(tmp_path / "pins.sqlite")
        other.check(f"ledger.example/{OTHER.attachment}", digest_of(b"before"), 6)
        other.close()
        world.serve(OTHER, SMALL + b"!")
        assert world.blobs._staging.surely_new(OTHER, digest_of(SMALL + b"!"))
        with pytest.raises(IntegrityError, match="changed since it was first read"):
            await world.blobs.open(OTHER)


class TestThreads:
    async def test_cold_opens_while_the_cache_is_indexed_leave_threads_for_others(
        self, tmp_path: Path, nursery: trio.Nursery
    ) -> None:
        """More opens than there are threads in the common limit; the index is not there yet."""
        world = World(tmp_path, nursery, 64 * 2**20)
        world.cache.indexed.clear()
        refs = [file_ref(number) for number in range(10, 60)]
        record = {}
        for number, ref in enumerate(refs):
            data = SMALL + bytes([number])
            world.ledger_source.infos[ref] = info_body(ref, data)
            world.bytes.contents[ref] = data
            record[str(number)] = attribute(int(ref.attachment[:8], 16), digest_of(data).hex)
        world.ledger_source.records[asset_ref()] = as_json(asset_record(asset_ref(), record))
        try:
            async with trio.open_nursery() as opening:
                for ref in refs:
                    opening.start_soon(world.blobs.prefetch, ref)
                await wait_all_tasks_blocked(0.1)
                with trio.fail_after(10):
                    assert await trio.to_thread.run_sync(lambda: 1) == 1
                assert trio.to_thread.current_default_thread_limiter().borrowed_tokens == 0
                world.cache.indexed.set()
        finally:
            world.cache.indexed.set()
        assert world.cache.stats().blobs == len(refs)
        world.pins.close()
        world.cache.close()

    async def test_opens_wait_for_the_index_together_and_go_without_the_cache_if_it_takes_too_long(
        self, tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        world = World(tmp_path, nursery, 64 * 2**20)
        world.cache.indexed.clear()
        gate, waits = threading.Event(), list[bool]()

        def wait() -> None:
            waits.append(gate.wait(10))
            raise NoSpace("still being indexed")

        monkeypatch.setattr(world.cache, "wait_for_index", wait)
        refs = [file_ref(number) for number in range(10, 30)]
        spilled = []

        async def open_one(ref: AttachmentRef) -> None:
            writer = await world.blobs._staging.reserve(ref, digest_of(ref.attachment.encode()), 100)
            spilled.append(ref)
            await trio.to_thread.run_sync(writer.abort)

        async with trio.open_nursery() as opening:
            for ref in refs:
                opening.start_soon(open_one, ref)
            await wait_all_tasks_blocked(0.1)
            assert spilled == []
            gate.set()
        assert sorted(spilled) == sorted(refs)
        assert waits == [True]
        assert world.cache.stats().spills == len(refs)
        world.pins.close()
        world.cache.close()

    async def test_who_waits_for_the_index_may_go_away_and_another_takes_over(
        self, tmp_path: Path, nursery: trio.Nursery
    ) -> None:
        world = World(tmp_path, nursery, 64 * 2**20)
        world.cache.indexed.clear()
        staging, first = world.blobs._staging, trio.CancelScope()
        with world.cache._indexer._scanning:

            async def gives_up() -> None:
                with first:
                    await staging._wait_for_index()

            async with trio.open_nursery() as opening:
                opening.start_soon(gives_up)
                await wait_all_tasks_blocked(0.05)
                opening.start_soon(staging._wait_for_index)
                await wait_all_tasks_blocked(0.05)
                first.cancel()
                await wait_all_tasks_blocked(0.05)
                assert staging._index_wait is not None
                world.cache.indexed.set()
        world.pins.close()
        world.cache.close()
