"""The demo ledger's transparency logs: served where the service's are, and proven by what reads those."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from attachfs.demo.app import create_app
from attachfs.demo.records import TENANT
from attachfs.demo.store import Store
from attachfs.demo.story import Story, fill
from attachfs.proof.errors import State
from attachfs.proof.fetch import fetch_logs
from attachfs.proof.keys import parse_keys
from attachfs.proof.log_files import KeptLogs
from attachfs.proof.prove import Proof, leaves_of, prove
from attachfs.service.transparency_log import PATH, LogClient

OWNER = TENANT.removeprefix("tenant/")


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Story]:
    store = Store(tmp_path_factory.mktemp("story"))
    return store, fill(store)


async def proofs_of(store: Store, events: list[dict[str, Any]], folder: Path) -> list[Proof]:
    keys = parse_keys(store.logs.key.pem(), "demo.pem")
    app = create_app(store)  # wants credentials: the log must not
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app)) as http:
        kept = KeptLogs(folder)
        await fetch_logs(leaves_of(events), LogClient(http, f"http://demo{PATH}"), kept)
    return [prove(event, kept, keys) for event in events]


def events_of(store: Store) -> list[dict[str, Any]]:
    return [event.record for asset in store._assets.values() for event in asset.events.values()]


async def test_every_event_is_proven_but_the_one_that_was_rewritten(
    told: tuple[Store, Story], tmp_path: Path
) -> None:
    store, story = told
    events = json.loads(json.dumps(events_of(store)))
    proofs = await proofs_of(store, events, tmp_path)
    assert {proof.massif for proof in proofs} > {0, 1}
    for event, proof in zip(events, proofs, strict=True):
        rewritten = story.rewritten.startswith(f"{event['identity']}/")
        uncommitted = event.get("merklelog_entry") is None
        expected = State.LEAF_DIFFERS if rewritten else State.NOT_COMMITTED if uncommitted else State.PROVEN
        assert proof.state is expected, event
    assert sum(proof.state is State.LEAF_DIFFERS for proof in proofs) == 1
    assert sum(proof.state is State.NOT_COMMITTED for proof in proofs) < 5


async def test_public_events_are_in_the_public_log(told: tuple[Store, Story], tmp_path: Path) -> None:
    store, story = told
    _, asset, _, event, _ = story.public.split("/")
    record = json.loads(store.event(asset, event, public=True) or b"")
    (proof,) = await proofs_of(store, [record], tmp_path)
    assert (proof.state, proof.tenant != OWNER) == (State.PROVEN, True)
    private = json.loads(store.event(asset, event) or b"")
    assert private["merklelog_entry"] != record["merklelog_entry"]


async def test_what_the_log_does_not_have_is_not_found(told: tuple[Store, Story]) -> None:
    transport = httpx.ASGITransport(create_app(told[0]))
    async with httpx.AsyncClient(transport=transport, base_url="http://demo") as client:
        for tenant, number, status in ((OWNER, 0, 200), (OWNER, 999, 404), ("nobody", 0, 404)):
            log = f"{PATH}/v1/mmrs/tenant/{tenant}/0"
            assert (await client.get(f"{log}/massifs/{number:016d}.log")).status_code == status
            assert (await client.get(f"{log}/massifseals/{number:016d}.sth")).status_code == status


async def test_what_is_added_later_is_proven_too(tmp_path: Path) -> None:
    store = Store(tmp_path / "blobs")
    asset = store.create_asset({"arc_display_name": "Late"})
    (first,) = await proofs_of(store, events_of(store), tmp_path / "log")
    assert (first.state, first.sealed_size) == (State.PROVEN, 1)
    store.create_event(asset, {"arc_display_type": "Later"})
    _, second = await proofs_of(store, events_of(store), tmp_path / "log")
    assert (second.state, second.sealed_size) == (State.PROVEN, 3)


async def test_an_event_with_a_number_cannot_have_a_leaf(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.create_asset({"weight": 7})
    assert events_of(store)[0]["merklelog_entry"] is None
