"""`by-name` on a real mount of the demo ledger, with the tools people have."""

import hashlib
import os
import shutil
import subprocess
import tarfile
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest

from attachfs.demo.spawn import DemoServer
from tests.mount.conftest import Mount, Mounted, run_mount
from tests.mount.oracle import Recorded, directories_and_files

ODD = 'Lost & found: "odd" names \u2215 シート 7'
BOX = "Container ATFU 284417 3"


@pytest.fixture(scope="module")
def recorded(ledger: DemoServer) -> dict[str, Recorded]:
    return directories_and_files(ledger)[1]


@pytest.fixture(scope="module")
def good(recorded: dict[str, Recorded]) -> dict[str, str]:
    """Path to SHA-256 of every attachment that should open."""
    return {path: one.info["hash"]["value"].lower() for path, one in recorded.items() if one.good}


@pytest.fixture(scope="module", params=["ledger", "archive"])
def mounted(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, ledger: DemoServer
) -> Iterator[Mounted]:
    archive = request.getfixturevalue("bag") if request.param == "archive" else None
    with run_mount(tmp_path_factory.mktemp("by-name"), server=ledger, archive=archive) as mounted:
        yield mounted


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def links(top: Path) -> dict[Path, str]:
    """Return the links below a directory, and where each leads, below the mount."""
    found = {}
    for folder, _, files in os.walk(top / "by-name"):
        for name in files:
            link = Path(folder, name)
            target = os.path.normpath(link.parent / link.readlink())
            found[link] = os.path.relpath(target, top)
    return found


def test_every_file_of_a_listed_asset_has_links_and_each_leads_to_one(
    mounted: Mounted, recorded: dict[str, Recorded]
) -> None:
    found = links(mounted.point)
    listed = {f"assets/{asset.name}" for asset in (mounted.point / "assets").iterdir()}
    there = {path for path in recorded if path.rsplit("/", 1)[0].split("/events")[0] in listed}
    assert set(found.values()) >= there
    assert all(target.startswith("assets/") for target in found.values())
    for link, target in found.items():
        raw = str(link.readlink())
        assert raw.startswith("../../")
        st = link.lstat()
        assert st.st_mode == 0o120777
        assert st.st_size == len(raw)
        if target in recorded:
            assert link.stat().st_size == recorded[target].info["size"]


def test_every_name_in_by_name_is_safe_and_reachable(mounted: Mounted) -> None:
    for folder, folders, files in os.walk(mounted.point / "by-name"):
        for name in folders + files:
            assert unicodedata.is_normalized("NFC", name)
            assert not {unicodedata.category(char) for char in name} & {"Cc", "Cf", "Cs"}
            assert not name.startswith((".", "-", " "))
            assert (Path(folder) / name).lstat()


def test_odd_display_names_become_safe_names_in_by_name(mounted: Mounted) -> None:
    event = mounted.point / "by-name" / ODD / "events" / "2026-06-01 0700 Named \u2215 oddly"
    found = [path.name for path in event.iterdir()]
    shown = {name.partition(" (")[0] for name in found}
    assert shown >= {
        *("etc\u2215passwd.txt", "cat.jpg", "two_lines.txt", "invoice_gpj.exe", "Straße, 東京, Ελλάδα.txt"),
        *("café", "_-rf.txt", "hidden.txt", "x" * 251 + ".txt", "item 11.txt"),
    }
    assert sum(name.startswith("café (") for name in found) == 2
    for name in found:
        assert (event / name).read_text().startswith("This is item ")


def test_a_path_of_names_costs_two_requests(mount: Mount) -> None:
    with mount() as mounted:
        assert (mounted.point / "by-name" / BOX / "bill-of-lading.pdf").lstat()
        assert mounted.counts() == {"assets": 1}
        assert (mounted.point / "by-name" / BOX / "bill-of-lading.pdf").stat().st_size
        assert mounted.counts() == {"assets": 1, "info": 1}


def test_names_that_do_not_exist(mounted: Mounted, ledger: DemoServer) -> None:
    ledger.reset()
    for name in (".git", ".Trash-0", "*", "x" * 255, "a\u202eb", "e\u0301"):
        assert not os.path.lexists(mounted.point / "by-name" / name)
    assert sum(mounted.counts().values()) == 0
    assert not os.path.lexists(mounted.point / "by-name" / "nobody")
    assert not os.path.lexists(os.fsencode(mounted.point / "by-name") + b"/\xff")


