"""Standard streams of every kind, unknown words, odd surroundings, an early Ctrl-C: in real processes."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def run(shell: str, **environ: str) -> subprocess.CompletedProcess[bytes]:
    """Run a line of bash in which `$A` is the program."""
    return subprocess.run(
        ["bash", "-c", shell],
        env={
            "A": f"{sys.executable} -m attachfs",
            "PYTHONPATH": str(ROOT),
            "PATH": os.environ["PATH"],
            "HOME": "/nonexistent",
            **environ,
        },
        capture_output=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize("command", ["--help", "mount --help", "config show", "--version", "status --json"])
def test_a_full_disk_is_told_in_a_sentence(command: str) -> None:
    done = run(f"$A {command} >/dev/full")
    if command.startswith("status") and not done.returncode:
        return  # no mounts are running: there is nothing to print
    assert done.returncode == 1
    assert b"standard output cannot be written: No space left on device" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["--help", "config show", "cache --help"])
def test_results_do_not_vanish_into_a_closed_output(command: str) -> None:
    done = run(f"$A {command} >&-")
    assert done.returncode == 1
    assert b"standard output cannot be written" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("closed", ["<&-", "2>&-", "<&- 2>&-", "2>/dev/full"])
def test_other_streams_may_be_closed(closed: str) -> None:
    done = run(f"$A config show {closed}")
    assert done.returncode == 0
    assert b"cache-size" in done.stdout
    assert run(f"$A nonsense {closed}").returncode == 2


def test_a_reader_that_leaves_ends_the_program_as_it_ends_others() -> None:
    # Until the reader has gone for sure, nothing is written.
    done = run("{ sleep 0.2; exec $A mount --help; } 2>err | exec true; echo ${PIPESTATUS[0]}; rm -f err")
    assert done.stdout.strip() == b"141"
    script = (
        "import os, subprocess, sys\n"
        "reading, writing = os.pipe(); os.close(reading)\n"
        "done = subprocess.run([sys.executable, '-m', 'attachfs', 'config', 'show'],"
        " stdout=writing, stderr=subprocess.PIPE)\n"
        "print(done.returncode, done.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == f"{-signal.SIGPIPE} b''".encode()


@pytest.mark.parametrize(
    "environ",
    [
        {"LC_ALL": "C"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1:strict"},
        {"PYTHONOPTIMIZE": "2"},
        {"PYTHONWARNINGS": "error"},
        {"PYTHONDEVMODE": "1"},
        {"COLUMNS": "0"},
        {"COLUMNS": "many", "LINES": "-3"},
        {"TERM": "no-such-terminal", "FORCE_COLOR": "1"},
        {"NO_COLOR": "1", "TERM": ""},
        {"TZ": "nowhere/at-all"},
        {"PYTHONUNBUFFERED": "1"},
    ],
)
@pytest.mark.parametrize("command", ["mount --help", "config show", "unmount /mnt"])
def test_every_surrounding_prints_the_same_without_a_traceback(environ: dict[str, str], command: str) -> None:
    done = run(f"$A {command}", **environ)
    assert done.returncode == (2 if command.startswith("unmount") else 0), done.stderr
    assert b"Traceback" not in done.stderr
    assert b"Warning" not in done.stderr


def test_an_unknown_command_is_told_with_the_nearest_one() -> None:
    for line, nearest in (
        ("unmount /mnt", "'umount'"),
        ("prefech /mnt/x", "'prefetch'"),
        ("cache sat", "'stat'"),
        ("pins lst", "'list'"),
    ):
        done = run(f"$A {line}")
        assert done.returncode == 2
        assert f"Did you mean {nearest}?".encode() in done.stderr, done.stderr
        assert b"profile" not in done.stderr
    done = run("$A xyzzy /mnt")
    assert b"No such command 'xyzzy'." in done.stderr
    assert b"mean" not in done.stderr


def test_mount_fuse_is_still_understood() -> None:
    done = run("$A nosuchprofile /mnt/nowhere -o ro,nosuid")
    assert b"there is no profile 'nosuchprofile'" in done.stderr


def test_help_is_laid_out_as_written() -> None:
    lines = run("$A --help").stdout.decode().splitlines()
    assert "  Try it without an account:   attachfs demo" in lines
    assert not any("\\b" in line for line in lines)


def test_ctrl_c_while_the_program_is_loaded_leaves_no_traceback() -> None:
    # From the moment its own first line runs: everything after that is imported under the eyes of Ctrl-C.
    code = (
        "import os, signal, sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'attachfs.cli': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "from attachfs import __main__ as program\n"
        "program.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, cwd=ROOT)
    assert done.returncode == -signal.SIGINT
    assert done.stderr == b""


def test_help_lists_each_command_that_there_is_and_loads_none() -> None:
    modules = {path.stem for path in (ROOT / "attachfs" / "cli").glob("*.py")}
    has_command = {
        name
        for name in modules
        if re.search(
            rf'^@click\.(?:command|group)\("{name}"',
            (ROOT / f"attachfs/cli/{name}.py").read_text(),
            re.MULTILINE,
        )
    }
    shown = run("$A --help").stdout.decode().partition("Commands:")[2]
    listed = re.findall(r"^  ([a-z]+)  ", shown, re.MULTILINE)
    assert set(listed) == has_command
    assert "..." not in shown
    code = (
        "import sys\nfrom attachfs.cli.main import main\ntry: main(['--help'])\nfinally: print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not {"trio", "httpx", "rich", "attachfs.cli.doctor"} & set(done.stdout.split())


@pytest.mark.parametrize("stream", [">/dev/full", ">&-"])
@pytest.mark.parametrize("word", ["--help", "--version"])
def test_the_mount_helper_tells_it_too(stream: str, word: str) -> None:
    code = "from attachfs import __main__ as it; it.mount_helper()"
    done = run(f'"{sys.executable}" -c "{code}" {word} {stream}')
    assert done.returncode == 1
    assert b"standard output cannot be written" in done.stderr
    assert b"Traceback" not in done.stderr
