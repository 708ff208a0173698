"""The manual pages name every option, and no other; the units that are shipped can be read by systemd."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from attachfs.cli import main as cli_main
from attachfs.cli import mount_helper
from attachfs.config.options import FILE_KEYS, OPTIONS
from attachfs.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "man").glob("*.[1-8]"))
UNITS = sorted((ROOT / "attachfs" / "data" / "systemd").glob("*/*.service"))


def page(name: str) -> str:
    return (ROOT / "man" / name).read_text(encoding="utf-8")


def commands(group: click.Group, above: str = "") -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, f"{above}{name} ")
        else:
            yield f"{above}{name}", command


def options() -> dict[str, set[str]]:
    """Return each command's options, as typed."""
    return {
        name: {
            word
            for parameter in command.params
            if isinstance(parameter, click.Option)
            for word in [*parameter.opts, *parameter.secondary_opts]
        }
        for name, command in commands(cli_main.main)
    }


def flags(text: str) -> set[str]:
    """Return the options that a page names: the words after each Fl, also in lists of them."""
    found: set[str] = set()
    for line in text.splitlines():
        for words in re.findall(r"\bFl ([A-Za-z-][\w-]*(?: , (?!Fl\b)[\w-]+)*)", line):
            found.update("-" + word for word in words.split(" , "))
    return found


def test_every_option_of_the_program_is_in_its_page() -> None:
    named = flags(page("attachfs.1"))
    for command, words in options().items():
        assert words <= named, f"{command}: not in attachfs(1): {sorted(words - named)}"


def test_the_page_names_no_option_that_the_program_lacks() -> None:
    known = set[str]().union(*options().values()) | {"--help", "-h", "--version", "--name"}
    assert flags(page("attachfs.1")) <= known


def test_every_command_is_in_its_page_and_no_other() -> None:
    text = page("attachfs.1")
    described = set(re.findall(r"^\.It Cm ((?:[a-z]+ )?[a-z]+)", text, re.MULTILINE))
    for name in options():
        assert any(item == name or item.startswith(f"{name} ") for item in described) or re.search(
            rf"^\.It Cm {name}\b", text, re.MULTILINE
        ), f"{name} is not in attachfs(1)"


def test_every_key_of_the_file_is_in_its_page_and_no_other() -> None:
    keys = re.findall(r"^\.It Cm ([a-z-]+) No =", page("attachfs.toml.5"), re.MULTILINE)
    assert keys == list(FILE_KEYS)


def test_the_defaults_in_the_pages_are_the_programs() -> None:
    for name in ("attachfs.1", "attachfs.toml.5"):
        items = re.split(r"^\.It ", page(name), flags=re.MULTILINE)
        for option in OPTIONS:
            default = option.default
            if default is None or default in ("yes", "no"):
                continue
            item = next((i for i in items if re.match(rf"(Fl -|Cm ){option.name}\b", i)), "")
            words = re.search(r"The default is\s+(?:\.Lk |\.Pa )?(\S+)", item)
            if words is not None:
                assert words[1].rstrip(".,") == default, f"{name}: {option.name}"


def test_the_helpers_options_are_in_its_page() -> None:
    with pytest.raises(UsageError):
        mount_helper.parse(["-?"])
    assert flags(page("mount.attachfs.8")) >= {"-s", "-f", "-n", "-v", "-r", "-w", "-N", "-t", "-o"}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_no_formatter_warns_about_a_manual_page(path: Path) -> None:
    if shutil.which("groff") is not None:
        done = subprocess.run(
            ["groff", "-mandoc", "-ww", "-z", "-Tutf8", "-K", "utf8", path],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0
        assert done.stderr == ""
    if shutil.which("mandoc") is None:
        pytest.skip("no mandoc here")
    done = subprocess.run(
        ["mandoc", "-T", "lint", "-W", "warning", path], capture_output=True, text=True, check=False
    )
    assert done.stdout + done.stderr == ""


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_manual_page_is_shipped_in_the_wheel(path: Path) -> None:
    shipped = f'"man/{path.name}" = "share/man/man{path.suffix[1:]}/{path.name}"'
    assert shipped in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


# What would hide the mount from everybody else: each of these makes a mount namespace; see systemd.exec(5).
HIDES = re.compile(
    r"^(Private(?!IPC)\w+|Protect(Home|System|Kernel\w+|ControlGroups|Proc|Hostname|Clock)|ReadOnlyPaths|"
    r"ReadWritePaths|InaccessiblePaths|TemporaryFileSystem|Bind\w*Paths|RootDirectory|RootImage|DynamicUser|"
    r"ProcSubset|MountFlags|NoExecPaths|ExecPaths)=",
    re.MULTILINE,
)
# What implies NoNewPrivileges= in a user's unit, and so keeps fusermount3 from mounting.
KEEPS_FROM_MOUNTING = re.compile(
    r"^(NoNewPrivileges|SystemCall\w+|Restrict(?!PreventExit)\w+|LockPersonality|MemoryDenyWriteExecute)=",
    re.MULTILINE,
)


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.parent.name)
def test_units_leave_the_mount_where_all_can_see_it(unit: Path) -> None:
    text = unit.read_text(encoding="utf-8")
    assert HIDES.findall(text) == []
    assert "Type=notify\n" in text
    if unit.parent.name == "user":
        found = {name for name in KEEPS_FROM_MOUNTING.findall(text) if name != "Restart"}
        assert found == set()
    else:
        assert "DeviceAllow=/dev/fuse rw" in text
        assert "@mount" in text


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.parent.name)
def test_units_are_understood_by_systemd(unit: Path, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze here")
    assert len(UNITS) == 2
    copy = tmp_path / "attachfs@work.service"
    copy.write_text(unit.read_text(encoding="utf-8").replace("ExecStart=attachfs", "ExecStart=/bin/true"))
    scope = ["--user"] if unit.parent.name == "user" else []
    done = subprocess.run(
        ["systemd-analyze", *scope, "verify", "--man=no", copy],
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Unknown" not in done.stderr
