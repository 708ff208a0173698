"""Exports that are killed at random instants and run again: complete, nothing twice, little memory.

`EXPORT_ASSETS=10000 python -m pytest tests/mount/test_export_killed.py` tries 20,000 attachments.
"""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import bagit
import pytest

from attachfs.demo.spawn import spawn_server
from tests.mount.conftest import run_mount

ASSETS = int(os.environ.get("EXPORT_ASSETS", "300"))  # each has an event, and an attachment on both
KILLS = 20
LATEST = max(1.2, ASSETS / 400)  # seconds until the latest kill
MEMORY = 150 * 2**10  # KiB
SIZE = 5000


def resident(pid: int) -> int:
    """Return the most memory that a process has had, in KiB, 0 once it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")), 0)


@pytest.mark.slow
def test_an_export_that_is_killed_again_and_again_goes_on_and_fetches_nothing_twice(tmp_path: Path) -> None:
    """Also where the killing hits the reading of records, or the end.

    Promise 30: "An export that is killed at any moment continues when it is run again, and fetches no file
    twice."
    """
    token, bag = tmp_path / "token", tmp_path / "bag"
    chance = random.Random(20)
    kills = done = peak = status = 0
    said = ""
    bulk = ["--bulk", str(ASSETS), "--size", str(SIZE), "--token-file", str(token)]
    with spawn_server(bulk) as server, run_mount(tmp_path, server=server) as mounted:
        command = [sys.executable, "-m", "attachfs", "export", str(mounted.point), str(bag)]
        while True:
            with (tmp_path / "said").open("w+") as log:
                process = subprocess.Popen(command, stderr=log)
                number = chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGINT])
                killer = threading.Timer(chance.uniform(0.4, LATEST), process.send_signal, [number])
                if kills < KILLS:
                    killer.start()
                # Not wait4's figure: that of a child counts what its parent held before exec.
                while not (ended := os.waitpid(process.pid, os.WNOHANG))[0]:
                    peak = max(peak, resident(process.pid))
                    time.sleep(0.05)
                status = ended[1]
                killer.cancel()
                process.returncode = status
                log.seek(0)
                said = log.read()
            files = sum(len(names) for _, _, names in os.walk(bag / "data"))
            assert files >= done, "a file that was there has gone"
            done = files
            if status == 0 or kills == KILLS:
                break
            kills += 1
        requests = server.requests()["counts"]
    assert status == 0, said
    assert kills > 1
    assert done == 2 * ASSETS
    assert requests["blob"] == ASSETS  # the two have the same bytes
    assert peak <= MEMORY
    report = json.loads((bag / "report.json").read_text())
    assert report["totals"] == {"files": 2 * ASSETS, "bytes": 2 * ASSETS * SIZE, "refused": 0}
    bagit.Bag(str(bag)).validate()
    assert sorted(path.name for path in bag.iterdir()) == [
        *(
            "bag-info.txt",
            "bagit.txt",
            "data",
            "manifest-sha256.txt",
            "records",
            "report.html",
            "report.json",
        ),
        "tagmanifest-sha256.txt",
    ]
    print(f"{done} files, killed {kills} times, {peak / 1024:.0f} MiB at most; {said}")  # noqa: T201 - pytest -s


def test_ctrl_c_says_how_to_go_on(tmp_path: Path) -> None:
    bag, token = tmp_path / "bag", tmp_path / "token"
    with (
        spawn_server(["--bulk", "200", "--delay-ms", "20", "--token-file", str(token)]) as server,
        run_mount(tmp_path, server=server) as mounted,
    ):
        command = [sys.executable, "-m", "attachfs", "export", str(mounted.point), str(bag)]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        while not (bag / "records" / "assets").exists():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130, said
    assert "Run it again to go on." in said
    assert not (bag / "bagit.txt").exists()
