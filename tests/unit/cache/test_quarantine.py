"""What did not match is kept for a person to look at, within a bound, and never for a program to serve."""

import errno
import json
import os
import stat
from pathlib import Path

import pytest

from attachfs.cache import files
from attachfs.cache.quarantine import Quarantine, QuarantineNote
from attachfs.errors import NoSpace, Unexpected
from attachfs.model import Digest

EXPECTED = Digest("sha256", "a" * 64)


def note_of(number: int, size: int = 5) -> QuarantineNote:
    return QuarantineNote(
        path='assets/x/y\n"',
        url_path="/archivist/v2/x",
        expected=EXPECTED,
        got=Digest("sha256", f"{number:064x}"),
        expected_size=7,
        got_size=size,
        time=1_700_000_000 + number / 2,
        reason="the bytes differ",
    )


def add(quarantine: Quarantine, number: int, data: bytes) -> Path | None:
    fd = os.memfd_create("bytes")
    try:
        os.write(fd, data)
        return quarantine.add(fd, note_of(number, len(data)))
    finally:
        os.close(fd)


def disk_usage(folder: Path) -> int:
    return sum(path.lstat().st_blocks * 512 for path in [folder, *folder.iterdir()])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "quarantine"


def test_an_item_is_bytes_and_a_note(folder: Path) -> None:
    quarantine = Quarantine(folder, 1 << 20)
    path = add(quarantine, 1, b"wrong")
    assert path is not None
    assert path.name == f"20231114T221320.500000Z-{1:064x}.blob"
    assert path.read_bytes() == b"wrong"
    note_path = path.with_suffix(".json")
    assert json.loads(note_path.read_text()) == {
        "path": 'assets/x/y\n"',
        "url_path": "/archivist/v2/x",
        "reason": "the bytes differ",
        "time": "2023-11-14T22:13:20.500000+00:00",
        "expected": f"sha256:{'a' * 64}",
        "expected_size": 7,
        "got": f"sha256:{1:064x}",
        "got_size": 5,
        "bytes_kept": True,
    }
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(note_path.stat().st_mode) == 0o400
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (item,) = quarantine.list()
    assert (item.blob, item.note_path, item.size) == (path, note_path, 5)
    assert item.note["got_size"] == 5


def test_a_file_with_a_name_is_moved(folder: Path, tmp_path: Path) -> None:
    quarantine = Quarantine(folder, 1 << 20)
    source = tmp_path / "download"
    source.write_bytes(b"wrong")
    inode = source.stat().st_ino
    fd, dir_fd = os.open(source, os.O_RDWR), os.open(tmp_path, os.O_RDONLY)
    path = quarantine.add(fd, note_of(1), (dir_fd, "download"))
    os.close(fd)
    os.close(dir_fd)
    assert path is not None
    assert path.stat().st_ino == inode
    assert stat.S_IMODE(path.stat().st_mode) == 0o400
    assert not source.exists()


def test_the_same_bytes_at_the_same_time_are_two_items(folder: Path) -> None:
    quarantine = Quarantine(folder, 1 << 20)
    assert len({add(quarantine, 1, b"wrong") for _ in range(3)}) == 3
    assert len(quarantine.list()) == 3


def test_the_oldest_goes_first(folder: Path) -> None:
    quarantine = Quarantine(folder, 100_000)
    for number in range(12):
        assert add(quarantine, number, bytes(20_000)) is not None
        assert disk_usage(folder) <= quarantine.used <= 100_000
    kept = [item.note["got"] for item in quarantine.list()]
    assert kept == [f"sha256:{number:064x}" for number in range(12 - len(kept), 12)]
    assert len(kept) >= 2


def test_bytes_beyond_the_bound_leave_a_note(folder: Path) -> None:
    quarantine = Quarantine(folder, 50_000)
    assert add(quarantine, 1, bytes(60_000)) is None
    (item,) = quarantine.list()
    assert item.blob is None
    assert item.note["bytes_kept"] is False


def test_the_next_run_measures_and_holds_the_bound(folder: Path) -> None:
    first = Quarantine(folder, 1 << 20)
    for number in range(5):
        add(first, number, bytes(20_000))
    (folder / "README").write_text("mine")
    second = Quarantine(folder, 60_000)
    second.scan()
    assert disk_usage(folder) == second.used <= 60_000
    assert (folder / "README").exists()
    assert second.list()[-1].note["got"] == f"sha256:{4:064x}"


def test_no_folder_is_an_empty_one(folder: Path) -> None:
    quarantine = Quarantine(folder, 1 << 20)
    quarantine.scan()
    assert quarantine.list() == []
    assert quarantine.used == 0
    assert not folder.exists()


def test_a_symlinked_folder_is_not_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Unexpected):
        add(Quarantine(folder, 1 << 20), 1, b"wrong")
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize(("code", "kind"), [(errno.ENOSPC, NoSpace), (errno.EIO, Unexpected)])
def test_a_disk_in_trouble(
    folder: Path, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[Exception]
) -> None:
    quarantine = Quarantine(folder, 1 << 20)

    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files, "copy", fail)
    with pytest.raises(kind):
        add(quarantine, 1, b"wrong")
    assert quarantine.used == disk_usage(folder)
    assert all(item.blob is None for item in quarantine.list())


def test_a_damaged_note_is_an_empty_one(folder: Path) -> None:
    quarantine = Quarantine(folder, 1 << 20)
    path = add(quarantine, 1, b"wrong")
    assert path is not None
    path.with_suffix(".json").chmod(0o600)
    path.with_suffix(".json").write_text("{")
    assert quarantine.list()[0].note == {}
