"""An exported bag, mounted back: the same as the ledger that it came from, and no more trusted than that."""

import errno
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import bagit
import pytest

from attachfs.demo.spawn import DemoServer
from tests.mount.conftest import Mounted, run_mount
from tests.mount.oracle import Recorded, directories_and_files

WORDS = {"EPERM": errno.EPERM, "EBADMSG": errno.EBADMSG, "EIO": errno.EIO, "EACCES": errno.EACCES}


@pytest.fixture(scope="module")
def recorded(ledger: DemoServer) -> dict[str, Recorded]:
    return directories_and_files(ledger)[1]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, ledger: DemoServer) -> Iterator[Mounted]:
    with run_mount(tmp_path_factory.mktemp("live"), server=ledger) as mounted:
        yield mounted


@pytest.fixture(scope="module")
def archived(tmp_path_factory: pytest.TempPathFactory, bag: Path) -> Iterator[Mounted]:
    base = tmp_path_factory.mktemp("archived")
    nowhere = {"https_proxy": "http://127.0.0.1:1", "HOME": str(base), "XDG_CACHE_HOME": str(base / "none")}
    with run_mount(base, archive=bag, environ=nowhere) as mounted:
        yield mounted
    assert not (base / "none").exists()


@pytest.fixture
def copy(bag: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bag, tmp_path / "copy"))


def attachfs(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "attachfs", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def attributes(path: Path) -> dict[str, bytes]:
    names = [*os.listxattr(path, follow_symlinks=False)]
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in names}


