"""Tables of what is known: bounded, no older than may be told; packed records come out as they went in."""

import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attachfs.errors import NotFound
from attachfs.ledger.record_pages import parse_in_slices
from attachfs.ledger.record_tables import AssetTable, EventTable, pack_event, unpack_events
from attachfs.ledger.ttl_cache import CacheEntry, TTLCache
from attachfs.model import Asset, AssetRef, Attachment, Digest, Event, EventRef
from tests.services.manual_clock import ManualClock
from tests.services.memory_source import asset_ref, event_ref, uuid

TEXT = st.text(max_size=20)  # of any code points but surrogates
IDS = st.uuids().map(str)
DIGESTS = st.binary(min_size=32, max_size=64).map(lambda b: Digest("sha256", b.hex()))
ATTACHMENTS = st.builds(Attachment, IDS, TEXT, TEXT, TEXT, st.none() | DIGESTS)
MANY = st.lists(ATTACHMENTS, max_size=4).map(tuple)
TIMES = st.integers(0, 2**63 - 1)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(0.0)


def test_the_first_learnt_goes_first(clock: ManualClock) -> None:
    table: TTLCache[int, str] = TTLCache(2, clock)
    for number in (1, 2, 1, 3):
        table.put(number, CacheEntry(str(number), 60))
    assert (len(table), table.get(2), table.fresh(1), table.fresh(3)) == (
        2,
        None,
        CacheEntry("1", 60),
        CacheEntry("3", 60),
    )


def test_what_is_old_is_known_but_not_fresh_and_in_the_end_neither(clock: ManualClock) -> None:
    table: TTLCache[int, str] = TTLCache(2, clock)
    table.put(1, CacheEntry("x", 60, 100))
    clock.now = 60
    assert table.fresh(1) is None
    assert table.get(1) is not None
    clock.now = 100
    assert table.get(1) is None
    assert len(table) == 0


async def test_a_record_with_very_many_attributes_is_parsed_off_the_event_loop_and_in_its_order() -> None:
    large = {"attributes": {str(number): "" for number in range(501)}}
    records: list[dict[str, Any]] = [{"identity": "first"}, large, {"identity": "last"}]
    threads: list[bool] = []

    def parse(record: dict[str, Any]) -> dict[str, Any]:
        threads.append(threading.current_thread() is threading.main_thread())
        return record

    assert await parse_in_slices(records, parse) == records
    assert threads == [True, False, True]


def test_a_listed_asset_with_very_many_attachments_is_kept_as_it_is(clock: ManualClock) -> None:
    """To unpack it at each look would block the event loop."""
    table = AssetTable(10, 10, clock)
    many = tuple(Attachment(uuid(number), "", "", "", None) for number in range(1_001))
    large, small = (Asset(uuid(5000 + number), 0, "", many[number:]) for number in (0, 1))
    table.put_listed([large, small], CacheEntry(None, 60))
    kept = [table.get(AssetRef("assets", one.id)) for one in (large, small)]
    assert [one and one.value for one in kept] == [large, small]
    assert kept[0] is not None
    assert kept[0].value is large
    assert kept[1] is not None
    assert kept[1].value is not small
    table.put(AssetRef("assets", small.id), CacheEntry(Asset(small.id, 0, "", many), 70))
    found = table.get(AssetRef("assets", small.id))
    assert found is not None
    assert found.expires == 70


@given(asset=st.builds(Asset, IDS, TIMES, TEXT, MANY), times=st.tuples(st.floats(1, 1e9), st.floats(1, 1e9)))
def test_a_listed_asset_comes_out_as_it_went_in(asset: Asset, times: tuple[float, float]) -> None:
    table = AssetTable(1, 10, ManualClock(0.0))
    table.put_listed([asset], CacheEntry(None, *times))
    assert table.get(AssetRef("assets", asset.id)) == CacheEntry(asset, *times)
    assert table.get(AssetRef("publicassets", asset.id)) is None


@given(st.lists(st.builds(Event, IDS, TIMES, TEXT, MANY), max_size=5))
def test_packed_events_come_out_as_they_went_in(events: list[Event]) -> None:
    assert unpack_events(b"".join(map(pack_event, events))) == events


def test_listed_assets_are_bounded_and_the_first_listed_goes_first(clock: ManualClock) -> None:
    table = AssetTable(1, 2, clock)
    table.put_listed([Asset(uuid(number)) for number in (1, 2, 3)], CacheEntry(None, 60, 60))
    assert [table.get(asset_ref(number)) is not None for number in (1, 2, 3)] == [False, True, True]


def test_whoever_leaves_the_table_is_known_from_the_listing_still(clock: ManualClock) -> None:
    table = AssetTable(1, 10, clock)
    table.put_listed([Asset(uuid(number)) for number in (1, 2)], CacheEntry(None, 60, 60))
    for number in (1, 2, 1):
        assert table.fresh(asset_ref(number)) == CacheEntry(Asset(uuid(number)), 60, 60)
    assert len(table) == 1


def test_a_page_renews_what_was_asked_before_it_and_an_answer_what_was_listed(clock: ManualClock) -> None:
    table = AssetTable(1, 10, clock)
    ref = asset_ref(1)
    table.put_listed([Asset(ref.asset, 1)], CacheEntry(None, 60, 60))
    table.put(ref, CacheEntry(Asset(ref.asset, 2), 70, 70))
    table.put(asset_ref(2), CacheEntry(Asset(uuid(2)), 70, 70))  # drives the other out
    assert table.get(ref) == CacheEntry(Asset(ref.asset, 2), 70, 70)
    table.put_listed([Asset(ref.asset, 3)], CacheEntry(None, 80, 80))
    assert table.get(ref) == CacheEntry(Asset(ref.asset, 3), 80, 80)


def test_an_absence_is_not_undone_by_an_older_listing(clock: ManualClock) -> None:
    table = AssetTable(1, 10, clock)
    ref = asset_ref(1)
    table.put_listed([Asset(ref.asset)], CacheEntry(None, 60, 60))
    table.put(ref, CacheEntry(NotFound("404"), 5))
    clock.now = 6
    assert table.get(ref) is None


def test_events_that_are_not_in_the_table_or_old_are_looked_up_elsewhere(clock: ManualClock) -> None:
    others: dict[EventRef, CacheEntry[Event]] = {}
    table = EventTable(5, clock, others.get)
    ref = event_ref()
    assert table.fresh(ref) is None
    table.put(ref, CacheEntry(Event(ref.event, 1), 10, 100))
    others[ref] = CacheEntry(Event(ref.event, 2), 60, 160)
    assert table.fresh(ref) == CacheEntry(Event(ref.event, 1), 10, 100)
    clock.now = 20
    assert table.fresh(ref) == others[ref]
    clock.now = 70
    assert table.fresh(ref) is None
    assert table.get(ref) == others[ref]


def test_clear_forgets_what_was_listed_as_well(clock: ManualClock) -> None:
    table = AssetTable(1, 10, clock)
    table.put_listed([Asset(uuid(1))], CacheEntry(None, 60, 60))
    table.clear()
    assert table.get(asset_ref(1)) is None
