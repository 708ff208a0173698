"""Downloads that nobody waits for any more: when they stop, what is kept, and that it is never believed."""

import functools
import os
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from attachfs.blobs.download import NO_PAUSE, WITHHELD, PausePolicy
from attachfs.blobs.handle import BlobHandle
from attachfs.errors import BadAnswer, IntegrityError, Unreachable
from attachfs.model import AttachmentRef
from tests.services.memory_source import Piece, Transfer, file_ref
from tests.services.wrong_bodies import flipped
from tests.unit.blobs.world import MakeWorld, World, Worlds, descriptors, digest_of, until

FILE = file_ref(3)
KiB, MiB = 2**10, 2**20
DATA = b"".join(number.to_bytes(4, "big") for number in range(MiB))  # 4 MiB, no two pages alike
LEAVING = PausePolicy(more=MiB, within=2, keep=60)


@pytest.fixture
def make(worlds: Worlds) -> MakeWorld:
    """Return what makes worlds in which nobody has to wait."""
    return functools.partial(worlds, pause=LEAVING, verify="stream")


@pytest.fixture
async def world(clock: MockClock, make: MakeWorld, nursery: trio.Nursery) -> World:
    assert clock.autojump_threshold > 0
    return make(nursery)


async def sniff(world: World, came: int = 64 * KiB, ref: AttachmentRef = FILE) -> Transfer:
    """Open a file, read its first KiB, and close it; `came` bytes have come by then."""
    blob = await world.blobs.open(ref)
    transfer = await world.bytes.next()
    transfer.put(content(world, ref)[:came])
    assert await blob.read(0, KiB) == content(world, ref)[:KiB]
    await until(lambda: downloads(world, ref) == came)
    blob.close()
    return transfer


CONTENTS = {file_ref(number): bytes([number]) + DATA[1:] for number in range(4, 20)}


def content(_world: World, ref: AttachmentRef) -> bytes:
    return CONTENTS.get(ref, DATA)


def downloads(world: World, ref: AttachmentRef) -> int:
    """Return how much of a file has been stored by its download."""
    return next((one.staged.written for one in world.blobs._downloads.table.values() if ref in one.refs), -1)


async def sniffed(world: World, clock: MockClock, came: int = 64 * KiB, ref: AttachmentRef = FILE) -> None:
    """Let somebody look at a file, and its download be stopped."""
    paused = world.blobs.paused
    transfer = await sniff(world, came, ref)
    clock.jump(LEAVING.within)
    await until(lambda: transfer.ended)
    await until(lambda: world.blobs.paused == paused + 1 or not world.blobs.downloading)


def temporary(world: World) -> list[Path]:
    return list((world.cache.root / "tmp").iterdir())


async def rest_of(blob: BlobHandle, data: bytes = DATA) -> None:
    assert await blob.read(0, len(data)) == data


async def read_whole(world: World, ref: AttachmentRef) -> None:
    world.serve(ref, content(world, ref))
    assert await world.read(ref) == content(world, ref)
    await world.bytes.next()
    await until(lambda: not world.blobs.downloading)


async def finish(world: World, blob: BlobHandle) -> Transfer:
    """Read a file whole, with as much sent as is asked for, and close it."""
    async with trio.open_nursery() as reader:
        reader.start_soon(rest_of, blob)
        transfer = await world.bytes.next()
        transfer.put(DATA[transfer.start :], offset=transfer.start).end()
    assert blob.verified
    blob.close()
    return transfer


async def left_in_the_middle(world: World, clock: MockClock) -> None:
    """Let somebody who reads a file whole be killed after a MiB, and its download be stopped."""
    with trio.CancelScope() as killed:
        async with trio.open_nursery() as reader:
            reader.start_soon(world.read, FILE)
            first = await world.bytes.next()
            first.put(DATA[:MiB])
            await until(lambda: downloads(world, FILE) == MiB)
            killed.cancel()
    clock.jump(LEAVING.within)
    await until(lambda: world.blobs.paused == 1)


async def expect_whole(world: World) -> None:
    assert await world.read(FILE) == DATA


