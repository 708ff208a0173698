"""What the documentation shows is what happens: the tour, the README's output, the manual pages' examples."""

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import pytest

from attachfs.cli import tour
from attachfs.cli.main import main as program
from attachfs.config import settings
from attachfs.demo.spawn import DemoServer
from tests.mount.conftest import ENDS_WITHIN, Mount
from tests.mount.oracle import directories_and_files

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
STEP = re.compile(r"^  # \d+\. (?P<what>.*)\n  (?P<command>.*)$", re.MULTILINE)


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


def demo_blocks() -> list[tuple[str, str]]:
    """Return what pages show of the demo ledger: each command, and what it is said to print."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for block in re.findall(r"^```console demo\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
                command, _, printed = part.partition("\n")
                found.append((command, printed))
    return found


def matches(printed: str, real: str) -> bool:
    """Whether a page shows what was printed: "…" is anything, also whole lines; columns may be narrower."""
    pattern = re.escape(re.sub(r"[ \t]+", " ", printed.strip())).replace("…", ".*").replace("\\ ", r"\s+")
    return re.fullmatch(pattern, real.strip(), re.DOTALL) is not None


def test_the_tour_shows_what_it_says_also_the_second_time(tmp_path: Path) -> None:
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
            printed = STEP.findall(shown)
            planned = tour.steps("attachfs")
            variables = re.findall("^  (L=.* K=.*)$", shown, re.MULTILINE)
            assert printed == [(step.what, step.command) for step in planned]
            for _ in range(2):
                for step in planned:
                    done = bash(f"{variables[0]}; {step.command}", environ, tmp_path)
                    assert done.returncode == step.status, (step, done.stdout, done.stderr)
                    if "Bad message" in step.what:
                        assert "Bad message" in done.stderr
                        assert done.stdout == ""
                    elif "both hashes" in step.what:
                        assert len(set(re.findall(r"\b[0-9a-f]{64}\b", done.stdout))) >= 2
                    elif "leaf differs" in step.what:
                        assert done.stdout.count("leaf differs") == 1
                    elif "differs" in step.what:
                        assert done.stdout.count("DIFFERS") == 1
                    elif "sha256sum" in step.what:
                        assert done.stdout.count(": OK") >= 3
                    else:
                        assert done.stdout or "fetched" in done.stderr
        finally:
            demo.send_signal(signal.SIGINT)
            assert demo.wait(ENDS_WITHIN) == 0
            demo.stdout.close()
    assert list(point.iterdir()) == []


def test_the_guided_tour_goes_through_and_cleans_up(tmp_path: Path) -> None:
    point = tmp_path / "ledger"
    point.mkdir()
    with program_on_path(tmp_path) as environ:
        done = bash(f"attachfs demo --tour {point} </dev/null", environ, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "instead of" not in done.stderr
    assert done.stdout.count("\n$ ") == len(tour.steps("attachfs"))
    assert list(point.iterdir()) == []


def test_pages_show_what_the_demo_ledger_prints(mount: Mount, tmp_path: Path) -> None:
    blocks = demo_blocks()
    assert len(blocks) >= 3
    with mount() as mounted, program_on_path(tmp_path) as environ:
        for command, printed in blocks:
            done = bash(f"L={mounted.point}; {command}", environ, tmp_path)
            assert matches(printed, done.stdout + done.stderr), (command, done.stdout, done.stderr)


def test_commands_in_pages_exist_with_these_options() -> None:
    lines = [
        line
        for page in PAGES
        for block in re.findall(
            r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
        )
        for line in block.splitlines()
    ]
    lines += [
        one
        for page in PAGES
        for one in re.findall(r"`(attachfs [a-z][^`\n]*)`", page.read_text(encoding="utf-8"))
    ]
    lines += [
        one
        for page in PAGES
        for one in re.findall(
            r"^    (attachfs [a-z].*?)(?:  .*)?$", page.read_text(encoding="utf-8"), re.MULTILINE
        )
    ]
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("attachfs ")]
    assert len(commands) >= 40
    for words in commands:
        context = program.make_context("attachfs", [*words], resilient_parsing=True)
        name, command, rest = program.resolve_command(context, list(words))
        assert command is not None, words
        while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
            name, command, rest = command.resolve_command(click.Context(command), rest)
            assert command is not None, words
        known = {flag for parameter in command.params for flag in parameter.opts} | {"--help"}
        assert {word.partition("=")[0] for word in rest if word.startswith("--")} <= known, (name, words)


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
                if command == "attachfs login":
                    command = f'printf %s "$TOKEN" | {command}'  # noqa: PLW2901 - what the user types there
                ran = bash(f"set -o pipefail; {command.replace(EXAMPLE, good)}", environ, tmp_path)
                # The doctor looks at the whole machine, and somebody else's dead mount is a finding.
                fine = (0, 1) if command == "attachfs doctor" else (0,)
                assert ran.returncode in fine, (command, ran.stdout, ran.stderr)
                done.append(command)
        finally:
            bash("mountpoint -q ~/ledger && attachfs umount --lazy ~/ledger", environ, tmp_path)
    assert any("sha256sum -c" in command for command in done)


def test_evidence_is_taken_home_as_the_readme_shows(mount: Mount, tmp_path: Path) -> None:
    lines = re.findall(
        r"^    (attachfs (?:export|verify|prove|mount --archive) .*?)(?:  +#.*)?$", README, re.MULTILINE
    )
    # One file of the container differs from its record, and DataTrails did not seal the demo's log.
    statuses = {"export": 1, "verify": 0, "prove": 3, "mount": 0}
    assert [line.split()[1] for line in lines] == list(statuses)
    with mount() as mounted, program_on_path(tmp_path) as environ:
        home = Path(environ["HOME"])
        (home / "ledger").symlink_to(mounted.point)
        (home / "box").mkdir()
        try:
            for line in lines:
                done = bash(line, environ, home)
                assert done.returncode == statuses[line.split()[1]], (line, done.stdout, done.stderr)
            done = bash(
                "ls ~/box/by-name && cd box-3 && sha256sum --quiet -c manifest-sha256.txt", environ, home
            )
            assert (done.returncode, done.stdout) == (0, "Container ATFU 284417 3\n")
        finally:
            bash("attachfs umount ~/box", environ, home)


def write_configuration(base: Path, text: str) -> Path:
    """Write the configuration of the user whose home `program_on_path` makes; return its file."""
    file = base / "home" / ".config" / "attachfs" / "config.toml"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    return file


def test_the_readmes_profile_is_understood(tmp_path: Path) -> None:
    [example] = re.findall(r"^```toml\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    with program_on_path(tmp_path) as environ:
        write_configuration(tmp_path, example)
        shown = bash("attachfs config show --profile work", environ, tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert re.search(r"^cache-size +20 ?G.* .*config.toml:3", shown.stdout, re.MULTILINE), shown.stdout


def test_the_manuals_configuration_and_fstab_lines_are_understood(tmp_path: Path) -> None:
    text = (ROOT / "man" / "attachfs.toml.5").read_text(encoding="utf-8").split(".Sh EXAMPLES")[1]
    example = re.findall(r"^\.Bd.*?\n(.*?)^\.Ed", text, re.MULTILINE | re.DOTALL)[0]
    with program_on_path(tmp_path) as environ:
        file = write_configuration(tmp_path, example)
        shown = bash("attachfs config show --profile demo", environ, tmp_path)
        assert shown.returncode == 0, shown.stderr
        assert "http://127.0.0.1:8000" in shown.stdout
        fleet = (ROOT / "docs" / "fleet.md").read_text(encoding="utf-8")
        file.write_text("\n".join(re.findall(r"^    (shared-cache.* = .*)$", fleet, re.MULTILINE)))
        shown = bash("attachfs config show", environ, tmp_path)
        assert shown.returncode == 0, shown.stderr
        assert "s3://evidence-cache/ledger" in shown.stdout
    fstab = (ROOT / "man" / "mount.attachfs.8").read_text(encoding="utf-8").replace("\\e\n", "")
    lines = re.findall(r"^\S+ \S+ attachfs (\S+) 0 0$", fstab + "\n" + README, re.MULTILINE)
    assert len(lines) >= 3
    for words in lines:
        assert set(settings.parse_o_words(words)) <= {"allow_other"}


@pytest.mark.parametrize("picture", re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README))
def test_the_readmes_pictures_are_there(picture: str) -> None:
    assert (ROOT / picture).stat().st_size > 1000
