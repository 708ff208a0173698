"""An export that is killed in the middle of a large file goes on in the middle."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.mount.conftest import Mounted, run_mount
from tests.services.threaded_ledger import Handler, ScriptedLedger, serve

MiB = 2**20
SIZE = 20 * MiB
FIRST = 12 * MiB  # come when it is killed
UNDER_WAY = 6 * MiB  # may have been written by the server and not read: the buffers of two sockets
ENDS_WITHIN = 60


class Service:
    """Sends a file, stands still in the middle the first time, and counts what it sends."""

    def __init__(self, data: bytes, *, ranges: bool) -> None:
        self._data = data
        self._ranges = ranges
        self.killed = threading.Event()
        self.middle = threading.Event()
        self.starts: list[int] = []
        self.sent = 0

    def answer(self, request: Handler) -> bool:
        start = 0
        asked = request.headers.get("Range")
        if asked is not None and self._ranges:
            start = int(asked.removeprefix("bytes=").partition("-")[0])
        self.starts.append(start)
        request.send_response(206 if start else 200)
        request.send_header("Content-Type", "application/octet-stream")
        request.send_header("Content-Length", str(len(self._data) - start))
        request.send_header("ETag", '"one"')
        if start:
            request.send_header("Content-Range", f"bytes {start}-{SIZE - 1}/{SIZE}")
        request.end_headers()
        for at in range(start, SIZE, MiB):
            if at == FIRST and not self.middle.is_set():
                self.middle.set()
                assert self.killed.wait(ENDS_WITHIN)
                request.close_connection = True
                return True
            request.wfile.write(self._data[at : at + MiB])
            self.sent += MiB
        return True


def wait_until_paused(mounted: Mounted) -> None:
    until = time.monotonic() + ENDS_WITHIN
    while mounted.status()["downloading"]:
        assert time.monotonic() < until
        time.sleep(0.05)  # nothing tells from outside


@pytest.mark.parametrize(
    ("options", "ranges", "change", "most"),
    [
        (["--verify=strict"], True, False, SIZE + UNDER_WAY),
        (["--verify=stream"], True, False, SIZE + UNDER_WAY),
        ([], False, False, SIZE + FIRST),
        ([], True, True, SIZE + FIRST),
    ],
    ids=["strict", "stream", "no-ranges", "changed-on-disk"],
)
def test_an_export_killed_in_the_middle_of_a_file_goes_on_there(
    tmp_path: Path,
    options: list[str],
    ranges: bool,  # noqa: FBT001
    change: bool,  # noqa: FBT001
    most: int,
) -> None:
    data = random.Random(1).randbytes(SIZE)
    ledger, service = ScriptedLedger(), Service(data, ranges=ranges)
    path = ledger.add("footage", data)
    ledger.bend["blob"] = service.answer
    bag = tmp_path / "bag"
    with (
        serve(ledger, tmp_path / "token") as server,
        run_mount(tmp_path, *options, server=server) as mounted,
    ):
        command = [sys.executable, "-m", "attachfs", "export", str(mounted.point / path), str(bag)]
        process = subprocess.Popen(command)
        assert service.middle.wait(ENDS_WITHIN)
        process.send_signal(signal.SIGKILL)
        process.wait(ENDS_WITHIN)
        wait_until_paused(mounted)
        service.killed.set()
        if change:
            (kept,) = (mounted.cache / "tmp").iterdir()
            with kept.open("r+b") as file:
                file.write(b"forged")
            os.utime(kept, ns=(1, 1))  # the clock of files ticks only some hundred times a second
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=ENDS_WITHIN)
        assert done.returncode == 0, done.stderr
    with (bag / "data" / path).open("rb") as file:
        assert hashlib.file_digest(file, "sha256").digest() == hashlib.sha256(data).digest()
    assert SIZE <= service.sent <= most
    assert (service.starts[1] > 0) is (ranges and not change)
    assert not (bag / ".attachfs-export").exists()
