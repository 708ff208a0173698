"""The story's data: everything is attached where it says, and the files are what they claim to be."""

import gzip
import hashlib
import io
import json
import struct
import tarfile
import zipfile
from pathlib import Path

import httpx
import pytest
from PIL import Image

from attachfs.demo.app import create_app
from attachfs.demo.pdf import Pdf
from attachfs.demo.records import bytes_source
from attachfs.demo.store import Store
from attachfs.demo.story import Story, fill
from attachfs.demo.story_media import FOOTAGE_SIZE


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Story]:
    store = Store(tmp_path_factory.mktemp("story"))
    return store, fill(store)


def original(told: tuple[Store, Story], path: str) -> bytes:
    return told[1].files[path].read_bytes()


def test_identities_and_contents_are_the_same_every_time(told: tuple[Store, Story], tmp_path: Path) -> None:
    again = fill(Store(tmp_path))
    assert again.digests == told[1].digests
    assert again.places() == told[1].places()


async def test_every_attachment_is_served_as_recorded(told: tuple[Store, Story]) -> None:
    store, story = told
    app = create_app(store, require_auth=False)
    odd = {story.tampered, story.forbidden}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://demo") as client:
        for path, digest in story.digests.items():
            url = f"/archivist/v2/attachments/{path}"
            info, answer = await client.get(f"{url}/info"), await client.get(url)
            if path in odd:
                continue
            assert info.json()["hash"]["value"] == digest, path
            assert hashlib.sha256(answer.content).hexdigest() == digest, path
            assert len(answer.content) == info.json()["size"], path
        answer = await client.get(f"/archivist/v2/attachments/{story.tampered}")
        assert answer.status_code == 200
        assert hashlib.sha256(answer.content).hexdigest() != story.digests[story.tampered]
        assert Image.open(io.BytesIO(answer.content)).size == (960, 640)
        assert (await client.get(f"/archivist/v2/attachments/{story.forbidden}")).status_code == 403
        info = (await client.get(f"/archivist/v2/attachments/{story.infected}/info")).json()
        assert info["scanned_status"] == "SCANNED_BAD"
        assert info["scanned_bad_reason"]
        info = (await client.get(f"/archivist/v2/attachments/{story.unscanned}/info")).json()
        assert info["scanned_status"] == "NOT_SCANNED"
        assert (await client.get(f"/archivist/v2/{story.public_asset}")).status_code == 200
        assert (await client.get(f"/archivist/v2/attachments/{story.public}")).status_code == 200
        assets = (await client.get("/archivist/v2/assets")).json()["assets"]
        assert story.untracked not in [asset["identity"] for asset in assets]
        assert 8 <= len(assets) <= 12
        publish = (await client.get(f"/archivist/v2/{story.publish.rpartition('/')[0]}")).json()
        assert set(publish["event_attributes"]) == {"arc_display_type"}
        assert publish["asset_attributes"]
        legacy = (await client.get(f"/archivist/v2/{story.legacy.rpartition('/')[0]}")).json()
        assert legacy["attributes"]["arc_attachments"][0]["arc_hash_alg"] == "SHA-256"


def test_paths_name_what_they_say(told: tuple[Store, Story]) -> None:
    story = told[1]
    single = set(story.places()) - {"odd", "public_asset", "public", "untracked"}
    for name in sorted(single):
        assert story.places()[name] in story.digests, name
    assert story.public.removeprefix("public") in story.digests
    assert len({path.rpartition("/")[2] for path in story.shared}) == 1
    assert len({story.digests[path] for path in story.shared}) == 1
    assert len(story.shared) == 3
    asset = story.superseded.split("/events/")[0]
    assert f"{asset}/{story.superseded.rpartition('/')[2]}" not in story.digests
    assert original(told, story.empty) == b""
    assert set(story.unreadable) == {story.tampered, story.infected, story.forbidden}


def test_originals_are_laid_out_as_a_mount_does(told: tuple[Store, Story], tmp_path: Path) -> None:
    story = told[1]
    laid = story.originals(tmp_path / "originals")
    hidden = [path for path in story.digests if path.startswith(story.untracked)]
    assert hidden
    assert set(laid) == set(story.digests) - set(story.unreadable) - set(hidden)
    for path, file in laid.items():
        assert file == tmp_path / "originals" / path
        assert hashlib.sha256(file.read_bytes()).hexdigest() == story.digests[path]


def test_photos_and_papers_open(told: tuple[Store, Story]) -> None:
    picture = Image.open(io.BytesIO(original(told, told[1].photo)))
    picture.load()
    assert picture.getexif()[0x0132] == "2026:03:02 10:40:52"
    assert original(told, told[1].pdf).startswith(b"%PDF-1.4")
    bill = json.loads(original(told, told[1].sbom))
    assert bill["bomFormat"] == "CycloneDX"
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(original(told, told[1].archive)))) as archive:
        assert "gate-keeper-2.4.1/README.md" in archive.getnames()
    zips = [data for path in told[1].files if (data := original(told, path))[:2] == b"PK"]
    assert zips
    assert all(zipfile.ZipFile(io.BytesIO(data)).testzip() is None for data in zips)


def test_the_footage_is_a_film_of_exactly_64_mib(told: tuple[Store, Story]) -> None:
    film = original(told, told[1].footage)
    assert len(film) == FOOTAGE_SIZE == 64 << 20
    chunks = dict(_chunks(film, 12, len(film)))
    assert struct.unpack_from("<4sI4s", film) == (b"RIFF", len(film) - 8, b"AVI ")
    assert list(chunks) == [b"hdrl", b"movi", b"idx1", b"JUNK"]
    start, size = chunks[b"idx1"]
    movi = chunks[b"movi"][0] - 4
    frames = list(struct.iter_unpack("<4sIII", film[start : start + size]))
    assert struct.unpack_from("<I", film, chunks[b"hdrl"][0] + 8 + 16)[0] == len(frames)
    for number in (0, 110, len(frames) - 1):
        name, _, offset, length = frames[number]
        assert film[movi + offset : movi + offset + 4] == name == b"00dc"
        frame = Image.open(io.BytesIO(film[movi + offset + 8 : movi + offset + 8 + length]))
        frame.load()
        assert frame.size == (1280, 720)


def _chunks(film: bytes, start: int, stop: int) -> list[tuple[bytes, tuple[int, int]]]:
    found = []
    while start < stop:
        name, size = struct.unpack_from("<4sI", film, start)
        if name == b"LIST":
            found.append((film[start + 8 : start + 12], (start + 12, size - 4)))
        else:
            found.append((name, (start + 8, size)))
        start += 8 + size + size % 2
    assert start == stop
    return found


def test_a_pdfs_table_of_objects_points_at_them() -> None:
    page = Pdf("Odd (title) \\ ümlaut", "20260101000000")
    page.heading("Heading")
    page.text("word " * 60)
    page.table([("a", "b"), ("1", "2")], (0, 100))
    data = page.finish()
    table = int(data.rpartition(b"startxref\n")[2].split()[0])
    assert data[table : table + 4] == b"xref"
    entries = data[table:].split(b"\n")[3:10]
    for number, entry in enumerate(entries, 1):
        offset = int(entry.split()[0])
        assert data[offset:].startswith(b"%d 0 obj\n" % number)


def test_a_blob_may_be_replaced_by_any_source(tmp_path: Path) -> None:
    store = Store(tmp_path)
    blob = store.add_blob(b"right")
    store.tamper(blob.id, bytes_source(b"wrong"))
    with blob.source.open() as file:
        assert file.read() == b"wrong"
