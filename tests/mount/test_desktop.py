"""What desktops, scanners and tools for one kind of file do on a mount, and what that costs the ledger."""

import hashlib
import os
import shutil
import sqlite3
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from attachfs.demo.spawn import DemoServer, spawn_server
from tests.mount.conftest import Mounted, run_mount
from tests.services.threaded_ledger import ScriptedLedger, serve

MiB = 2**20
VESSEL = "by-name/MV Northern Tern"
PHOTO = f"{VESSEL}/northern-tern.jpg"
PDF = f"{VESSEL}/certificate-of-class.pdf"
ZIP = "by-name/Camera firmware/cam-fw-1.9.2.zip"
RECORDING = "by-name/North gate camera/events/2026-04-18 2359 Motion detected"
INSPECTION = "by-name/Container ATFU 284417 3/events/2026-03-05 1408 Customs inspection"


def needs(tool: str) -> pytest.MarkDecorator:
    """Skip where a tool is missing that scripts/setup does not install."""
    return pytest.mark.skipif(shutil.which(tool) is None, reason=f"{tool} is not installed")


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory, ledger: DemoServer) -> Iterator[Mounted]:
    with run_mount(tmp_path_factory.mktemp("desktop"), server=ledger) as mounted:
        yield mounted


@pytest.fixture
def fresh(tmp_path: Path, ledger: DemoServer) -> Iterator[Mounted]:
    """Mount with an empty cache, and with nothing counted yet."""
    with run_mount(tmp_path, server=ledger) as mounted:
        ledger.reset()
        yield mounted


@pytest.fixture
def copies(tmp_path: Path) -> Path:
    """Return a directory whose filesystem keeps user attributes."""
    copies = tmp_path / "copies"
    copies.mkdir()
    try:
        os.setxattr(copies, "user.test", b"x")
    except OSError:
        pytest.skip("the temporary directory's filesystem keeps no user attributes")
    return copies


def attributes(path: Path) -> dict[str, bytes]:
    return {name: os.getxattr(path, name) for name in os.listxattr(path) if name.startswith("user.")}


def downloaded(mounted: Mounted) -> int:
    """Return how many bytes of blobs have come in."""
    requests = mounted.status()["requests"]["requests"]
    return int(requests["blob"]["bytes"]) if "blob" in requests else 0


class TestNothingIsDownloaded:
    @needs("gio")
    def test_nothing_is_downloaded_for_a_file_managers_columns(self, fresh: Mounted) -> None:
        shown = fresh.sh(f"gio info '{PHOTO}'").stdout
        assert "standard::content-type: image/jpeg" in shown
        assert "standard::size: 129204" in shown
        listed = fresh.sh(f"gio list -l -a standard::content-type '{RECORDING}'").stdout
        assert listed.count("image/jpeg") == 6
        assert "video/x-msvideo" in listed
        assert fresh.counts().get("blob", 0) == 0

    @pytest.mark.parametrize("walk", ["find .", "ls -lLR .", "du -sh ."])
    def test_nothing_is_downloaded_for_a_walk(self, fresh: Mounted, walk: str) -> None:
        fresh.sh(walk, check=False)
        assert fresh.counts().get("blob", 0) == 0

    @needs("updatedb")
    def test_nothing_is_downloaded_for_updatedb_and_pruned_it_does_not_even_ask(
        self, fresh: Mounted, tmp_path: Path
    ) -> None:
        make = f"updatedb -l 0 -U {tmp_path} -o {tmp_path}/db --prunepaths ''"
        if subprocess.run(["updatedb", "--version"], capture_output=True, check=False).returncode:
            pytest.skip("this updatedb is not plocate's")
        fresh.sh(f"{make} --prunefs 'NFS fuse.attachfs'")
        assert sum(fresh.counts().values()) == 0
        fresh.sh(f"{make} --prunefs ''")
        assert fresh.counts()["assets"] >= 1
        assert fresh.counts().get("blob", 0) == 0