class TestStopping:
    async def test_a_download_nobody_follows_stops_after_so_many_more_bytes(self, world: World) -> None:
        world.record(FILE, DATA)
        transfer = await sniff(world)
        await wait_all_tasks_blocked()
        assert not transfer.ended
        transfer.put(DATA[64 * KiB : MiB], offset=64 * KiB)
        await until(lambda: downloads(world, FILE) == MiB)
        await wait_all_tasks_blocked()
        assert not transfer.ended
        transfer.put(DATA[MiB : MiB + 64 * KiB], offset=MiB)
        await until(lambda: transfer.ended)
        await until(lambda: world.blobs.paused == 1)
        assert world.blobs.downloading == 0

    async def test_a_download_nobody_follows_stops_after_so_long(
        self, world: World, clock: MockClock
    ) -> None:
        world.record(FILE, DATA)
        transfer = await sniff(world)
        clock.jump(LEAVING.within - 0.1)
        await wait_all_tasks_blocked()
        assert not transfer.ended
        clock.jump(0.2)
        await until(lambda: transfer.ended)

    async def test_a_download_does_not_stop_while_somebody_follows(
        self, world: World, clock: MockClock
    ) -> None:
        world.record(FILE, DATA)
        transfer = await sniff(world)
        blob = await world.blobs.open(FILE)
        clock.jump(1000)
        transfer.put(DATA[64 * KiB :], offset=64 * KiB).end()
        await rest_of(blob)
        blob.close()
        assert world.gets == 1

    async def test_a_download_does_not_stop_when_only_the_verdict_is_missing(self, world: World) -> None:
        world.record(FILE, DATA)
        transfer = await sniff(world, len(DATA))
        transfer.end()
        await until(lambda: not world.blobs._downloads.table)
        assert world.cache.contains(digest_of(DATA), len(DATA))

    async def test_a_small_file_is_had_to_its_end(self, world: World) -> None:
        world.record(FILE, DATA[:MiB])
        blob = await world.blobs.open(FILE)
        transfer = await world.bytes.next()
        blob.close()
        transfer.put(DATA[:MiB]).end()
        await until(lambda: not world.blobs._downloads.table)
        assert world.cache.contains(digest_of(DATA[:MiB]), MiB)

    async def test_who_comes_while_it_stops_gets_the_rest(self, world: World, clock: MockClock) -> None:
        world.record(FILE, DATA)
        await sniff(world)
        clock.jump(LEAVING.within)
        blob = await world.blobs.open(FILE)  # it has been told to stop and has not yet
        assert (await finish(world, blob)).start == 64 * KiB

    async def test_a_download_stops_at_once_where_so_configured(
        self, make: MakeWorld, nursery: trio.Nursery, clock: MockClock
    ) -> None:
        assert clock.autojump_threshold > 0
        world = make(nursery, pause=NO_PAUSE)
        world.record(FILE, DATA)
        transfer = await sniff(world)
        await until(lambda: not world.blobs._downloads.table)
        assert transfer.ended
        assert temporary(world) == []


