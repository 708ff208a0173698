"""The tools people have, on a real mount of the demo ledger."""

import concurrent.futures
import errno
import hashlib
import json
import mmap
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from attachfs.demo.spawn import DemoServer
from tests.mount.conftest import Mount, Mounted, run_mount
from tests.mount.oracle import Recorded, directories_and_files
from tests.services.threaded_ledger import ScriptedLedger, serve

MiB = 2**20


@pytest.fixture(scope="module")
def recorded(ledger: DemoServer) -> dict[str, Recorded]:
    return directories_and_files(ledger)[1]


@pytest.fixture(scope="module")
def good(recorded: dict[str, Recorded]) -> dict[str, str]:
    """Path to SHA-256 of every attachment that should open."""
    return {path: one.info["hash"]["value"].lower() for path, one in recorded.items() if one.good}


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def small(recorded: dict[str, Recorded], good: dict[str, str]) -> str:
    return min(
        (path for path in good if recorded[path].info["size"] > 1000), key=lambda p: recorded[p].info["size"]
    )


def test_find_shows_exactly_what_the_ledger_holds_and_downloads_nothing(
    either: Mount, ledger: DemoServer
) -> None:
    """Every directory, every file, and no other.

    Promise 25: "Sizes, times and attributes are those of the ledger's records, and looking at them downloads
    nothing."
    """
    directories, files = directories_and_files(ledger)
    with either() as mounted:
        found = set(mounted.sh("find assets -type d").stdout.split())
        assert found == directories
        listed = set(mounted.sh("find assets -type f", check=False).stdout.split())
        assert listed >= set(files)
        assert set(mounted.sh("ls").stdout.split()) >= {"assets", "publicassets"}
        assert mounted.counts().get("blob", 0) == 0


def test_ls_long_tells_size_time_and_owner_of_every_file(
    either: Mount, recorded: dict[str, Recorded]
) -> None:
    """As recorded.

    Promise 25: "Sizes, times and attributes are those of the ledger's records, and looking at them downloads
    nothing."
    """
    with either() as mounted:
        for path, one in recorded.items():
            st = (mounted.point / path).lstat()
            assert st.st_size == one.info["size"]
            assert st.st_mode == 0o100444
            assert (st.st_uid, st.st_gid, st.st_nlink) == (os.getuid(), os.getgid(), 1)
            assert st.st_mtime == st.st_ctime > 0
        assert mounted.sh("ls -lR --time-style=full-iso assets", check=False).stdout.count(
            "-r--r--r--"
        ) >= len(recorded)
        assert mounted.counts().get("blob", 0) == 0


def test_one_attribute_of_a_cold_file_costs_one_info_request_and_no_download(
    mount: Mount, good: dict[str, str]
) -> None:
    path = next(iter(good))
    with mount() as mounted:
        shown = mounted.sh(f"getfattr --only-values -n user.attachment.hash.value {path}").stdout
        assert shown == good[path]
        counts = mounted.counts()
        assert counts["info"] == 1
        assert counts.get("blob", 0) == 0


def test_getfattr_dumps_the_record_and_ls_l_getfattr_and_stat_share_one_request(
    mount: Mount, recorded: dict[str, Recorded], good: dict[str, str]
) -> None:
    """As recorded, too.

    Promise 25: "Sizes, times and attributes are those of the ledger's records, and looking at them downloads
    nothing."
    """
    path = small(recorded, good)
    with mount() as mounted:
        dumped = mounted.sh(f"getfattr -d --absolute-names {path}; stat {path}; ls -l {path}").stdout
        info = recorded[path].info
        for name, value in (
            ("user.attachment.size", str(info["size"])),
            ("user.attachment.hash.alg", info["hash"]["alg"]),
            ("user.attachment.mime_type", info["mime_type"]),
            ("user.mime_type", info["mime_type"]),
            ("user.hash.sha256", good[path]),
            ("user.attachment.scanned_bad_reason", ""),
        ):
            assert f'{name}="{value}"' in dumped
        assert "user.attachfs" not in dumped
        assert "user.attachment.json" not in dumped
        assert json.loads(os.getxattr(mounted.point / path, "user.attachment.json")) == info
        assert os.getxattr(mounted.point / path, "user.attachfs.cached") == b"no"
        with pytest.raises(OSError, match="No data") as caught:
            os.getxattr(mounted.point / path, "user.attachment.nothing")
        assert caught.value.errno == errno.ENODATA
        assert mounted.counts()["info"] == 1