def test_ls_asks_for_sizes_side_by_side_and_downloads_nothing(mount: Mount) -> None:
    with mount() as mounted:
        shown = mounted.sh("ls -lLR by-name", check=False).stdout
        assert shown.count("-r--r--r--") > 50
        assert mounted.counts().get("blob", 0) == 0
        assert mounted.counts()["assets"] == 1


def test_find_follows_links_without_going_round_in_circles(mounted: Mounted) -> None:
    # With warnings about loops it would say so, and exit with 1.
    done = mounted.sh(f"find -L 'by-name/{BOX}' -type f -printf . -o -type l -printf '!'")
    assert done.stdout
    assert "!" not in done.stdout
    assert done.stderr == ""
    assert mounted.sh(f"find 'by-name/{BOX}' -xtype l").stdout == ""


def test_copies_have_the_true_bytes(
    mounted: Mounted, recorded: dict[str, Recorded], good: dict[str, str], tmp_path: Path
) -> None:
    found = links(mounted.point)
    expected = {str(link.relative_to(mounted.point)): good[t] for link, t in found.items() if t in good}

    def copied(top: Path) -> dict[str, str]:
        return {str(p.relative_to(top)): sha256(p) for p in top.rglob("*") if p.is_file()}

    done = mounted.sh(f"cp -rL by-name {tmp_path}/cp", check=False)
    assert done.returncode == 1  # some cannot be opened, and are named
    bad = [link for link, target in found.items() if target in recorded and target not in good]
    assert bad
    for link in bad:
        assert str(link.relative_to(mounted.point)) in done.stderr
    shutil.copytree(tmp_path / "cp", tmp_path / "c" / "by-name")
    assert copied(tmp_path / "c") == expected

    mounted.sh(f"rsync -aL by-name {tmp_path}/rsync/", check=False)
    assert copied(tmp_path / "rsync") == expected

    mounted.sh(f"tar -chf {tmp_path}/a.tar by-name", check=False)
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert {member.name for member in tar if member.isfile() or member.islnk()} >= set(expected)

    box = f"by-name/{BOX}/bill-of-lading.pdf"
    assert "PDF document" in mounted.sh(f"file -L '{box}'").stdout


def test_links_survive_a_bind_mount_and_a_copy_of_all(
    mounted: Mounted, good: dict[str, str], tmp_path: Path
) -> None:
    link, target = next((link, t) for link, t in links(mounted.point).items() if t in good)
    inside = link.relative_to(mounted.point)
    point = tmp_path / "bound"
    point.mkdir()
    script = 'mount --bind "$0" "$1" && sha256sum "$1/$2"'
    if os.geteuid() != 0:
        pytest.skip("needs root to bind")
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, str(mounted.point), str(point), str(inside)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.lstrip("\\").startswith(good[target]), done.stderr


def test_inode_numbers_and_names_are_the_same_after_a_remount(mount: Mount) -> None:
    def numbers(mounted: Mounted) -> dict[str, int]:
        below = (mounted.point / "by-name").rglob("*")
        return {str(path.relative_to(mounted.point)): path.lstat().st_ino for path in below}

    with mount() as mounted:
        first = numbers(mounted)
    with mount() as mounted:
        mounted.sh("ls -U by-name/*/events/*", check=False)
        assert numbers(mounted) == first
    assert len(set(first.values())) == len(first)


def test_every_write_below_by_name_is_refused_as_read_only(mounted: Mounted) -> None:
    for command in ("touch new", "ln -s a new", "rm -f bill-of-lading.pdf", "mkdir new", "mv events new"):
        done = mounted.sh(f"cd 'by-name/{BOX}' && {command}", check=False)
        assert "Read-only file system" in done.stderr


def test_without_credentials_it_can_be_seen_and_not_entered(mount: Mount, ledger: DemoServer) -> None:
    with mount("--no-auth", server=None, environ={"ATTACHFS_URL": ledger.url}) as mounted:
        assert "by-name" in mounted.sh("ls").stdout.split()
        for command in ("ls by-name", f"ls 'by-name/{BOX}'"):
            assert "Permission denied" in mounted.sh(command, check=False).stderr
