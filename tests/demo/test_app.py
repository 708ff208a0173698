"""The demo ledger's answers, asked in process."""

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from attachfs.demo.app import create_app
from attachfs.demo.store import Store, attachment

V2 = "/archivist/v2"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "blobs")


@pytest.fixture
async def client(store: Store) -> AsyncIterator[httpx.AsyncClient]:
    async with connect(create_app(store, require_auth=False)) as client:
        yield client


def connect(app: Any, **options: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://demo", **options)


async def names(client: httpx.AsyncClient, **params: str) -> list[str]:
    answer = await client.get(f"{V2}/assets", params=params)
    assert answer.status_code == 200, answer.text
    return [asset["attributes"]["arc_display_name"] for asset in answer.json()["assets"]]


async def test_creating_an_asset_creates_its_first_event(client: httpx.AsyncClient) -> None:
    answer = await client.post(
        f"{V2}/assets", json={"behaviours": ["RecordEvidence"], "attributes": {"a": "1"}}
    )
    asset = answer.json()
    assert asset["attributes"] == {"a": "1"}
    assert asset["confirmation_status"] == "CONFIRMED"
    assert asset["tracked"] == "TRACKED"
    assert (await client.get(f"{V2}/{asset['identity']}")).json() == asset
    (event,) = (await client.get(f"{V2}/{asset['identity']}/events")).json()["events"]
    assert event["operation"] == "NewAsset"
    assert event["behaviour"] == "AssetCreator"
    assert event["asset_attributes"] == {"a": "1"}
    assert event["event_attributes"] == {}
    assert event["asset_identity"] == asset["identity"]
    assert (await client.get(f"{V2}/{event['identity']}")).json() == event


async def test_an_event_changes_the_assets_attributes_only_by_asset_attributes(
    client: httpx.AsyncClient, store: Store
) -> None:
    asset = store.create_asset({"colour": "red", "kept": "yes"})
    body = {
        "operation": "Record",
        "behaviour": "RecordEvidence",
        "event_attributes": {"seen": "by me"},
        "asset_attributes": {"colour": "blue"},
        "timestamp_declared": "2026-01-01T00:00:00Z",
    }
    event = (await client.post(f"{V2}/assets/{asset}/events", json=body)).json()
    assert {key: event[key] for key in body} == body
    now = (await client.get(f"{V2}/assets/{asset}")).json()
    assert now["attributes"] == {"colour": "blue", "kept": "yes"}
    assert now["at_time"] == event["timestamp_accepted"]


async def test_pages_hold_every_asset_once(client: httpx.AsyncClient, store: Store) -> None:
    for number in range(7):
        store.create_asset({"arc_display_name": str(number)})
    found, token = [], ""
    for _ in range(3):
        # The token carries the page's filters; clients repeat them, or do not.
        params = {"page_size": "3", **({"page_token": token} if token else {})}
        answer = await client.get(f"{V2}/assets", params=params, headers={"X-Request-Total-Count": "true"})
        assert answer.headers["X-Total-Count"] == "7"
        assert answer.status_code == 200
        found += [asset["attributes"]["arc_display_name"] for asset in answer.json()["assets"]]
        token = answer.json()["next_page_token"]
    assert token == ""
    assert found == list("0123456")


async def test_filters_survive_in_the_token(client: httpx.AsyncClient, store: Store) -> None:
    for number in range(6):
        store.create_asset({"arc_display_name": str(number), "even": str(number % 2 == 0)})
    first = (await client.get(f"{V2}/assets", params={"page_size": "2", "attributes.even": "True"})).json()
    second = await client.get(
        f"{V2}/assets", params={"page_size": "2", "page_token": first["next_page_token"]}
    )
    assert [asset["attributes"]["arc_display_name"] for asset in second.json()["assets"]] == ["4"]
    assert second.json()["next_page_token"] == ""


async def test_without_a_page_size_the_servers_limit_is_206(store: Store) -> None:
    for number in range(3):
        store.create_asset({"arc_display_name": str(number)})
    async with connect(create_app(store, require_auth=False, page_limit=2)) as client:
        answer = await client.get(f"{V2}/assets")
        assert answer.status_code == 206
        assert len(answer.json()["assets"]) == 2
        rest = await client.get(f"{V2}/assets", params={"page_token": answer.json()["next_page_token"]})
        assert rest.status_code == 200
        assert len(rest.json()["assets"]) == 1
        assert (await client.get(f"{V2}/assets", params={"page_size": "9"})).status_code == 200


@pytest.mark.parametrize(
    "params",
    [
        {"page_token": "nonsense"},
        {"page_token": "é"},
        {"page_size": "0"},
        {"page_size": "x"},
        {"tracked": "maybe"},
    ],
)
async def test_bad_queries_get_400(client: httpx.AsyncClient, params: dict[str, str]) -> None:
    answer = await client.get(f"{V2}/assets", params=params)
    assert answer.status_code == 400
    assert answer.json()["code"] == 3


async def test_a_token_of_another_listing_gets_400(client: httpx.AsyncClient, store: Store) -> None:
    asset = store.create_asset({})
    store.create_asset({})
    token = (await client.get(f"{V2}/assets", params={"page_size": "1"})).json()["next_page_token"]
    assert (await client.get(f"{V2}/assets/{asset}/events", params={"page_token": token})).status_code == 400


async def test_assets_are_filtered_by_their_attributes(client: httpx.AsyncClient, store: Store) -> None:
    store.create_asset({"arc_display_name": "a", "colour": "red", "dotted.key": "1"})
    store.create_asset({"arc_display_name": "b", "colour": "blue"})
    store.create_asset({"arc_display_name": "c"})
    assert await names(client, **{"attributes.colour": "red"}) == ["a"]
    assert await names(client, **{"attributes.colour": "*"}) == ["a", "b"]
    assert await names(client, **{"attributes.colour!": "*"}) == ["c"]
    assert await names(client, **{"attributes.colour!": "red"}) == ["b", "c"]
    assert await names(client, **{"attributes.dotted.key": "1"}) == ["a"]
    assert await names(client, confirmation_status="PENDING") == []
    assert await names(client, order_by="SIMPLEHASHV2", confirmation_status="CONFIRMED") == ["a", "b", "c"]


async def test_untracked_assets_are_hidden(client: httpx.AsyncClient, store: Store) -> None:
    store.create_asset({"arc_display_name": "kept"})
    gone = store.create_asset({"arc_display_name": "gone"})
    store.create_event(gone, {}, operation="StopTracking")
    assert await names(client) == ["kept"]
    assert await names(client, tracked="TRACKED") == ["kept"]
    assert await names(client, tracked="NOT_TRACKED") == ["gone"]
    assert await names(client, tracked="ANY") == ["kept", "gone"]
    assert (await client.get(f"{V2}/assets/{gone}")).status_code == 200


async def test_event_filters_and_all_assets(client: httpx.AsyncClient, store: Store) -> None:
    one = store.create_asset({"k": "1"}, at="2026-01-01T00:00:00Z")
    two = store.create_asset({"k": "2"}, at="2026-01-02T00:00:00Z")
    store.create_event(one, {"arc_display_type": "Paint"}, at="2026-01-03T00:00:00Z")
    store.create_event(two, {"arc_display_type": "Sand"}, {"k": "3"}, at="2026-01-04T00:00:00+00:00")

    async def times(asset: str, **params: str) -> list[str]:
        answer = await client.get(f"{V2}/assets/{asset}/events", params=params)
        return [event["timestamp_accepted"][8:10] for event in answer.json()["events"]]

    assert await times(one) == ["01", "03"]
    assert sorted(await times("-")) == ["01", "02", "03", "04"]
    assert await times("-", **{"event_attributes.arc_display_type": "Paint"}) == ["03"]
    assert await times("-", **{"event_attributes.arc_display_type!": "*"}) == ["01", "02"]
    assert await times("-", **{"asset_attributes.k": "3"}) == ["04"]
    assert await times("-", timestamp_accepted_since="2026-01-03T00:00:00Z") == ["03", "04"]
    assert sorted(await times("-", timestamp_accepted_before="2026-01-03T00:00:00Z")) == ["01", "02"]
    assert await times("-", operation="NewAsset", timestamp_accepted_since="2026-01-02T00:00:00Z") == ["02"]


async def test_attachments_are_found_only_where_they_are_attached(
    client: httpx.AsyncClient, store: Store
) -> None:
    first, second, third = (store.add_blob(text) for text in (b"first", b"second", b"third"))
    asset = store.create_asset({"picture": attachment(first)})
    event = store.create_event(asset, {"report": attachment(second)}, {"picture": [attachment(third)]})
    creation = (await client.get(f"{V2}/assets/{asset}/events")).json()["events"][0]["identity"]
    there = {
        f"assets/{asset}/{third.id}": b"third",
        f"assets/{asset}/events/{event}/{second.id}": b"second",
        f"assets/{asset}/events/{event}/{third.id}": b"third",
        f"{creation}/{first.id}": b"first",
    }
    for path, content in there.items():
        answer = await client.get(f"{V2}/attachments/{path}")
        assert answer.content == content
        info = (await client.get(f"{V2}/attachments/{path}/info")).json()
        assert info["hash"] == {"alg": "SHA256", "value": hashlib.sha256(content).hexdigest()}
        assert info["size"] == len(content)
        assert answer.headers["content-type"] == info["mime_type"] == "text/plain"
    for path in (f"assets/{asset}/{first.id}", f"assets/{asset}/{second.id}", f"{creation}/{second.id}"):
        for suffix in ("", "/info"):
            answer = await client.get(f"{V2}/attachments/{path}{suffix}")
            assert answer.status_code == 404
            assert answer.json() == {"code": 5, "message": "attachment not found", "details": []}
    assert sorted(path for path, _ in store.attachments()) == sorted(there)


async def test_older_shapes_are_attachments_too(client: httpx.AsyncClient, store: Store) -> None:
    blob = store.add_blob(b"old")
    asset = store.create_asset(
        {
            "arc_attachments": [{"arc_attachment_identity": f"attachments/{blob.id}"}, "text"],
            "bare": f"blobs/{blob.id}",
        }
    )
    assert (await client.get(f"{V2}/attachments/assets/{asset}/{blob.id}")).content == b"old"
    bare = store.create_asset({"bare": f"blobs/{blob.id}", "hash": {"arc_blob_identity": f"blobs/{blob.id}"}})
    assert (await client.get(f"{V2}/attachments/assets/{bare}/{blob.id}")).status_code == 404


@pytest.mark.parametrize(
    ("wanted", "status", "part", "content_range"),
    [
        ("bytes=2-4", 206, b"234", "bytes 2-4/10"),
        ("bytes=7-", 206, b"789", "bytes 7-9/10"),
        ("bytes=-3", 206, b"789", "bytes 7-9/10"),
        ("bytes=0-99", 206, b"0123456789", "bytes 0-9/10"),
        ("bytes=10-", 416, b"", "bytes */10"),
        ("bytes=4-2", 200, b"0123456789", None),
        ("bytes=0-1,4-5", 200, b"0123456789", None),
        ("lines=1-2", 200, b"0123456789", None),
        ("bytes=-", 200, b"0123456789", None),
    ],
)
async def test_a_range_of_a_blob_gets_the_part_and_status_that_http_says(
    client: httpx.AsyncClient, store: Store, wanted: str, status: int, part: bytes, content_range: str | None
) -> None:
    blob = store.add_blob(b"0123456789")
    answer = await client.get(f"/archivist/v1/blobs/{blob.id}", headers={"Range": wanted})
    assert (answer.status_code, answer.content) == (status, part)
    assert answer.headers.get("content-range") == content_range
    assert answer.headers["content-length"] == str(len(part))


async def test_an_empty_blob_comes_empty(client: httpx.AsyncClient, store: Store) -> None:
    blob = store.add_blob(b"")
    answer = await client.get(f"/archivist/v1/blobs/{blob.id}")
    assert (answer.status_code, answer.content, answer.headers["content-length"]) == (200, b"", "0")


async def test_uploads_are_stored_and_sniffed(client: httpx.AsyncClient, store: Store) -> None:
    content = b"%PDF-1.4\n" + bytes(3_000_000)
    answer = await client.post("/archivist/v1/blobs", files={"file": ("x", content, "text/html")})
    info = answer.json()
    assert info["mime_type"] == "application/pdf"
    assert info["scanned_status"] == "NOT_SCANNED"
    assert info["hash"]["value"] == hashlib.sha256(content).hexdigest()
    assert (await client.get(f"/archivist/v1/{info['identity']}/info")).json() == info
    assert (await client.get(f"/archivist/v1/{info['identity']}")).content == content
    assert [path.name for path in store.directory.iterdir()] == [info["hash"]["value"]]
    assert (await client.post("/archivist/v1/blobs", data={"other": "x"})).status_code == 400


async def test_strict_refuses_a_blob_that_is_not_scanned_and_its_info_says_how(
    client: httpx.AsyncClient, store: Store
) -> None:
    blob = store.add_blob(b"x")
    url = f"/archivist/v1/blobs/{blob.id}"
    assert (await client.get(url, params={"strict": "true"})).status_code == 400
    assert (await client.get(url)).status_code == 200
    store.set_scan(blob.id, "SCANNED_BAD", "Worm", at="2026-01-01T00:00:00Z")
    info = (await client.get(f"{url}/info")).json()
    assert info["scanned_status"] == "SCANNED_BAD"
    assert info["scanned_bad_reason"] == "Worm"
    assert info["scanned_timestamp"] == "2026-01-01T00:00:00Z"
    assert (await client.get(url, params={"strict": "true", "allow_insecure": "true"})).status_code == 200


async def test_tampered_bytes_keep_their_record_and_can_be_healed(
    client: httpx.AsyncClient, store: Store
) -> None:
    blob = store.add_blob(b"right")
    before = (await client.get(f"/archivist/v1/blobs/{blob.id}/info")).json()
    store.tamper(blob.id, b"wrong bytes")
    assert (await client.get(f"/archivist/v1/blobs/{blob.id}")).content == b"wrong bytes"
    assert (await client.get(f"/archivist/v1/blobs/{blob.id}/info")).json() == before
    assert store.original(blob.id).read_bytes() == b"right"
    store.heal(blob.id)
    assert (await client.get(f"/archivist/v1/blobs/{blob.id}")).content == b"right"
    store.override_info(blob.id, size=-1)
    assert (await client.get(f"/archivist/v1/blobs/{blob.id}/info")).json() == before | {"size": -1}


async def test_forbidden_attachments_get_403(client: httpx.AsyncClient, store: Store) -> None:
    blob = store.add_blob(b"secret")
    asset = store.create_asset({"a": attachment(blob)})
    store.forbid(blob.id)
    for suffix in ("", "/info"):
        answer = await client.get(f"{V2}/attachments/assets/{asset}/{blob.id}{suffix}")
        assert (answer.status_code, answer.json()["code"]) == (403, 7)


async def test_public_assets_are_read_without_credentials(store: Store) -> None:
    blob = store.add_blob(b"open")
    public = store.create_asset({"a": attachment(blob)}, public=True)
    event = store.create_event(public, {"b": attachment(blob)})
    private = store.create_asset({"a": attachment(blob)})
    async with connect(create_app(store)) as client:
        asset = (await client.get(f"{V2}/publicassets/{public}")).json()
        assert asset["identity"] == f"publicassets/{public}"
        events = (await client.get(f"{V2}/publicassets/{public}/events")).json()["events"]
        assert events[1]["identity"] == f"publicassets/{public}/events/{event}"
        assert events[1]["asset_identity"] == f"publicassets/{public}"
        assert (await client.get(f"{V2}/{events[1]['identity']}")).json() == events[1]
        for place in (asset["identity"], events[1]["identity"]):
            assert (await client.get(f"{V2}/attachments/{place}/{blob.id}")).content == b"open"
            assert (await client.get(f"{V2}/attachments/{place}/{blob.id}/info")).json()["size"] == 4
        for path in (private, f"{private}/events", f"{private}/events/{event}", "-/events"):
            assert (await client.get(f"{V2}/publicassets/{path}")).status_code == 404
        assert (await client.get(f"{V2}/publicassets")).status_code == 404
        assert (await client.get(f"{V2}/attachments/publicassets/{private}/{blob.id}")).status_code == 404
        assert (await client.get(f"{V2}/attachments/assets/{public}/{blob.id}")).status_code == 401
    async with connect(create_app(store, require_auth=False)) as client:
        for path in (f"assets/{public}", f"assets/{public}/events/{event}"):
            url = (await client.get(f"{V2}/{path}:publicurl")).json()["publicurl"]
            assert url == f"http://demo{V2}/public{path}"
        assert (await client.get(f"{V2}/assets/{private}:publicurl")).status_code == 404


async def test_only_the_right_credentials_get_a_token_and_only_tokens_that_last_are_taken(
    store: Store,
) -> None:
    app = create_app(store, client_id="id", client_secret="s3", token_lifetime=660, static_tokens=["fixed"])
    form = {"grant_type": "client_credentials", "client_id": "id", "client_secret": "s3"}
    url = "/archivist/iam/v1/appidp/token"
    async with connect(app) as client:
        assert (await client.get(f"{V2}/assets")).status_code == 401
        for wrong in ({"client_secret": "s4"}, {"client_id": "other"}):
            answer = await client.post(url, data=form | wrong)
            assert (answer.status_code, answer.json()["code"]) == (401, 16)
        assert (await client.post(url, data=form | {"grant_type": "password"})).status_code == 400
        granted = (await client.post(url, data=form)).json()
        assert granted["expires_in"] == 660
        assert granted["token_type"] == "Bearer"

        async def status(token: str) -> int:
            return (await client.get(f"{V2}/assets", headers={"Authorization": token})).status_code

        good = f"Bearer {granted['access_token']}"
        assert await status(good) == 200
        assert await status(good[:-1]) == 401
        assert await status(granted["access_token"]) == 401
        assert await status("bearer fixed") == 200
        app.state.tokens.revoke_issued()
        assert await status(good) == 401
        assert await status("Bearer fixed") == 200


@pytest.mark.parametrize(
    "path",
    ["assets/x", "assets/x/events", "assets/x/events/y", "attachments/assets/x/y", "nothing", "assets/x/y"],
)
async def test_unknown_things_get_404_with_a_body(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(f"{V2}/{path}")
    assert answer.status_code == 404
    assert answer.json()["code"] == 5


async def test_bad_bodies_get_400(client: httpx.AsyncClient) -> None:
    for body in (b"{", b"[]", b'{"attributes": []}'):
        assert (await client.post(f"{V2}/assets", content=body)).status_code == 400
    assert (await client.delete(f"{V2}/assets")).status_code == 405


async def test_requests_are_counted_by_kind(client: httpx.AsyncClient, store: Store) -> None:
    blob = store.add_blob(b"12345")
    asset = store.create_asset({"a": attachment(blob)})
    await client.delete("/demo/requests")
    await client.get(f"{V2}/assets", params={"page_size": "1"})
    await client.get(f"{V2}/assets/{asset}")
    await client.get(f"{V2}/assets/{asset}/events")
    await client.get(f"{V2}/assets/-/events")
    await client.get(f"{V2}/assets/{asset}/events/none")
    await client.get(f"{V2}/attachments/assets/{asset}/{blob.id}/info")
    await client.get(f"/archivist/v1/blobs/{blob.id}")
    found = (await client.get("/demo/requests")).json()
    assert found["counts"] == {"assets": 1, "asset": 1, "events": 2, "event": 1, "info": 1, "blob": 1}
    assert found["bytes"]["blob"] == 5
    assert found["in_flight"] == {}
    assert found["in_flight_max"]["info"] == 1
    assert found["log"][0] == ["GET", f"{V2}/assets?page_size=1", 200]
    assert found["log"][4][2] == 404
    await client.delete("/demo/requests")
    assert (await client.get("/demo/requests")).json()["log"] == []