def test_assets_and_events_tell_their_records(either: Mount, good: dict[str, str]) -> None:
    path = next(path for path in good if "/events/" in path)
    with either() as mounted:
        event = (mounted.point / path).parent
        asset = event.parent.parent
        assert os.getxattr(asset, "user.asset.identity").decode() == f"assets/{asset.name}"
        assert json.loads(os.getxattr(event, "user.event.json"))["identity"].endswith(event.name)
        assert "user.asset.attributes.arc_display_name" in os.listxattr(asset)


def test_cp_a_copies_every_good_file_and_fails_on_the_bad_ones_leaving_nothing(
    either: Mount, recorded: dict[str, Recorded], good: dict[str, str], tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    with either() as mounted:
        done = subprocess.run(["cp", "-a", mounted.point, copy], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        copied = {str(p.relative_to(copy)): sha256(p) for p in (copy / "assets").rglob("*") if p.is_file()}
        assert copied == good
        bad = set(recorded) - set(good)
        for path in bad:
            assert path in done.stderr
        tampered = [p for p in bad if recorded[p].sent_sha256 is not None and "Bad message" in done.stderr]
        assert tampered, done.stderr
        # One blob on the disk for each content, none of a bad one; and none at all of an archive's.
        contents = set() if mounted.archive else set(good.values())
        assert {path.name for path in mounted.cached()} == contents
        for path in good:
            assert (copy / path).stat().st_mtime == (mounted.point / path).stat().st_mtime
        assert mounted.counts().get("blob", 0) <= len(set(good.values())) + len(bad)
        assert not mounted.archive or mounted.counts() == {}


def test_rsync_tar_grep_file_and_sha256sum_agree(
    either: Mount, recorded: dict[str, Recorded], good: dict[str, str], tmp_path: Path
) -> None:
    sums = tmp_path / "SHA256SUMS"
    sums.write_text("".join(f"{digest}  {path}\n" for path, digest in good.items()))
    with either() as mounted:
        checked = mounted.sh(f"sha256sum -c {sums}").stdout
        assert checked.count(": OK") == len(good)
        before = mounted.counts().get("blob", 0)

        asset = next(iter(good)).split("/")[1]
        one = [path for path in good if path.split("/")[1] == asset]
        mounted.sh(f"rsync -a assets/{asset}/ {tmp_path}/rsynced/ 2>&1", check=False)
        for path in one:
            assert sha256(tmp_path / "rsynced" / path.split("/", 2)[2]) == good[path]

        archive = tmp_path / "a.tar"
        mounted.sh(f"tar cf {archive} {' '.join(good)}")
        with tarfile.open(archive) as tar:
            for path, digest in good.items():
                member = tar.extractfile(path)
                assert member is not None
                assert hashlib.sha256(member.read()).hexdigest() == digest

        pdf = next(path for path in good if recorded[path].info["mime_type"] == "application/pdf")
        assert "PDF document" in mounted.sh(f"file {pdf}").stdout
        assert mounted.sh(f"grep -rlc '%PDF' {Path(pdf).parent}", check=False).stdout.split()
        assert mounted.counts().get("blob", 0) <= before + len(recorded) - len(good)


def test_the_tampered_file_never_opens_and_leaves_no_cached_copy(
    mount: Mount, recorded: dict[str, Recorded]
) -> None:
    tampered = next(
        path
        for path, one in recorded.items()
        if one.sent_sha256 is not None and one.sent_sha256 != one.info["hash"]["value"]
    )
    with mount() as mounted:
        for _ in range(3):
            with pytest.raises(OSError, match="Bad message") as caught:
                (mounted.point / tampered).read_bytes()
            assert caught.value.errno == errno.EBADMSG
        assert mounted.cached() == []
        assert mounted.counts()["blob"] == 1
        assert list((mounted.cache / "quarantine").iterdir())
    said = [line for line in mounted.log if tampered in line]
    assert any("do not match the record" in line for line in said)


def test_mmap_and_reads_in_any_order_show_the_true_bytes(
    either: Mount, recorded: dict[str, Recorded], good: dict[str, str]
) -> None:
    path = max(
        (p for p in good if recorded[p].info["size"] < 2 * MiB), key=lambda p: recorded[p].info["size"]
    )
    with either() as mounted, (mounted.point / path).open("rb") as file:
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            assert hashlib.sha256(mapped).hexdigest() == good[path]
        size = recorded[path].info["size"]
        end = os.pread(file.fileno(), 10, size - 5)
        assert len(end) == 5
        assert os.pread(file.fileno(), 10, size) == b""


def test_sixteen_readers_of_one_cold_file_cause_one_download(
    mount: Mount, recorded: dict[str, Recorded], good: dict[str, str]
) -> None:
    """Nobody fetches what somebody else is fetching.

    Promise 21: "However many programs read a file at the same time, its bytes are fetched once, except for
    what is read far ahead of a stream; while they are cached, they are not fetched again, not even by a
    later mount."
    """
    path = max(good, key=lambda p: recorded[p].info["size"])
    with mount() as mounted, concurrent.futures.ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda _: sha256(mounted.point / path), range(16)))
        assert set(found) == {good[path]}
        assert mounted.counts()["blob"] == 1