class TestOneKindOfFile:
    def test_file_tells_types_of_names_without_extension(self, mounted: Mounted) -> None:
        told = mounted.sh(f"file -bL '{PHOTO}' '{PDF}' '{ZIP}'").stdout.splitlines()
        assert [line.split()[0] for line in told] == ["JPEG", "PDF", "Zip"]
        target = (mounted.point / PHOTO).resolve()
        assert "." not in target.name
        assert mounted.sh(f"file -b --mime-type '{target}'").stdout == "image/jpeg\n"

    def test_exiftool_reads_photographs_only(self, mounted: Mounted) -> None:
        shown = mounted.sh(f"exiftool -s3 -MIMEType -Model '{PHOTO}'").stdout.splitlines()
        assert shown == ["image/jpeg", "Drawing board 1"]

    def test_exiftool_cannot_write_into_a_mounted_photo(self, mounted: Mounted) -> None:
        done = mounted.sh(f"exiftool -Artist=x '{PHOTO}'", check=False)
        assert done.returncode == 1
        assert "Error creating file" in done.stderr

    def test_pdfinfo_reads_documents_only(self, mounted: Mounted) -> None:
        shown = mounted.sh(f"pdfinfo '{PDF}'").stdout
        assert "Pages:" in shown
        assert f"{(mounted.point / PDF).stat().st_size} bytes" in shown

    def test_unzip_lists_and_tests(self, mounted: Mounted) -> None:
        assert mounted.sh(f"unzip -l '{ZIP}'").stdout.splitlines()[-1].split()[1] != "0"
        assert "No errors detected" in mounted.sh(f"unzip -t '{ZIP}'").stdout

    @pytest.mark.parametrize("journal", ["delete", "wal"])
    def test_sqlite3_reads_an_immutable_database(self, tmp_path: Path, journal: str) -> None:
        database = tmp_path / "log.db"
        with sqlite3.connect(database) as connection:
            connection.execute(f"pragma journal_mode = {journal}")
            connection.execute("create table readings (celsius)")
            connection.execute("insert into readings values (-18), (-17)")
        connection.close()
        ledger = ScriptedLedger()
        path = ledger.add("log.db", database.read_bytes())
        with serve(ledger, tmp_path / "token") as served, run_mount(tmp_path, server=served) as mounted:
            query = "'select sum(celsius) from readings'"
            assert mounted.sh(f"sqlite3 'file:{path}?mode=ro&immutable=1' {query}").stdout == "-35\n"
            # What has a write-ahead log wants to write beside it, even to read.
            plain = mounted.sh(f"sqlite3 -readonly {path} {query}", check=False)
            assert (plain.returncode == 0) == (journal == "delete")

    @needs("clamscan")
    def test_clamscan_reads_every_file_and_names_what_does_not_open(
        self, fresh: Mounted, tmp_path: Path
    ) -> None:
        photo = (fresh.point / PHOTO).read_bytes()
        signatures = tmp_path / "made.hdb"
        signatures.write_text(f"{hashlib.md5(photo).hexdigest()}:{len(photo)}:Made.Up\n")
        limits = "--max-filesize=100M --max-scansize=400M"
        done = fresh.sh(f"clamscan -r --no-summary -d {signatures} {limits} assets", check=False)
        found = [line for line in done.stdout.splitlines() if line.endswith("Made.Up.UNOFFICIAL FOUND")]
        assert {line.partition(":")[0].rpartition("/")[2] for line in found} == {
            (fresh.point / PHOTO).resolve().name
        }
        assert "Operation not permitted" in done.stderr  # what the ledger's own scan found bad
        assert done.returncode in (1, 2)


