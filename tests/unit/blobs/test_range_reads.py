"""Reads far ahead of a stream: answered by requests of their own, and never a way around the verdict."""

from collections.abc import Callable
from functools import partial

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from attachfs.blobs import block_buffer
from attachfs.blobs.download import NO_PAUSE, Download, PausePolicy
from attachfs.blobs.handle import BlobHandle
from attachfs.blobs.withholding import WITHHELD
from attachfs.errors import AttachfsError, IntegrityError, Unreachable
from tests.services.memory_source import Transfer, file_ref
from tests.services.wrong_bodies import flipped
from tests.unit.blobs.world import MakeWorld, World, Worlds, digest_of, until

FILE = file_ref(3)
KiB, MiB = 2**10, 2**20
DATA = b"".join(number.to_bytes(4, "big") for number in range(MiB))  # 4 MiB, no two pages alike
BLOCKS = len(DATA) // WITHHELD
LAST = BLOCKS - 1
NEAR = MiB // WITHHELD  # the last block that is not far ahead of a stream's beginning


@pytest.fixture
def make(worlds: Worlds) -> MakeWorld:
    """Return what makes worlds in which the test sends the bytes."""

    def make_world(nursery: trio.Nursery, verify: str = "stream", pause: PausePolicy = NO_PAUSE) -> World:
        world = worlds(nursery, pause=pause, verify=verify)
        world.record(FILE, DATA)
        world.bytes.parts = DATA
        return world

    return make_world


@pytest.fixture
async def world(clock: MockClock, make: MakeWorld, nursery: trio.Nursery) -> World:
    assert clock.autojump_threshold > 0
    return make(nursery)


def hold_comparison(monkeypatch: pytest.MonkeyPatch) -> tuple[trio.Event, trio.Event]:
    """Have the comparison with the whole wait for the second event; the first tells that it has begun."""
    compare, hold = block_buffer.BlockBuffer.first_difference, trio.Event()
    token = trio.lowlevel.current_trio_token()
    comparing = trio.Event()

    def held(self: block_buffer.BlockBuffer, read: Callable[[int, int], bytes]) -> int | None:
        trio.from_thread.run_sync(comparing.set, trio_token=token)
        trio.from_thread.run(hold.wait, trio_token=token)
        return compare(self, read)

    monkeypatch.setattr(block_buffer.BlockBuffer, "first_difference", held)
    return comparing, hold


async def opened(world: World, came: bytes = b"") -> tuple[BlobHandle, Transfer]:
    """Open the file; so much of it has come."""
    blob = await world.blobs.open(FILE)
    transfer = await world.bytes.next()
    if came:
        transfer.put(came)
        await until(lambda: download(world).staged.written == len(came))
    return blob, transfer


def download(world: World) -> Download:
    (one,) = world.blobs._downloads.table.values()
    return one


def piece(number: int, count: int = 1, data: bytes = DATA) -> bytes:
    return data[number * WITHHELD : (number + count) * WITHHELD]


async def get(blob: BlobHandle, number: int, count: int = 1) -> bytes:
    return bytes(await blob.read(number * WITHHELD, count * WITHHELD))


