"""scripts/install and scripts/uninstall, into a scratch directory, around a program that is there already."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """Return an attachfs as pipx would have put it in place: this checkout's."""
    folder = tmp_path / "pipx"
    folder.mkdir()
    for name, function in (("attachfs", "main"), ("mount.attachfs", "mount_helper")):
        script = folder / name
        code = f"import sys; from attachfs import __main__ as it; sys.argv[0] = '{name}'; it.{function}()"
        script.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -c "{code}" "$@"\n')
        script.chmod(0o755)
    return folder / "attachfs"


def script(name: str, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / "scripts" / name, *arguments],
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", **environ},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def files(base: Path) -> set[str]:
    return {str(path.relative_to(base)) for path in base.rglob("*") if not path.is_dir()}


COMMON = {
    "share/man/man1/attachfs.1",
    "share/man/man5/attachfs.toml.5",
    "share/man/man8/mount.attachfs.8",
    "share/bash-completion/completions/attachfs",
    "share/zsh/site-functions/_attachfs",
    "share/fish/vendor_completions.d/attachfs.fish",
    "share/attachfs/installed",
}


def test_install_for_a_user_can_be_repeated_and_undone(tmp_path: Path, program: Path) -> None:
    prefix = tmp_path / "prefix"
    for _ in range(2):
        done = script("install", "--user", "--program", str(program), PREFIX=str(prefix))
        assert done.returncode == 0, done.stderr
        assert "installed: attachfs " in done.stdout
    found = files(prefix)
    assert found >= COMMON | {"share/systemd/user/attachfs@.service"}
    assert not any("sbin" in name for name in found)
    unit = (prefix / "share/systemd/user/attachfs@.service").read_text()
    assert f"\nExecStart={program} mount --foreground --profile=%i %h/ledger/%i\n" in unit
    assert "_ATTACHFS_COMPLETE" in (prefix / "share/bash-completion/completions/attachfs").read_text()
    listed = (prefix / "share/attachfs/installed").read_text().splitlines()
    assert len(listed) == len(set(listed)) == len(found) - 1
    (prefix / "share/man/man1/other.1").write_text("")
    done = script("uninstall", "--user", PREFIX=str(prefix))
    assert (done.returncode, done.stderr) == (0, "")
    assert files(prefix) == {"share/man/man1/other.1"}
    assert program.exists()
    assert script("uninstall", "--user", PREFIX=str(prefix)).returncode == 0


def test_install_for_the_system_is_staged_with_the_mount_helper(tmp_path: Path, program: Path) -> None:
    stage = tmp_path / "stage"
    environ = {"DESTDIR": str(stage), "PREFIX": "/usr"}
    for _ in range(2):
        done = script("install", "--system", "--program", str(program), **environ)
        assert done.returncode == 0, done.stderr
    for name in ("mount.attachfs", "mount.fuse.attachfs"):
        assert (stage / "sbin" / name).readlink() == program.parent / "mount.attachfs"
    assert {f"usr/{name}" for name in COMMON} <= files(stage)
    for kind in ("user", "system"):
        unit = (stage / f"usr/lib/systemd/{kind}/attachfs@.service").read_text()
        assert f"\nExecStart={program} mount --foreground" in unit
    assert script("uninstall", "--system", **environ).returncode == 0
    assert files(stage) == set()


def test_a_helper_of_somebody_elses_is_left_alone(tmp_path: Path, program: Path) -> None:
    stage = tmp_path / "stage"
    (stage / "sbin").mkdir(parents=True)
    (stage / "sbin/mount.attachfs").write_text("mine")
    environ = {"DESTDIR": str(stage), "PREFIX": "/usr"}
    done = script("install", "--system", "--program", str(program), **environ)
    assert done.returncode == 2
    assert "is not ours" in done.stderr
    assert script("uninstall", "--system", **environ).returncode == 0
    assert files(stage) == {"sbin/mount.attachfs"}


@pytest.mark.parametrize("arguments", [["--frob"], ["--program"], ["--program", "no-such-program"]])
def test_install_refuses_arguments_it_cannot_use(arguments: list[str]) -> None:
    assert script("install", *arguments, PREFIX="/nonexistent").returncode == 2


def test_the_installed_completions_complete_commands(tmp_path: Path, program: Path) -> None:
    script("install", "--user", "--program", str(program), PREFIX=str(tmp_path / "p"))
    completions = tmp_path / "p/share/bash-completion/completions/attachfs"
    done = subprocess.run(
        [
            "bash",
            "-c",
            (
                f"source {completions}; COMP_WORDS=(attachfs um); COMP_CWORD=1; "
                '_attachfs_completion attachfs um attachfs; echo "${COMPREPLY[@]}"'
            ),
        ],
        env={"PATH": f"{program.parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "umount\n", done.stderr
