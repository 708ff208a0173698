"""The transparency log in an export: brought along, and proven from the bag alone."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import bagit
import pytest

from attachfs.demo.spawn import DemoServer, spawn_server
from tests.mount.conftest import run_mount


def attachfs(*arguments: object, **environ: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "attachfs", *map(str, arguments)]
    env = {**os.environ, **{name: str(value) for name, value in environ.items()}}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=env)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DemoServer, str]:
    """Return a directory with a bag of a ledger that has ended, that ledger, and what export said."""
    base = tmp_path_factory.mktemp("logs")
    arguments = ["--token-file", str(base / "token"), "--log-key-file", str(base / "log.pem")]
    with spawn_server(arguments) as server, run_mount(base, server=server) as mounted:
        said = attachfs("export", f"--log-key={base / 'log.pem'}", mounted.point, base / "bag").stderr
        return base, server, said


def proofs(*arguments: object) -> dict[str, str]:
    done = attachfs("prove", "--json", *arguments)
    return {one["event"]: one["state"] for one in map(json.loads, done.stdout.splitlines())}


def test_the_bag_proves_its_events_when_there_is_no_ledger_any_more(
    world: tuple[Path, DemoServer, str],
) -> None:
    base, server, _ = world
    found = proofs(f"--log-key={base / 'log.pem'}", base / "bag")
    assert list(found.values()).count("proven") > 10
    rewritten = server.story["rewritten"].split("/")
    assert found["/".join(rewritten[:4])] == "leaf differs"
    assert "proven" not in proofs(base / "bag").values()  # without a key, nothing is
    bagit.Bag(str(base / "bag")).validate()
    listed = (base / "bag" / "tagmanifest-sha256.txt").read_text()
    assert "/massifs/0000000000000000.log" in listed
    assert "/seals/0000000000000000.sth" in listed


def test_the_report_says_of_each_file_whether_it_is_in_the_log(world: tuple[Path, DemoServer, str]) -> None:
    base, server, _ = world
    report: dict[str, Any] = json.loads((base / "bag" / "report.json").read_text())
    states = {one["path"]: one.get("proof", "") for one in report["files"]}
    assert list(states.values()).count("proven") > 10
    event = "/".join(server.story["rewritten"].split("/")[:4])
    assert {state for path, state in states.items() if path.startswith(f"{event}/")} <= {"leaf differs"}
    assert "what proves" in report["transparency_log"]
    assert 'class="good">proven<' in (base / "bag" / "report.html").read_text()


def test_a_mounted_bag_is_proven_and_exported_with_its_log(
    world: tuple[Path, DemoServer, str], tmp_path: Path
) -> None:
    base, _, _ = world
    key = f"--log-key={base / 'log.pem'}"
    with run_mount(tmp_path, archive=base / "bag") as mounted:
        assert attachfs("export", key, mounted.point, tmp_path / "again").returncode == 1
    assert proofs(key, tmp_path / "again") == proofs(key, base / "bag")


def test_a_log_out_of_reach_takes_nothing_from_the_bag(tmp_path: Path) -> None:
    with (
        spawn_server(["--token-file", str(tmp_path / "token")]) as server,
        run_mount(tmp_path, server=server) as mounted,
    ):
        nowhere = "--log-url=http://127.0.0.1:1"
        asset = "/".join(server.story["photo"].split("/")[:2])
        done = attachfs("export", nowhere, mounted.point / asset, tmp_path / "bag")
    assert "transparency log" in done.stderr
    report = json.loads((tmp_path / "bag" / "report.json").read_text())
    assert report["totals"]["files"] > 1
    assert done.returncode == (1 if report["totals"]["refused"] else 0)
    bagit.Bag(str(tmp_path / "bag")).validate()


def test_a_log_that_was_shrunk_between_two_exports_is_named(tmp_path: Path) -> None:
    """What was sealed is remembered by the first, on this machine and in the bag itself."""
    key, state, bag = tmp_path / "log.pem", tmp_path / "logs-state", tmp_path / "bag"
    arguments = ["--token-file", str(tmp_path / "token"), "--log-key-file", str(key)]
    with spawn_server(arguments) as server, run_mount(tmp_path, server=server) as mounted:

        def export(target: Path) -> tuple[str, set[str]]:
            said = attachfs("export", f"--log-key={key}", mounted.point, target, XDG_STATE_HOME=state).stderr
            report = json.loads((target / "report.json").read_text())
            return said, {one.get("proof", "") for one in report["files"]}

        said, states = export(bag)
        assert "rewritten" not in said
        assert "proven" in states
        (remembered,) = state.rglob("sealed.json")
        first = remembered.read_text()

        # As on another machine: what the bag proves is remembered again, though the log gives nothing new.
        shutil.rmtree(state)
        nowhere = "--log-url=http://127.0.0.1:1"
        attachfs("export", f"--log-key={key}", nowhere, mounted.point, bag, XDG_STATE_HOME=state)
        (elsewhere,) = state.rglob("sealed.json")
        assert elsewhere.read_text() == first

        shutil.rmtree(state)
        export(tmp_path / "third")
        (remembered,) = state.rglob("sealed.json")
        larger = {number: [size + 2, root] for number, (size, root) in json.loads(first).items()}
        remembered.write_text(json.dumps(larger))
        massifs = {path: path.read_bytes() for path in (bag / "proof").rglob("*") if path.is_file()}
        said, states = export(bag)
    assert "the log was shrunk or rewritten" in said
    assert "log rewritten" in states
    assert "proven" not in states
    assert massifs == {path: path.read_bytes() for path in (bag / "proof").rglob("*") if path.is_file()}
    bagit.Bag(str(bag)).validate()