class TestKept:
    @pytest.mark.parametrize("verify", ["strict", "stream"])
    async def test_who_was_killed_goes_on_hours_later(
        self, make: MakeWorld, nursery: trio.Nursery, clock: MockClock, verify: str
    ) -> None:
        world = make(nursery, verify=verify, pause=PausePolicy())
        world.record(FILE, DATA)
        await left_in_the_middle(world, clock)
        clock.jump(23 * 3600)
        await wait_all_tasks_blocked()
        async with trio.open_nursery() as reader:
            reader.start_soon(expect_whole, world)
            second = await world.bytes.next()
            assert second.start == MiB
            second.put(DATA[MiB:], offset=MiB).end()

    async def test_the_same_bytes_again_cost_no_request(self, world: World, clock: MockClock) -> None:
        world.record(FILE, DATA)
        await sniffed(world, clock)
        for _ in range(5):
            blob = await world.blobs.open(FILE)
            assert not blob.verified
            assert await blob.read(0, KiB) == DATA[:KiB]
            blob.close()
            clock.jump(1)
        assert world.gets == 1
        assert world.blobs.paused == 1

    async def test_the_rest_alone_is_asked_for_and_the_whole_is_verified(
        self, world: World, clock: MockClock
    ) -> None:
        world.record(FILE, DATA)
        await sniffed(world, clock)
        blob = await world.blobs.open(FILE)
        assert (await finish(world, blob)).start == 64 * KiB
        assert world.cache.contains(digest_of(DATA), len(DATA))
        assert temporary(world) == []
        assert world.cache.stats().loose_bytes == 0

    async def test_a_strict_opener_finishes_it(
        self, make: MakeWorld, nursery: trio.Nursery, clock: MockClock
    ) -> None:
        world = make(nursery, verify="strict")
        world.record(FILE, DATA)
        await left_in_the_middle(world, clock)
        nursery.start_soon(world.read, FILE)
        second = await world.bytes.next()
        assert second.start == MiB
        second.put(DATA[MiB:], offset=MiB).end()
        await until(lambda: not world.blobs._downloads.table)
        assert world.cache.contains(digest_of(DATA), len(DATA))

    async def test_a_download_is_paused_and_resumed_several_times_over(
        self, world: World, clock: MockClock, nursery: trio.Nursery
    ) -> None:
        world.record(FILE, DATA)
        await sniffed(world, clock)
        for start in (64 * KiB, 164 * KiB, 264 * KiB):
            blob = await world.blobs.open(FILE)
            got: list[bytes] = []

            async def read(blob: BlobHandle = blob, end: int = start + 1, got: list[bytes] = got) -> None:
                got.append(await blob.read(end - KiB, KiB))

            nursery.start_soon(read)
            transfer = await world.bytes.next()
            assert transfer.start == start
            transfer.put(DATA[start : start + 100 * KiB], offset=start)
            await until(lambda start=start: downloads(world, FILE) == start + 100 * KiB)  # type: ignore[misc]
            await until(lambda got=got: bool(got))  # type: ignore[misc]
            assert got == [DATA[start + 1 - KiB : start + 1]]
            blob.close()
            clock.jump(LEAVING.within)
            await until(lambda: world.blobs.paused == 1)
        blob = await world.blobs.open(FILE)
        assert (await finish(world, blob)).start == 364 * KiB

    async def test_who_has_it_open_keeps_it_however_long(self, world: World, clock: MockClock) -> None:
        world.record(FILE, DATA)
        await sniffed(world, clock)
        blob = await world.blobs.open(FILE)
        clock.jump(10 * LEAVING.keep)
        await wait_all_tasks_blocked()
        assert await blob.read(KiB, KiB) == DATA[KiB : 2 * KiB]
        await finish(world, blob)

    async def test_who_wants_more_and_is_killed_leaves_it_kept(self, world: World, clock: MockClock) -> None:
        world.record(FILE, DATA)
        await sniffed(world, clock)
        blob = await world.blobs.open(FILE)
        with trio.CancelScope() as killed:
            async with trio.open_nursery() as reader:
                reader.start_soon(blob.read, 0, MiB)
                second = await world.bytes.next()
                killed.cancel()
        blob.close()
        clock.jump(LEAVING.within)
        await until(lambda: second.ended)
        await until(lambda: world.blobs.paused == 1)
        assert downloads(world, FILE) == 64 * KiB

    async def test_the_withheld_part_stays_withheld(self, world: World, clock: MockClock) -> None:
        world.record(FILE, DATA)
        await sniffed(world, clock, len(DATA) - 1)
        blob = await world.blobs.open(FILE)
        assert await blob.read(0, len(DATA) - WITHHELD) == DATA[:-WITHHELD]
        assert world.gets == 1
        assert (await finish(world, blob)).start == len(DATA) - 1


