"""Who uses a mount, told in words; asking without being hung."""

import os
import subprocess
from pathlib import Path

import pytest

from attachfs.mount import unmount
from attachfs.mount.mountinfo import Mount, mount_above
from attachfs.mount.probe import State, probe
from attachfs.mount.unmount import User, users, who


def test_a_process_is_named_with_what_it_uses(tmp_path: Path) -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, cwd=tmp_path) as holder:
        found = users(Mount(tmp_path.resolve(), "x", "y", 1, mount_id=-1))
        assert found == [User(holder.pid, "cat", "its working directory")]
        assert who(found) == f"used by cat (pid {holder.pid}, its working directory)"
        assert holder.stdin is not None
        holder.stdin.close()


def test_open_and_mapped_files_by_the_mounts_number(tmp_path: Path) -> None:
    there = mount_above(tmp_path)
    assert there is not None
    file = tmp_path / "open\n"
    with file.open("w") as stdin, subprocess.Popen(["sleep", "100"], stdin=stdin, cwd="/proc") as holder:
        process = Path("/proc", str(holder.pid))
        elsewhere = there._replace(point=Path("/nowhere"))
        assert list(unmount._uses(process, elsewhere))[:1] == [rf"open: {tmp_path}/open\n"]
        holder.kill()


def test_many_are_summed_up() -> None:
    assert who([]) == ""
    assert who([User(n, "a", "b") for n in range(7)]).endswith("a (pid 4, b) and 2 more")


def test_a_directory_that_is_no_mount_answers_without_a_status(tmp_path: Path) -> None:
    assert probe(tmp_path) == (State.ALIVE, b"")
    assert probe(tmp_path / "missing") == (State.ALIVE, b"")
    assert unmount._watch(b"") is None
    watch = unmount._watch(b'{"pid": %d}' % os.getpid())
    assert watch is not None
    os.close(watch)


@pytest.mark.parametrize("said", ["", "fusermount3: failed to open /etc/mtab: No such file or directory"])
def test_what_mountinfo_says_decides_whether_it_is_unmounted(
    monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    there = Mount(Path("/mnt"), "fuse.attachfs", "x", 1, mount_id=7)
    monkeypatch.setattr(unmount, "_run_umount", lambda *_, **__: said)
    monkeypatch.setattr(unmount, "mounts", lambda: [there])
    reason = unmount._detach(there, lazy=False)
    assert (
        reason.startswith(said)
        if Path("/etc/mtab").exists()
        else "ln -s /proc/self/mounts /etc/mtab" in reason
    )
    assert reason
    monkeypatch.setattr(unmount, "mounts", list)
    assert unmount._detach(there, lazy=False) == ""


def test_a_mount_elsewhere_that_got_the_number_of_an_ended_one_is_not_taken_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended = Mount(Path("/mnt"), "fuse.attachfs", "x", 1, mount_id=7)
    monkeypatch.setattr(unmount, "_run_umount", lambda *_, **__: "")
    monkeypatch.setattr(unmount, "mounts", lambda: [ended._replace(point=Path("/elsewhere"))])
    assert unmount._detach(ended, lazy=False) == ""
