"""A bag as the source of records and bytes."""

import mmap
import os
from pathlib import Path

import pytest

from attachfs.archive import layout
from attachfs.archive.blobs import BagBlobs, ReadOnlyPins
from attachfs.archive.folder import BagFolder
from attachfs.archive.source import Archive, BagSource
from attachfs.blobs.pins import PinStatus
from attachfs.errors import BadAnswer, IntegrityError, NotFound, ScanRefused, Unreachable
from attachfs.model import AssetRef, AttachmentRef, Digest
from tests.services.memory_source import asset_ref, file_ref, uuid
from tests.unit.archive.bags import ASSET, BAD, CONTENTS, EVENT, PAPER, PHOTO, URL, make_bag, records, sha256


def digest(ref: AttachmentRef) -> Digest:
    return Digest("sha256", sha256(CONTENTS[ref]))


@pytest.fixture
def bag(tmp_path: Path) -> Path:
    return make_bag(tmp_path / "bag")


@pytest.fixture
def archive(bag: Path) -> Archive:
    return Archive(BagFolder(bag))


async def test_records_are_those_that_were_received(archive: Archive) -> None:
    source, expected = BagSource(archive), records()
    assert archive.url == URL
    assert await source.asset(ASSET) == expected[layout.record_path(ASSET)]
    assert await source.event(EVENT) == expected[layout.record_path(EVENT)]
    for ref in (PHOTO, PAPER, BAD):
        assert await source.info(ref) == expected[layout.record_path(ref)]


async def test_listings_have_all_and_filters_find_some(archive: Archive) -> None:
    source = BagSource(archive)
    page = await source.assets_page()
    assert [record["identity"] for record in page.records] == [ASSET.path]
    assert page.next_token == ""
    page = await source.events_page(ASSET)
    assert [record["identity"] for record in page.records] == [EVENT.path]
    assert (await source.events_page(None)).records == page.records
    named = await source.assets_page("", {"attributes.arc_display_name": "Box"})
    assert len(named.records) == 1
    assert (await source.assets_page("", {"attributes.arc_display_name": "box"})).records == []
    for since, before, count in (("10:00:30", "10:00:31", 1), ("10:00:31", "11:00:00", 0)):
        times = {
            "timestamp_accepted_since": f"2026-01-01T{since}Z",
            "timestamp_accepted_before": f"2026-01-01T{before}Z",
        }
        assert len((await source.events_page(ASSET, "", times)).records) == count


async def test_pages_follow_each_other(archive: Archive, bag: Path) -> None:
    template = (bag / layout.record_path(ASSET)).read_text()
    for number in range(100, 1300):
        ref = asset_ref(number)
        (bag / layout.record_path(ref)).write_text(template.replace(ASSET.asset, ref.asset))
    source, token, found = BagSource(archive), "", list[object]()
    while True:
        page = await source.assets_page(token)
        found += [record["identity"] for record in page.records]
        token = page.next_token
        if not token:
            break
    assert len(found) == len(set(found)) == 1201


@pytest.mark.parametrize("token", ["-1", "x", "9" * 30, "\u0661"])
async def test_a_token_that_was_never_given_is_an_error(archive: Archive, token: str) -> None:
    with pytest.raises(BadAnswer):
        await BagSource(archive).assets_page(token)


async def test_what_lies_outside_of_the_export_is_out_of_reach_and_not_absent(tmp_path: Path) -> None:
    bag = make_bag(tmp_path / "part", [ASSET.path])
    source = BagSource(Archive(BagFolder(bag)))
    with pytest.raises(NotFound):
        await source.info(AttachmentRef("assets", ASSET.asset, None, uuid(99)))
    with pytest.raises(Unreachable, match="outside of what was exported"):
        await source.asset(asset_ref(99))


async def test_a_record_that_cannot_be_one_is_an_error(archive: Archive, bag: Path) -> None:
    source = BagSource(archive)
    (bag / layout.record_path(ASSET)).write_bytes(b"[" * 9_000_000)
    with pytest.raises(BadAnswer, match="larger than it can be"):
        await source.asset(ASSET)
    (bag / layout.record_path(ASSET)).write_bytes(b"[" * 1_000_000)
    with pytest.raises(BadAnswer):
        await source.assets_page()
    (bag / layout.record_path(PHOTO)).unlink()
    os.mkfifo(bag / layout.record_path(PHOTO))
    with pytest.raises(BadAnswer, match="not a regular file"):
        await source.info(PHOTO)