def everything(top: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(top):
        for name in sorted(folders + files):
            yield Path(folder, name)


def error_of(path: Path) -> int:
    try:
        path.read_bytes()
    except OSError as error:
        return error.errno or -1
    return 0


def status_of(path: Path) -> tuple[int, ...]:
    """Return what stat tells but for times, or the error."""
    try:
        st = path.lstat()
    except OSError as error:
        return (error.errno or -1,)
    return st.st_mode, st.st_size, st.st_ino


def test_a_mounted_bag_is_the_ledger_file_by_file_and_attribute_by_attribute(
    live: Mounted, archived: Mounted
) -> None:
    """Names, kinds, sizes, times, links, records, bytes, and the error of what does not open.

    Promise 31: "A mounted bag shows the names, sizes, times, attributes, bytes and errors of the mount that
    it was exported from, and makes no requests."
    """
    compared = 0
    for one in everything(live.point):
        inside = one.relative_to(live.point)
        other = archived.point / inside
        assert status_of(one) == status_of(other), inside
        if len(status_of(one)) == 1:
            continue
        if len(inside.parts) > 1:
            assert one.lstat().st_mtime_ns == other.lstat().st_mtime_ns, inside
        if one.is_symlink():
            assert one.readlink() == other.readlink()
            continue
        assert attributes(one) == attributes(other), inside
        kind = next(
            (k for k in ("asset", "event", "attachment") if f"user.{k}.identity" in attributes(one)), ""
        )
        if kind:
            name = f"user.{kind}.json"
            assert os.getxattr(one, name) == os.getxattr(other, name)
        if one.is_file():
            assert os.getxattr(one, "user.attachfs.attested") == os.getxattr(other, "user.attachfs.attested")
            assert error_of(one) == error_of(other), inside
        compared += 1
    assert compared > 50
    done = subprocess.run(
        ["rsync", "-rclni", f"{live.point}/", f"{archived.point}/"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert [line for line in done.stdout.splitlines() if line[0] in "<>ch.*"] == []
    assert sorted(p.relative_to(live.point) for p in everything(live.point)) == sorted(
        p.relative_to(archived.point) for p in everything(archived.point)
    )


def test_what_was_refused_says_why(archived: Mounted, bag: Path, recorded: dict[str, Recorded]) -> None:
    """As the ledger's mount did on the day of the export."""
    bad = [path for path, one in recorded.items() if not one.good]
    assert bad
    seen = set()
    for path in bad:
        assert archived.point / path in list((archived.point / path).parent.iterdir())
        number = error_of(archived.point / path)
        assert number in (errno.EPERM, errno.EBADMSG)
        seen.add(number)
        assert not (bag / "data" / path).exists()
    assert seen == {errno.EPERM, errno.EBADMSG}
    reasons = {one["path"]: one["reason"] for one in archived.status()["last_errors"]}
    tampered = next(path for path in bad if error_of(archived.point / path) == errno.EBADMSG)
    assert "refused on export" in reasons.get(tampered, "") or any(
        "refused on export" in line for line in archived.log
    )


def test_a_flipped_bit_is_bad_message_on_the_mount_and_named_by_the_others(
    copy: Path, recorded: dict[str, Recorded], tmp_path: Path
) -> None:
    """Before it is opened, and while it is mounted.

    Promise 32: "A flipped bit in a file of a bag makes that file fail with EBADMSG where the bag is
    mounted, and attachfs verify names it."
    """
    good = [path for path, one in recorded.items() if one.good and one.info["size"] < 2**20]
    flipped, later = good[0], good[1]

    def flip(path: str) -> None:
        with (copy / "data" / path).open("r+b") as file:
            byte = file.read(1)[0]
            file.seek(0)
            file.write(bytes([byte ^ 1]))

    flip(flipped)
    with run_mount(tmp_path, archive=copy) as mounted:
        assert error_of(mounted.point / flipped) == errno.EBADMSG
        assert error_of(mounted.point / later) == 0
        flip(later)

        assert error_of(mounted.point / later) == errno.EBADMSG
        others = [path for path in good if path not in (flipped, later)]
        assert {error_of(mounted.point / path) for path in others} == {0}
    done = attachfs("verify", copy)
    assert done.returncode == 1
    named = {line for line in done.stdout.splitlines() if ": DIFFERS" in line}
    assert {str(copy / "data" / path) for path in (flipped, later)} == {line.split(": ")[0] for line in named}
    sums = subprocess.run(
        ["sha256sum", "-c", "--quiet", "manifest-sha256.txt"],
        cwd=copy,
        capture_output=True,
        text=True,
        check=False,
    )
    assert sums.returncode == 1
    assert f"data/{flipped}: FAILED" in sums.stdout
    with pytest.raises(bagit.BagValidationError) as caught:
        bagit.Bag(str(copy)).validate()
    assert {one.path for one in caught.value.details} == {f"data/{path}" for path in (flipped, later)}


def test_a_whole_bag_verifies_and_says_how_much(bag: Path, recorded: dict[str, Recorded]) -> None:
    done = attachfs("verify", bag)
    assert done.returncode == 0, done.stdout
    good = sum(one.good for one in recorded.values())
    assert f"{good:,} OK, 0 differ" in done.stderr
    assert done.stdout.count(": OK") == good


def test_a_mounted_bag_asks_nobody_and_caches_nothing(archived: Mounted, live: Mounted) -> None:
    status = archived.status()
    assert status["archive"]
    assert status["url"].startswith("file:///")
    assert status["requests"] == {}
    assert archived.cached() == []
    shown = attachfs("status", archived.point)
    assert shown.returncode == 0
    assert "an archive; no requests are made" in shown.stdout
    assert "cache " not in shown.stdout
    # Whatever a bag says of where it came from, it is not the ledger that copies are compared with.
    assert status["url"] != live.status()["url"]


def test_what_cannot_be_mounted_is_told_so(bag: Path, copy: Path, tmp_path: Path) -> None:
    point = tmp_path / "point"
    point.mkdir()
    for archive, options, reason in (
        (tmp_path / "none", (), "cannot be opened as a bag"),
        (point, (), "below the mount point"),
        (tmp_path, (), "it has no bagit.txt"),
        (bag, ("--url=http://127.0.0.1:1",), "cannot be combined with --archive"),
        (bag, ("--verify=off",), "always verified"),
    ):
        done = attachfs("mount", f"--archive={archive}", *options, point)
        assert done.returncode == 2, done.stderr
        assert reason in done.stderr
    (copy / "report.json").unlink()
    done = attachfs("mount", f"--archive={copy}", point)
    assert done.returncode == 2
    assert "report.json cannot be used" in done.stderr


def test_links_in_a_bag_are_not_followed_out_of_it(
    copy: Path, recorded: dict[str, Recorded], tmp_path: Path
) -> None:
    """Neither for bytes nor for records.

    Promise 33: "Nothing in a bag leads out of it, whoever made it."
    """
    path = next(path for path, one in recorded.items() if one.good)
    target = copy / "data" / path
    shutil.move(target, tmp_path / "outside")
    target.symlink_to(tmp_path / "outside")
    asset = copy / "records" / "assets" / (path.split("/")[1] + ".json")
    shutil.move(asset, tmp_path / "record")
    asset.symlink_to(tmp_path / "record")
    with run_mount(tmp_path, archive=copy) as mounted:
        assert error_of(mounted.point / path) == errno.EIO
        with pytest.raises(OSError, match="Input/output error"):
            list((mounted.point / "assets" / path.split("/")[1]).iterdir())


def test_a_mounted_bag_can_be_exported_again(archived: Mounted, bag: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    done = attachfs("export", archived.point, again)
    assert done.returncode == 1, done.stderr
    for name in ("manifest-sha256.txt",):
        assert (again / name).read_text() == (bag / name).read_text()
    assert attachfs("verify", again).returncode == 0


def test_doctor_looks_at_the_bag_instead_of_a_ledger(bag: Path, tmp_path: Path) -> None:
    shown = attachfs("doctor", f"--archive={bag}").stdout
    assert re.search(r"^OK +archive", shown, re.MULTILINE | re.IGNORECASE)
    assert not re.search(r"^\w+ +ledger ", shown, re.MULTILINE)
    shown = attachfs("doctor", f"--archive={tmp_path}").stdout
    assert "it has no bagit.txt" in shown


def test_a_part_of_a_public_asset_comes_back_as_such(ledger: DemoServer, tmp_path: Path) -> None:
    """And what lies outside of the export is out of reach, and not absent."""
    public = ledger.story["public"]
    asset = "/".join(public.split("/")[:2])
    bag = tmp_path / "bag"
    with run_mount(tmp_path, server=ledger) as mounted:
        done = attachfs("export", mounted.point / asset, bag)
        assert done.returncode == 0, done.stderr
        live = {p.relative_to(mounted.point): status_of(p) for p in everything(mounted.point / asset)}
        other = next((mounted.point / "assets").iterdir()).name
    with run_mount(tmp_path, archive=bag) as mounted:
        back = {p.relative_to(mounted.point): status_of(p) for p in everything(mounted.point / asset)}
        assert back == live
        assert list((mounted.point / "assets").iterdir()) == []
        assert list((mounted.point / "by-name").iterdir()) == []
        with pytest.raises(OSError, match="No route to host"):
            (mounted.point / "assets" / other).stat()
        missing = "00000000-0000-4000-8000-000000000000"
        assert not (mounted.point / asset / missing).exists()


def test_an_export_that_has_not_ended_is_no_bag_yet(copy: Path) -> None:
    (copy / "bagit.txt").unlink()
    (copy / ".attachfs-export").mkdir()
    done = attachfs("verify", copy)
    assert done.returncode == 2
    assert "run it again" in done.stderr
