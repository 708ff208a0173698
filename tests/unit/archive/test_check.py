"""Bags that are damaged, or made with bad intent: each is noticed, and nothing leads outside."""

import hashlib
import json
import logging
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import bagit
import pytest

from attachfs.archive import layout
from attachfs.archive.check import BagCheck, Checked
from attachfs.archive.folder import BagFolder
from attachfs.errors import UsageError
from tests.unit.archive.bags import ASSET, CONTENTS, PAPER, PHOTO, make_bag, sha256

logging.getLogger("bagit").setLevel(logging.CRITICAL)


@pytest.fixture
def bag(tmp_path: Path) -> Path:
    return make_bag(tmp_path / "bag")


def problems(bag: Path) -> dict[str, Checked]:
    """Return what `attachfs verify` would name, by path."""
    with BagFolder(bag) as folder:
        check = BagCheck(folder)
        found = check.structure()
        found += [check.check_tag(*tag, lambda _: None) for tag in check.tags]
        found += [check.check_payload(*file, lambda _: None) for file in check.payload]
    named: dict[str, Checked] = {}
    for one in found:
        if one.problem:
            named.setdefault(one.path, one)
    return named


def is_valid(bag: Path) -> bool:
    try:
        return bool(bagit.Bag(str(bag)).is_valid())
    except bagit.BagError:
        return False


def sums_are_right(bag: Path) -> bool:
    command = ["sha256sum", "-c", "--strict", "manifest-sha256.txt"]
    return subprocess.run(command, cwd=bag, capture_output=True, check=False).returncode == 0


def reseal(bag: Path) -> None:
    """Make both manifests anew, as somebody would who changes more than bytes."""
    for name, top in (("manifest-sha256.txt", "data"), ("tagmanifest-sha256.txt", ".")):
        lines = []
        for path in sorted((bag / top).rglob("*")):
            inside = path.relative_to(bag)
            if path.is_file() and (top == "data" or (inside.parts[0] != "data" and "tagm" not in path.name)):
                lines.append(f"{sha256(path.read_bytes())}  {inside}\n")
        (bag / name).write_text("".join(lines))