def asked(world: World) -> list[tuple[int, int]]:
    """Return which parts were asked for, in blocks."""
    return [(one.start // WITHHELD, -(-one.stop // WITHHELD)) for one in world.bytes.asked]


class Reading:
    """Somebody who reads, in a task of their own."""

    def __init__(self, nursery: trio.Nursery, blob: BlobHandle, number: int, count: int = 1) -> None:
        self.scope = trio.CancelScope()
        self.data: bytes | None = None
        self.error: AttachfsError | None = None
        self.done = trio.Event()
        nursery.start_soon(self._read, blob, number, count)

    async def _read(self, blob: BlobHandle, number: int, count: int) -> None:
        with self.scope:
            try:
                self.data = await get(blob, number, count)
            except AttachfsError as error:
                self.error = error
        self.done.set()


async def waits(reading: Reading) -> bool:
    await wait_all_tasks_blocked()
    return not reading.done.is_set()


class TestAnswered:
    async def test_a_read_is_answered_before_the_stream_has_come_there(self, world: World) -> None:
        blob, transfer = await opened(world)
        assert await blob.read(len(DATA) - 22, 22) == DATA[-22:]
        assert await blob.read(len(DATA) - 70 * KiB, 1 * MiB) == DATA[-70 * KiB :]
        assert asked(world) == [(LAST, BLOCKS)]
        assert await blob.read(2 * MiB - 5, 10) == DATA[2 * MiB - 5 : 2 * MiB + 5]
        assert not blob.verified
        assert not transfer.ended
        blob.close()

    async def test_a_part_is_verified_once_the_whole_is(self, world: World) -> None:
        blob, transfer = await opened(world)
        assert await get(blob, LAST) == piece(LAST)
        transfer.put(DATA).end()
        await blob.complete()
        assert blob.verified
        assert await blob.read(0, len(DATA)) == DATA
        blob.close()
        assert world.cache.contains(digest_of(DATA), len(DATA))
        assert world.gets == 1

    async def test_more_at_a_time_while_reads_follow_each_other(self, world: World) -> None:
        blob, _ = await opened(world)
        for number in range(NEAR + 1, NEAR + 16):
            assert await get(blob, number) == piece(number)
        first = NEAR + 1
        sizes = [stop - start for start, stop in asked(world)]
        assert asked(world)[0] == (first, first + 1)
        assert sizes == [1, 2, 4, 8]
        blob.close()

    async def test_up_to_the_end_of_the_file(self, world: World) -> None:
        blob, _ = await opened(world)
        for number in range(LAST - 3, BLOCKS):
            assert await get(blob, number) == piece(number)
        assert asked(world)[-1][1] == BLOCKS
        blob.close()

    async def test_reads_that_do_not_follow_each_other_cost_one_block_each(self, world: World) -> None:
        blob, _ = await opened(world)
        for number in (20, 12, 30, 16):
            assert await get(blob, number) == piece(number)
        assert asked(world) == [(20, 21), (12, 13), (30, 31), (16, 17)]
        blob.close()

    async def test_a_part_is_read_from_memory_the_second_time(self, world: World) -> None:
        blob, _ = await opened(world)
        for _ in range(3):
            assert await get(blob, 20) == piece(20)
        assert len(asked(world)) == 1
        blob.close()

    async def test_a_part_is_read_from_the_stream_once_it_has_passed(self, world: World) -> None:
        blob, transfer = await opened(world)
        assert await get(blob, 20) == piece(20)
        world.bytes.parts = None
        transfer.put(piece(0, 21))
        await until(lambda: download(world).staged.written == 21 * WITHHELD)
        assert await get(blob, 20) == piece(20)
        assert bytes(blob.read_nowait(20 * WITHHELD, 100) or b"") in (b"", piece(20)[:100])
        blob.close()

    async def test_a_part_is_read_where_nobody_vouches_as_well(
        self, make: MakeWorld, nursery: trio.Nursery, clock: MockClock
    ) -> None:
        assert clock.autojump_threshold > 0
        world = make(nursery, verify="off")
        blob, transfer = await opened(world)
        for number in range(NEAR + 1, BLOCKS):
            assert await get(blob, number) == piece(number)
        transfer.put(DATA)
        assert await blob.read(0, len(DATA)) == DATA
        transfer.end()
        await until(lambda: not world.blobs._downloads.table)
        assert await blob.read(0, len(DATA)) == DATA
        assert not blob.verified
        blob.close()


class TestNotAskedFor:
    async def test_no_part_is_requested_for_a_read_in_order_that_the_kernel_reads_ahead(
        self, world: World, nursery: trio.Nursery
    ) -> None:
        blob, transfer = await opened(world)
        window: list[Reading] = []
        for number in range(LAST):
            window.append(Reading(nursery, blob, number))
            if len(window) > 4:
                transfer.put(piece(number - 4), offset=(number - 4) * WITHHELD)
                first = window.pop(0)
                await until(first.done.is_set)
                assert first.data == piece(number - 4)
        assert asked(world) == []
        transfer.put(piece(LAST - 4, 5), offset=(LAST - 4) * WITHHELD).end()
        for reading in window:
            await reading.done.wait()
        blob.close()
        assert asked(world) == []

    async def test_no_part_is_requested_for_one_large_read_that_the_kernel_cuts_up(
        self, world: World, nursery: trio.Nursery
    ) -> None:
        blob, transfer = await opened(world)
        parts = []
        for number in range(BLOCKS):
            parts.append(Reading(nursery, blob, number))
            assert await waits(parts[-1])
        assert asked(world) == []
        transfer.put(DATA).end()
        for number, part in enumerate(parts):
            await part.done.wait()
            assert part.data == piece(number)
        blob.close()

    async def test_no_part_is_requested_near_the_stream(self, world: World, nursery: trio.Nursery) -> None:
        blob, _ = await opened(world)
        assert await waits(Reading(nursery, blob, NEAR))
        assert asked(world) == []
        nursery.cancel_scope.cancel()
        blob.close()

    async def test_no_part_is_requested_before_the_stream_had_time_to_come_there(
        self, world: World, clock: MockClock, nursery: trio.Nursery
    ) -> None:
        blob, transfer = await opened(world, piece(0, 12))
        there = Reading(nursery, blob, 22)
        assert await waits(there)
        assert asked(world) == []
        transfer.put(piece(12, 11), offset=12 * WITHHELD)
        await there.done.wait()
        assert there.data == piece(22)
        assert asked(world) == []
        blob.close()
        assert clock.autojump_threshold > 0

    async def test_a_part_is_requested_if_the_stream_did_not_come_there_in_time(
        self, world: World, clock: MockClock, nursery: trio.Nursery
    ) -> None:
        blob, _ = await opened(world, piece(0, 12))
        there = Reading(nursery, blob, 22)
        assert await waits(there)
        clock.jump(1)
        await there.done.wait()
        assert there.data == piece(22)
        blob.close()

    async def test_no_part_is_requested_in_strict_verification(
        self, make: MakeWorld, nursery: trio.Nursery, clock: MockClock
    ) -> None:
        assert clock.autojump_threshold > 0
        world = make(nursery, verify="strict")
        world.serve(FILE, DATA)
        assert await world.read(FILE) == DATA
        assert asked(world) == []


class TestRefusedParts:
    async def test_a_service_without_them_is_asked_once(self, world: World, nursery: trio.Nursery) -> None:
        world.bytes.parts = None
        blob, transfer = await opened(world)
        ends = [Reading(nursery, blob, LAST), Reading(nursery, blob, 20)]
        for end in ends:
            assert await waits(end)
        assert len(asked(world)) == 2  # both were on their way
        again = Reading(nursery, blob, 25)
        assert await waits(again)
        assert len(asked(world)) == 2
        transfer.put(DATA).end()
        await again.done.wait()
        assert again.data == piece(25)
        assert await blob.read(0, len(DATA)) == DATA
        blob.close()

    async def test_an_outage_is_waited_out_with_the_stream(
        self, world: World, nursery: trio.Nursery, clock: MockClock
    ) -> None:
        world.bytes.parts = Unreachable("away")
        blob, transfer = await opened(world)
        end = Reading(nursery, blob, LAST)
        assert await waits(end)
        assert await waits(Reading(nursery, blob, 20))
        assert len(asked(world)) == 1
        world.bytes.parts = DATA
        clock.jump(6)
        await end.done.wait()
        assert end.data == piece(LAST)
        assert not transfer.ended
        transfer.put(DATA).end()
        await blob.complete()
        blob.close()

    @pytest.mark.parametrize("came", [b"", piece(20)[:-1], piece(20) + b"x"], ids=["none", "short", "long"])
    async def test_a_part_of_another_length_is_not_handed_out_unless_it_is_whole(
        self, world: World, nursery: trio.Nursery, came: bytes
    ) -> None:
        world.bytes.parts = "held"
        blob, transfer = await opened(world)
        there = Reading(nursery, blob, 20)
        await until(lambda: bool(world.bytes.asked))
        world.bytes.asked[0].put(*([came] if came else [])).end()
        await until(lambda: world.bytes.asked[0].ended)
        assert await waits(there) == (len(came) <= WITHHELD)
        transfer.put(DATA).end()
        await there.done.wait()
        assert there.data == piece(20)
        blob.close()

    async def test_a_fault_of_our_own_fails_no_stream(
        self, world: World, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
    ) -> None:
        world.bytes.parts = KeyError("x")
        blob, transfer = await opened(world)
        assert await waits(Reading(nursery, blob, 20))
        assert "unexpected error while reading ahead" in caplog.text
        transfer.put(DATA).end()
        assert await blob.read(0, len(DATA)) == DATA
        blob.close()

    async def test_another_version_than_the_streams_is_not_used(
        self, world: World, nursery: trio.Nursery
    ) -> None:
        world.bytes.etag = '"other"'
        blob, transfer = await opened(world)
        transfer.etag = '"one"'
        there = Reading(nursery, blob, 20)
        assert await waits(there)
        assert await waits(Reading(nursery, blob, 25))
        assert len(asked(world)) == 1
        transfer.put(DATA).end()
        await there.done.wait()
        assert there.data == piece(20)
        blob.close()

    async def test_no_part_is_requested_once_the_stream_turns_out_to_be_another(
        self, world: World, nursery: trio.Nursery
    ) -> None:
        world.bytes.etag = '"other"'
        blob, transfer = await opened(world)
        assert await get(blob, 20) == piece(20)
        transfer.etag = '"one"'
        assert await waits(Reading(nursery, blob, 20))
        blob.close()

    async def test_the_same_version_is(self, world: World) -> None:
        world.bytes.etag = '"one"'
        blob, transfer = await opened(world)
        transfer.etag = '"one"'
        assert await get(blob, 20) == piece(20)
        blob.close()

    async def test_other_bytes_the_second_time_are_not_handed_out(
        self, world: World, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(block_buffer, "_KEPT", 1)
        blob, transfer = await opened(world)
        assert await get(blob, 20) == piece(20)
        assert await get(blob, 30) == piece(30)
        world.bytes.parts = flipped(DATA, 20 * WITHHELD)
        again = Reading(nursery, blob, 20)
        assert await waits(again)
        transfer.put(DATA).end()
        await again.done.wait()
        assert again.data == piece(20)
        blob.close()


class TestWithheld:
    async def test_moves_when_the_last_is_handed_out(self, world: World, nursery: trio.Nursery) -> None:
        blob, transfer = await opened(world)
        assert await get(blob, LAST) == piece(LAST)
        transfer.put(DATA)
        assert await get(blob, 0, LAST - 1) == piece(0, LAST - 1)
        withheld = Reading(nursery, blob, LAST - 1)
        assert await waits(withheld)
        assert await get(blob, LAST) == piece(LAST)
        transfer.end()
        await withheld.done.wait()
        assert withheld.data == piece(LAST - 1)
        blob.close()

    async def test_stays_when_all_others_have_been_handed_out(
        self, world: World, nursery: trio.Nursery
    ) -> None:
        blob, transfer = await opened(world, piece(0, NEAR + 1))
        assert await get(blob, 0, NEAR + 1) == piece(0, NEAR + 1)
        world.bytes.parts = DATA
        for number in reversed(range(2 * NEAR + 2, BLOCKS)):
            assert await get(blob, number) == piece(number)
        assert download(world).gate.served.limit == (2 * NEAR + 1) * WITHHELD
        rest = [Reading(nursery, blob, number) for number in range(NEAR + 1, 2 * NEAR + 2)]
        transfer.put(piece(NEAR + 1, BLOCKS - NEAR - 1), offset=(NEAR + 1) * WITHHELD)
        await until(lambda: sum(not reading.done.is_set() for reading in rest) == 1)
        (one,) = (reading for reading in rest if not reading.done.is_set())  # which, depends on who was first
        assert await waits(one)
        transfer.end()
        await one.done.wait()
        blob.close()

    async def test_stays_when_all_others_were_read_while_it_was_asked_for(
        self, world: World, nursery: trio.Nursery
    ) -> None:
        world.bytes.parts = "held"
        blob, transfer = await opened(world)
        last = Reading(nursery, blob, LAST)
        assert await waits(last)
        transfer.put(piece(0, LAST))
        assert await get(blob, 0, LAST) == piece(0, LAST)
        world.bytes.asked[0].put(piece(LAST)).end()
        await until(lambda: world.bytes.asked[0].ended)
        assert await waits(last)
        transfer.put(piece(LAST), offset=LAST * WITHHELD).end()
        await last.done.wait()
        assert last.data == piece(LAST)
        blob.close()

    async def test_what_is_withheld_is_remembered_when_a_download_was_given_up(
        self, world: World, nursery: trio.Nursery
    ) -> None:
        blob, _ = await opened(world, piece(0, LAST))
        assert await get(blob, 0, LAST) == piece(0, LAST)
        blob.close()
        await until(lambda: not world.blobs._downloads.table)
        blob, transfer = await opened(world)
        last = Reading(nursery, blob, LAST)
        assert await waits(last)
        assert asked(world) == []
        transfer.put(DATA).end()
        await last.done.wait()
        assert last.data == piece(LAST)
        blob.close()
        await until(lambda: not world.blobs._downloads.table)
        assert not world.blobs._downloads._history._served

    async def test_what_is_withheld_is_remembered_of_a_bounded_number_of_files(self, world: World) -> None:
        blob, _ = await opened(world)
        one = download(world)
        blob.close()
        for number in range(100):
            one.expected = digest_of(bytes([number]))
            assert one.gate.served.allow_sequential(0, 1)
            world.blobs._downloads._ended(one)
        assert len(world.blobs._downloads._history._served) == 32


class TestWrong:
    @pytest.mark.parametrize("position", [0, NEAR * WITHHELD, len(DATA) - 1])
    async def test_a_wrong_whole_is_never_read_without_an_error_though_its_end_was_read_first(
        self, world: World, nursery: trio.Nursery, position: int
    ) -> None:
        wrong = flipped(DATA, position)
        world.bytes.parts = wrong
        blob, transfer = await opened(world)
        got = {number: await get(blob, number) for number in reversed(range(NEAR + 1, BLOCKS))}
        rest = {number: Reading(nursery, blob, number) for number in range(NEAR + 1)}
        transfer.put(wrong)
        await wait_all_tasks_blocked()
        await until(lambda: download(world).staged.written == len(wrong))
        await until(lambda: sum(reading.done.is_set() for reading in rest.values()) == NEAR)
        transfer.end()
        for number, reading in rest.items():
            await reading.done.wait()
            if reading.data is not None:
                got[number] = reading.data
        assert len(got) == BLOCKS - 1
        assert [type(one.error) for one in rest.values() if one.error] == [IntegrityError]
        with pytest.raises(IntegrityError):
            await get(blob, LAST)
        assert not blob.verified
        blob.close()
        assert not world.cache.contains(digest_of(DATA), len(DATA))

    async def test_a_wrong_part_of_a_right_whole_is_told_to_whoever_has_it_open(
        self, world: World, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
    ) -> None:
        world.bytes.parts = flipped(DATA, 20 * WITHHELD)
        blob, transfer = await opened(world)
        other = await world.blobs.open(FILE)
        assert await get(blob, 20) != piece(20)
        assert await get(blob, 30) == piece(30)
        waiting = Reading(nursery, blob, LAST - 1, 1)
        await waiting.done.wait()
        world.bytes.parts = None
        transfer.put(DATA).end()
        await until(lambda: not world.blobs._downloads.table)
        for one in (blob, other):
            for number in (0, 20, LAST):
                with pytest.raises(IntegrityError, match=f"byte {20 * WITHHELD} on differs"):
                    await get(one, number)
                with pytest.raises(IntegrityError):
                    one.read_nowait(number * WITHHELD, 1)
            with pytest.raises(IntegrityError):
                await one.complete()
            assert not one.verified
        assert "differs from the verified whole" in caplog.text
        assert world.cache.contains(digest_of(DATA), len(DATA))
        blob.close()
        with pytest.raises(IntegrityError, match="close it"):
            await world.blobs.open(FILE)
        other.close()
        assert await world.read(FILE) == DATA
        assert world.gets == 1
        assert world.cache.stats().open_files == 0

    async def test_the_verified_whole_does_not_open_while_it_is_compared(
        self, world: World, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Else its pages would stand among the wrong ones."""
        comparing, hold = hold_comparison(monkeypatch)
        world.bytes.parts = flipped(DATA, 20 * WITHHELD)
        blob, transfer = await opened(world)
        assert await get(blob, 20) != piece(20)
        transfer.put(DATA).end()
        await comparing.wait()
        assert world.cache.contains(digest_of(DATA), len(DATA))
        monkeypatch.setattr(world.blobs._staging, "confirmed", lambda *_: False)
        other = await world.blobs.open(FILE)
        assert not other.verified
        reading = Reading(nursery, other, LAST)
        assert await waits(reading)
        hold.set()
        await reading.done.wait()
        assert isinstance(reading.error, IntegrityError)
        blob.close()
        other.close()

    async def test_an_attachment_that_joins_while_the_whole_is_compared_is_pinned_before_it_is_served(
        self, world: World, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Else its record could change until its next open, and nobody would notice."""
        comparing, hold = hold_comparison(monkeypatch)
        world.record(file_ref(4), DATA)
        blob, transfer = await opened(world)
        assert await get(blob, 20) == piece(20)
        transfer.put(DATA).end()
        await comparing.wait()
        other = await world.blobs.open(file_ref(4))
        reading = Reading(nursery, other, LAST)
        assert await waits(reading)
        hold.set()
        await reading.done.wait()
        assert reading.data == piece(LAST)
        assert {pin.key for pin in world.pins.find()} == {
            f"ledger.example/{FILE.attachment}",
            f"ledger.example/{file_ref(4).attachment}",
        }
        blob.close()
        other.close()

    async def test_what_no_program_was_given_is_not_compared(self, world: World) -> None:
        """A run of reads brings more than was read of it."""
        world.bytes.parts = flipped(DATA, 14 * WITHHELD)
        blob, transfer = await opened(world)
        for number in (10, 11, 12, 13):
            assert await get(blob, number) == piece(number)
        assert asked(world) == [(10, 11), (11, 13), (13, 17)]
        transfer.put(DATA).end()
        await blob.complete()
        assert blob.verified
        blob.close()


class TestTogether:
    async def test_two_readers_share_a_request(self, world: World, nursery: trio.Nursery) -> None:
        world.bytes.parts = "held"
        blob, _ = await opened(world)
        readers = [Reading(nursery, blob, 20) for _ in range(2)]
        assert await waits(readers[0])
        assert asked(world) == [(20, 21)]
        world.bytes.asked[0].put(piece(20)[:1000], piece(20)[1000:]).end()
        for reader in readers:
            await reader.done.wait()
            assert reader.data == piece(20)
        blob.close()

    async def test_a_killed_reader_leaves_it_to_the_other(self, world: World, nursery: trio.Nursery) -> None:
        world.bytes.parts = "held"
        blob, transfer = await opened(world)
        killed, other = (Reading(nursery, blob, 20) for _ in range(2))
        assert await waits(other)
        killed.scope.cancel()
        await killed.done.wait()
        assert await waits(other)
        assert not world.bytes.asked[0].ended
        other.scope.cancel()
        await until(lambda: world.bytes.asked[0].ended)
        assert not transfer.ended
        blob.close()

    async def test_a_request_that_the_stream_overtook_ends(self, world: World, nursery: trio.Nursery) -> None:
        world.bytes.parts = "held"
        blob, transfer = await opened(world)
        reading = Reading(nursery, blob, 20)
        assert await waits(reading)
        transfer.put(piece(0, 21))
        await reading.done.wait()
        assert reading.data == piece(20)
        await until(lambda: world.bytes.asked[0].ended)
        blob.close()

    async def test_no_more_than_two_parts_are_requested_at_once(
        self, world: World, nursery: trio.Nursery
    ) -> None:
        world.bytes.parts = "held"
        blob, _ = await opened(world)
        readings = []
        for number in (12, 16, 20, 24):
            readings.append(Reading(nursery, blob, number))
            assert await waits(readings[-1])
        assert asked(world) == [(12, 13), (16, 17)]
        world.bytes.asked[0].put(piece(12)).end()
        await readings[0].done.wait()
        await until(lambda: len(asked(world)) == 3)
        assert sum(not one.ended for one in world.bytes.asked) == 2
        nursery.cancel_scope.cancel()
        blob.close()

    async def test_a_range_request_that_nobody_waits_for_gives_way(
        self, world: World, nursery: trio.Nursery
    ) -> None:
        world.bytes.parts = "held"
        blob, _ = await opened(world)
        for number in (12, 13):  # the second brings more than was read
            reading = Reading(nursery, blob, number)
            await until(lambda number=number: len(asked(world)) == number - 11)  # type: ignore[misc]
            world.bytes.asked[-1].put(piece(number))
            if number == 12:
                world.bytes.asked[-1].end()
            await reading.done.wait()
        assert asked(world) == [(12, 13), (13, 15)]
        elsewhere = [Reading(nursery, blob, number) for number in (20, 24)]
        for reading in elsewhere:
            assert await waits(reading)
        assert len(asked(world)) == 4
        await until(lambda: world.bytes.asked[1].ended)
        nursery.cancel_scope.cancel()
        blob.close()

    async def test_only_a_few_blocks_that_came_early_are_kept_in_memory(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(block_buffer, "_KEPT", 3)
        blob, _ = await opened(world)
        for number in range(NEAR + 1, BLOCKS):
            assert await get(blob, number) == piece(number)
            assert len(download(world).gate.range_reads.buffer._kept) <= 3
        blob.close()

    async def test_nothing_stays_once_nobody_has_it_open(
        self, make: MakeWorld, nursery: trio.Nursery, clock: MockClock
    ) -> None:
        world = make(nursery, pause=PausePolicy(more=MiB, within=2, keep=60))
        blob, transfer = await opened(world, piece(0))
        assert await get(blob, LAST) == piece(LAST)
        world.bytes.parts = "held"
        reading = Reading(nursery, blob, 20)
        assert await waits(reading)
        reading.scope.cancel()
        blob.close()
        await until(lambda: world.bytes.asked[-1].ended)
        assert not download(world).gate.range_reads.buffer._kept
        clock.jump(2)
        await until(lambda: transfer.ended)
        await until(lambda: world.blobs.paused == 1)
        # What was handed out is known still, and compared in the end.
        world.bytes.parts = DATA
        blob = await world.blobs.open(FILE)
        assert await get(blob, 20) == piece(20)
        transfer = await world.bytes.next()
        assert transfer.start == WITHHELD
        assert download(world).gate.served.limit == (LAST - 1) * WITHHELD
        assert set(download(world).gate.range_reads.buffer.digests) == {20, LAST}
        transfer.put(DATA[WITHHELD:], offset=WITHHELD).end()
        await blob.complete()
        assert blob.verified
        blob.close()

    async def test_many_readers_all_over(self, world: World, nursery: trio.Nursery) -> None:
        blob, transfer = await opened(world)
        readers = [Reading(nursery, blob, number * 7 % BLOCKS) for number in range(4 * BLOCKS)]
        for number in range(BLOCKS):
            transfer.put(piece(number), offset=number * WITHHELD)
            await until(partial(lambda number: download(world).staged.written > number * WITHHELD, number))
        transfer.end()
        for number, reader in enumerate(readers):
            await reader.done.wait()
            assert reader.data == piece(number * 7 % BLOCKS)
        blob.close()
