"""A walk from asset to asset: how many requests it makes, however long it takes, and when it stops."""

from collections.abc import Iterator
from typing import TypeVar

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from attachfs.errors import Unreachable
from attachfs.fuse import crawl as crawl_module
from attachfs.fuse.inodes import InodeTable
from attachfs.fuse.readahead import ReadAhead
from attachfs.ledger.view import Ledger
from attachfs.model import AssetRef, AttachmentRef, EventRef
from attachfs.namespace.directory import Entry
from attachfs.namespace.nodes import EventsDir, Node, Place
from attachfs.namespace.tree import Tree
from tests.services.memory_source import (
    FakePage,
    FakeSource,
    as_json,
    asset_record,
    attribute,
    event_record,
    uuid,
)

T = TypeVar("T")
ASSETS = 1000
PAGE = 50  # records on a page
PAGES = ASSETS // PAGE
# Each asset has the entry `events` and one attachment; its one event has one attachment, too.
PER_ASSET = 5


def events_of(number: int) -> list[dict[str, object]]:
    event = EventRef("assets", uuid(number), uuid(10**6 + number))
    more = {"timestamp_accepted": "2026-01-01T00:00:00Z"}
    return [event_record(event, {"x": attribute(2, arc_file_name="b.bin")}, **more)]


def paged(records: list[dict[str, object]]) -> Iterator[tuple[str, FakePage]]:
    for start in range(0, len(records), PAGE):
        end = start + PAGE
        yield (
            (str(start) if start else ""),
            FakePage(records[start:end], str(end) if end < len(records) else ""),
        )


class SlowSource(FakeSource):
    """A service that takes its time for each page of all assets or all events."""

    takes = 0.0

    async def _answer(self, kind: str, what: object, answer: T | Exception) -> T:
        if kind == "assets" or (kind == "events" and isinstance(what, tuple) and what[0] is None):
            await trio.sleep(self.takes)
        return await super()._answer(kind, what, answer)


class World:
    """A ledger of many assets, and a program that walks over it."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.source = SlowSource()
        refs = [AssetRef("assets", uuid(number)) for number in range(ASSETS)]
        attributes = {"y": attribute(1, arc_file_name="a.bin")}
        assets = [
            asset_record(ref, {"arc_display_name": f"Asset {n:04}", **attributes})
            for n, ref in enumerate(refs)
        ]
        self.source.asset_pages = dict(paged(assets))
        self.source.records = {ref: as_json(record) for ref, record in zip(refs, assets, strict=True)}
        for number, ref in enumerate(refs):
            self.source.event_pages[ref, ""] = FakePage(events_of(number))
        every = [event for number in range(ASSETS) for event in events_of(number)]
        self.source.event_pages |= {(None, token): page for token, page in paged(every)}
        self.ledger = Ledger(self.source, nursery)
        self.tree = Tree(self.ledger, "https://ledger", 0)
        self.inodes = InodeTable()
        self.ahead = ReadAhead(self.tree, self.ledger, self, nursery, self.inodes.number, 2**30)

    async def prefetch(self, ref: AttachmentRef) -> None:
        raise NotImplementedError

    async def entries(self, node: Node) -> list[Entry]:
        """Open and read a directory as the filesystem does."""
        self.ahead.entered(node)
        directory = await self.tree.open_directory(node)
        found: list[Entry] = []
        while await directory.load_to(len(found)):
            found.append(directory[len(found)])
        self.ahead.listed(directory.behind or directory)
        return found

    async def find(self, place: Place, pause: float = 0, stop: int = ASSETS) -> int:
        """Walk over all below a directory of assets, by inode numbers as find does; return the entries."""
        assets = sorted(await self.entries(place), key=lambda entry: self.inodes.number(entry.node))
        count = len(assets)
        for asset in assets[:stop]:
            inside = await self.entries(asset.node)
            events = next(entry.node for entry in inside if entry.name == "events")
            found = await self.entries(events)
            below = [len(await self.entries(entry.node)) for entry in found]
            count += len(inside) + len(found) + sum(below)
            await trio.sleep(pause)
        return count

    def bulk(self) -> int:
        """Return how many pages of the listing of all events were asked for."""
        return sum(
            kind == "events" and isinstance(what, tuple) and what[0] is None
            for kind, what in self.source.calls
        )

    def singles(self) -> int:
        """Return how many times an asset's events were asked for."""
        return self.source.count("events") - self.bulk()


@pytest.fixture
async def world(nursery: trio.Nursery) -> World:
    return World(nursery)