class TestNotBelieved:
    async def test_a_service_that_begins_anew_is_compared(self, world: World, clock: MockClock) -> None:
        world.record(FILE, DATA)
        await sniffed(world, clock)
        blob = await world.blobs.open(FILE)
        async with trio.open_nursery() as reader:
            reader.start_soon(rest_of, blob)
            (await world.bytes.next()).put(DATA).end()
        blob.close()
        assert world.cache.contains(digest_of(DATA), len(DATA))

    async def test_other_bytes_the_second_time_are_an_error(self, world: World, clock: MockClock) -> None:
        world.record(FILE, DATA)
        await sniffed(world, clock)
        blob = await world.blobs.open(FILE)
        async with trio.open_nursery() as nursery:

            async def read() -> None:
                with pytest.raises(BadAnswer, match="other bytes the second time"):
                    await blob.read(0, len(DATA))

            nursery.start_soon(read)
            (await world.bytes.next()).put(flipped(DATA, 100)).end()
        blob.close()
        await until(lambda: not world.blobs._downloads.table)
        assert world.cache.stats().blobs == 0
        assert temporary(world) == []

    async def test_a_gap_is_an_error(self, world: World, clock: MockClock) -> None:
        world.record(FILE, DATA)
        await sniffed(world, clock)
        blob = await world.blobs.open(FILE)
        async with trio.open_nursery() as nursery:

            async def read() -> None:
                with pytest.raises(BadAnswer, match="bytes are missing"):
                    await blob.read(0, len(DATA))

            nursery.start_soon(read)
            (await world.bytes.next()).put(Piece(64 * KiB + 1, DATA[64 * KiB + 1 :])).end()
        blob.close()

    @pytest.mark.parametrize("position", [0, 64 * KiB - 1, 64 * KiB, len(DATA) - 1])
    async def test_a_wrong_byte_on_either_side_of_the_seam_is_found(
        self, world: World, clock: MockClock, position: int
    ) -> None:
        world.record(FILE, DATA)
        wrong = flipped(DATA, position)
        blob = await world.blobs.open(FILE)
        first = await world.bytes.next()
        first.put(wrong[: 64 * KiB])
        await blob.read(0, KiB)
        await until(lambda: downloads(world, FILE) == 64 * KiB)
        blob.close()
        clock.jump(LEAVING.within)
        await until(lambda: world.blobs.paused == 1)
        blob = await world.blobs.open(FILE)
        async with trio.open_nursery() as nursery:

            async def read() -> None:
                with pytest.raises(IntegrityError, match="do not match"):
                    await blob.read(0, len(DATA))

            nursery.start_soon(read)
            (await world.bytes.next()).put(wrong[64 * KiB :], offset=64 * KiB).end()
        blob.close()
        await until(lambda: not world.blobs._downloads.table)
        assert world.quarantined == [wrong]
        assert not world.cache.contains(digest_of(DATA), len(DATA))

    @pytest.mark.parametrize("verify", ["strict", "stream"])
    async def test_what_was_changed_on_the_disk_meanwhile_is_downloaded_anew(
        self, make: MakeWorld, nursery: trio.Nursery, clock: MockClock, verify: str
    ) -> None:
        world = make(nursery, verify=verify)
        world.record(FILE, DATA)
        await left_in_the_middle(world, clock)
        (path,) = temporary(world)
        with path.open("r+b") as file:
            file.write(b"forged")
        os.utime(path, ns=(1, 1))  # the clock of files ticks only some hundred times a second
        async with trio.open_nursery() as reader:
            reader.start_soon(expect_whole, world)
            second = await world.bytes.next()
            assert second.start == 0
            second.put(DATA).end()
        await until(lambda: not world.blobs._downloads.table)
        assert temporary(world) == []
        assert world.quarantined == []
        assert world.cache.stats().loose_bytes == 0

    async def test_a_service_that_is_gone_is_told_and_nothing_stays(
        self, world: World, clock: MockClock
    ) -> None:
        world.record(FILE, DATA)
        await sniffed(world, clock)
        blob = await world.blobs.open(FILE)
        async with trio.open_nursery() as nursery:

            async def read() -> None:
                with pytest.raises(Unreachable):
                    await blob.read(0, len(DATA))

            nursery.start_soon(read)
            (await world.bytes.next()).put(Unreachable("gone"))
        blob.close()
        await until(lambda: not world.blobs._downloads.table)
        assert world.cache.stats().loose_bytes == 0


