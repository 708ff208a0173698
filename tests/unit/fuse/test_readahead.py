"""A walk over a directory's files is recognised, a single look is left alone."""

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from attachfs.errors import Unreachable
from attachfs.fuse import readahead as readahead_module
from attachfs.fuse.readahead import ReadAhead
from attachfs.ledger.view import Ledger
from attachfs.model import AttachmentRef, EventRef
from attachfs.namespace.nodes import EventsDir, Place
from attachfs.namespace.tree import Tree
from tests.services.memory_source import (
    FakePage,
    FakeSource,
    as_json,
    asset_record,
    asset_ref,
    attribute,
    event_record,
    event_ref,
    file_ref,
    info_body,
    uuid,
)

FILES = [file_ref(number) for number in range(10, 20)]
ON_EVENT = [file_ref(number, event=2) for number in range(10, 20)]


class World:
    def __init__(self, source: FakeSource, nursery: trio.Nursery) -> None:
        self.source = source
        self.ledger = Ledger(source, nursery)
        self.tree = Tree(self.ledger, "https://ledger", 0)
        self.fetched: list[AttachmentRef] = []
        self.ahead = ReadAhead(
            self.tree, self.ledger, self, nursery, lambda node: -int(node.path[-4:], 16), 2**30
        )

    async def prefetch(self, ref: AttachmentRef) -> None:
        self.fetched.append(ref)
        await self.ledger.info(ref)

    async def show(self) -> None:
        self.ahead.listed(await self.tree.open_directory(asset_ref()))

    @property
    def asked(self) -> list[object]:
        return [what for kind, what in self.source.calls if kind == "info"]


@pytest.fixture
async def world(nursery: trio.Nursery) -> World:
    source = FakeSource()
    attributes = {str(number): attribute(number) for number in range(10, 20)}
    source.records[asset_ref()] = as_json(asset_record(asset_ref(), attributes))
    source.records[event_ref()] = as_json(event_record(event_ref(), attributes))
    for file in FILES + ON_EVENT:
        source.infos[file] = info_body(file)
    return World(source, nursery)


async def test_the_first_file_of_a_listing_brings_its_siblings_side_by_side(world: World) -> None:
    await world.show()
    world.source.gate = trio.Event()
    world.ahead.stat(FILES[0])
    await wait_all_tasks_blocked()
    assert set(world.asked) == set(FILES[1:])  # all of them while none has been answered
    world.source.gate.set()
    await wait_all_tasks_blocked()
    assert all(world.ledger.cached_info(file) is not None for file in FILES[1:])


async def test_readahead_works_on_an_event_too(world: World) -> None:
    world.ahead.listed(await world.tree.open_directory(event_ref()))
    world.ahead.stat(ON_EVENT[0])
    await wait_all_tasks_blocked()
    assert set(world.asked) == set(ON_EVENT[1:])


async def test_a_single_look_in_the_middle_brings_nothing(world: World) -> None:
    await world.show()
    world.ahead.stat(FILES[4])
    await wait_all_tasks_blocked()
    assert world.asked == []


async def test_a_second_look_brings_the_siblings(world: World) -> None:
    await world.show()
    world.ahead.stat(FILES[4])
    world.ahead.stat(FILES[7])
    await wait_all_tasks_blocked()
    assert set(world.asked) == set(FILES) - {FILES[7]}


async def test_happens_once_for_a_listing(world: World) -> None:
    await world.show()
    for file in FILES:
        world.ahead.stat(file)
    await wait_all_tasks_blocked()
    assert len(world.asked) == len(FILES) - 1
    world.ledger.clear()
    await world.show()
    world.ahead.stat(FILES[0])
    await wait_all_tasks_blocked()
    assert len(world.asked) == 2 * (len(FILES) - 1)


async def test_what_is_known_is_not_asked_for_again(world: World) -> None:
    await world.show()
    await world.ledger.info(FILES[5])
    world.ahead.stat(FILES[0])
    await wait_all_tasks_blocked()
    assert world.asked.count(FILES[5]) == 1


async def test_each_file_takes_one_task_that_nobody_waits_for(world: World) -> None:
    await world.show()

    class Spawned(trio.abc.Instrument):
        count = 0

        def task_spawned(self, _task: trio.lowlevel.Task) -> None:
            self.count += 1

    spawned = Spawned()
    trio.lowlevel.add_instrument(spawned)
    world.ahead.stat(FILES[0])
    await wait_all_tasks_blocked()
    trio.lowlevel.remove_instrument(spawned)
    assert len(world.asked) == spawned.count == len(FILES) - 1


