"""The ledger view: one request for many who ask, remembered for as long as it is good, and no longer."""

import logging
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from attachfs import model
from attachfs.errors import (
    AccessDenied,
    AttachfsError,
    BadAnswer,
    NotFound,
    RateLimited,
    TimedOut,
    Unreachable,
)
from attachfs.ledger import listing_cache
from attachfs.ledger import records as records_module
from attachfs.ledger.ttl_cache import TTLCache
from attachfs.ledger.view import Ledger
from attachfs.model import Asset, AssetRef, Digest
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

ASSET, EVENT, FILE = asset_ref(), event_ref(), file_ref()
A, B = "a" * 64, "b" * 64
ABSENCES = [NotFound("404"), AccessDenied("403")]
FAILURES = [TimedOut("x"), Unreachable("x"), BadAnswer("x"), RateLimited("x")]


@pytest.fixture
def source() -> FakeSource:
    source = FakeSource()
    source.infos[FILE] = info_body(FILE)
    source.records[ASSET] = as_json(asset_record(ASSET, {"x": attribute(3, A)}))
    source.records[EVENT] = as_json(event_record(EVENT, {"x": attribute(3, A)}))
    return source


@pytest.fixture
async def ledger(source: FakeSource, nursery: trio.Nursery) -> Ledger:
    return Ledger(source, nursery, metadata_ttl=60, negative_ttl=5)


Request = Callable[[Ledger], Awaitable[object]]
ASKS: list[tuple[str, Request]] = [
    ("info", lambda ledger: ledger.info(FILE)),
    ("asset", lambda ledger: ledger.asset(ASSET)),
    ("event", lambda ledger: ledger.event(EVENT)),
]
asks = pytest.mark.parametrize(("kind", "ask"), ASKS, ids=[kind for kind, _ in ASKS])


def answer(source: FakeSource, kind: str, value: Exception) -> None:
    if kind == "info":
        source.infos[FILE] = value
    else:
        source.records[ASSET if kind == "asset" else EVENT] = value