class TestBounds:
    async def test_a_partial_download_is_kept_for_so_long(self, world: World, clock: MockClock) -> None:
        await read_whole(world, file_ref(4))  # the tables of what was seen are open from now on
        await trio.to_thread.run_sync(world.cache._store.finish)  # and no folder that is yet to be synced
        before = descriptors()
        world.record(FILE, DATA)
        await sniffed(world, clock)
        assert world.cache.stats().loose_bytes >= len(DATA)
        clock.jump(LEAVING.keep - 1)
        await wait_all_tasks_blocked()
        assert world.blobs.paused == 1
        clock.jump(1)
        await until(lambda: not world.blobs._downloads.table)
        assert temporary(world) == []
        assert world.cache.stats().loose_bytes == 0
        assert descriptors() == before
        await sniff(world)
        assert world.bytes.transfers[-1].start == 0

    async def test_a_quarter_of_the_cache_at_most_and_the_oldest_goes(
        self, make: MakeWorld, clock: MockClock, nursery: trio.Nursery
    ) -> None:
        world = make(nursery, cache_size=4 * 2 * len(DATA) + MiB)
        refs = [file_ref(number) for number in (4, 5, 6)]
        for ref in refs:
            world.record(ref, content(world, ref))
            await sniffed(world, clock, ref=ref)
            await wait_all_tasks_blocked()
        assert world.blobs.paused == 2
        assert [downloads(world, ref) for ref in refs] == [-1, 64 * KiB, 64 * KiB]
        assert len(temporary(world)) == 2

    async def test_what_is_larger_than_that_is_not_kept(
        self, make: MakeWorld, clock: MockClock, nursery: trio.Nursery
    ) -> None:
        world = make(nursery, cache_size=3 * len(DATA))
        world.record(FILE, DATA)
        await sniffed(world, clock)
        await until(lambda: not world.blobs._downloads.table)
        assert temporary(world) == []

    async def test_a_paused_download_goes_before_a_verified_blob_when_room_is_needed(
        self, make: MakeWorld, clock: MockClock, nursery: trio.Nursery
    ) -> None:
        world = make(nursery, cache_size=4 * len(DATA) + MiB)
        good = [file_ref(number) for number in (5, 6)]
        for ref in good:
            await read_whole(world, ref)
        world.record(FILE, DATA)
        await sniffed(world, clock)
        assert world.blobs.paused == 1
        await read_whole(world, file_ref(7))
        await read_whole(world, file_ref(8))
        assert world.blobs.paused == 0
        assert world.cache.stats().evicted == 0
        assert world.cache.stats().blobs == 4

    async def test_a_partial_download_is_not_kept_where_nobody_vouches_for_the_bytes(
        self, make: MakeWorld, clock: MockClock, nursery: trio.Nursery
    ) -> None:
        world = make(nursery, verify="off")
        world.record(FILE, DATA)
        await sniffed(world, clock)
        await until(lambda: not world.blobs._downloads.table)
        assert world.cache.stats().spilled_bytes == 0

    async def test_a_partial_download_is_not_kept_if_nothing_has_come(
        self, world: World, clock: MockClock
    ) -> None:
        world.record(FILE, DATA)
        blob = await world.blobs.open(FILE)
        transfer = await world.bytes.next()
        blob.close()
        clock.jump(LEAVING.within)
        await until(lambda: not world.blobs._downloads.table)
        assert transfer.ended
        assert temporary(world) == []

    async def test_nothing_is_left_when_the_mount_ends(self, make: MakeWorld, clock: MockClock) -> None:
        before = descriptors()
        async with trio.open_nursery() as nursery:
            world = make(nursery)
            world.record(FILE, DATA)
            await sniffed(world, clock)
            assert temporary(world)
            nursery.cancel_scope.cancel()
        assert temporary(world) == []
        assert world.cache.stats().loose_bytes == 0
        world.close()
        assert descriptors() <= before
