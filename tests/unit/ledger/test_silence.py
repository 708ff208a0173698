"""While the service is silent, what is known is served; what it answers is always obeyed."""

# ruff: noqa: ARG002 - pytest-trio takes a test's clock from among its arguments

import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from attachfs.errors import AccessDenied, AttachfsError, NotFound, TimedOut, Unreachable
from attachfs.ledger.answer_store import AnswerStore
from attachfs.ledger.offline import RecordingSource, StoredAnswers
from attachfs.ledger.view import Ledger
from attachfs.namespace.by_name import ByName
from attachfs.namespace.nodes import ByNameNode
from tests.services.memory_source import (
    FakePage,
    FakeSource,
    as_json,
    asset_record,
    asset_ref,
    event_record,
    event_ref,
    file_ref,
    info_body,
)

FILE, ASSET, EVENT = file_ref(), asset_ref(), event_ref()
Ask = Callable[[Ledger], Awaitable[object]]


async def find_cat(ledger: Ledger) -> tuple[str, ...]:
    return (await ledger.listings.find_assets("cat")).ids


QUESTIONS: dict[str, Ask] = {
    "info": lambda ledger: ledger.info(FILE),
    "asset": lambda ledger: ledger.asset(ASSET),
    "event": lambda ledger: ledger.event(EVENT),
    "assets": lambda ledger: ledger.assets().load_to(0),
    "events": lambda ledger: ledger.events(ASSET).load_to(0),
    "found": find_cat,
}
kinds = pytest.mark.parametrize("kind", QUESTIONS)


@pytest.fixture
def source() -> FakeSource:
    source = FakeSource()
    asset = asset_record(ASSET, {"arc_display_name": "cat"})
    event = event_record(EVENT)
    source.infos[FILE] = info_body(FILE)
    source.records = {ASSET: as_json(asset), EVENT: as_json(event)}
    source.asset_pages = {"": FakePage([asset])}
    source.event_pages = {(ASSET, ""): FakePage([event])}
    return source


@pytest.fixture
async def ledger(source: FakeSource, nursery: trio.Nursery) -> Ledger:
    return Ledger(source, nursery, metadata_ttl=60, negative_ttl=5, stale_ttl=3600, soft_timeout=2)


async def taken(ask: Awaitable[object]) -> float:
    begun = trio.current_time()
    await ask
    return trio.current_time() - begun


