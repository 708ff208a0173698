"""Without a network: what the service has answered is told, from whichever listing it was in."""

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from attachfs.errors import Unreachable
from attachfs.ledger.answer_store import AnswerStore
from attachfs.ledger.offline import OfflineSource, RecordingSource, StoredAnswers
from tests.services.memory_source import FakePage, FakeSource, asset_ref, event_record, event_ref


@pytest.fixture
async def memory(tmp_path: Path) -> AsyncIterator[AnswerStore]:
    memory = AnswerStore(tmp_path / "memory.sqlite", lambda: 0.0)
    yield memory
    await memory.aclose()


def identities(records: list[dict[str, object]]) -> list[object]:
    return [record["identity"] for record in records]


@pytest.fixture
def source() -> FakeSource:
    source = FakeSource()
    source.event_pages = {
        (None, ""): FakePage([event_record(event_ref(1, 5)), event_record(event_ref(2, 6))], "t"),
        (None, "t"): FakePage([event_record(event_ref(1, 7))]),
        (asset_ref(1), ""): FakePage([event_record(event_ref(1, 4)), event_record(event_ref(1, 5))]),
    }
    return source


async def test_an_assets_events_are_found_in_the_listing_of_all(
    memory: AnswerStore, source: FakeSource
) -> None:
    asked = RecordingSource(source, memory)
    for token in ("", "t"):
        await asked.events_page(None, token)
    offline = OfflineSource(StoredAnswers(memory))
    page = await offline.events_page(asset_ref(1))
    assert identities(page.records) == [event_ref(1, 5).path, event_ref(1, 7).path]
    assert page.next_token == ""
    assert msgspec.json.decode(await offline.event(event_ref(2, 6)))["identity"] == event_ref(2, 6).path
    with pytest.raises(Unreachable):
        await offline.events_page(asset_ref(3))
    with pytest.raises(Unreachable):
        await offline.event(event_ref(2, 7))


async def test_events_of_an_asset_come_from_both_recorded_listings(
    memory: AnswerStore, source: FakeSource
) -> None:
    asked = RecordingSource(source, memory)
    for token in ("", "t"):
        await asked.events_page(None, token)
    await asked.events_page(asset_ref(1))
    page = await OfflineSource(StoredAnswers(memory)).events_page(asset_ref(1))
    assert identities(page.records) == [event_ref(1, event).path for event in (4, 5, 7)]


async def test_a_listing_of_all_that_was_not_read_to_its_end_tells_nothing(
    memory: AnswerStore, source: FakeSource
) -> None:
    await RecordingSource(source, memory).events_page(None)
    with pytest.raises(Unreachable):
        await OfflineSource(StoredAnswers(memory)).events_page(asset_ref(1))
