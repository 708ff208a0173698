"""What the documentation shows is what happens: the tour, the README's output, the manual pages' examples."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from attachfs.config import settings
from attachfs.demo.spawn import DemoServer
from tests.mount.conftest import ENDS_WITHIN, Mount
from tests.mount.oracle import directories_and_files

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
STEP = re.compile(r"^  # \d+\. (?P<what>.*)\n  (?P<command>.*)$", re.MULTILINE)
UUID = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"


@contextmanager
def program_on_path(directory: Path) -> Iterator[dict[str, str]]:
    """Have `attachfs` be this very program, in an environment with a home of its own."""
    program = directory / "bin" / "attachfs"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m attachfs "$@"\n')
    program.chmod(0o755)
    home = directory / "home"
    home.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "ATTACHFS_"))}
    yield {
        **kept,
        "HOME": str(home),
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }


def bash(command: str, environ: dict[str, str], where: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", command],
        env=environ,
        cwd=where,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=120,
        check=False,
    )


def consoles() -> list[str]:
    """Return the README's blocks that show a terminal."""
    return re.findall(r"^```console\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_every_step_of_the_tour_shows_what_it_says(tmp_path: Path) -> None:
    point = tmp_path / "ledger"
    point.mkdir()
    with program_on_path(tmp_path) as environ:
        demo = subprocess.Popen(
            ["attachfs", "demo", str(point)],
            env={**environ, "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert demo.stdout is not None
        shown = ""
        for line in demo.stdout:
            shown += line
            if line.startswith("Ctrl-C here"):
                break
        try:
            steps = STEP.findall(shown)
            assert len(steps) >= 10
            for what, command in steps:
                local = command.replace("/tmp/", f"{tmp_path}/copied-")
                done = bash(f"L={point}; {local}", environ, tmp_path)
                refusal = re.search("Bad message|Operation not permitted", what)
                if refusal is not None:
                    assert refusal[0] in done.stderr, what
                elif "are named" in what:
                    assert done.returncode == 1
                    assert "Bad message" in done.stderr
                elif "take home" in what:
                    assert done.returncode == 1
                    assert "EBADMSG" in done.stderr
                    assert (tmp_path / "copied-bag" / "report.html").exists()
                else:
                    assert done.returncode == 0, (what, done.stderr)
                    assert done.stdout or "copied" in what
        finally:
            bash(f"attachfs umount {tmp_path}/copied-home", environ, tmp_path)
            demo.send_signal(signal.SIGINT)
            assert demo.wait(ENDS_WITHIN) == 0
            demo.stdout.close()
    assert list(point.iterdir()) == []


def test_the_readme_shows_the_tour_as_it_is(ledger: DemoServer) -> None:
    block = next(block for block in consoles() if block.startswith("$ scripts/demo"))
    container = "/".join(ledger.story["photo"].split("/")[:2])
    from attachfs.demo import tour

    source = Path(tour.__file__).read_text(encoding="utf-8")
    for what, command in STEP.findall(block):
        assert what in source
        assert command in ("ls $L/assets", f"ls -lR $L/{container}")


def test_the_readme_shows_true_sizes_times_attributes_and_names(mount: Mount) -> None:
    text = "".join(consoles())
    with mount() as mounted:
        listing = mounted.sh("LC_ALL=C TZ=UTC ls -lR assets", check=False).stdout
        for size, when, name in re.findall(
            rf"^-r--r--r-- 1 ann ann +(\d+) (.*) ({UUID})$", text, re.MULTILINE
        ):
            assert re.search(rf" +{size} {re.escape(when)} {name}$", listing, re.MULTILINE), name
        attributes = re.findall(r'^(user\.[a-z_.]+)="(.*)"$', text, re.MULTILINE)
        assert attributes
        [path] = re.findall(rf"^\$ getfattr -d \S*/({UUID})$", text, re.MULTILINE)
        [file] = mounted.sh(f"find assets -name {path}").stdout.split("\n")[:1]
        for name, value in attributes:
            assert os.getxattr(mounted.point / file, name).decode() == value
        tampered = re.findall(rf"^\$ cat \S*/({UUID})$", text, re.MULTILINE)
        refused = mounted.sh(f"cat $(find assets -name {tampered[0]})", check=False)
        assert refused.stderr.endswith("Bad message\n")
        names = mounted.sh('ls -R by-name/"MV Northern Tern"').stdout
        for name in re.findall(r"'(\d{4}-\d\d-\d\d \d{4} \w+)'", text):
            assert name in names


EXAMPLE = "0b1c2d3e-4f50-4617-8293-a4b5c6d7e8f9"


def commands_of(text: str) -> list[str]:
    """Return the commands of a block, continued lines joined, comments left out."""
    text = text.replace("\\e\n", "").replace("\\\n", "")
    return [re.sub(r"\s{2,}#.*", "", line[2:]) for line in text.splitlines() if line.startswith("$ ")]


def test_the_readmes_and_the_manuals_commands_work_in_a_new_home(ledger: DemoServer, tmp_path: Path) -> None:
    _, files = directories_and_files(ledger)
    assets = {path.split("/")[1] for path in files}
    good = next(
        asset
        for asset in sorted(assets)
        if all(one.good for path, one in files.items() if path.split("/")[1] == asset)
    )
    manual = (ROOT / "man" / "attachfs.1").read_text(encoding="utf-8").split(".Sh EXAMPLES")[1]
    first, second = re.findall(r"^\.Bd.*?\n(.*?)^\.Ed", manual, re.MULTILINE | re.DOTALL)
    own = next(block for block in consoles() if "attachfs mount ~/ledger" in block)
    assert ledger.token_file is not None
    with program_on_path(tmp_path) as environ:
        environ["DATATRAILS_URL"] = ledger.url
        environ["TOKEN"] = ledger.token_file.read_text()
        unmount = commands_of(first)[-1]
        assert unmount == "attachfs umount ~/ledger"
        done: list[str] = []
        installing = ("sudo", "scripts/install")
        own_commands = [one for one in commands_of(own) if not one.startswith(installing)]
        try:
            for command in [*own_commands, *commands_of(first)[:-1], *commands_of(second), unmount]:
                if command == "mkdir ~/ledger" and command.replace("mkdir", "mkdir -p") in done:
                    continue
                if "/dev/stdin" in command:
                    command = f'printf %s "$TOKEN" | {command}'  # noqa: PLW2901 - what the user types there
                ran = bash(f"set -o pipefail; {command.replace(EXAMPLE, good)}", environ, tmp_path)
                # The doctor looks at the whole machine, and somebody else's dead mount is a finding.
                fine = (0, 1) if command == "attachfs doctor" else (0,)
                assert ran.returncode in fine, (command, ran.stdout, ran.stderr)
                done.append(command)
        finally:
            bash("mountpoint -q ~/ledger && attachfs umount --lazy ~/ledger", environ, tmp_path)
    assert any("sha256sum -c" in command for command in done)


def test_the_manuals_configuration_and_fstab_lines_are_understood(tmp_path: Path) -> None:
    text = (ROOT / "man" / "attachfs.toml.5").read_text(encoding="utf-8").split(".Sh EXAMPLES")[1]
    example = re.findall(r"^\.Bd.*?\n(.*?)^\.Ed", text, re.MULTILINE | re.DOTALL)[0]
    with program_on_path(tmp_path) as environ:
        file = tmp_path / "home" / ".config" / "attachfs" / "config.toml"
        file.parent.mkdir(parents=True)
        file.write_text(example)
        shown = bash("attachfs config show --profile demo", environ, tmp_path)
        assert shown.returncode == 0, shown.stderr
        assert "http://127.0.0.1:8000" in shown.stdout
    fstab = (ROOT / "man" / "mount.attachfs.8").read_text(encoding="utf-8").replace("\\e\n", "")
    lines = re.findall(r"^\S+ \S+ attachfs (\S+) 0 0$", fstab + "\n" + README, re.MULTILINE)
    assert len(lines) >= 4
    for words in lines:
        assert set(settings.parse_o_words(words)) <= {"allow_other"}


@pytest.mark.parametrize("picture", re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README))
def test_the_readmes_pictures_are_there(picture: str) -> None:
    assert (ROOT / picture).stat().st_size > 1000