class TestSilence:
    @kinds
    async def test_what_is_known_is_served_after_the_soft_timeout_and_then_at_once(
        self, ledger: Ledger, source: FakeSource, autojump_clock: MockClock, kind: str
    ) -> None:
        ask = QUESTIONS[kind]
        before = await ask(ledger)
        await trio.sleep(61)
        source.gate = trio.Event()
        begun = trio.current_time()
        assert await ask(ledger) == before
        assert trio.current_time() - begun == pytest.approx(2)
        assert ledger.stale
        requests = len(source.calls)
        for _ in range(20):
            await trio.sleep(6)  # what was served is asked for again, but not waited for
            begun = trio.current_time()
            assert await ask(ledger) == before
            assert trio.current_time() == begun
        assert len(source.calls) == requests  # one refresh goes on meanwhile
        source.gate.set()
        await wait_all_tasks_blocked()
        assert not ledger.stale

    async def test_once_the_service_is_silent_nothing_known_is_waited_for(
        self, ledger: Ledger, source: FakeSource, autojump_clock: MockClock
    ) -> None:
        for ask in QUESTIONS.values():
            await ask(ledger)
        await trio.sleep(61)
        source.gate = trio.Event()
        assert await taken(ledger.info(FILE)) == pytest.approx(2)
        for ask in QUESTIONS.values():
            assert await taken(ask(ledger)) == 0

    async def test_the_answer_that_comes_at_last_is_the_one_that_is_known(
        self, ledger: Ledger, source: FakeSource, autojump_clock: MockClock
    ) -> None:
        await ledger.info(FILE)
        await trio.sleep(61)
        source.gate = trio.Event()
        source.infos[FILE] = info_body(FILE, scanned_status="SCANNED_BAD")
        assert (await ledger.info(FILE)).scanned_status == "SCANNED_OK"
        source.gate.set()
        await wait_all_tasks_blocked()
        assert (await ledger.info(FILE)).scanned_status == "SCANNED_BAD"
        assert source.count("info") == 2

    @pytest.mark.parametrize("error", [NotFound("404"), AccessDenied("403")])
    async def test_a_refusal_is_obeyed_while_it_is_silent_as_well(
        self, ledger: Ledger, source: FakeSource, autojump_clock: MockClock, error: AttachfsError
    ) -> None:
        await ledger.info(FILE)
        await trio.sleep(61)
        source.infos[FILE] = error
        with pytest.raises(type(error)):
            await ledger.info(FILE)
        await trio.sleep(61)
        source.gate = trio.Event()
        source.infos[FILE] = info_body(FILE)
        with pytest.raises(type(error)):
            await ledger.info(FILE)
        assert ledger.stale

    async def test_a_late_refusal_ends_the_outage_and_is_obeyed(
        self, ledger: Ledger, source: FakeSource, autojump_clock: MockClock
    ) -> None:
        await ledger.info(FILE)
        await trio.sleep(61)
        source.gate = trio.Event()
        source.infos[FILE] = AccessDenied("403")
        await ledger.info(FILE)
        source.gate.set()
        await wait_all_tasks_blocked()
        assert not ledger.stale
        with pytest.raises(AccessDenied):
            await ledger.info(FILE)

    async def test_what_is_unknown_is_waited_for(
        self, ledger: Ledger, source: FakeSource, autojump_clock: MockClock
    ) -> None:
        source.gate = trio.Event()
        with trio.move_on_after(50) as scope:
            await ledger.info(FILE)
        assert scope.cancelled_caught
        await wait_all_tasks_blocked()
        assert source.cancelled == 1  # nobody waits any more

    async def test_nothing_is_served_for_longer_than_stale_ttl(
        self, ledger: Ledger, source: FakeSource, autojump_clock: MockClock
    ) -> None:
        await ledger.info(FILE)
        await trio.sleep(3601)
        source.infos[FILE] = TimedOut("x")
        with pytest.raises(TimedOut):
            await ledger.info(FILE)

    async def test_only_a_few_refreshes_go_on_at_once_however_much_is_known(
        self, ledger: Ledger, source: FakeSource, autojump_clock: MockClock
    ) -> None:
        files = [file_ref(number) for number in range(50)]
        for file in files:
            source.infos[file] = info_body(file)
            await ledger.info(file)
        await trio.sleep(61)
        source.gate = trio.Event()
        for file in files:
            await ledger.info(file)
        assert source.count("info") - 50 <= 9

    async def test_a_failed_refresh_is_tried_again_after_a_moment(
        self, ledger: Ledger, source: FakeSource, autojump_clock: MockClock
    ) -> None:
        await ledger.info(FILE)
        await trio.sleep(61)
        source.infos[FILE] = Unreachable("no route")
        await ledger.info(FILE)
        await trio.sleep(6)
        source.infos[FILE] = info_body(FILE)
        await ledger.info(FILE)
        await wait_all_tasks_blocked()
        assert not ledger.stale

    async def test_status_says_since_when_and_how_old_and_the_log_says_it_once_each_way(
        self, ledger: Ledger, source: FakeSource, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        assert ledger.outage.stats() == {"since": None, "reason": "", "oldest_s": None}
        await ledger.info(FILE)
        await trio.sleep(100)
        source.gate = trio.Event()
        for _ in range(3):
            await ledger.info(FILE)
            await trio.sleep(10)
        stats = ledger.outage.stats()
        assert stats["since"] is not None
        assert stats["oldest_s"] == pytest.approx(132)
        source.gate.set()
        await wait_all_tasks_blocked()
        assert [record.message.split(":")[0].split(" after")[0] for record in caplog.records] == [
            "service unreachable",
            "the service answers again",
        ]


class TestKeptOnDisk:
    @pytest.fixture
    async def store(self, source: FakeSource, tmp_path: Path, nursery: trio.Nursery) -> AnswerStore:
        """Return what an earlier mount has kept."""
        store = AnswerStore(tmp_path / "answers.sqlite", lambda: 1e9)
        earlier = Ledger(RecordingSource(source, store), nursery)
        for ask in QUESTIONS.values():
            await ask(earlier)
        await store.aclose()
        return AnswerStore(tmp_path / "answers.sqlite", lambda: 1e9 + 1000)

    @kinds
    @pytest.mark.parametrize("silent", [True, False])
    async def test_a_new_mount_shows_it(
        self,
        store: AnswerStore,
        source: FakeSource,
        nursery: trio.Nursery,
        kind: str,
        *,
        silent: bool,
    ) -> None:
        deaf = FakeSource()
        for key in source.infos:
            deaf.infos[key] = Unreachable("no route")
        for ref in source.records:
            deaf.records[ref] = Unreachable("no route")
        deaf.asset_pages = {"": Unreachable("no route")}
        deaf.event_pages = {(ASSET, ""): Unreachable("no route")}
        deaf.gate = trio.Event() if silent else None
        ledger = Ledger(RecordingSource(deaf, store), nursery, soft_timeout=0.01, stored=StoredAnswers(store))
        if kind == "found":
            by_name = ByName(ledger)
            assert await by_name.resolve(ByNameNode(("cat",))) == ASSET
        else:
            assert await QUESTIONS[kind](ledger)
        assert ledger.stale
        assert ledger.outage.stats()["oldest_s"] == pytest.approx(1000, abs=2)
        await store.aclose()

    async def test_a_stored_answer_is_not_shown_beyond_stale_ttl(
        self, store: AnswerStore, nursery: trio.Nursery
    ) -> None:
        deaf = FakeSource()
        deaf.infos[FILE] = Unreachable("no route")
        deaf.asset_pages = {"": Unreachable("no route")}
        ledger = Ledger(deaf, nursery, stale_ttl=900, stored=StoredAnswers(store))
        with pytest.raises(Unreachable):
            await ledger.info(FILE)
        with pytest.raises(Unreachable):
            await ledger.assets().load_to(0)
        await store.aclose()

    async def test_what_the_service_said_is_gone_is_not_shown_again(
        self, store: AnswerStore, source: FakeSource, nursery: trio.Nursery
    ) -> None:
        source.records[ASSET] = NotFound("404")  # although a listing that is kept has it
        ledger = Ledger(RecordingSource(source, store), nursery)
        with pytest.raises(NotFound):
            await ledger.asset(ASSET)
        source.records[ASSET] = Unreachable("no route")
        later = Ledger(source, nursery, stored=StoredAnswers(store))
        with pytest.raises(Unreachable):
            await later.asset(ASSET)
        await store.aclose()
