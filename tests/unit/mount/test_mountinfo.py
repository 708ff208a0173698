"""What is mounted where, and which places cannot be mounted on."""

import os
from pathlib import Path

import pytest

from attachfs.errors import UsageError
from attachfs.mount import mountinfo as mount_mountinfo
from attachfs.mount import probe, unmount
from attachfs.mount.mountinfo import (
    Mount,
    check_mountpoint,
    mount_above,
    mount_at,
    real_path,
)
from attachfs.mount.probe import State

MOUNTINFO = """\
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
22 21 0:20 / /proc rw,nosuid - proc proc rw
40 21 0:50 / /mnt/a\\040b rw shared:7 master:1 - fuse.attachfs https://a/x\\040y ro,user_id=1000,group_id=7
41 21 0:51 / /mnt/tab\\011new\\012back\\134slash rw - tmpfs none rw
42 21 0:52 /sub /mnt rw propagate_from:2 - fuse.sshfs host:/x rw
43 21 0:53 / /mnt rw - fuse.attachfs https://b.example rw
44 21 0:54 / /ünï rw - tmpfs  rw
"""


@pytest.fixture
def mountinfo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_bytes", lambda *_, **__: MOUNTINFO.encode())


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("plain", "plain"),
        ("a\\040b", "a b"),
        ("\\011\\012\\134\\043", "\t\n\\#"),
        ("\\134040", "\\040"),
        ("\\04", "\\04"),
        ("\\999", "\\999"),
        ("trailing\\", "trailing\\"),
        ("", ""),
    ],
)
def test_octal_escapes_are_undone_once(text: str, plain: str) -> None:
    assert mount_mountinfo._unescape(text) == plain


@pytest.mark.usefixtures("mountinfo")
class TestMountinfo:
    def test_every_line_is_a_mount(self) -> None:
        assert [mount[:4] for mount in mount_mountinfo.mounts()] == [
            (Path("/"), "ext4", "/dev/sda1", 1),
            (Path("/proc"), "proc", "proc", 20),
            (Path("/mnt/a b"), "fuse.attachfs", "https://a/x y", 50),
            (Path("/mnt/tab\tnew\nback\\slash"), "tmpfs", "none", 51),
            (Path("/mnt"), "fuse.sshfs", "host:/x", 52),
            (Path("/mnt"), "fuse.attachfs", "https://b.example", 53),
            (Path("/ünï"), "tmpfs", "", 54),
        ]

    def test_the_device_the_mounts_number_and_who_mounted(self) -> None:
        found = [(m.device_major, m.mount_id, m.user_id) for m in mount_mountinfo.mounts()]
        assert found[:3] == [(8, 21, None), (0, 22, None), (0, 40, 1000)]

    def test_ours_are_known_by_their_type(self) -> None:
        assert [mount.device_minor for mount in mount_mountinfo.mounts() if mount.is_ours] == [50, 53]

    def test_the_uppermost_of_two_is_found(self) -> None:
        found = mount_at(Path("/mnt"))
        assert found is not None
        assert found.source == "https://b.example"

    def test_only_the_mount_of_exactly_that_directory_is_found(self) -> None:
        assert mount_at(Path("/mnt/a")) is None
        assert mount_at(Path("/mnt/a b/below")) is None

    def test_the_innermost_mount_above_a_path(self) -> None:
        for path, minor in {"/mnt/a b/assets/x": 50, "/mnt/x": 53, "/mnt/a bc": 53, "/x": 1, "/": 1}.items():
            found = mount_above(Path(path))
            assert found is not None
            assert found.device_minor == minor


class TestLive:
    def test_the_systems_own_mounts_are_read(self) -> None:
        table = Path("/proc/self/mountinfo")
        before = b""
        while before != table.read_bytes():  # until nobody has mounted anything meanwhile
            before = table.read_bytes()
            found = mount_mountinfo.mounts()
        assert len(found) == len(before.splitlines())
        assert all(mount.point.is_absolute() and mount.fstype for mount in found)
        root = mount_at(Path("/"))
        assert root is not None
        assert root in found
        proc = mount_above(Path("/proc/self/status"))
        assert proc is not None
        assert proc.fstype == "proc"

    def test_a_directory_that_is_no_mount(self, tmp_path: Path) -> None:
        assert mount_at(tmp_path) is None

    def test_symlinks_above_the_last_component_are_followed(self, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to("real")
        assert real_path(tmp_path / "link" / "x") == tmp_path.resolve() / "real" / "x"
        assert real_path(Path("/")) == Path("/")


class TestMountpoint:
    def test_a_directory_of_ones_own(self, tmp_path: Path) -> None:
        point = tmp_path / "mnt"
        point.mkdir()
        check_mountpoint(point, {"the cache": tmp_path / "cache", "the log file": None})

    def test_a_missing_mount_point_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="mkdir"):
            check_mountpoint(tmp_path / "mnt", {})

    def test_a_file_as_mount_point_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "mnt").write_text("x")
        with pytest.raises(UsageError, match="not a directory"):
            check_mountpoint(tmp_path / "mnt", {})

    @pytest.mark.parametrize("below", ["mnt", "mnt/cache", "mnt/x/../cache", "link/cache"])
    def test_what_the_daemon_needs_must_not_lie_below(self, tmp_path: Path, below: str) -> None:
        (tmp_path / "mnt").mkdir()
        (tmp_path / "link").symlink_to("mnt")
        with pytest.raises(UsageError, match=r"the cache .* is below the mount point"):
            check_mountpoint(tmp_path / "mnt", {"the cache": tmp_path / below})

    def test_a_name_that_only_begins_the_same_is_not_below(self, tmp_path: Path) -> None:
        (tmp_path / "mnt").mkdir()
        check_mountpoint(tmp_path / "mnt", {"the cache": tmp_path / "mnt2"})

    def test_mounting_over_a_mount_of_ours_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        there = Mount(tmp_path.resolve(), "fuse.attachfs", "https://a.example", 1)
        monkeypatch.setattr(mount_mountinfo, "mounts", lambda: [there])
        with pytest.raises(UsageError, match="mounted already"):
            check_mountpoint(tmp_path, {})
        for state, words in (
            (State.DEAD, "dead mount"),
            (State.HUNG, "does not answer; first: attachfs umount --lazy"),
        ):
            monkeypatch.setattr(probe, "probe", lambda _, state=state: (state, b""))
            with pytest.raises(UsageError, match=words):
                check_mountpoint(tmp_path, {})

    def test_unmounting_what_is_none_of_ours(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="not an attachfs mount"):
            unmount.unmount(tmp_path)

    @pytest.mark.skipif(os.getuid() == 0, reason="root may mount anywhere")
    def test_somebody_elses_directory_as_mount_point_is_refused(self) -> None:
        with pytest.raises(UsageError, match="not yours"):
            check_mountpoint(Path("/usr"), {})