class TestRecords:
    @asks
    async def test_many_who_ask_at_once_make_one_request(
        self, ledger: Ledger, source: FakeSource, kind: str, ask: Request
    ) -> None:
        source.gate = trio.Event()
        answers = []

        async def one() -> None:
            answers.append(await ask(ledger))

        async with trio.open_nursery() as callers:
            for _ in range(100):
                callers.start_soon(one)
            await wait_all_tasks_blocked()
            source.gate.set()
        assert source.count(kind) == len(source.calls) == 1
        assert len(answers) == 100
        assert len({id(answer) for answer in answers}) <= (1 if kind == "info" else 100)

    @asks
    async def test_a_record_is_remembered_until_its_time_is_up(
        self, ledger: Ledger, source: FakeSource, mock_clock: MockClock, kind: str, ask: Request
    ) -> None:
        await ask(ledger)
        mock_clock.jump(59.9)
        await ask(ledger)
        assert source.count(kind) == 1
        mock_clock.jump(0.2)
        await ask(ledger)
        assert source.count(kind) == 2

    @asks
    @pytest.mark.parametrize("error", ABSENCES, ids=lambda e: type(e).__name__)
    async def test_an_absence_is_remembered_for_the_negative_time(
        self,
        ledger: Ledger,
        source: FakeSource,
        mock_clock: MockClock,
        kind: str,
        ask: Request,
        error: AttachfsError,
    ) -> None:
        answer(source, kind, error)
        for _ in range(3):
            with pytest.raises(type(error)):
                await ask(ledger)
        assert source.count(kind) == 1
        mock_clock.jump(4.9)
        with pytest.raises(type(error)):
            await ask(ledger)
        assert source.count(kind) == 1
        mock_clock.jump(0.2)
        with pytest.raises(type(error)):
            await ask(ledger)
        assert source.count(kind) == 2

    @asks
    @pytest.mark.parametrize("error", FAILURES, ids=lambda e: type(e).__name__)
    async def test_an_outage_is_not_remembered(
        self, ledger: Ledger, source: FakeSource, kind: str, ask: Request, error: AttachfsError
    ) -> None:
        kept = source.infos[FILE], source.records[ASSET], source.records[EVENT]
        answer(source, kind, error)
        for _ in range(2):
            with pytest.raises(type(error)):
                await ask(ledger)
        assert source.count(kind) == 2
        source.infos[FILE], source.records[ASSET], source.records[EVENT] = kept
        await ask(ledger)
        assert source.count(kind) == 3

    @asks
    async def test_an_outage_leaves_what_is_known(
        self, ledger: Ledger, source: FakeSource, kind: str, ask: Request
    ) -> None:
        await ask(ledger)
        answer(source, kind, Unreachable("x"))
        await ask(ledger)
        assert source.count(kind) == 1

    @asks
    async def test_the_last_who_leaves_takes_the_request_along(
        self, ledger: Ledger, source: FakeSource, kind: str, ask: Request
    ) -> None:
        source.gate = trio.Event()

        async def one() -> None:
            await ask(ledger)

        async with trio.open_nursery() as callers:
            callers.start_soon(one)
            callers.start_soon(one)
            await wait_all_tasks_blocked()
            callers.cancel_scope.cancel()
        await wait_all_tasks_blocked()
        assert source.cancelled == 1
        source.gate.set()
        await ask(ledger)
        assert source.count(kind) == 2

    async def test_what_is_known_is_told_without_asking(
        self, ledger: Ledger, source: FakeSource, mock_clock: MockClock
    ) -> None:
        assert ledger.cached_info(FILE) is None
        assert ledger.cached_record(ASSET) is None
        assert ledger.cached_record(EVENT) is None
        await ledger.info(FILE)
        await ledger.asset(ASSET)
        await ledger.event(EVENT)
        before = len(source.calls)
        info, asset, event = (
            ledger.cached_info(FILE),
            ledger.cached_record(ASSET),
            ledger.cached_record(EVENT),
        )
        assert info is not None
        assert info.get().size == len(b"evidence")
        assert info.expires == mock_clock.current_time() + 60
        assert asset is not None
        assert event is not None
        assert len(source.calls) == before

    async def test_fresh_asks_again_and_renews_what_is_known(
        self, ledger: Ledger, source: FakeSource
    ) -> None:
        await ledger.info(FILE)
        source.infos[FILE] = info_body(FILE, scanned_status="SCANNED_BAD")
        assert (await ledger.info(FILE)).scanned_status == "SCANNED_OK"
        assert (await ledger.info(FILE, anew=True)).scanned_status == "SCANNED_BAD"
        assert (await ledger.info(FILE)).scanned_status == "SCANNED_BAD"
        assert source.count("info") == 2

    async def test_a_whole_record_and_its_parsed_form_are_one_request(
        self, ledger: Ledger, source: FakeSource
    ) -> None:
        raw = await ledger.raw_record(ASSET)
        assert raw == source.records[ASSET]
        await ledger.asset(ASSET)
        await ledger.raw_record(ASSET)
        assert source.count("asset") == 1

    async def test_an_answer_about_another_is_a_bad_answer(self, ledger: Ledger, source: FakeSource) -> None:
        source.records[ASSET] = as_json(asset_record(asset_ref(9)))
        source.records[EVENT] = as_json(event_record(event_ref(9, 2)))
        for what in (ledger.asset(ASSET), ledger.event(EVENT)):
            with pytest.raises(BadAnswer, match="another"):
                await what
        source.records[event_ref(1, 7)] = as_json(event_record(event_ref(1, 8)))
        with pytest.raises(BadAnswer, match="another"):
            await ledger.event(event_ref(1, 7))

    async def test_clearing_the_ledger_drops_every_record(self, ledger: Ledger, source: FakeSource) -> None:
        for _ in range(2):
            await ledger.info(FILE)
            await ledger.asset(ASSET)
            await ledger.event(EVENT)
            ledger.clear()
        assert {kind: source.count(kind) for kind, _ in ASKS} == {"info": 2, "asset": 2, "event": 2}

    async def test_a_public_asset_and_an_asset_of_one_id_are_two_records(
        self, ledger: Ledger, source: FakeSource
    ) -> None:
        public = AssetRef("publicassets", ASSET.asset)
        await ledger.asset(ASSET)
        with pytest.raises(NotFound):
            await ledger.asset(public)
        source.records[public] = as_json(asset_record(public))
        ledger.clear()
        assert (await ledger.asset(public)).attachments == ()

    @pytest.mark.parametrize("ttl", [0.0, 1e9])
    async def test_any_time_to_live_works(
        self, source: FakeSource, nursery: trio.Nursery, mock_clock: MockClock, ttl: float
    ) -> None:
        ledger = Ledger(source, nursery, metadata_ttl=ttl, negative_ttl=ttl)
        for _ in range(2):
            assert (await ledger.info(FILE)).size == 8
            assert (await ledger.asset(ASSET)).id == ASSET.asset
            assert (await ledger.event(EVENT)).id == EVENT.event
        assert source.count("info") == (1 if ttl else 2)
        assert mock_clock.current_time() == ledger.clock()