async def test_a_long_walk_asks_for_pages_and_by_name_for_nothing_more(world: World) -> None:
    assert await world.find(Place.ASSETS) == PER_ASSET * ASSETS
    asked = {kind: world.source.count(kind) for kind in ("assets", "asset", "event", "info")}
    assert asked == {"assets": PAGES, "asset": 0, "event": 0, "info": 0}
    assert world.bulk() == PAGES + 1
    # Those of the beginning, and those ahead of it; then the last on each page, and nobody else.
    assert world.singles() <= crawl_module._LONG + 64 + 20 + PAGES
    before = len(world.source.calls)
    assert await world.find(Place.BY_NAME) == PER_ASSET * ASSETS
    assert len(world.source.calls) - before <= PAGES  # the last on each page, where they are not known


async def test_by_name_alone_is_walked_alike(world: World) -> None:
    assert await world.find(Place.BY_NAME) == PER_ASSET * ASSETS
    assert {kind: world.source.count(kind) for kind in ("assets", "asset", "event")} == {
        "assets": PAGES,
        "asset": 0,
        "event": 0,
    }
    assert world.bulk() == PAGES + 1
    assert world.singles() <= crawl_module._LONG + 64 + 20 + PAGES


@pytest.mark.parametrize("place", [Place.ASSETS, Place.BY_NAME])
@pytest.mark.parametrize("takes", [0.0, 0.6])  # seconds a page; 20 of them are not to take half a life
async def test_a_walk_that_outlives_the_records_renews_them_by_the_page(
    world: World, place: Place, takes: float, autojump_clock: MockClock
) -> None:
    world.source.takes = takes
    assert await world.find(place, pause=0.2) == PER_ASSET * ASSETS
    lives = autojump_clock.current_time() / world.ledger.ttl
    assert lives > 3
    # Only those to which it comes while a page is under way that was too late for them.
    late = 100 if takes else 0
    assert world.source.count("asset") <= late
    assert world.source.count("event") == 0
    readings = 1 + lives * 2  # the later half of a life is for the next one
    assert world.source.count("assets") <= readings * PAGES
    assert world.bulk() <= readings * (PAGES + 1)
    assert world.singles() <= crawl_module._LONG + 64 + 20 + late + readings * PAGES


async def test_a_walk_that_stops_asks_for_nothing_more(world: World, autojump_clock: MockClock) -> None:
    await world.find(Place.ASSETS, 0.01, stop=crawl_module._LONG + 100)
    await wait_all_tasks_blocked()
    before = len(world.source.calls)
    await trio.sleep(5 * world.ledger.ttl)
    assert autojump_clock.current_time() > 5 * world.ledger.ttl
    assert len(world.source.calls) == before


async def test_a_reading_ends_soon_after_the_walk_that_it_is_for(world: World, mock_clock: MockClock) -> None:
    world.source.gate = trio.Event()  # nothing is answered meanwhile
    async with trio.open_nursery() as walk:
        walk.start_soon(world.find, Place.ASSETS)
        while not world.bulk():
            world.source.gate.set()
            world.source.gate = trio.Event()
            await wait_all_tasks_blocked()
        walk.cancel_scope.cancel()
    before = world.bulk()
    mock_clock.jump(10)
    world.source.gate.set()
    world.source.gate = None
    await wait_all_tasks_blocked()
    assert world.bulk() == before == 1  # the page that was under way, and no other


async def test_a_short_walk_reads_no_listing_of_all_events(world: World) -> None:
    await world.find(Place.ASSETS, stop=crawl_module._LONG // 2)
    assert world.bulk() == 0


async def test_opening_one_directory_asks_for_one(world: World) -> None:
    await world.entries(Place.ASSETS)
    before = len(world.source.calls)
    await world.entries(EventsDir("assets", uuid(500)))
    await wait_all_tasks_blocked()
    assert world.source.calls[before:] == [("events", (AssetRef("assets", uuid(500)), ""))]


async def test_where_it_cannot_be_read_each_asset_is_asked_by_itself(world: World) -> None:
    world.source.event_pages[None, str(PAGE)] = Unreachable("x")
    assert await world.find(Place.ASSETS) == PER_ASSET * ASSETS
    assert world.singles() == ASSETS
    assert world.bulk() == 2  # tried once


async def test_what_the_listing_of_all_events_leaves_out_is_not_left_out(world: World) -> None:
    for (asset, _), page in world.source.event_pages.items():
        if asset is None and isinstance(page, FakePage):
            del page.records[PAGE // 2]
    assert await world.find(Place.ASSETS) == PER_ASSET * ASSETS


async def test_a_ledger_of_more_events_than_a_walk_would_ask_for_is_not_read_whole(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crawl_module, "_CHEAPER", 1000)
    assert await world.find(Place.ASSETS) == PER_ASSET * ASSETS
    assert world.bulk() == 0
    assert world.singles() == ASSETS
