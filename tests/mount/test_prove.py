"""`attachfs prove` on a real mount of the demo ledger, and its log over a socket."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from attachfs.demo.spawn import DemoServer, spawn_server
from tests.mount.conftest import Mounted, run_mount


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    base = tmp_path_factory.mktemp("prove")
    arguments = ["--token-file", str(base / "token"), "--log-key-file", str(base / "log.pem")]
    with spawn_server(arguments) as server, run_mount(base, server=server) as mounted:
        yield mounted


def prove(mounted: Mounted, *arguments: object, key: bool = True) -> tuple[int, list[dict[str, Any]]]:
    base = mounted.point.parent
    keys = [f"--log-key={base / 'log.pem'}"] if key else []
    done = subprocess.run(
        [sys.executable, "-m", "attachfs", "prove", "--json", *keys, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={
            **os.environ,
            "XDG_STATE_HOME": str(base / "prove-state"),
            "XDG_CONFIG_HOME": str(base / "config"),
        },
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert done.stdout or "is not on an attachfs mount" in done.stderr, done.stderr
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def story(mounted: Mounted) -> dict[str, str]:
    assert isinstance(mounted.server, DemoServer)
    return mounted.server.story


def test_a_file_is_proven_through_the_event_that_carries_it(mounted: Mounted) -> None:
    code, (found,) = prove(mounted, mounted.point / story(mounted)["photo"])
    assert (code, found["state"]) == (0, "proven")
    assert found["sealed_size"] > found["mmr_index"]
    assert len(found["sha256"]) == 64


def test_of_an_assets_file_the_event_is_found(mounted: Mounted) -> None:
    path = story(mounted)["pdf"]  # on the asset itself
    assert "/events/" not in path
    code, found = prove(mounted, mounted.point / path)
    assert code == 0
    assert all("/events/" in one["path"] and one["state"] == "proven" for one in found)


def test_by_name_paths_mean_what_they_point_to(mounted: Mounted) -> None:
    link = next(path for path in (mounted.point / "by-name").rglob("*.jpg") if "arrow" not in path.name)
    code, found = prove(mounted, link)
    assert (code, {one["state"] for one in found}) == (0, {"proven"})


def test_a_public_file_is_in_the_public_log(mounted: Mounted) -> None:
    code, (found,) = prove(mounted, mounted.point / story(mounted)["public"])
    assert (code, found["state"], found["tenant"][:8]) == (0, "proven", "6ea5cd00")


def test_the_rewritten_event_is_named_among_all(mounted: Mounted) -> None:
    """The event whose record was changed after it was sealed, and no other."""
    code, found = prove(mounted, mounted.point)
    assert code == 1
    named = [one for one in found if one["state"] == "leaf differs"]
    assert [story(mounted)["rewritten"].startswith(one["event"]) for one in named] == [True]
    assert not [one for one in found if one["state"] not in ("proven", "leaf differs", "not committed")]


def test_without_a_key_it_cannot_be_found_out(mounted: Mounted) -> None:
    code, (found,) = prove(mounted, mounted.point / story(mounted)["photo"], key=False)
    assert (code, found["state"]) == (3, "key not given")


def test_what_is_kept_proves_where_the_log_is_out_of_reach(mounted: Mounted) -> None:
    path = mounted.point / story(mounted)["photo"]
    assert prove(mounted, path)[0] == 0
    code, (found,) = prove(mounted, path, "--log-url=http://127.0.0.1:1", "--timeout=2")
    assert (code, found["state"]) == (3, "log not available")  # another log: nothing of it is kept


def test_a_path_that_is_no_evidence_says_so(mounted: Mounted, tmp_path: Path) -> None:
    code, (found,) = prove(mounted, mounted.point / "publicassets")
    assert (code, found["state"]) == (3, "record not available")
    assert prove(mounted, tmp_path)[0] == 2


def test_an_export_is_proven_as_a_bag_and_as_a_mount_of_it_without_any_service(
    mounted: Mounted, tmp_path: Path
) -> None:
    base = mounted.point.parent
    rewritten = mounted.point / story(mounted)["rewritten"]
    photo = mounted.point / story(mounted)["photo"]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "attachfs",
            "export",
            str(photo.parent),
            str(rewritten.parent),
            str(tmp_path / "bag"),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "XDG_STATE_HOME": str(base / "state"), "XDG_CONFIG_HOME": str(base / "config")},
    )
    assert done.returncode == 0, done.stderr
    code, found = prove(mounted, tmp_path / "bag")
    assert (code, sorted(one["state"] for one in found)) == (1, ["leaf differs", "proven"])
    with run_mount(tmp_path, archive=tmp_path / "bag") as home:
        code, (one,) = prove(mounted, home.point / story(mounted)["photo"], "--log-url=http://127.0.0.1:1")
        assert (code, one["state"]) == (0, "proven")
        code, (one,) = prove(mounted, home.point / story(mounted)["rewritten"])
        assert (code, one["state"]) == (1, "leaf differs")
