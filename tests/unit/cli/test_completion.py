"""What the Tab key offers, asked of the real shells; bash and zsh complete on a terminal only."""

import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

from attachfs.cli.main import main as program
from attachfs.mount import mountinfo
from attachfs.mount.mountinfo import Mount

ROOT = Path(__file__).parents[3]
SETUP = {
    "bash": "bind 'set show-all-if-ambiguous on'; bind 'set enable-bracketed-paste off'; PS1='> '",
    "zsh": "PS1='> '; autoload -U compinit; compinit -u -D; setopt autolist noautomenu nolistbeep",
}
START = {"bash": ["bash", "--norc", "--noprofile", "-i"], "zsh": ["zsh", "-f", "-i"]}
PATIENCE = 60  # seconds, on a machine that does something else too


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with each shell's completion as the program gives it, once for all tests."""
    folder = tmp_path_factory.mktemp("sources")
    for shell in ("bash", "zsh", "fish"):
        done = subprocess.run(
            [sys.executable, "-m", "attachfs"],
            env={
                "_ATTACHFS_COMPLETE": f"{shell}_source",
                "PATH": os.environ["PATH"],
                "PYTHONPATH": str(ROOT),
            },
            capture_output=True,
            check=True,
            timeout=PATIENCE,
        )
        (folder / shell).write_bytes(done.stdout)
    return folder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    program = tmp_path / "bin" / "attachfs"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m attachfs "$@"\n')
    program.chmod(0o755)
    config = tmp_path / ".config" / "attachfs" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text('[profile.workshop]\nurl = "https://a.example"\n[profile.home]\n')
    (tmp_path / "token-of-mine.txt").touch()
    (tmp_path / "cellar").mkdir()
    return tmp_path


def environ(home: Path) -> dict[str, str]:
    return {
        "HOME": str(home),
        "PATH": f"{home / 'bin'}:{os.environ['PATH']}",
        "TERM": "xterm",
        "LC_ALL": "C.UTF-8",
    }


def offered_on_a_terminal(shell: str, source: Path, home: Path, line: str, expected: str) -> bool:
    """Type a line and Tab twice; return whether `expected` appears."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(home)
        os.execvpe(START[shell][0], START[shell], environ(home))
    seen = ""
    try:

        def wait_for(text: str) -> bool:
            nonlocal seen
            until = time.monotonic() + PATIENCE
            while text not in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|[\r\x07]", "", seen):
                if not select.select([terminal], [], [], max(0, until - time.monotonic()))[0]:
                    return False
                try:
                    seen += os.read(terminal, 65536).decode("utf-8", "replace")
                except OSError:
                    return False
            seen = ""
            return True

        ready = f'{SETUP[shell]}; . {source}; echo read""y\n'
        os.write(terminal, ready.encode())
        assert wait_for("ready\n"), seen
        os.write(terminal, f"{line}\t\t".encode())
        return wait_for(expected)
    finally:
        os.close(terminal)
        os.waitpid(pid, 0)


OFFERS = [
    ("attachfs prefe", "prefetch"),
    ("attachfs mount --verify str", "strict"),
    ("attachfs mount --scan-policy block", "block-bad"),
    ("attachfs mount --profile work", "workshop"),
    ("attachfs mount --token-file tok", "token-of-mine.txt"),
    ("attachfs mount --cache-dir cel", "cellar"),
    ("attachfs mount cel", "cellar"),
    ("attachfs cache ev", "evict"),
]


@pytest.mark.parametrize(("line", "expected"), OFFERS)
def test_fish_completes_commands_and_options(sources: Path, home: Path, line: str, expected: str) -> None:
    done = subprocess.run(
        ["fish", "--no-config", "-c", f'source {sources / "fish"}; complete -C "$argv"', line],
        env=environ(home),
        cwd=home,
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    )
    assert expected in done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh"])
@pytest.mark.parametrize(("line", "expected"), OFFERS)
def test_bash_and_zsh_complete_commands_and_options(
    sources: Path, home: Path, shell: str, line: str, expected: str
) -> None:
    rest = expected[len(line.rpartition(" ")[2]) :]
    assert offered_on_a_terminal(shell, sources / shell, home, line, rest)


def test_the_variable_alone_is_told() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "attachfs"],
        env={"_ATTACHFS_COMPLETE": "bash_complete", "HOME": "/"},
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 2
    assert "is for shells" in done.stderr
    assert "Traceback" not in done.stderr


def test_mount_points_are_offered_where_one_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = [
        Mount(Path("/srv/ledger"), "fuse.attachfs", "https://a.example", 1),
        Mount(Path("/proc"), "proc", "proc", 2),
    ]
    monkeypatch.setattr(mountinfo, "mounts", lambda: mounts)
    for name in ("umount", "status", "logs"):
        command = program.get_command(click.Context(program), name)
        assert command is not None
        context = click.Context(command)
        [parameter] = [one for one in command.params if isinstance(one, click.Argument)]
        assert [one.value for one in parameter.shell_complete(context, "")] == ["/srv/ledger"]
        assert [one.type for one in parameter.shell_complete(context, "some")] == ["file"]


def test_mounting_loads_nothing_that_it_does_not_need() -> None:
    code = (
        "import sys, attachfs.__main__, attachfs.cli.main, attachfs.cli.mount, attachfs.mount.serve\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = set(done.stdout.split())
    assert not loaded & {
        "rich",
        "pygments",
        "PIL",
        "starlette",
        "hypercorn",
        "cryptography",
        "asyncio",
        "unittest",
    }