class TestAnchors:
    async def test_anchors_are_those_of_an_asset_and_of_an_event(self, ledger: Ledger) -> None:
        assert await ledger.anchors(FILE) == {Digest("sha256", A)}
        assert await ledger.anchors(file_ref(event=2)) == {Digest("sha256", A)}

    async def test_mentions_that_differ_are_all_told(self, ledger: Ledger, source: FakeSource) -> None:
        attributes = {"x": attribute(3, A), "y": attribute(3, B), "z": attribute(3), "other": attribute(4, B)}
        source.records[ASSET] = as_json(asset_record(ASSET, attributes))
        assert await ledger.anchors(FILE) == {Digest("sha256", A), Digest("sha256", B)}

    @pytest.mark.parametrize("attributes", [{}, {"x": attribute(4, A)}, {"x": attribute(3, "junk")}])
    async def test_none_where_the_record_mentions_none(
        self, ledger: Ledger, source: FakeSource, attributes: dict[str, Any]
    ) -> None:
        source.records[ASSET] = as_json(asset_record(ASSET, attributes))
        assert await ledger.anchors(FILE) is None

    @pytest.mark.parametrize("error", ABSENCES, ids=lambda e: type(e).__name__)
    async def test_none_where_the_record_may_not_be_read(
        self, ledger: Ledger, source: FakeSource, error: AttachfsError
    ) -> None:
        source.records[ASSET] = error
        assert await ledger.anchors(FILE) is None

    @pytest.mark.parametrize("error", FAILURES, ids=lambda e: type(e).__name__)
    async def test_an_outage_is_not_an_absence(
        self, ledger: Ledger, source: FakeSource, error: AttachfsError
    ) -> None:
        source.records[ASSET] = error
        with pytest.raises(type(error)):
            await ledger.anchors(FILE)


def page(numbers: range | list[int], token: str = "") -> FakePage:
    return FakePage([asset_record(asset_ref(n), {"x": attribute(3, A)}) for n in numbers], token)


