"""Reading a bag that anybody may have made."""

import os
import re
import socket
from pathlib import Path

import pytest

from attachfs.archive.folder import BagFolder
from attachfs.archive.manifest import check_declaration, entries
from attachfs.errors import BadAnswer, NotFound, UsageError

DIGEST = "0" * 64


@pytest.fixture
def bag(tmp_path: Path) -> Path:
    path = tmp_path / "bag"
    (path / "data").mkdir(parents=True)
    (path / "data" / "one").write_bytes(b"1")
    (tmp_path / "secret").write_bytes(b"outside")
    return path


def test_files_are_read_with_a_limit(bag: Path) -> None:
    with BagFolder(bag) as folder:
        assert folder.read("data/one", 1) == b"1"
        (bag / "data" / "one").write_bytes(b"12")
        with pytest.raises(BadAnswer, match="larger than it can be"):
            folder.read("data/one", 1)
        with pytest.raises(NotFound):
            folder.read("data/two", 1)


@pytest.mark.parametrize("path", ["../secret", "data/../../secret", "/etc/passwd", "data//one", ""])
def test_no_path_leads_out(bag: Path, path: str) -> None:
    with BagFolder(bag) as folder, pytest.raises(BadAnswer, match="leads out of the bag"):
        folder.open(path)


def test_no_link_is_followed_at_any_place_of_a_path(bag: Path, tmp_path: Path) -> None:
    (bag / "data" / "link").symlink_to(tmp_path / "secret")
    (bag / "data" / "inside").symlink_to("one")
    (bag / "linked").symlink_to(tmp_path)
    with BagFolder(bag) as folder:
        for path in ("data/link", "data/inside", "linked/secret"):
            with pytest.raises(BadAnswer, match="a link"):
                folder.open(path)
        with pytest.raises(BadAnswer, match="a link"):
            folder.names("linked")
        assert list(folder.walk("data")) == ["data/inside", "data/link", "data/one"]


def test_what_is_no_file_is_an_error_and_nothing_waits_for_it(bag: Path) -> None:
    os.mkfifo(bag / "data" / "pipe")
    with socket.socket(socket.AF_UNIX) as listener, BagFolder(bag) as folder:
        here = Path.cwd()
        os.chdir(bag / "data")  # a socket's path is short
        try:
            listener.bind("socket")
        finally:
            os.chdir(here)
        for path in ("data/pipe", "data/socket", "data"):
            with pytest.raises(BadAnswer, match="not a regular file"):
                folder.open(path)


def test_directories_nested_beyond_reason_are_refused(bag: Path) -> None:
    (bag / "data" / "/".join("d" * 80)).mkdir(parents=True)
    (bag / "data" / "/".join("d" * 80) / "f").touch()
    with BagFolder(bag) as folder, pytest.raises(BadAnswer, match="too deep"):
        list(folder.walk("data"))


def test_no_descriptor_is_left_open(bag: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with BagFolder(bag) as folder:
        for path in ("data/one/x", "data/none", "none/x"):
            with pytest.raises((BadAnswer, NotFound)):
                folder.open(path)
        folder.read("data/one", 9)
        folder.names("data")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def listed(bag: Path, text: bytes) -> list[tuple[str, str]]:
    (bag / "manifest-sha256.txt").write_bytes(text)
    with BagFolder(bag) as folder:
        return list(entries(folder, "manifest-sha256.txt"))


def test_a_manifest_is_read_as_it_is_written(bag: Path) -> None:
    text = f"{DIGEST}  data/a%0Ab%25\n{DIGEST.replace('0', 'A')} *data/c d\r\n\n{DIGEST}\tdata/e"
    assert listed(bag, text.encode()) == [
        ("data/a\nb%", DIGEST),
        ("data/c d", "a" * 64),
        ("data/e", DIGEST),
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"{DIGEST}  /etc/passwd", "leads out"),
        (f"{DIGEST}  data/../../secret", "leads out"),
        (f"{DIGEST}  data/a\n{DIGEST}  data/a", "listed twice"),
        (f"{DIGEST}  data/a\n{'1' * 64}  ./data/a", "listed twice"),
        (f"{DIGEST[1:]}  data/a", "not a SHA-256"),
        (DIGEST, "not a SHA-256"),
        (f"{DIGEST}  data/{'x' * 20_000}", "longer than a line can be"),
    ],
)
def test_what_could_be_meant_in_two_ways_is_refused(bag: Path, text: str, reason: str) -> None:
    with pytest.raises(BadAnswer, match=f"manifest-sha256.txt, line .: .*{reason}"):
        listed(bag, text.encode())


def test_a_manifest_that_is_no_text_is_refused(bag: Path) -> None:
    with pytest.raises(BadAnswer, match="not UTF-8"):
        listed(bag, DIGEST.encode() + b"  data/\xff")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "it has no bagit.txt"),
        ("", "does not declare BagIt"),
        ("BagIt-Version: 2.0\nTag-File-Character-Encoding: UTF-8\n", "does not declare BagIt"),
        ("BagIt-Version: 1.0\nTag-File-Character-Encoding: UTF-16\n", "does not declare BagIt"),
        ("BagIt-Version: 1.0\n" * 100_000, "larger than it can be"),
    ],
)
def test_what_is_no_bag_is_told_so(bag: Path, text: str | None, reason: str) -> None:
    if text is not None:
        (bag / "bagit.txt").write_text(text)
    with BagFolder(bag) as folder, pytest.raises(UsageError, match=re.escape(reason)):
        check_declaration(folder)


def test_an_export_that_has_not_ended_is_told_so(bag: Path) -> None:
    (bag / ".attachfs-export").mkdir()
    with BagFolder(bag) as folder, pytest.raises(UsageError, match="run it again"):
        check_declaration(folder)


def test_a_directory_that_is_not_there_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be opened as a bag"):
        BagFolder(tmp_path / "none")
