"""What stands where in a bag."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attachfs.archive.layout import (
    Events,
    Everything,
    covers,
    decode_name,
    encode_name,
    is_inside,
    parse_place,
    payload_path,
    record_path,
)
from attachfs.model import AssetRef, AttachmentRef, EventRef
from tests.services.memory_source import uuid

A, E, F = uuid(1), uuid(2), uuid(3)


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("", Everything()),
        ("assets", Everything()),
        (f"assets/{A}", AssetRef("assets", A)),
        (f"publicassets/{A}", AssetRef("publicassets", A)),
        (f"assets/{A}/events", Events("assets", A)),
        (f"assets/{A}/events/{E}", EventRef("assets", A, E)),
        (f"assets/{A}/{F}", AttachmentRef("assets", A, None, F)),
        (f"publicassets/{A}/events/{E}/{F}", AttachmentRef("publicassets", A, E, F)),
    ],
)
def test_a_path_of_a_mount_is_a_place_and_back(path: str, place: object) -> None:
    found = parse_place(path)
    assert found == place
    assert found is not None
    assert found.path == (path or "assets")


@pytest.mark.parametrize(
    "path",
    [
        *(
            "publicassets",
            "by-name",
            "nothing",
            f"assets/{A}/",
            f"assets/{A}".replace("0", "A"),
            "assets/../etc",
        ),
        *(f"assets/{A}/events/{E}/{F}/more", f"assets/{A}/{F}/events", "/assets", f"assets/{A}\n"),
    ],
)
def test_other_paths_are_none(path: str) -> None:
    assert parse_place(path) is None


def test_a_place_covers_what_is_below_it_and_nothing_beside() -> None:
    asset = AssetRef("assets", A)
    assert covers(Everything(), asset.path)
    assert covers(asset, f"{asset.path}/{F}")
    assert covers(asset, asset.path)
    assert not covers(asset, f"assets/{uuid(9)}")
    assert not covers(asset, f"{asset.path}0")
    assert not covers(Everything(), f"publicassets/{A}")
    assert not covers(Events("assets", A), f"assets/{A}/{F}")


def test_bytes_and_records_stand_under_the_paths_of_the_mount() -> None:
    assert payload_path(AttachmentRef("assets", A, E, F)) == f"data/assets/{A}/events/{E}/{F}"
    assert record_path(AssetRef("assets", A)) == f"records/assets/{A}.json"
    assert record_path(EventRef("assets", A, E)) == f"records/assets/{A}/events/{E}.json"
    assert record_path(AttachmentRef("assets", A, None, F)) == f"records/assets/{A}/{F}.info.json"


def test_names_are_percent_encoded_where_a_manifest_needs_it() -> None:
    assert encode_name("data/100%\r\nsure") == "data/100%25%0D%0Asure"
    assert decode_name("data/100%25%0d%0Asure") == "data/100%\r\nsure"
    assert decode_name("data/%41%2F") == "data/%41%2F"  # nothing else is an escape


@given(st.text())
def test_encoding_loses_nothing_and_leaves_no_line_end(path: str) -> None:
    encoded = encode_name(path)
    assert decode_name(encoded) == path
    assert not set(encoded) & {"\r", "\n"}


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "data/../../x", "data//x", "data/./x", "", "a\0b"])
def test_what_could_lead_out_is_not_inside(path: str) -> None:
    assert not is_inside(path)