def test_inode_numbers_are_the_same_after_a_remount(either: Mount, good: dict[str, str]) -> None:
    """Tools that remember files by their numbers know them again.

    Promise 28: "Inode numbers are the same after a remount."
    """

    def numbers(mounted: Mounted) -> dict[str, int]:
        return {path: (mounted.point / path).stat().st_ino for path in good}

    with either() as mounted:
        first = numbers(mounted)
    with either() as mounted:
        assert numbers(mounted) == first
    assert len(set(first.values())) == len(first)


def test_the_cache_survives_a_remount_and_nothing_is_fetched_twice(
    mount: Mount, recorded: dict[str, Recorded], good: dict[str, str]
) -> None:
    """The second half of what is said of fetching.

    Promise 21: "However many programs read a file at the same time, its bytes are fetched once, except for
    what is read far ahead of a stream; while they are cached, they are not fetched again, not even by a
    later mount."
    """
    path = small(recorded, good)
    with mount() as mounted:
        assert sha256(mounted.point / path) == good[path]
        assert os.getxattr(mounted.point / path, "user.attachfs.cached") == b"yes"
    with mount() as mounted:
        assert sha256(mounted.point / path) == good[path]
        assert mounted.counts().get("blob", 0) == 0


@pytest.mark.parametrize(
    "command",
    [
        "touch new",
        "mkdir new",
        "rm -f {file}",
        "rmdir assets",
        "chmod 600 {file}",
        "chown 1 {file}",
        "touch -d yesterday {file}",
        "mv {file} {file}.old",
        "ln -s a new",
        "ln {file} new",
        "truncate -s 0 {file}",
        "bash -c 'echo > {file}'",
        "setfattr -n user.x -v y {file}",
        "setfattr -x user.mime_type {file}",
        "mkfifo new",
    ],
)
def test_every_kind_of_write_is_refused_as_read_only(
    shared_mount: Mounted, good: dict[str, str], command: str
) -> None:
    """Whatever the tool.

    Promise 27: "Every change is refused with EROFS."
    """
    done = shared_mount.sh(command.format(file=next(iter(good))), check=False)
    assert done.returncode != 0
    assert "Read-only file system" in done.stderr


def test_names_that_cannot_exist_cost_no_request(shared_mount: Mounted, ledger: DemoServer) -> None:
    """Desktops and shells look for many such names.

    Promise 22: "A name under assets is an identity: a name that cannot be one does not exist, and causes no
    request."
    """
    shared_mount.sh("ls assets", check=False)
    ledger.reset()
    for name in ("x", "assets/x", "assets/.hidden", "assets/é", "publicassets/autorun.inf", ".Trash"):
        assert not os.path.lexists(shared_mount.point / name)
    for name in ("security.capability", "system.posix_acl_access", "user.other"):
        with pytest.raises(OSError, match="No data"):
            os.getxattr(shared_mount.point / "assets", name)
    assert shared_mount.counts() == {} or sum(shared_mount.counts().values()) == 0


def test_an_identity_that_is_not_there_is_enoent_and_remembered(
    shared_mount: Mounted, ledger: DemoServer
) -> None:
    ledger.reset()
    nowhere = shared_mount.point / "assets" / "00000000-0000-4000-8000-000000000000"
    for _ in range(5):
        with pytest.raises(FileNotFoundError):
            nowhere.stat()
    assert sum(shared_mount.counts().values()) == (0 if shared_mount.archive else 1)


