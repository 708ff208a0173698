"""The vendor's SDK against the demo ledger: what it uploads, attaches and lists comes back as it was.

The SDK is an independent reading of the service's API; where it is content, the demo ledger is close enough.
"""

import hashlib
import io
import os
import zipfile
from collections.abc import Iterator
from typing import Any

import pytest
from archivist.archivist import Archivist
from archivist.errors import (
    ArchivistBadRequestError,
    ArchivistNotFoundError,
    ArchivistUnauthenticatedError,
)
from PIL import Image

from attachfs.demo.pdf import Pdf
from attachfs.demo.records import TENANT
from attachfs.demo.sniff import HEAD, sniff
from attachfs.demo.spawn import DemoServer, spawn_server

CREDENTIALS = ("sdk-client", "sdk-secret")


@pytest.fixture(scope="module")
def server() -> Iterator[DemoServer]:
    options = [
        "--empty",
        "--client-id",
        CREDENTIALS[0],
        "--client-secret",
        CREDENTIALS[1],
        "--page-limit",
        "50",
    ]
    with spawn_server(options) as server:
        yield server


@pytest.fixture
def sdk(server: DemoServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Archivist(server.url, CREDENTIALS, max_time=10) as archivist:
        yield archivist


def jpeg() -> bytes:
    out = io.BytesIO()
    Image.effect_noise((320, 200), 60).save(out, "JPEG")
    return out.getvalue()


def pdf() -> bytes:
    page = Pdf("Report", "20260101000000")
    page.text("Uploaded by the vendor's SDK.")
    return page.finish()


CONTENTS = {
    "report.pdf": ("application/pdf", pdf),
    "photo.jpg": ("image/jpeg", jpeg),
    "empty.bin": ("application/octet-stream", lambda: b""),
    "large.bin": ("application/octet-stream", lambda: os.urandom(20 << 20)),
}


def attach(sdk: Any, name: str, content: bytes) -> dict[str, str]:
    blob = sdk.attachments.upload(io.BytesIO(content), mtype=CONTENTS[name][0])
    assert blob["hash"] == {"alg": "SHA256", "value": hashlib.sha256(content).hexdigest()}
    return {
        "arc_attribute_type": "arc_attachment",
        "arc_blob_identity": blob["identity"],
        "arc_blob_hash_alg": blob["hash"]["alg"],
        "arc_blob_hash_value": blob["hash"]["value"],
        "arc_file_name": name,
    }


def download(sdk: Any, owner: str, blob: str) -> bytes:
    out = io.BytesIO()
    sdk.assetattachments.download(owner, blob, out)
    return out.getvalue()


@pytest.mark.parametrize("name", CONTENTS)
def test_an_attachment_comes_back_from_asset_and_event(sdk: Any, name: str) -> None:
    content = CONTENTS[name][1]()
    on_asset, on_event = attach(sdk, name, content), attach(sdk, name, content)
    assert on_asset["arc_blob_identity"] != on_event["arc_blob_identity"]
    asset = sdk.assets.create(attrs={"arc_display_name": name, "it": on_asset}, confirm=True)
    event = sdk.events.create(
        asset["identity"],
        {"operation": "Record", "behaviour": "RecordEvidence"},
        {"arc_display_type": "Seen", "it": on_event},
        asset_attrs={"seen": "yes"},
        confirm=True,
    )
    for owner, value in ((asset["identity"], on_asset), (event["identity"], on_event)):
        blob = value["arc_blob_identity"]
        info = sdk.assetattachments.info(owner, blob)
        assert info["size"] == len(content)
        assert info["mime_type"] == CONTENTS[name][0]
        assert info["hash"]["value"] == hashlib.sha256(content).hexdigest()
        assert download(sdk, owner, blob) == content
        out = io.BytesIO()
        sdk.attachments.download(blob, out)
        assert out.getvalue() == content
        assert sdk.attachments.info(blob) == info
    assert sdk.assets.read(asset["identity"])["attributes"] == {
        "arc_display_name": name,
        "it": on_asset,
        "seen": "yes",
    }
    listed = list(sdk.events.list(asset_id=asset["identity"]))
    assert [found["operation"] for found in listed] == ["NewAsset", "Record"]
    assert listed[1] == event
    assert sdk.events.read(event["identity"]) == event


def test_listing_in_pages_counting_and_filtering(sdk: Any) -> None:
    for number in range(7):
        sdk.assets.create(attrs={"arc_display_type": "counted", "number": str(number)})
    attributes = {"arc_display_type": "counted"}
    # The SDK sends the filters with the first page only.
    found = list(sdk.assets.list(page_size=3, attrs=attributes))
    assert [asset["attributes"]["number"] for asset in found] == list("0123456")
    assert sdk.assets.count(attrs=attributes) == 7
    assert sdk.events.count(asset_attrs=attributes) == 7
    assert len(list(sdk.events.list(page_size=2, asset_attrs=attributes))) == 7
    assert (
        sdk.assets.read_by_signature(attrs={**attributes, "number": "5"})["identity"] == found[5]["identity"]
    )
    assert sdk.assets.wait_for_confirmed(attrs=attributes) is True
    with pytest.raises(ArchivistNotFoundError):
        sdk.assets.read_by_signature(attrs={"arc_display_type": "none such"})


def test_a_public_asset_is_read_without_credentials(sdk: Any, server: DemoServer) -> None:
    content = pdf()
    value = attach(sdk, "report.pdf", content)
    asset = sdk.assets.create(props={"public": True}, attrs={"it": value})
    url = sdk.assets.publicurl(asset["identity"])
    assert url == f"{server.url}/archivist/v2/public{asset['identity']}"
    public = sdk.Public
    with public:
        assert public.assets.read(url)["identity"] == f"public{asset['identity']}"
        assert public.events.count(asset_id=url) == 1
        assert download(public, url, value["arc_blob_identity"]) == content
        (event,) = public.events.list(asset_id=url)
        event_url = f"{server.url}/archivist/v2/{event['identity']}"
        assert download(public, event_url, value["arc_blob_identity"]) == content


def test_errors_are_what_the_sdk_expects(sdk: Any, server: DemoServer) -> None:
    with (
        Archivist(server.url, (CREDENTIALS[0], "wrong")) as stranger,
        pytest.raises(ArchivistUnauthenticatedError),
    ):
        list(stranger.assets.list())
    with Archivist(server.url, "no token") as stranger, pytest.raises(ArchivistUnauthenticatedError):
        list(stranger.assets.list())
    with pytest.raises(ArchivistNotFoundError):
        sdk.assets.read("assets/00000000-0000-0000-0000-000000000000")
    value = attach(sdk, "report.pdf", pdf())
    asset = sdk.assets.create(attrs={"it": value})
    with pytest.raises(ArchivistBadRequestError):
        sdk.assetattachments.download(
            asset["identity"], value["arc_blob_identity"], io.BytesIO(), params={"strict": "true"}
        )


def test_who_a_tenant_is(sdk: Any) -> None:
    assert sdk.tenancies.publicinfo(TENANT)["display_name"] == "Demo tenancy"
    with pytest.raises(ArchivistNotFoundError):
        sdk.tenancies.publicinfo("tenant/00000000-0000-4000-8000-000000000000")


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("word", "wordprocessingml.document"),
        ("xl", "spreadsheetml.sheet"),
        ("ppt", "presentationml.presentation"),
    ],
)
def test_office_documents_are_told_from_other_zips(folder: str, kind: str) -> None:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as document:
        for name in ("[Content_Types].xml", "_rels/.rels", f"{folder}/document.xml"):
            document.writestr(name, "<x/>")
    assert sniff(made.getvalue()[:HEAD]) == f"application/vnd.openxmlformats-officedocument.{kind}"
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as other:
        other.writestr(f"{folder}/document.xml", "<x/>")
    assert sniff(made.getvalue()[:HEAD]) == "application/zip"