class TestListings:
    async def test_the_first_page_is_there_before_the_second_is_asked_for(
        self, ledger: Ledger, source: FakeSource
    ) -> None:
        source.asset_pages = {"": page(range(3), "t1"), "t1": page(range(3, 5))}
        listing = ledger.assets()
        assert source.calls == []
        assert await listing.load_to(2)
        assert source.calls == [("assets", "")]
        assert (listing.ids, listing.complete) == ([uuid(n) for n in range(3)], False)
        assert await listing.load_to(3)
        assert source.calls == [("assets", ""), ("assets", "t1")]
        assert (listing.ids, listing.complete) == ([uuid(n) for n in range(5)], True)
        assert not await listing.load_to(5)
        assert len(source.calls) == 2

    async def test_readers_share_a_listing(self, ledger: Ledger, source: FakeSource) -> None:
        source.asset_pages = {"": page(range(3), "t1"), "t1": page(range(3, 5))}
        source.gate = trio.Event()
        async with trio.open_nursery() as readers:
            for index in (0, 1, 4, 4, 9):
                readers.start_soon(ledger.assets().load_to, index)
            await wait_all_tasks_blocked()
            source.gate.set()
        assert source.calls == [("assets", ""), ("assets", "t1")]

    async def test_the_records_it_brings_are_kept(self, ledger: Ledger, source: FakeSource) -> None:
        source.asset_pages = {"": page([1])}
        source.event_pages = {(ASSET, ""): FakePage([event_record(EVENT, {"x": attribute(3, B)})])}
        await ledger.assets().load_to(0)
        await ledger.events(ASSET).load_to(0)
        assert (await ledger.asset(ASSET)).attachments[0].id == uuid(3)
        assert await ledger.anchors(FILE) == {Digest("sha256", A)}
        assert await ledger.anchors(file_ref(event=2)) == {Digest("sha256", B)}
        assert source.calls == [("assets", ""), ("events", (ASSET, ""))]

    async def test_a_listing_is_shared_until_its_time_is_up(
        self, ledger: Ledger, source: FakeSource, mock_clock: MockClock
    ) -> None:
        source.asset_pages = {"": page([1])}
        first = ledger.assets()
        mock_clock.jump(59.9)
        assert ledger.assets() is first
        mock_clock.jump(0.2)
        assert ledger.assets() is not first

    async def test_a_record_that_a_listing_repeats_is_listed_once(
        self, ledger: Ledger, source: FakeSource
    ) -> None:
        source.asset_pages = {"": page([1, 2, 1], "t"), "t": page([2, 3, 3])}
        listing = ledger.assets()
        assert not await listing.load_to(3)
        assert listing.ids == [uuid(1), uuid(2), uuid(3)]

    async def test_a_page_with_nothing_new_is_not_the_end(self, ledger: Ledger, source: FakeSource) -> None:
        source.asset_pages = {"": page([1], "t"), "t": page([], "u"), "u": page([1], "v"), "v": page([2])}
        assert await ledger.assets().load_to(1)

    async def test_an_empty_listing_is_complete(self, ledger: Ledger, source: FakeSource) -> None:
        source.asset_pages = {"": page([])}
        assert not await ledger.assets().load_to(0)
        assert ledger.assets().complete

    @pytest.mark.parametrize(
        "tokens",
        [{"": "a", "a": "a"}, {"": "a", "a": "b", "b": "a"}, {"": "a", "a": "b", "b": "c", "c": "b"}],
    )
    async def test_tokens_that_circle_are_a_bad_answer(
        self, ledger: Ledger, source: FakeSource, tokens: dict[str, str]
    ) -> None:
        source.asset_pages = {token: page([n], tokens[token]) for n, token in enumerate(tokens)}
        with pytest.raises(BadAnswer, match="circles"):
            await ledger.assets().load_to(100)
        assert len(source.calls) <= len(tokens)

    async def test_a_page_that_fails_is_asked_for_again_and_what_came_stays(
        self, ledger: Ledger, source: FakeSource
    ) -> None:
        source.asset_pages = {"": page([1, 2], "t"), "t": Unreachable("x")}
        listing = ledger.assets()
        with pytest.raises(Unreachable):
            await listing.load_to(2)
        assert await listing.load_to(1)
        source.asset_pages["t"] = page([3])
        assert await listing.load_to(2)
        assert source.calls == [("assets", ""), ("assets", "t"), ("assets", "t")]

    async def test_one_reader_who_leaves_does_not_stop_the_others(
        self, ledger: Ledger, source: FakeSource
    ) -> None:
        source.asset_pages = {"": page([1])}
        source.gate = trio.Event()
        leaving = trio.CancelScope()

        async def leave() -> None:
            with leaving:
                await ledger.assets().load_to(0)

        async with trio.open_nursery() as readers:
            readers.start_soon(leave)
            await wait_all_tasks_blocked()
            readers.start_soon(ledger.assets().load_to, 0)
            await wait_all_tasks_blocked()
            leaving.cancel()
            await wait_all_tasks_blocked()
            source.gate.set()
        assert ledger.assets().ids == [uuid(1)]

    async def test_what_is_no_asset_is_left_out_and_told(
        self, ledger: Ledger, source: FakeSource, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.WARNING)
        records: list[dict[str, object]] = [{"identity": "../x"}, {}, asset_record(ASSET)]
        source.asset_pages = {"": FakePage(records)}
        assert not await ledger.assets().load_to(1)
        assert ledger.assets().ids == [ASSET.asset]
        assert len(caplog.records) == 2

    async def test_another_assets_events_are_left_out(self, ledger: Ledger, source: FakeSource) -> None:
        source.event_pages = {(ASSET, ""): FakePage([event_record(event_ref(9, 5)), event_record(EVENT)])}
        await ledger.events(ASSET).load_to(0)
        assert ledger.events(ASSET).ids == [EVENT.event]
        assert ledger.cached_record(event_ref(9, 5)) is None

    async def test_public_events_are_public_wherever_they_say_they_are(
        self, ledger: Ledger, source: FakeSource
    ) -> None:
        public = AssetRef("publicassets", ASSET.asset)
        source.event_pages = {(public, ""): FakePage([event_record(event_ref(realm="publicassets"))])}
        await ledger.events(public).load_to(0)
        assert ledger.cached_record(event_ref(realm="publicassets")) is not None
        assert ledger.cached_record(EVENT) is None