def test_a_public_asset_is_entered_by_name(mount: Mount, ledger: DemoServer, good: dict[str, str]) -> None:
    with mount("--no-auth", server=None, environ={"ATTACHFS_URL": ledger.url}) as mounted:
        assert mounted.sh("ls publicassets").stdout == ""
        assert "Permission denied" in mounted.sh("ls assets", check=False).stderr
        opened = 0
        for path, digest in good.items():
            public = mounted.point / path.replace("assets", "publicassets", 1)
            if public.exists():
                assert sha256(public) == digest
                opened += 1
        assert opened


@pytest.fixture(scope="module", params=["ledger", "archive"])
def shared_mount(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, ledger: DemoServer
) -> Iterator[Mounted]:
    archive = request.getfixturevalue("bag") if request.param == "archive" else None
    with run_mount(tmp_path_factory.mktemp("shared"), server=ledger, archive=archive) as mounted:
        yield mounted


class Wide(ScriptedLedger):
    """An asset with more attributes than a list of extended attributes can name, some of them odd."""

    def record(self) -> dict[str, Any]:
        record = super().record()
        record["attributes"] |= {f"attribute {number} {'x' * 30}": "value" for number in range(2_000)}
        record["attributes"] |= {"\x1b[2J\n": "odd", "much": "y" * 70_000}
        return record


def test_a_record_of_any_size_leaves_its_directory_readable_for_backups(tmp_path: Path) -> None:
    wide = Wide()
    content = b"evidence"
    path = wide.add("file", content)
    with serve(wide, tmp_path / "token") as served, run_mount(tmp_path, server=served) as mounted:
        asset = mounted.point / "assets" / wide.asset
        dumped = mounted.sh(f"getfattr -d assets/{wide.asset}")
        assert dumped.stderr == ""
        assert len(dumped.stdout.splitlines()) > 500
        assert f'user.asset.identity="assets/{wide.asset}"' in dumped.stdout
        assert "\x1b" not in dumped.stdout
        assert os.getxattr(asset, "user.asset.attributes.\\x1b[2J\\n") == b"odd"
        archived = mounted.sh(f"tar --xattrs -cf {tmp_path}/a.tar assets/{wide.asset}")
        assert archived.stderr == ""
        with tarfile.open(tmp_path / "a.tar") as tar:
            assert "SCHILY.xattr.user.asset.identity" in tar.getmember(f"assets/{wide.asset}").pax_headers
            extracted = tar.extractfile(path)
            assert extracted is not None
            assert extracted.read() == content
        # The names are read for a dry run as well, and no disk of this machine need hold them all.
        listed = mounted.sh(f"rsync -aXn --itemize-changes assets/ {tmp_path}/copy/")
        assert listed.stderr == ""
        told = subprocess.run(
            [sys.executable, "-m", "attachfs", "info", "--json", asset], capture_output=True, check=True
        )
        record = json.loads(told.stdout)["record"]
        assert record == json.loads(json.dumps(wide.record()))


ASCII_ONLY = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize("environ", [{}, ASCII_ONLY], ids=["utf-8", "ascii"])
@pytest.mark.parametrize("name", ["ü".encode(), b"\xff", b"a\nb"])
def test_a_mount_point_may_have_any_name_in_any_locale(
    tmp_path: Path, ledger: DemoServer, name: bytes, environ: dict[str, str]
) -> None:
    base = tmp_path / os.fsdecode(name)
    base.mkdir()
    with run_mount(base, server=ledger, environ=environ) as mounted:
        assert (mounted.point / "assets").is_dir()
        told = subprocess.run(
            [sys.executable, "-m", "attachfs", "status", "--json", mounted.point],
            env={**os.environ, **environ},
            capture_output=True,
            check=True,
        )
        assert os.fsencode(json.loads(told.stdout)["mountpoint"]) == os.fsencode(mounted.point)


def test_a_mount_point_that_cannot_be_used_is_named_whatever_its_name(tmp_path: Path) -> None:
    point = tmp_path / os.fsdecode(b"none\xff")
    done = subprocess.run(
        [sys.executable, "-m", "attachfs", "mount", "--no-auth", f"--cache-dir={tmp_path}/c", point],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "none\\xff" in done.stderr
    assert "UnicodeEncodeError" not in done.stderr
