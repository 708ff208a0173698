"""The scripts parse and say what is missing; the packages stand in their order."""

import ast
import os
import re
import shutil
import subprocess
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "attachfs"
SCRIPTS = sorted(path for path in [*(ROOT / "scripts").iterdir(), ROOT / ".ci" / "run"] if path.is_file())
BASH_SCRIPTS = [path for path in SCRIPTS if "bash" in path.read_text(encoding="utf-8").partition("\n")[0]]
NOBODY = 65534

# Which package may import which; below all of them stand errors, model and units.
BELOW = {
    "cli": {
        "demo",
        "mount",
        "blobs",
        "cache",
        "service",
        "shared_cache",
        "archive",
        "proof",
        "custody",
        "config",
    },
    "demo": {"proof"},
    "mount": {
        "fuse",
        "namespace",
        "blobs",
        "ledger",
        "cache",
        "service",
        "shared_cache",
        "archive",
        "custody",
        "config",
    },
    "fuse": {"namespace", "blobs", "ledger"},
    "namespace": {"ledger"},
    "blobs": {"ledger", "cache"},
    "ledger": set(),
    "cache": set(),
    "service": set(),
    "archive": {"blobs", "ledger", "cache"},
    "proof": set(),
    "custody": set(),
    "shared_cache": {"blobs", "cache"},
    "config": set(),
}
FOUNDATION = {"fields", "background", "errors", "model", "text", "units", "__version__"}

# Which package may know which library. The linter forbids them everywhere and excuses these files.
KNOWS = {
    "pyfuse3": {"fuse", "mount/serve.py"},
    "httptools": {"service"},
    "httpx": {"service", "shared_cache"},
    "cachetools": {"cache/index.py", "ledger/ttl_cache.py"},
}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_each_script_is_executable_and_starts_with_env(script: Path) -> None:
    assert os.access(script, os.X_OK)
    assert script.read_text(encoding="utf-8").startswith("#!/usr/bin/env ")


