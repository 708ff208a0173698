"""Computed ledgers: consistent, and quick however large."""

import hashlib
import json
import tracemalloc
from typing import Any

import httpx
import pytest

from attachfs.demo.app import create_app
from attachfs.demo.bulk import BulkLedger
from attachfs.demo.query import Query, parse_query

V2 = "/archivist/v2"


def connect(ledger: BulkLedger) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(create_app(ledger, require_auth=False))
    return httpx.AsyncClient(transport=transport, base_url="http://demo")


@pytest.mark.parametrize("size", [0, 1, 31, 4096, (2 << 20) + 5])
async def test_records_and_bytes_agree(size: int) -> None:
    ledger = BulkLedger(3, events=2, attachments=2, size=size)
    seen = set()
    async with connect(ledger) as client:
        assets = (await client.get(f"{V2}/assets")).json()["assets"]
        assert len(assets) == 3
        for asset in assets:
            assert (await client.get(f"{V2}/{asset['identity']}")).json() == asset
            events = (await client.get(f"{V2}/{asset['identity']}/events")).json()["events"]
            assert len(events) == 2
            assert (await client.get(f"{V2}/{events[1]['identity']}")).json() == events[1]
            owners = [(asset["identity"], asset["attributes"])]
            owners += [(event["identity"], event["event_attributes"]) for event in events]
            for owner, attributes in owners:
                attached = [value for value in attributes.values() if isinstance(value, dict)]
                assert len(attached) == 2
                for value in attached:
                    blob = value["arc_blob_identity"].removeprefix("blobs/")
                    url = f"{V2}/attachments/{owner}/{blob}"
                    info, body = (await client.get(f"{url}/info")).json(), (await client.get(url)).content
                    digest = hashlib.sha256(body).hexdigest()
                    assert len(body) == info["size"] == size
                    assert info["hash"]["value"] == digest
                    assert value.get("arc_blob_hash_value", digest) == digest
                    assert ledger.content(blob) == body
                    part = await client.get(url, headers={"Range": "bytes=1-"})
                    assert part.content == (body[1:] if size > 1 else b"")
                    seen.add((blob, digest))
    assert len(seen) == 12
    if size >= 32:
        assert len({digest for _, digest in seen}) == 12


async def test_what_is_not_there_is_not_found() -> None:
    ledger = BulkLedger(2, events=2)
    asset, other = ledger.asset_id(0), ledger.asset_id(1)
    second, blob = ledger.event_id(0, 1), ledger.blob_id(0, 1, 0)
    async with connect(ledger) as client:
        for path in (
            f"assets/{ledger.asset_id(2)}",
            f"assets/{asset.upper()}",
            "assets/xyz",
            f"assets/{asset}/events/{ledger.event_id(0, 2)}",
            f"assets/{other}/events/{second}",
            f"attachments/assets/{asset}/{blob}",
            f"attachments/assets/{other}/events/{ledger.event_id(1, 1)}/{blob}",
            f"attachments/assets/{asset}/events/{ledger.event_id(0, 0)}/{blob}",
            f"attachments/assets/{asset}/events/{second}/{ledger.blob_id(0, 1, 1)}",
            f"publicassets/{asset}",
        ):
            assert (await client.get(f"{V2}/{path}")).status_code == 404, path
        assert (
            await client.get(f"{V2}/attachments/assets/{asset}/events/{second}/{blob}")
        ).status_code == 200


async def test_a_bulk_ledger_refuses_every_change() -> None:
    ledger = BulkLedger(1)
    async with connect(ledger) as client:
        assert (await client.post(f"{V2}/assets", json={})).status_code == 403
        assert (await client.post(f"{V2}/assets/{ledger.asset_id(0)}/events", json={})).status_code == 403
        assert (await client.post("/archivist/v1/blobs", files={"file": b"x"})).status_code == 403


def test_a_bulk_ledger_counts_what_its_filters_find() -> None:
    ledger = BulkLedger(1000, events=2)
    query = parse_query([("attributes.arc_display_name", "Asset 000500")])
    page = ledger.list_assets(query, 0, 10)
    (record,) = (json.loads(record) for record in page.records)
    assert record["identity"] == f"assets/{ledger.asset_id(500)}"
    assert (page.more, page.total) == (False, 1)
    assert ledger.list_assets(Query(tracked="NOT_TRACKED"), 0, 10).total == 0
    events = ledger.list_events(
        None, parse_query([("event_attributes.arc_display_type", "Event 1")]), 990, 20
    )
    assert events is not None
    assert (len(events.records), events.more, events.total) == (10, False, 1000)


def test_a_hundred_thousand_assets_cost_no_memory() -> None:
    tracemalloc.start()
    try:
        ledger = BulkLedger(100_000, events=5, attachments=3)
        total = 0
        for offset in range(0, 100_000, 10_000):
            page = ledger.list_assets(Query(), offset, 100)
            assert page.total == 100_000
            total += len(page.records)
        page = _only(ledger.list_events(None, Query(), 499_990, 100))
        assert (len(page.records), page.more) == (10, False)
        assert total == 1000
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def _only(page: Any) -> Any:
    assert page is not None
    return page
