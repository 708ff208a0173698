"""What the vendor's SDK uploads is what the mount hands out, hash and record included."""

import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from archivist.archivist import Archivist
from PIL import Image

from attachfs.demo.pdf import Pdf
from attachfs.demo.spawn import spawn_server
from tests.mount.conftest import run_mount

CREDENTIALS = ("sdk-client", "sdk-secret")


def contents() -> dict[str, bytes]:
    picture = io.BytesIO()
    Image.effect_noise((640, 400), 60).save(picture, "JPEG")
    page = Pdf("Report", "20260101000000")
    page.text("Uploaded by the vendor's SDK.")
    return {
        "report.pdf": page.finish(),
        "photo.jpg": picture.getvalue(),
        "empty.bin": b"",
        "large.bin": os.urandom(20 << 20),
    }


def attach(sdk: Any, name: str, content: bytes) -> dict[str, str]:
    blob = sdk.attachments.upload(io.BytesIO(content), mtype="application/octet-stream")
    return {
        "arc_attribute_type": "arc_attachment",
        "arc_blob_identity": blob["identity"],
        "arc_blob_hash_alg": blob["hash"]["alg"],
        "arc_blob_hash_value": blob["hash"]["value"],
        "arc_file_name": name,
    }


@pytest.mark.parametrize("verify", ["strict", "stream"])
def test_files_uploaded_with_the_sdk_read_back_equal_through_the_mount(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verify: str
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    originals = contents()
    expected: dict[str, bytes] = {}
    login = ["--client-id", CREDENTIALS[0], "--client-secret", CREDENTIALS[1]]
    with spawn_server(["--empty", "--token-file", str(tmp_path / "token"), *login]) as server:
        with Archivist(server.url, CREDENTIALS, max_time=10) as sdk:
            on_asset = {name: attach(sdk, name, content) for name, content in originals.items()}
            asset = sdk.assets.create(attrs={"arc_display_name": "From the SDK", **on_asset}, confirm=True)
            on_event = {name: attach(sdk, name, content) for name, content in originals.items()}
            event = sdk.events.create(
                asset["identity"],
                {"operation": "Record", "behaviour": "RecordEvidence"},
                {"arc_description": "attached", **on_event},
                confirm=True,
            )
        for owner, attached in ((asset, on_asset), (event, on_event)):
            for name, attribute in attached.items():
                uuid = attribute["arc_blob_identity"].removeprefix("blobs/")
                expected[f"{owner['identity']}/{uuid}"] = originals[name]
        with run_mount(tmp_path, f"--verify={verify}", server=server) as mounted:
            listed = set(mounted.sh(f"find {asset['identity']} -type f").stdout.split())
            assert listed >= set(expected)
            for path, content in expected.items():
                assert (mounted.point / path).read_bytes() == content
                info = json.loads(os.getxattr(mounted.point / path, "user.attachment.json"))
                assert info["size"] == len(content) == (mounted.point / path).stat().st_size
                assert info["hash"]["value"] == hashlib.sha256(content).hexdigest()
                assert os.getxattr(mounted.point / path, "user.attachfs.attested") == b"match"
            # The same content uploaded twice has two identities, and is fetched once.
            assert server.requests()["counts"]["blob"] == len(originals)