def test_bytes_are_hashed_at_the_first_open_and_again_once_they_have_changed(
    archive: Archive, bag: Path
) -> None:
    blobs = BagBlobs(archive)
    for _ in range(2):
        with blobs.open(PHOTO, digest(PHOTO), 700) as blob:
            assert blob.pread(1000, 0) == CONTENTS[PHOTO]
    path = bag / layout.payload_path(PHOTO)
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match="changed after the export"):
        blobs.open(PHOTO, digest(PHOTO), 700)
    path.write_bytes(data[:-1])
    with pytest.raises(IntegrityError, match="recorded are 700"):
        blobs.open(PHOTO, digest(PHOTO), 700)
    path.unlink()
    with pytest.raises(BadAnswer, match="missing from the archive"):
        blobs.open(PHOTO, digest(PHOTO), 700)


def test_a_file_that_another_program_can_write_to_unseen_is_not_found_right(
    archive: Archive, bag: Path
) -> None:
    """A write through a mapping that has been written to before leaves the file's times as they are."""
    blobs = BagBlobs(archive)
    with (bag / layout.payload_path(PHOTO)).open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[0] ^= 0
        with pytest.raises(IntegrityError, match="written to"):
            blobs.open(PHOTO, digest(PHOTO), 700)
        mapped[0] ^= 1
    with pytest.raises(IntegrityError, match="changed after the export"):
        blobs.open(PHOTO, digest(PHOTO), 700)


def test_another_copy_of_the_same_bytes_does_not_stand_in_for_a_changed_one(
    archive: Archive, bag: Path
) -> None:
    twin = file_ref(7)
    (bag / layout.payload_path(twin)).write_bytes(CONTENTS[PHOTO])
    blobs = BagBlobs(archive)
    blobs.open(twin, digest(PHOTO), 700).close()
    (bag / layout.payload_path(PHOTO)).write_bytes(CONTENTS[PHOTO][:-1] + b"!")
    with pytest.raises(IntegrityError):
        blobs.open(PHOTO, digest(PHOTO), 700)


def test_what_was_refused_fails_as_on_the_day(archive: Archive) -> None:
    blobs = BagBlobs(archive)
    with pytest.raises(IntegrityError, match="its bytes differ"):
        blobs.open(BAD, Digest("sha256", sha256(b"never seen")), 10)
    archive.refused[BAD.path] = type(archive.refused[BAD.path])(BAD.path, errno="EPERM", reason="virus")
    with pytest.raises(ScanRefused, match="virus"):
        blobs.open(BAD, Digest("sha256", sha256(b"never seen")), 10)
    assert not blobs.contains(BAD, 10)
    assert blobs.contains(PHOTO, 700)
    assert not blobs.contains(PHOTO, 701)


def test_a_link_in_a_payload_files_place_is_not_followed(archive: Archive, bag: Path, tmp_path: Path) -> None:
    path = bag / layout.payload_path(PHOTO)
    path.unlink()
    (tmp_path / "outside").write_bytes(CONTENTS[PHOTO])
    path.symlink_to(tmp_path / "outside")
    with pytest.raises(BadAnswer, match="a link"):
        BagBlobs(archive).open(PHOTO, digest(PHOTO), 700)


def test_a_listing_that_was_refused_fails_as_on_the_day(bag: Path) -> None:
    text = (bag / "report.json").read_text()
    entry = '{"path": "%s/events", "errno": "EACCES", "reason": "not allowed"},'
    (bag / "report.json").write_text(text.replace('"refused": [\n', f'"refused": [\n{entry % ASSET.path}\n'))
    archive = Archive(BagFolder(bag))
    assert type(archive.absence(AssetRef("assets", ASSET.asset).path + "/events")).__name__ == "AccessDenied"


def test_pins_are_compared_with_and_not_added_to(tmp_path: Path) -> None:
    path = tmp_path / "pins.sqlite"
    pins = ReadOnlyPins(path)
    one, other = Digest("sha256", "1" * 64), Digest("sha256", "2" * 64)
    assert pins.check("host/a", one, 1).status is PinStatus.NEW
    assert pins.conflict("host/a", other, 1) is None
    assert not path.exists()
    super(ReadOnlyPins, pins).check("host/a", one, 1)
    fresh = ReadOnlyPins(path)
    assert fresh.check("host/a", one, 1).status is PinStatus.SAME
    assert fresh.conflict("host/a", other, 1) is not None
    assert fresh.check("host/b", one, 1).status is PinStatus.NEW
    assert fresh.get("host/b") is None
    for each in (pins, fresh):
        each.close()
