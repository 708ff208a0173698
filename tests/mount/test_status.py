"""`attachfs status` and `attachfs config`: real mounts, and a terminal of the test's own."""

import contextlib
import dataclasses
import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from attachfs.cache.disk_cache import CacheStats
from attachfs.demo.spawn import DemoServer
from attachfs.mount.status import Status
from attachfs.service.messages import ServiceStats
from tests.mount.conftest import ENDS_WITHIN, Mount


def attachfs(*arguments: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "attachfs", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **environ},
    )


def test_the_figures_as_a_table_and_as_json(mount: Mount, ledger: DemoServer) -> None:
    with mount() as mounted:
        mounted.sh(f"cat {ledger.story['pdf']} {ledger.story['pdf']} >/dev/null")
        mounted.sh(f"cat {ledger.story['tampered']}", check=False)
        said = attachfs("status", mounted.point)
        assert said.returncode == 0, said.stderr
        for words in (str(mounted.point), "token file", f"{ledger.url}: answers", "last errors"):
            assert words in said.stdout
        below = attachfs("status", "--json", mounted.point / "assets")
        stats = json.loads(below.stdout)
        assert (stats["state"], stats["source"]) == ("alive", ledger.url)
        assert set(stats) == {"state", "source", *Status.__annotations__}
        assert set(stats["requests"]) == set(ServiceStats.__annotations__)
        assert set(stats["cache"]) == {field.name for field in dataclasses.fields(CacheStats)}
        size = (mounted.point / ledger.story["pdf"]).stat().st_size
        assert stats["verified_bytes"] == size
        assert stats["requests"]["requests"]["blob"]["requests"] == 2
        assert [error["errno"] for error in stats["last_errors"]][-1] == 74
        assert str(mounted.point) in attachfs("status").stdout
        assert any(
            json.loads(line)["mountpoint"] == str(mounted.point)
            for line in attachfs("status", "--json").stdout.splitlines()
        )
        token = ledger.token_file.read_text().strip() if ledger.token_file else "?"
        assert token not in said.stdout + below.stdout


def test_a_dead_mount_is_told_with_the_remedy(mount: Mount) -> None:
    with mount() as mounted:
        mounted.process.kill()
        mounted.process.wait(ENDS_WITHIN)
        said = attachfs("status", mounted.point)
        assert said.returncode == 1
        assert f"clear it with: attachfs umount {mounted.point}" in re.sub(r"\n *", " ", said.stdout)
        assert attachfs("umount", mounted.point).returncode == 0


def test_what_is_no_mount(tmp_path: Path) -> None:
    said = attachfs("status", tmp_path)
    assert said.returncode == 2
    assert "is not on an attachfs mount" in said.stderr
    assert attachfs("status", "--watch").returncode == 2


@pytest.mark.parametrize("key", [b"q", b"\x03"])
def test_watch_shows_them_live_until_a_key(mount: Mount, key: bytes) -> None:
    with mount() as mounted:
        pid, terminal = pty.fork()
        if pid == 0:
            os.environ.update(TERM="xterm", COLUMNS="120", LINES="50")
            os.execv(
                sys.executable, [sys.executable, "-m", "attachfs", "status", "--watch", str(mounted.point)]
            )
        shown = b""
        try:
            ends = time.monotonic() + ENDS_WITHIN  # it shows something anew all the time
            while b"press q to quit" not in shown:
                assert time.monotonic() < ends, shown
                assert select.select([terminal], [], [], ENDS_WITHIN)[0], shown
                shown += os.read(terminal, 65536)
            os.write(terminal, key)
            with contextlib.suppress(OSError):  # EIO once it has ended
                while select.select([terminal], [], [], ENDS_WITHIN)[0]:
                    shown += os.read(terminal, 65536)
        finally:
            os.close(terminal)
            _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert b"answers" in shown


def test_config_show_and_path(tmp_path: Path) -> None:
    file = tmp_path / "attachfs" / "config.toml"
    file.parent.mkdir()
    environ = {"XDG_CONFIG_HOME": str(tmp_path), "ATTACHFS_TIMEOUT": "7"}
    environ["DATATRAILS_CLIENT_SECRET"] = "hunter2"
    assert attachfs("config", "path", **environ).stdout == f"{file}\n"
    file.write_text('[profile.work]\nurl = "https://work.example"\n')
    said = attachfs("config", "show", "--profile=work", "-o", "cache_size=1G", **environ)
    rows = {line.split()[0]: line.split(maxsplit=2)[1:] for line in said.stdout.splitlines()[1:]}
    assert rows["url"] == ["https://work.example", f"{file}:2: profile.work.url"]
    assert rows["timeout"] == ["7", "ATTACHFS_TIMEOUT"]
    assert "-o cache_size" in rows["cache-size"][1]
    found = json.loads(attachfs("config", "show", "--json", "--profile", "work", **environ).stdout)
    assert found["url"] == {"value": "https://work.example", "origin": f"{file}:2: profile.work.url"}
    assert found["client-secret"] == {"value": None, "origin": "DATATRAILS_CLIENT_SECRET"}
    assert "hunter2" not in said.stdout