class TestBounds:
    async def test_every_table_is_bounded(self, ledger: Ledger) -> None:
        parts = (ledger.records, ledger.listings, ledger.listings._finder)
        tables = [value for part in parts for value in vars(part).values() if isinstance(value, TTLCache)]
        assert len(tables) == 5
        assert all(table.size <= 32_768 for table in tables)

    async def test_the_oldest_go_first(
        self, monkeypatch: pytest.MonkeyPatch, source: FakeSource, nursery: trio.Nursery
    ) -> None:
        monkeypatch.setattr(records_module, "_INFOS", 2)
        ledger = Ledger(source, nursery)
        for number in (3, 4, 5):
            source.infos[file_ref(number)] = info_body(file_ref(number))
            await ledger.info(file_ref(number))
        assert ledger.cached_info(file_ref(3)) is None
        assert ledger.cached_info(file_ref(5)) is not None

    async def test_listings_are_not_shared_without_end(
        self, monkeypatch: pytest.MonkeyPatch, ledger: Ledger, source: FakeSource
    ) -> None:
        monkeypatch.setattr(listing_cache, "_LISTED_IDS", 5)
        source.asset_pages = {"": page(range(4), "t"), "t": page(range(4, 8), "u"), "u": page(range(8, 9))}
        listing = ledger.assets()
        await listing.load_to(6)
        assert ledger.assets() is not listing
        assert await listing.load_to(8)  # whoever reads it reads on
        assert not await listing.load_to(9)


async def test_a_large_record_is_parsed_off_the_event_loop(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = FakeSource()
    source.records[asset_ref()] = as_json(asset_record(asset_ref(), {"note": "x" * 300_000}))
    threads: list[bool] = []
    real = model.parse_asset

    def parse(*args: Any) -> Asset | None:
        threads.append(threading.current_thread() is threading.main_thread())
        return real(*args)

    monkeypatch.setattr(model, "parse_asset", parse)
    assert (await Ledger(source, nursery).asset(asset_ref())).id == asset_ref().asset
    assert threads == [False]
