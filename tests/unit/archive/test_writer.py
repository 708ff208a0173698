"""Bags as they are written, and what others say of them."""

import json
import logging
import os
import subprocess
from pathlib import Path
from typing import Any

import bagit
import pytest

from attachfs.archive import html, layout
from attachfs.archive.entries import Exported
from attachfs.archive.folder import BagFolder
from attachfs.archive.journal import DONE, REFUSED, TODO, Journal
from attachfs.archive.report import Report
from attachfs.archive.writer import finish, protect
from attachfs.errors import UsageError
from tests.unit.archive.bags import BAD, CONTENTS, PAPER, PHOTO, about, entry_of, make_bag

logging.getLogger("bagit").setLevel(logging.CRITICAL)


def test_a_bag_is_valid_to_the_library_of_congress_and_to_sha256sum(tmp_path: Path) -> None:
    bag = make_bag(tmp_path / "bag")
    found = bagit.Bag(str(bag))
    found.validate()
    assert found.version_info == (1, 0)
    assert found.info["Payload-Oxum"] == f"{sum(map(len, CONTENTS.values()))}.2"
    assert {path.removeprefix("data/") for path in found.payload_entries()} == {r.path for r in CONTENTS}
    assert set(found.tagfile_entries()) >= {"report.json", "report.html", layout.record_path(PHOTO)}
    done = subprocess.run(
        ["sha256sum", "-c", "--strict", "manifest-sha256.txt"], cwd=bag, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not (bag / layout.WORK).exists()


def test_what_was_refused_is_in_the_report_and_nowhere_else(tmp_path: Path) -> None:
    bag = make_bag(tmp_path / "bag")
    assert not (bag / layout.payload_path(BAD)).exists()
    assert BAD.path not in (bag / "manifest-sha256.txt").read_text()
    whole = json.loads((bag / "report.json").read_text())
    assert [one["path"] for one in whole["refused"]] == [BAD.path]
    assert {one["path"] for one in whole["files"]} == {PHOTO.path, PAPER.path}
    assert whole["totals"] == {"files": 2, "bytes": 707, "refused": 1}
    with BagFolder(bag) as folder:
        report = Report(folder)
        assert [(e.path, e.errno, e.reason) for e in report.refused()] == [
            (BAD.path, "EBADMSG", "its bytes differ")
        ]
        assert [e.path for e in report.files()] == sorted(ref.path for ref in CONTENTS)
    assert "its bytes differ" in (bag / "report.html").read_text()


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"refused": [', '"refused": [,,'),
        lambda text: text.replace(PHOTO.path, "\\"),
        lambda _: "",
        lambda _: "{}",
        lambda _: '"refused": [\n' * 3,
        lambda text: text.replace("attachfs-export-1", "attachfs-export-9"),
        lambda text: "[" * 200_000 + text,
    ],
)
def test_a_damaged_report_is_told_so(tmp_path: Path, damage: Any) -> None:
    bag = make_bag(tmp_path / "bag")
    (bag / "report.json").write_text(damage((bag / "report.json").read_text()))

    def read(folder: BagFolder) -> list[Exported]:
        report = Report(folder)
        return [*report.refused(), *report.files()]

    with BagFolder(bag) as folder, pytest.raises(UsageError, match=r"report\.json"):
        read(folder)


def test_nothing_foreign_gets_into_the_page_as_it_is(tmp_path: Path) -> None:
    bag = tmp_path / "bag"
    bag.mkdir()
    evil = "<script>alert(1)</script>\"'\u202e\x1b[31m"
    with Journal(bag) as journal:
        for ref in (PHOTO, BAD):
            entry = entry_of(
                ref,
                b"x",
                **dict.fromkeys(("name", "asset", "event", "accepted", "scan", "attested", "reason"), evil),
                errno="EIO" if ref is BAD else "",
            )
            journal.finish(entry, "stamp")
        finish(bag, journal, {**about(), "url": evil, "by": evil})
    page = (bag / "report.html").read_text()
    assert "<script" not in page
    assert "\u202e" not in page
    assert "\x1b" not in page
    assert page.count("&lt;script&gt;") >= 10
    assert html.safe(evil) == "&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#x27;\\u202e\\x1b[31m"
    assert "default-src 'none'" in page
    lines = (bag / "bag-info.txt").read_text().splitlines()
    assert len(lines) == 7
    assert not any("\x1b" in line for line in lines)


def test_copies_can_be_deleted_unless_they_are_to_be_read_only(tmp_path: Path) -> None:
    bag = make_bag(tmp_path / "bag")
    for read_only, file_mode, directory_mode in ((True, 0o444, 0o555), (False, 0o644, 0o755)):
        protect(bag, read_only=read_only)
        for folder, _, names in os.walk(bag):
            assert Path(folder).stat().st_mode & 0o777 == directory_mode
            assert {Path(folder, name).stat().st_mode & 0o777 for name in names} <= {file_mode}


class TestJournal:
    def test_the_journal_remembers_what_was_done_and_forgets_nothing_on_being_killed(
        self, tmp_path: Path
    ) -> None:
        journal = Journal(tmp_path)
        journal.add(entry_of(PHOTO, b"1", sha256=""))
        journal.add(entry_of(PAPER, b"12", sha256=""))
        journal.finish(entry_of(PHOTO, b"1"), "a stamp")
        journal.set_listed("assets/a")
        journal.commit(now=True)
        journal.finish(entry_of(PAPER, b"12"), "lost")
        (journal.work / "tmp" / "left").touch()
        journal._db.close()  # and no commit: as by kill -9
        os.close(journal._lock)
        with Journal(tmp_path) as again:
            assert again.is_listed("assets/a")
            assert again.count(TODO) == (1, 2)
            assert again.count(DONE) == (1, 1)
            assert list((again.work / "tmp").iterdir()) == []

    def test_what_is_done_is_not_to_be_done_again_and_what_was_refused_is(self, tmp_path: Path) -> None:
        with Journal(tmp_path) as journal:
            journal.finish(entry_of(PHOTO, b"1"), "a stamp")
            journal.add(entry_of(PHOTO, b"1", sha256=""))
            journal.finish(entry_of(BAD, b"12", errno="EIO", reason="no"))
            journal.finish(Exported("assets/x/events", errno="EIO", reason="no listing"))
            assert journal.count(DONE)[0] == 1
            assert journal.count(REFUSED)[0] == 2
            journal.retry()
            assert [entry.path for entry in journal.entries(TODO)] == [BAD.path]
            assert journal.count(REFUSED) == (0, 0)

    def test_rows_come_by_path_over_many_pages(self, tmp_path: Path) -> None:
        with Journal(tmp_path) as journal:
            for number in range(1234):
                journal.finish(Exported(f"{number:05}", size=1), "s")
            found = [entry.path for entry in journal.entries(DONE)]
        assert found == [f"{number:05}" for number in range(1234)]

    def test_what_contradicts_outweighs_a_proof_and_that_what_is_not_known(self, tmp_path: Path) -> None:
        with Journal(tmp_path) as journal:
            journal.finish(entry_of(PHOTO, b"1"), "s")
            for state, weight, shown in (
                ("not committed", 0, "not committed"),
                ("proven", 1, "proven"),
                ("no log", 0, "proven"),
                ("leaf differs", 2, "leaf differs"),
                ("proven", 1, "leaf differs"),
            ):
                journal.add_proofs([(PHOTO.path, state, weight)])
                assert [entry.proof for entry in journal.entries(DONE)] == [shown]
            journal.clear_proofs()
            assert [entry.proof for entry in journal.entries(DONE)] == [""]

    def test_two_exports_into_one_directory_are_refused(self, tmp_path: Path) -> None:
        with Journal(tmp_path), pytest.raises(UsageError, match="another export"):
            Journal(tmp_path)

    def test_what_another_version_has_begun_is_refused_and_let_go(self, tmp_path: Path) -> None:
        with Journal(tmp_path) as journal:
            journal.set("version", "0")
        before = len(list(Path("/proc/self/fd").iterdir()))
        with pytest.raises(UsageError, match="another version"):
            Journal(tmp_path)
        assert len(list(Path("/proc/self/fd").iterdir())) == before
