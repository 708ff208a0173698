"""`attachfs prove` without a mount: from files alone and from a bag."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from attachfs.cli import main as cli_main
from attachfs.proof.log_files import LogFolder
from tests.unit.proof.logs import KEYS, SIGNER, TENANT, World, flipped, make_world

BLOB = "0b1c2d3e-4f50-4617-8293-a4b5c6d7e8f9"


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("ATTACHFS_", "DATATRAILS_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("CACHE", "STATE", "CONFIG"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))
    (tmp_path / "log.pem").write_bytes(SIGNER.pem())


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli_main.main, ["prove", *(str(argument) for argument in arguments)])


def facts(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def write_files(folder: Path, world: World, number: int) -> list[str]:
    files = world.files(number >> 2)
    (folder / "event.json").write_text(json.dumps(world.events[number]))
    (folder / "massif").write_bytes(files.massif)
    (folder / "seal").write_bytes(files.seal)
    return [
        f"--{name}={folder / file}"
        for name, file in (("event", "event.json"), ("massif", "massif"), ("seal", "seal"))
    ]


def write_bag(bag: Path, world: World, *, log: bool = True) -> Path:
    bag.mkdir()
    (bag / "bagit.txt").write_text("BagIt-Version: 1.0\nTag-File-Character-Encoding: UTF-8\n")
    for event in world.events:
        path = bag / "records" / f"{event['identity']}.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(event))
        (path.parent.parent.with_suffix(".json")).write_text("{}")  # the asset's record
    for number in range(world.log.massifs if log else 0):
        LogFolder(bag / "proof").save(TENANT, number, *world.files(number))
    return bag


def test_an_event_is_proven_from_files_alone(tmp_path: Path) -> None:
    result = call(*write_files(tmp_path, make_world(7, 3), 5), "--log-key", tmp_path / "log.pem", "--json")
    assert result.exit_code == 0, result.output
    (found,) = facts(result)
    assert found["state"] == "proven"
    assert (found["mmr_index"], found["massif"], found["sealed_size"]) == (8, 1, 11)
    assert found["key_fingerprint"] == KEYS[0].fingerprint
    assert "1 event: 1 proven, 0 contradicted" in result.stderr


def test_the_table_names_state_place_and_signer(tmp_path: Path) -> None:
    result = call(*write_files(tmp_path, make_world(7, 3), 5), "--log-key", tmp_path / "log.pem")
    assert result.exit_code == 0
    assert "proven" in result.stdout
    assert "log.pem SHA256:" in result.stdout


@pytest.mark.parametrize(
    ("name", "change", "state", "code"),
    [
        ("event.json", lambda raw: raw.replace(b"Seal", b"Sea1"), "leaf differs", 1),
        ("seal", lambda raw: flipped(raw, 8 * len(raw) - 1), "seal bad", 1),
        ("seal", lambda _: b"", "log not readable", 3),
        ("massif", lambda raw: raw[:100], "log not readable", 3),
        ("event.json", lambda raw: raw.replace(b"merklelog_entry", b"x"), "not committed", 3),
        ("event.json", lambda _: b"[]", "record not available", 3),
    ],
)
def test_states_and_exit_codes(tmp_path: Path, name: str, change: Any, state: str, code: int) -> None:
    given = write_files(tmp_path, make_world(7, 3), 5)
    path = tmp_path / name
    path.write_bytes(change(path.read_bytes()))
    result = call(*given, "--log-key", tmp_path / "log.pem", "--json")
    assert (facts(result)[0]["state"], result.exit_code) == (state, code)


def test_without_a_key_nothing_is_proven_and_the_signer_is_named(tmp_path: Path) -> None:
    for keys in ([], ["--log-key=datatrails"]):
        result = call(*write_files(tmp_path, make_world(7, 3), 5), *keys, "--json")
        assert (facts(result)[0]["state"], result.exit_code) == ("key not given", 3)
        assert KEYS[0].fingerprint in facts(result)[0]["reason"]


def test_keys_come_from_the_command_line_the_environment_or_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = write_files(tmp_path, make_world(7, 3), 5)
    pem = tmp_path / "log.pem"
    assert call(*given, "--log-key", "datatrails", "--log-key", pem).exit_code == 0
    monkeypatch.setenv("ATTACHFS_LOG_KEY", f"datatrails:{pem}")
    assert call(*given).exit_code == 0
    monkeypatch.delenv("ATTACHFS_LOG_KEY")
    for value in ('"log.pem"', '["datatrails", "log.pem"]'):  # relative to the file
        (tmp_path / "c.toml").write_text(f"log-key = {value}\n")
        assert call(*given, "--config", tmp_path / "c.toml").exit_code == 0
    for value in ("[1]", "{}", '[""]'):
        (tmp_path / "c.toml").write_text(f"log-key = {value}\n")
        assert call(*given, "--config", tmp_path / "c.toml").exit_code == 2


def test_config_show_names_each_key() -> None:
    arguments = ["config", "show", "--log-key=datatrails", "--log-key=/there/key.pem"]
    shown = CliRunner().invoke(cli_main.main, arguments).stdout
    assert "datatrails, /there/key.pem" in shown
    (line,) = CliRunner().invoke(cli_main.main, [*arguments, "--json"]).stdout.splitlines()
    assert json.loads(line)["log-key"] == {"value": ["datatrails", "/there/key.pem"], "origin": "--log-key"}


def test_a_bag_is_proven_without_a_network(tmp_path: Path) -> None:
    world = make_world(7, 3)
    bag = write_bag(tmp_path / "bag", world)
    result = call(bag, "--log-key", tmp_path / "log.pem", "--json")
    assert result.exit_code == 0, result.output
    found = facts(result)
    assert {one["state"] for one in found} == {"proven"}
    assert {one["path"] for one in found} == {event["identity"] for event in world.events}


def test_a_record_changed_in_the_bag_is_named(tmp_path: Path) -> None:
    world = make_world(7, 3)
    bag = write_bag(tmp_path / "bag", world)
    path = bag / "records" / f"{world.events[3]['identity']}.json"
    path.write_text(path.read_text().replace("Seal", "Deal"))
    result = call(bag, "--log-key", tmp_path / "log.pem", "--json")
    assert result.exit_code == 1
    assert [one["path"] for one in facts(result) if one["state"] == "leaf differs"] == [
        world.events[3]["identity"]
    ]


def test_a_bag_without_a_log_cannot_be_proven(tmp_path: Path) -> None:
    bag = write_bag(tmp_path / "bag", make_world(2, 3), log=False)
    result = call(bag, "--log-key", tmp_path / "log.pem", "--json")
    assert result.exit_code == 3
    assert {one["state"] for one in facts(result)} == {"log not available"}


def test_nothing_in_a_bag_leads_out_of_it(tmp_path: Path) -> None:
    world = make_world(2, 3)
    bag = write_bag(tmp_path / "bag", world)
    inside = LogFolder(bag / "proof").massif_path(TENANT, 0)
    inside.rename(tmp_path / "outside")
    inside.symlink_to(tmp_path / "outside")
    result = call(bag, "--log-key", tmp_path / "log.pem", "--json")
    assert {one["state"] for one in facts(result)} == {"log not available"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "give paths"),
        (["--massif=x", "--seal=x", "y"], "belong together"),
        (["--event=x", "--massif=x"], "belong together"),
        (["--event=x", "y"], "give paths"),
        (["--event=/nonexistent"], "No such file"),
        (["/nonexistent"], "No such file"),
        (["/"], "is not on an attachfs mount"),
        (["/", "--tenant=nobody"], "not a tenant's UUID"),
        (["--event=x", "--log-key=/nonexistent"], "/nonexistent: No such file"),
    ],
)
def test_what_cannot_be_asked_says_why(given: list[str], said: str) -> None:
    result = call(*given)
    assert result.exit_code == 2
    assert said in result.stderr


def test_an_event_that_comes_twice_is_one_event(tmp_path: Path) -> None:
    world = make_world(7, 3)
    bag = write_bag(tmp_path / "bag", world)
    result = call(bag, bag, "--log-key", tmp_path / "log.pem")
    assert result.exit_code == 0, result.output
    assert f"{len(world.events)} events: {len(world.events)} proven" in result.stderr
    assert len(result.stdout.splitlines()) == len(world.events) + 1