@pytest.mark.parametrize("script", BASH_SCRIPTS, ids=lambda path: path.name)
def test_each_script_parses_and_stops_at_errors(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    assert "\nset -euo pipefail\n" in script.read_text(encoding="utf-8")


# The set-up, in a directory of its own, with commands that only write down how they were called.


class Sandbox:
    def __init__(self, path: Path) -> None:
        self.bin = path / "bin"
        self.log = path / "log"
        self.setup = path / "checkout" / "scripts" / "setup"
        self.bin.mkdir()
        self.setup.parent.mkdir(parents=True)
        shutil.copy(ROOT / "scripts" / "setup", self.setup)
        shutil.copy(ROOT / "pyproject.toml", self.setup.parents[1])
        tools = ["bash", "cat", "dirname", "env", "flock", "grep", "head", "mkdir"]
        tools += ["mktemp", "rm", "sed", "sha256sum", "sort", "tail", "touch"]
        for tool in tools:
            found = shutil.which(tool)
            assert found is not None
            (self.bin / tool).symlink_to(found)
        self.command("python3", "[ $# -gt 1 ] && exit 3; echo 1 3.11.9 - - /opt/python3.11")
        self.log.write_text("")
        for entry in [path, *path.rglob("*")]:
            if not entry.is_symlink():
                entry.chmod(0o777)

    def command(self, name: str, body: str) -> None:
        path = self.bin / name
        path.write_text(f'#!/bin/bash\necho "{name} $*" >>"{self.log}"\n{body}\n')
        path.chmod(0o755)

    def run(self, extra: str = "demo", *, as_root: bool = False) -> subprocess.CompletedProcess[str]:
        user = None if as_root or os.geteuid() != 0 else NOBODY
        # PATH of the bash that runs it, too, so that nothing of this machine is found
        return subprocess.run(
            [self.bin / "bash", self.setup, extra],
            env={"PATH": str(self.bin), "TMPDIR": str(self.bin.parent)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
            user=user,
        )

    def calls(self, name: str) -> list[str]:
        lines = self.log.read_text().splitlines()
        return [line.removeprefix(name).strip() for line in lines if line.startswith(name + " ")]


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    # not pytest's directory, which nobody but its owner may enter
    with tempfile.TemporaryDirectory() as path:
        yield Sandbox(Path(path))


def test_without_root_or_sudo_setup_names_the_packages_to_ask_for(sandbox: Sandbox) -> None:
    sandbox.command("apt-get", "exit 0")
    done = sandbox.run()
    assert done.returncode == 1
    assert "neither root nor is there sudo" in done.stderr
    for package in ("fuse3", "libfuse3-dev", "pkg-config", "gcc"):
        assert re.search(rf"\s{package}(\s|$)", done.stderr)
    assert "rsync" not in done.stderr
    assert sandbox.calls("apt-get") == []
    assert "rsync" in sandbox.run("test").stderr


def test_with_a_sudo_that_wants_a_password_setup_names_the_packages(sandbox: Sandbox) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to become somebody else")
    sandbox.command("apt-get", "exit 0")
    sandbox.command("sudo", "echo a password is required >&2; exit 1")
    done = sandbox.run()
    assert done.returncode == 1
    assert "a password is required" in done.stderr
    assert "Ask an administrator for: apt-get install" in done.stderr
    assert all(call.startswith("-n ") for call in sandbox.calls("sudo"))


def test_where_there_is_no_apt_setup_names_the_packages(sandbox: Sandbox) -> None:
    done = sandbox.run()
    assert done.returncode == 1
    assert "by their Debian names:" in done.stderr


def test_setup_without_a_python_new_enough_says_so(sandbox: Sandbox) -> None:
    sandbox.command("python3", 'if [ "${1-}" = --version ]; then echo Python 3.9.2; fi')
    done = sandbox.run()
    assert done.returncode == 1
    assert "needs Python 3.11 or newer" in done.stderr
    assert "Python 3.9.2" in done.stderr


@pytest.mark.parametrize("known", [True, False])
def test_setup_refreshes_package_lists_only_if_needed(sandbox: Sandbox, known: bool) -> None:  # noqa: FBT001
    if os.geteuid() != 0:
        pytest.skip("needs root, or it would ask for sudo")
    sandbox.command("apt-get", "exit 0" if known else 'if [ "$1" = -s ]; then exit 100; fi')
    done = sandbox.run(as_root=True)  # ends where the made-up Python should make a .venv
    assert "installing Debian packages" in done.stderr
    assert "making .venv with Python 3.11.9" in done.stderr
    calls = sandbox.calls("apt-get")
    assert any(call.endswith(" update") for call in calls) is not known
    install = calls[-1]
    assert "-y" in install.split()
    assert "--no-install-recommends" in install.split()
    assert "fuse3" in install.split()


# The packages and their order.


def imported(path: Path) -> set[str]:
    """Dotted names of the modules that a file imports, and of what it imports from them."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def packages() -> set[str]:
    return {path.parent.name for path in PACKAGE.glob("*/__init__.py")}


def test_packages_import_only_those_below_them() -> None:
    upward = []
    for package, below in BELOW.items():
        for file in sorted((PACKAGE / package).glob("*.py")):
            parts = [name.split(".") for name in imported(file)]
            used = {name[1] for name in parts if name[0] == "attachfs" and len(name) > 1}
            upward += [
                f"{file.relative_to(ROOT)} imports {name}" for name in used - below - FOUNDATION - {package}
            ]
    assert upward == []
    assert set(BELOW) == packages(), "say here what a new package may import"


def test_no_package_stands_above_itself() -> None:
    def reach(package: str, seen: frozenset[str] = frozenset()) -> None:
        assert package not in seen, f"a circle: {seen}"
        for other in BELOW[package]:
            reach(other, seen | {package})

    for package in BELOW:
        reach(package)


def test_contributing_has_one_line_for_each_package() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `([a-z_]+)/` \|", text, re.MULTILINE)
    assert sorted(listed) == sorted(packages())


def test_contributing_names_files_that_are_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(
        re.findall(r"`((?:attachfs|man|tests|scripts|ledger|blobs|mount|fuse|service|cache)/[\w./-]+)`", text)
    )
    named |= set(re.findall(r"^    ([a-z_]+/[a-z_]+\.py) ", text, re.MULTILINE))
    assert len(named) > 20
    assert [one for one in named if not (ROOT / one).exists() and not (PACKAGE / one).exists()] == []


def test_contributing_names_code_that_stands_where_it_says() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = re.findall(r"`(\w+)` in `(attachfs/[\w/]+\.py)`", text)
    assert len(named) > 8
    for name, path in named:
        code = (ROOT / path).read_text(encoding="utf-8")
        assert re.search(rf"^ *(async def|def|class) {name}\b|^{name} =|\b{name} = ", code, re.MULTILINE), (
            path
        )


def test_at_most_six_modules_stand_beside_the_packages() -> None:
    assert len([path for path in PACKAGE.glob("*.py") if not path.name.startswith("__")]) <= 6


def test_only_the_named_packages_know_the_libraries() -> None:
    for library, allowed in KNOWS.items():
        for path in PACKAGE.rglob("*.py"):
            if any(name.split(".")[0] == library for name in imported(path)):
                where = path.relative_to(PACKAGE)
                assert {str(where), where.parts[0]} & allowed, f"{where} imports {library}"


def test_the_linter_names_the_same_packages() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        lint = tomllib.load(file)["tool"]["ruff"]["lint"]
    assert set(lint["flake8-tidy-imports"]["banned-api"]) == set(KNOWS)
    excused = {
        name.removesuffix("/*") for name, rules in lint["per-file-ignores"].items() if "TID251" in rules
    }
    assert excused - {"tests"} == {f"attachfs/{name}" for names in KNOWS.values() for name in names}


def test_no_test_module_imports_from_another() -> None:
    imports = re.compile(
        r"^\s*(?:from|import) (tests\.\S*\btest_\w+)|^from tests\S* import .*\btest_", re.MULTILINE
    )
    found = {path.name: imports.findall(path.read_text()) for path in (ROOT / "tests").rglob("test_*.py")}
    assert not {name: modules for name, modules in found.items() if modules}