class TestCopiesWithAttributes:
    def test_rsync_keeps_what_the_ledger_says_of_a_file(self, mounted: Mounted, copies: Path) -> None:
        source = (mounted.point / INSPECTION / "seal-intact.jpg").resolve().parent
        filters = "--filter='-x user.event.*' --filter='-x user.asset.*'"
        mounted.sh(f"rsync -aX {filters} '{source}/' '{copies}/event/'", check=False)
        copied = [path for path in (copies / "event").iterdir() if path.is_file()]
        assert copied
        for path in copied:
            assert attributes(path) == attributes(source / path.name)
            assert not any(name.startswith("user.attachfs.") for name in attributes(path))
            assert path.stat().st_mtime == (source / path.name).stat().st_mtime
            digest = attributes(path)["user.hash.sha256"].decode()
            assert hashlib.sha256(path.read_bytes()).hexdigest() == digest

    def test_rsync_from_where_a_name_leads(self, mounted: Mounted, copies: Path) -> None:
        # With -L it would ask the link itself for attributes, and a link has none.
        mounted.sh(f"rsync -aX \"$(readlink -f '{PHOTO}')\" '{copies}/northern-tern.jpg'")
        assert attributes(copies / "northern-tern.jpg") == attributes(mounted.point / PHOTO)

    def test_cp_keeps_them_too(self, mounted: Mounted, copies: Path) -> None:
        mounted.sh(f"cp -L --preserve=all '{PHOTO}' '{copies}/'")
        assert attributes(copies / "northern-tern.jpg") == attributes(mounted.point / PHOTO)

    def test_tar_keeps_them_of_directories_as_well(self, mounted: Mounted, tmp_path: Path) -> None:
        photo = (mounted.point / PHOTO).resolve()
        asset = photo.parent
        archive = tmp_path / "a.tar"
        mounted.sh(f"tar --xattrs -cf {archive} -C {asset.parent} {asset.name}", check=False)
        with tarfile.open(archive) as tar:
            kept = {member.name: member.pax_headers for member in tar}
        for path in (photo, asset):
            headers = kept[str(path.relative_to(asset.parent))]
            for name, value in attributes(path).items():
                assert headers[f"SCHILY.xattr.{name}"] == value.decode()


class TestSmallReadsOfBigFiles:
    SIZE = 96 * MiB

    @pytest.fixture
    def big(self, tmp_path: Path) -> Iterator[Mounted]:
        bulk = ["--bulk", "1", "--events", "1", "--attachments", "1", "--size", str(self.SIZE)]
        with (
            spawn_server([*bulk, "--token-file", str(tmp_path / "bulk-token")]) as server,
            run_mount(tmp_path, server=server) as mounted,
        ):
            yield mounted

    def test_pull_little_the_second_nothing_and_a_whole_read_the_rest(self, big: Mounted) -> None:
        path = big.sh("ls -d assets/*/events/*/*").stdout.strip()
        assert isinstance(big.server, DemoServer)
        big.server.reset()
        first = big.sh(f"head -c 1024 {path} | sha256sum").stdout
        ends = time.monotonic() + 30
        while big.status()["downloading"]:
            assert time.monotonic() < ends
        little = downloaded(big)
        # What it read, what is still taken once it has closed the file, and what was in between.
        assert little < self.SIZE / 4
        assert big.status()["cache"]["loose_bytes"] >= self.SIZE
        for _ in range(3):
            assert big.sh(f"head -c 1024 {path} | sha256sum").stdout == first
        assert downloaded(big) == little
        assert big.counts()["blob"] == 1
        whole = big.sh(f"sha256sum < {path}; getfattr --only-values -n user.hash.sha256 {path}").stdout
        computed, recorded = whole.split("  -\n")
        assert computed == recorded
        blobs = [entry for entry in big.server.requests()["log"] if entry[1].endswith(path)]
        assert [status for _, _, status in blobs] == [200, 206]
        assert downloaded(big) < self.SIZE + little
        assert [cached.name for cached in big.cached()] == [recorded]
