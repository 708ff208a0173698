"""The simulated fleet: its table and curves, and a small one of real clients."""

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.bench.fleet import Given, measure
from tests.bench.fleet_picture import Row, draw, replace_block, table

WITHOUT = Row(100, False, "blobs", 50_000, 500, 500, 600, 40, 25.0)
WITH = Row(100, True, "blobs", 50_000, 50_000, 3, 50_100, 0, 80.0)


def test_what_was_run_in_part_is_computed_and_marked() -> None:
    without, with_store, *_, note = table([WITHOUT, WITH], 65536).splitlines()[2:]
    assert without == ("| blobs only | 100 | no | ≈ 50,000 | ≈ 3,125.0 | ≈ 60,000 | ≈ 4,000 | ≈ 42 min |")
    assert with_store == "| blobs only | 100 | yes | 3 | 0.2 | 50,100 | 0 | 80 s |"
    assert note.startswith("≈: a part was run")
    assert "≈" not in table([WITH], 65536)


def test_the_documentation_has_one_place_for_the_table() -> None:
    page = (Path(__file__).parents[2] / "docs" / "fleet.md").read_text(encoding="utf-8")
    made = replace_block(page, "the table\n")
    assert "the table\n" in made
    assert replace_block(made, "another\n").count("![curves](fleet.svg)") == 1
    with pytest.raises(ValueError, match="0 places"):
        replace_block("", "the table\n")


def test_the_curves_are_an_svg_with_a_point_for_each_row() -> None:
    root = ET.fromstring(draw([WITHOUT, WITH]))
    points = [one for one in root.iter() if one.tag.endswith("circle") and len(one)]
    assert len(points) == 4
    assert all(0 < float(one.attrib[axis]) < 920 for one in points for axis in ("cx", "cy"))


def test_clients_without_mounts_read_all_right(tmp_path: Path) -> None:
    """How many blobs the service sends beside the store depends on how busy this machine is."""
    given = Given(5, 3000, 1000, "blobs", 60, 2, mounts=False)
    for shared in (False, True):
        base = tmp_path / str(shared)
        base.mkdir()
        row = measure(base, 3, given, shared=shared)
        assert row.reads == row.needed == 15
        assert row.blobs == 15 if not shared else row.blobs <= 15
