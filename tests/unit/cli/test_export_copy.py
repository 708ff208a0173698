"""Copying attachments into a bag, with ordinary directories in the mount's and the cache's place."""

import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from attachfs.archive import layout
from attachfs.archive.entries import Exported
from attachfs.archive.journal import TODO, Journal
from attachfs.cli import export
from attachfs.cli.export_copy import Copier, stamp_of
from attachfs.cli.export_scan import Scanner, Source
from attachfs.cli.verify_bag import is_bag
from attachfs.errors import NoSpace, Unexpected, UsageError
from tests.services.memory_source import info_body
from tests.unit.archive.bags import PHOTO, entry_of, sha256

DATA = os.urandom(300_000)


class World:
    def __init__(self, base: Path, data: bytes = DATA) -> None:
        self.point, self.bag, self.cache = base / "mnt", base / "bag", base / "cache"
        self.source = self.point / PHOTO.path
        self.cached = self.cache / "blobs" / "sha256" / sha256(DATA)[:2] / sha256(DATA)
        self.target = self.bag / layout.PAYLOAD / PHOTO.path
        for path in (self.source, self.cached):
            path.parent.mkdir(parents=True)
        (self.bag / "work" / "tmp").mkdir(parents=True)
        self.source.write_bytes(data)
        self.copier = Copier(Source.at(self.point), self.bag, self.bag / "work", self.cache)
        self.progress: list[int] = []

    def copy(self, entry: Exported | None = None) -> tuple[Exported, str]:
        found = entry or entry_of(PHOTO, DATA, sha256="", attested="")
        done = self.copier.copy(found, self.progress.append)
        assert list((self.bag / "work" / "tmp").iterdir()) == []
        return done

    def cache_holds(self, data: bytes) -> None:
        self.cached.write_bytes(data)
        try:
            os.setxattr(self.source, "user.attachfs.cached", b"yes")
        except OSError:
            pytest.skip("this filesystem keeps no extended attributes")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_the_bytes_come_with_their_time_and_hash(world: World) -> None:
    done, stamp = world.copy()
    assert world.target.read_bytes() == DATA
    assert (done.sha256, done.errno) == (sha256(DATA), "")
    assert stamp == stamp_of(world.target)
    assert world.target.stat().st_mtime == 1767225600  # when the ledger accepted it
    assert sum(world.progress) == len(DATA)


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: data + b"x", lambda data: data[::-1]]
)
def test_what_differs_is_refused_and_leaves_nothing(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    world = World(tmp_path, damage(DATA))
    done, stamp = world.copy()
    assert (done.errno, done.sha256, stamp) == ("EBADMSG", "", "")
    assert done.reason
    assert not world.target.exists()


def test_what_the_mount_refuses_keeps_its_errno(world: World) -> None:
    world.source.unlink()
    done, _ = world.copy()
    assert done.errno == "ENOENT"
    assert done.reason == "No such file or directory"


def test_without_a_recorded_hash_nothing_is_taken(world: World) -> None:
    done, _ = world.copy(entry_of(PHOTO, DATA, alg="", hex=""))
    assert done.errno == "EBADMSG"
    assert "no hash" in done.reason
    assert not world.target.exists()


def test_a_hash_of_another_kind_is_compared_and_sha256_is_for_the_manifest(world: World) -> None:
    import hashlib

    digest = hashlib.sha512(DATA).hexdigest()
    done, _ = world.copy(entry_of(PHOTO, DATA, alg="sha512", hex=digest, sha256=""))
    assert (done.hex, done.sha256, done.errno) == (digest, sha256(DATA), "")
    wrong, _ = world.copy(entry_of(PHOTO, DATA, alg="sha512", hex="0" * 128))
    assert wrong.errno == "EBADMSG"


def test_what_is_there_already_is_not_read_again(world: World) -> None:
    world.copy()
    world.source.unlink()
    done, _ = world.copy()
    assert done.errno == ""


def test_what_is_there_and_differs_is_replaced(world: World) -> None:
    world.target.parent.mkdir(parents=True)
    world.target.write_bytes(DATA[::-1])
    done, _ = world.copy()
    assert done.errno == ""
    assert world.target.read_bytes() == DATA


def test_bytes_are_shared_with_the_cache(world: World) -> None:
    world.cache_holds(DATA)
    os.truncate(world.source, 0)  # so that nothing can have been read from there
    done, _ = world.copy()
    assert done.errno == ""
    assert world.target.read_bytes() == DATA


@pytest.mark.parametrize("wrong", [DATA[::-1], DATA[:-1], b""])
def test_a_wrong_file_in_the_cache_is_not_taken(world: World, wrong: bytes) -> None:
    world.cache_holds(wrong)
    done, _ = world.copy()
    assert done.errno == ""
    assert world.target.read_bytes() == DATA


def test_a_link_in_the_caches_place_is_not_followed(world: World) -> None:
    world.cache_holds(DATA)
    world.cached.rename(world.cached.with_name("other"))
    world.cached.symlink_to("other")
    os.truncate(world.source, 0)
    assert world.copy()[0].errno == "EBADMSG"  # the mount was read, which is empty here


def test_a_full_disk_is_no_refusal(world: World) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(NoSpace, match="run it again to go on"):
            world.copy()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert not world.target.exists()
    assert list((world.bag / "work" / "tmp").iterdir()) == []
    assert world.copy()[0].errno == ""


def test_room_is_checked_before(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.add(entry_of(PHOTO, DATA, size=2**60, sha256=""))
        assert journal.count(TODO)[0] == 1
        with pytest.raises(UsageError, match="1024 PiB are still needed: make room"):
            export._check_space(journal, tmp_path)


def test_a_mount_that_has_gone_refuses_nothing(world: World, tmp_path: Path) -> None:
    """Unmounted or dead: its files must not be reported as absent or refused."""
    gone = Source(world.point, world.point.stat().st_dev + 1)
    world.source.unlink()
    entry = entry_of(PHOTO, DATA, sha256="")
    with pytest.raises(Unexpected, match="it was unmounted"):
        Copier(gone, world.bag, world.bag / "work", None).copy(entry, world.progress.append)
    with pytest.raises(Unexpected, match="run this again to go on"):
        Scanner(gone, world.bag, world.bag / "work").scan(PHOTO)
    with pytest.raises(Unexpected, match="No such file"):
        Source(tmp_path / "none", 1).check()


def test_a_bag_that_cannot_be_written_to_is_no_refusal_of_records_either(world: World) -> None:
    (world.bag / "records").touch()
    try:
        os.setxattr(world.source, "user.attachment.json", info_body(PHOTO, DATA))
        os.setxattr(world.source.parent, "user.asset.json", b"{}")
    except OSError:
        pytest.skip("this filesystem keeps no extended attributes")
    with pytest.raises(Unexpected, match=r"cannot be written to .*: once that is settled, run it again"):
        Scanner(Source.at(world.point), world.bag, world.bag / "work").scan(PHOTO)


def test_what_cannot_be_looked_at_is_no_bag(tmp_path: Path) -> None:
    assert not is_bag(tmp_path / "none")
    assert not is_bag(tmp_path / ("x" * 300))
    (tmp_path / "bagit.txt").touch()
    assert is_bag(tmp_path)