def flip(path: Path, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def test_a_whole_bag_is_right_to_all_three(bag: Path) -> None:
    assert problems(bag) == {}
    assert is_valid(bag)
    assert sums_are_right(bag)


@pytest.mark.parametrize("bit", range(0, 56, 5))
def test_one_flipped_bit_of_a_file_is_noticed_by_all_three(bag: Path, bit: int) -> None:
    path = layout.payload_path(PAPER)
    flip(bag / path, bit)
    assert set(problems(bag)) == {path}
    assert "the manifest says" in problems(bag)[path].problem
    assert not is_valid(bag)
    assert not sums_are_right(bag)


def test_a_change_of_anything_else_is_noticed_too(bag: Path) -> None:
    files = [path for path in bag.rglob("*") if path.is_file() and path.parts[-2] != "data"]
    assert len(files) > 10
    for path in files:
        before = path.read_bytes()
        flip(path, 8)
        try:
            found = problems(bag)
        except UsageError:
            found = {"the whole": Checked("", "no bag")}
        assert found, path
        path.write_bytes(before)
    assert problems(bag) == {}


def test_whoever_makes_the_manifests_anew_has_the_records_against_him(bag: Path) -> None:
    path = layout.payload_path(PAPER)
    flip(bag / path)
    reseal(bag)
    assert is_valid(bag)
    assert set(problems(bag)) == {path}
    assert "its record says" in problems(bag)[path].problem
    record = bag / layout.record_path(PAPER)
    info = json.loads(record.read_text())
    info["hash"]["value"] = sha256((bag / path).read_bytes())
    record.write_text(json.dumps(info))
    reseal(bag)
    assert set(problems(bag)) == {path}
    assert "two records differ" in problems(bag)[path].problem


def test_what_is_missing_or_too_much_is_named(bag: Path) -> None:
    missing, extra = layout.payload_path(PAPER), "data/assets/extra"
    (bag / missing).unlink()
    (bag / extra).write_text("?")
    found = problems(bag)
    assert {missing, extra} <= set(found)
    assert "missing" in found[missing].problem
    assert found[extra].problem == "no manifest lists it"
    (bag / extra).unlink()
    shutil.copy(bag / layout.payload_path(PHOTO), bag / missing)
    assert set(problems(bag)) == {missing, "bag-info.txt"}


def test_a_file_without_a_record_cannot_be_told(bag: Path) -> None:
    (bag / layout.record_path(PHOTO)).unlink()
    (bag / "data" / "note.txt").write_text("hello")
    reseal(bag)
    found = problems(bag)
    assert set(found) == {layout.payload_path(PHOTO), "data/note.txt", "bag-info.txt"}
    assert all(one.unknown for path, one in found.items() if path.startswith("data/"))
    assert "Oxum" in found["bag-info.txt"].problem


def test_a_recorded_hash_of_another_kind_is_compared(bag: Path) -> None:
    for path in (layout.record_path(ASSET), layout.record_path(PHOTO)):
        text = (bag / path).read_text()
        sha512 = hashlib.sha512(CONTENTS[PHOTO]).hexdigest()
        text = text.replace(sha256(CONTENTS[PHOTO]), sha512).replace("SHA256", "SHA512")
        (bag / path).write_text(text)
    reseal(bag)
    assert problems(bag) == {}
    flip(bag / layout.payload_path(PHOTO))
    reseal(bag)
    assert "sha512" in problems(bag)[layout.payload_path(PHOTO)].problem


def _link_outside(bag: Path) -> None:
    (bag.parent / "outside").write_bytes(CONTENTS[PHOTO])
    (bag / layout.payload_path(PHOTO)).unlink()
    (bag / layout.payload_path(PHOTO)).symlink_to(bag.parent / "outside")


def _folder_outside(bag: Path) -> None:
    shutil.move(bag / "data", bag.parent / "moved")
    (bag / "data").symlink_to(bag.parent / "moved")


def _pipe(bag: Path) -> None:
    (bag / layout.payload_path(PHOTO)).unlink()
    os.mkfifo(bag / layout.payload_path(PHOTO))


def _pipe_as_manifest(bag: Path) -> None:
    (bag / "manifest-sha256.txt").unlink()
    os.mkfifo(bag / "manifest-sha256.txt")


def _second_manifest_outside(bag: Path) -> None:
    (bag / "manifest-md5.txt").symlink_to("/etc/passwd")


def _listed(line: str) -> Callable[[Path], None]:
    def add(bag: Path) -> None:
        with (bag / "manifest-sha256.txt").open("a") as file:
            file.write(line + "\n")

    return add


def _record_as_pipe(bag: Path) -> None:
    (bag / layout.record_path(PHOTO)).unlink()
    os.mkfifo(bag / layout.record_path(PHOTO))


def _huge_record(bag: Path) -> None:
    with (bag / layout.record_path(PHOTO)).open("wb") as file:
        file.truncate(2**40)


def _deep(bag: Path) -> None:
    (bag / "data" / "/".join("d" * 200)).mkdir(parents=True)


@pytest.mark.parametrize(
    ("attack", "path", "reason"),
    [
        (_link_outside, layout.payload_path(PHOTO), "a link"),
        (_folder_outside, "data", "a link"),
        (_pipe, layout.payload_path(PHOTO), "not a regular file"),
        (_pipe_as_manifest, "manifest-sha256.txt", "not a regular file"),
        (_second_manifest_outside, "manifest-md5.txt", "a link"),
        (_listed(f"{'0' * 64}  ../../etc/passwd"), "manifest-sha256.txt", "leads out"),
        (_listed(f"{'0' * 64}  /etc/passwd"), "manifest-sha256.txt", "leads out"),
        (
            _listed(f"{'0' * 64}  {layout.payload_path(PHOTO)}"),
            "manifest-sha256.txt",
            "listed twice",
        ),
        (_record_as_pipe, layout.record_path(PHOTO), "not a regular file"),
        (_deep, "data", "too deep"),
    ],
    ids=lambda value: getattr(value, "__name__", "") if callable(value) else None,
)
def test_a_hostile_bag_is_told_so_and_leads_nowhere(
    bag: Path, attack: Callable[[Path], None], path: str, reason: str
) -> None:
    attack(bag)
    found = problems(bag)
    assert reason in found[path].problem


def test_a_huge_record_is_not_read(bag: Path) -> None:
    _huge_record(bag)
    with BagFolder(bag) as folder:
        check = BagCheck(folder)
        assert check.structure() == []
        (sha,) = [sha for path, sha in check.payload if path == layout.payload_path(PHOTO)]
        found = check.check_payload(layout.payload_path(PHOTO), sha, lambda _: None)
    assert found.unknown
    assert "larger than it can be" in found.problem
