"""What was asked for before everything was forgotten (SIGHUP) goes to its caller at most, and is not kept."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from attachfs.ledger.answer_store import AnswerStore
from attachfs.ledger.derived import Derived
from attachfs.ledger.offline import RecordingSource, StoredAnswers
from attachfs.ledger.view import Ledger
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


async def all_events(ledger: Ledger) -> object:
    return await ledger.bulk.read_all_events(lambda _: True)


QUESTIONS: dict[str, Ask] = {
    "info": lambda ledger: ledger.info(FILE),
    "asset": lambda ledger: ledger.asset(ASSET),
    "event": lambda ledger: ledger.event(EVENT),
    "assets": lambda ledger: ledger.assets().load_to(0),
    "events": lambda ledger: ledger.events(ASSET).load_to(0),
    "all events": all_events,
    "found": lambda ledger: ledger.listings.find_assets("cat"),
}


def remembered(ledger: Ledger) -> list[str]:
    """Return what the ledger would serve of an earlier generation."""
    known = {
        "info": ledger.cached_info(FILE),
        "asset": ledger.cached_record(ASSET),
        "event": ledger.cached_record(EVENT),
    }
    return [name for name, entry in known.items() if entry is not None]


@pytest.fixture
def source() -> FakeSource:
    source = FakeSource()
    asset = asset_record(ASSET, {"arc_display_name": "cat"})
    event = event_record(EVENT)
    source.infos[FILE] = info_body(FILE)
    source.records = {ASSET: as_json(asset), EVENT: as_json(event)}
    source.asset_pages = {"": FakePage([asset])}
    source.event_pages = {(ASSET, ""): FakePage([event]), (None, ""): FakePage([event])}
    return source


@pytest.mark.parametrize("kind", QUESTIONS)
async def test_an_answer_of_an_older_generation_is_not_kept(
    source: FakeSource, nursery: trio.Nursery, tmp_path: Path, kind: str
) -> None:
    store = AnswerStore(tmp_path / "answers.sqlite")
    ledger = Ledger(RecordingSource(source, store), nursery, stored=StoredAnswers(store))
    ask = QUESTIONS[kind]
    source.gate = trio.Event()
    async with trio.open_nursery() as callers:
        callers.start_soon(ask, ledger)
        await wait_all_tasks_blocked()
        ledger.clear()
        source.gate.set()  # the caller gets its answer; nothing is raised
    source.gate = None
    assert remembered(ledger) == []
    assert store.stats()["answers"] == store.puts == 0
    requests = len(source.calls)
    await ask(ledger)
    assert len(source.calls) > requests
    assert store.puts > 0
    await store.aclose()


async def test_who_asks_after_forgetting_does_not_get_what_was_asked_before(
    source: FakeSource, nursery: trio.Nursery
) -> None:
    ledger = Ledger(source, nursery)
    source.gate = trio.Event()
    answers = []

    async def ask() -> None:
        answers.append((await ledger.info(FILE)).scanned_status)

    async with trio.open_nursery() as callers:
        callers.start_soon(ask)
        await wait_all_tasks_blocked()
        ledger.clear()
        source.infos[FILE] = info_body(FILE, scanned_status="SCANNED_BAD")
        callers.start_soon(ask)
        await wait_all_tasks_blocked()
        source.gate.set()
    assert sorted(answers) == ["SCANNED_BAD", "SCANNED_OK"]
    assert (await ledger.info(FILE)).scanned_status == "SCANNED_BAD"


async def test_what_was_derived_of_a_record_is_not_served_after_forgetting(
    source: FakeSource, nursery: trio.Nursery
) -> None:
    ledger = Ledger(source, nursery)
    await ledger.info(FILE)
    known = ledger.cached_info(FILE)
    assert known is not None
    made = Derived(ledger, FILE, known)
    assert made.ttl_remaining() > 0
    ledger.clear()
    assert made.ttl_remaining() == 0
