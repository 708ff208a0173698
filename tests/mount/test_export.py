"""`attachfs export` on a real mount: what the bag has, and what others say of it."""

import hashlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bagit
import pytest

from attachfs.demo.spawn import DemoServer
from tests.mount.conftest import Mounted, run_mount
from tests.mount.oracle import Recorded, directories_and_files
from tests.services.threaded_ledger import ScriptedLedger, serve

logging.getLogger("bagit").setLevel(logging.CRITICAL)


def attachfs(*arguments: object, **more: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "attachfs", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, **more)


@pytest.fixture(scope="module")
def recorded(ledger: DemoServer) -> dict[str, Recorded]:
    return directories_and_files(ledger)[1]


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory, ledger: DemoServer) -> Iterator[Mounted]:
    with run_mount(tmp_path_factory.mktemp("export"), server=ledger) as mounted:
        yield mounted


@pytest.fixture(scope="module")
def exported(
    tmp_path_factory: pytest.TempPathFactory, mounted: Mounted
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    bag = tmp_path_factory.mktemp("bags") / "everything"
    return bag, attachfs("export", mounted.point, bag)


def payload(bag: Path) -> dict[str, str]:
    top = bag / "data"
    return {
        str(path.relative_to(top)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in top.rglob("*")
        if path.is_file()
    }


def test_everything_that_may_be_read_is_in_the_bag_and_what_is_refused_in_its_report(
    exported: tuple[Path, subprocess.CompletedProcess[str]], recorded: dict[str, Recorded]
) -> None:
    """Compared with what the ledger really sends.

    Promise 29: "Every file in an exported bag was compared with the ledger's records on its way there; what
    differs or is refused is in the bag's report and nowhere else."
    """
    bag, done = exported
    assert done.returncode == 1, done.stderr
    good = {path: one.info["hash"]["value"].lower() for path, one in recorded.items() if one.good}
    assert payload(bag) == good
    report = json.loads((bag / "report.json").read_text())
    assert {one["path"]: one["hex"] for one in report["files"]} == good
    refused = {one["path"]: one for one in report["refused"]}
    assert set(recorded) - set(good) <= set(refused)
    bad = {path for path, one in recorded.items() if one.info["scanned_status"] == "SCANNED_BAD"}
    assert bad
    assert {refused[path]["errno"] for path in bad} == {"EPERM"}
    tampered = set(recorded) - set(good) - bad
    assert tampered
    assert {refused[path]["errno"] for path in tampered} == {"EBADMSG"}
    for path in refused:
        assert path in done.stderr
    for path, one in recorded.items():
        assert json.loads((bag / "records" / f"{path}.info.json").read_text()) == one.info
    for path in bag.rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644)


def test_other_programs_find_the_bag_right(exported: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    bag, _ = exported
    bagit.Bag(str(bag)).validate()
    done = subprocess.run(
        ["sha256sum", "-c", "--quiet", "--strict", "manifest-sha256.txt"],
        cwd=bag,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_running_it_again_tries_what_was_refused_and_changes_nothing_else(
    exported: tuple[Path, subprocess.CompletedProcess[str]], mounted: Mounted, ledger: DemoServer
) -> None:
    bag, first = exported
    before = payload(bag)
    ledger.reset()
    again = attachfs("export", mounted.point, bag)
    assert again.returncode == 1
    assert again.stderr.splitlines()[-1] == first.stderr.splitlines()[-1]
    assert payload(bag) == before
    bagit.Bag(str(bag)).validate()
    refused = json.loads((bag / "report.json").read_text())["totals"]["refused"]
    assert ledger.requests()["counts"].get("blob", 0) <= refused


def test_a_part_by_its_names_is_what_the_names_point_to(
    mounted: Mounted, recorded: dict[str, Recorded], tmp_path: Path
) -> None:
    box = mounted.point / "by-name" / "Container ATFU 284417 3"
    link = box / "bill-of-lading.pdf"
    inside = os.path.relpath(os.path.realpath(link), mounted.point)
    event = next(one for one in sorted((box / "events").iterdir()) if any(one.iterdir()))
    identity = os.getxattr(event, "user.event.identity").decode()
    done = attachfs("export", link, event, tmp_path / "bag")
    assert done.returncode == 0, done.stderr
    files = payload(tmp_path / "bag")
    assert inside in files
    expected = {path for path in recorded if path.startswith(f"{identity}/")} | {inside}
    assert set(files) == expected
    report = json.loads((tmp_path / "bag" / "report.json").read_text())
    assert report["paths"] == sorted([inside, identity])
    bagit.Bag(str(tmp_path / "bag")).validate()


def test_a_whole_bag_is_left_alone(mounted: Mounted, tmp_path: Path) -> None:
    path = next((mounted.point / "by-name" / "Container ATFU 284417 3").iterdir())
    one = tmp_path / "bag"
    link = mounted.point / "by-name" / "Container ATFU 284417 3" / "bill-of-lading.pdf"
    assert attachfs("export", "--read-only", link, one).returncode == 0
    assert {p.stat().st_mode & 0o222 for p in (one, *one.rglob("*"))} == {0}
    again = attachfs("export", link, one)
    assert again.returncode == 0
    assert "is complete" in again.stderr
    other = attachfs("export", path, one)
    assert other.returncode == 2
    assert "an export of other paths" in other.stderr


def test_where_it_cannot_be_it_says_so(mounted: Mounted, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter").touch()
    (tmp_path / "file").touch()
    for source, bag, reason in (
        (mounted.point, tmp_path / "full", "neither empty nor an export"),
        (mounted.point, tmp_path / "file", "is not a directory"),
        (mounted.point, mounted.point / "bag", "is on the mount"),
        (mounted.point, tmp_path / "none" / "bag", "cannot be made"),
        (tmp_path, tmp_path / "bag", "not on an attachfs mount"),
        (mounted.point / "publicassets", tmp_path / "bag", "one by one"),
    ):
        done = attachfs("export", source, bag)
        assert done.returncode == 2, done.stderr
        assert reason in done.stderr


def test_a_record_longer_than_an_attribute_may_be_is_exported_whole(tmp_path: Path) -> None:
    class Wordy(ScriptedLedger):
        def record(self) -> dict[str, Any]:
            record = super().record()
            return {**record, "attributes": {**record["attributes"], "long": "x" * 300_000}}

    ledger = Wordy()
    path = ledger.add("one", b"evidence")
    with serve(ledger, tmp_path / "token") as server, run_mount(tmp_path, server=server) as mounted:
        asset = mounted.point / "assets" / ledger.asset
        with pytest.raises(OSError, match="No data"):
            os.getxattr(asset, "user.asset.json")
        done = attachfs("export", asset, tmp_path / "bag")
        assert done.returncode == 0, done.stderr
    record = tmp_path / "bag" / "records" / "assets" / f"{ledger.asset}.json"
    assert json.loads(record.read_text())["attributes"]["long"] == "x" * 300_000
    assert set(payload(tmp_path / "bag")) == {path}