async def test_while_the_service_is_silent_what_is_ahead_is_looked_for_where_it_is_kept(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.show()
    looked: list[AttachmentRef] = []

    async def info(ref: AttachmentRef) -> None:
        await trio.lowlevel.checkpoint()
        looked.append(ref)

    world.ledger.outage.begin("no answer")
    monkeypatch.setattr(world.ledger, "info", info)
    world.ahead.stat(FILES[0])
    await wait_all_tasks_blocked()
    assert set(looked) == set(FILES[1:])
    assert not world.asked


async def test_a_caller_who_looks_meanwhile_shares_the_request_of_the_readahead(
    world: World, nursery: trio.Nursery
) -> None:
    await world.show()
    world.source.gate = trio.Event()
    world.ahead.stat(FILES[0])
    await wait_all_tasks_blocked()
    nursery.start_soon(world.ledger.info, FILES[3])
    await wait_all_tasks_blocked()
    assert world.asked.count(FILES[3]) == 1
    world.source.gate.set()


async def test_a_directory_that_was_not_listed_brings_nothing(world: World) -> None:
    for file in FILES:
        world.ahead.stat(file)
    world.ahead.stat(asset_ref())
    world.ahead.stat(Place.ASSETS)
    await wait_all_tasks_blocked()
    assert world.source.calls == []


async def test_listings_of_assets_and_events_are_not_walks(world: World) -> None:
    world.source.asset_pages = {"": FakePage([asset_record(asset_ref())])}
    for node in (Place.ROOT, Place.ASSETS, Place.PUBLICASSETS, EventsDir("assets", uuid(1))):
        world.ahead.listed(await world.tree.open_directory(node))
    assert len(world.ahead._directories) == 0


async def test_a_failure_ahead_is_nobodys_failure(world: World) -> None:
    world.source.infos[FILES[3]] = Unreachable("x")
    del world.source.infos[FILES[4]]
    await world.show()
    world.ahead.stat(FILES[0])
    await wait_all_tasks_blocked()
    assert len(world.asked) == len(FILES) - 1
    world.source.infos[FILES[3]] = info_body(FILES[3])
    assert (await world.ledger.info(FILES[3])).size == 8


async def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch, world: World) -> None:
    monkeypatch.setattr(readahead_module, "_DIRECTORIES", 3)
    for number in range(30, 36):
        ref = EventRef("assets", uuid(1), uuid(number))
        world.source.records[ref] = as_json(event_record(ref, {"x": attribute(10), "y": attribute(11)}))
        world.ahead.listed(await world.tree.open_directory(ref))
    assert len(world.ahead._directories) == 3
    world.ahead.stat(AttachmentRef("assets", uuid(1), uuid(30), uuid(10)))
    await wait_all_tasks_blocked()
    assert world.asked == []


async def test_what_is_asked_ahead_is_bounded(monkeypatch: pytest.MonkeyPatch, world: World) -> None:
    monkeypatch.setattr(readahead_module, "_WINDOW", 4)
    await world.show()
    world.ahead.stat(FILES[0])
    await wait_all_tasks_blocked()
    assert set(world.asked) == set(FILES[1:4])


class TestBytesAhead:
    async def test_opening_one_file_or_two_fetches_no_other(self, world: World) -> None:
        await world.show()
        for file in FILES[:2]:
            world.ahead.opened(file)
            await wait_all_tasks_blocked()
        assert world.fetched == []

    @pytest.mark.parametrize("order", [FILES, FILES[::-1], sorted(FILES)], ids=["listed", "number", "name"])
    async def test_a_walk_in_any_usual_order_has_the_next_fetched_once_each(
        self, world: World, order: list[AttachmentRef]
    ) -> None:
        await world.show()
        for position, file in enumerate(order):
            world.ahead.opened(file)
            await wait_all_tasks_blocked()
            assert len(set(world.fetched)) == len(world.fetched)
            if position >= 2:
                assert order[min(position + 1, len(order) - 1)] in [*world.fetched, file]
        assert set(world.fetched) == set(order[3:])

    async def test_an_order_that_breaks_closes_the_window(self, world: World) -> None:
        await world.show()
        for file in (FILES[0], FILES[4], FILES[2], FILES[8], FILES[5]):
            world.ahead.opened(file)
            await wait_all_tasks_blocked()
        assert world.fetched == []

    async def test_large_files_wait_until_they_are_opened(self, world: World) -> None:
        for file in FILES:
            world.source.infos[file] = info_body(file, size=5 * 2**20)
        await world.show()
        for file in FILES[:6]:
            world.ahead.opened(file)
            await wait_all_tasks_blocked()
        assert world.fetched == []
