"""Another program writes to cached files while they are read: an error at most, never a wrong byte."""

import contextlib
import hashlib
import os
import random
import threading
import time
from pathlib import Path

from tests.mount.conftest import run_mount
from tests.services.threaded_ledger import ScriptedLedger, serve

WRITES = 80
READERS = 3
SIZE = 40_000
HEALS_WITHIN = 20  # seconds


def test_small_writes_to_a_cached_file_beside_readers_show_as_errors_only(tmp_path: Path) -> None:
    ledger = ScriptedLedger()
    content = random.Random(1).randbytes(SIZE)
    path = ledger.add("a file", content)
    hex_digest = hashlib.sha256(content).hexdigest()
    wrong: list[str] = []
    right = [0] * READERS
    done = threading.Event()
    with (
        serve(ledger, tmp_path / "token") as server,
        run_mount(tmp_path, "--cache-min-free=0", server=server) as mounted,
    ):
        cached = mounted.cache / "blobs" / "sha256" / hex_digest[:2] / hex_digest

        def read(number: int) -> None:
            while not done.is_set():
                with contextlib.suppress(OSError):
                    found = (mounted.point / path).read_bytes()
                    right[number] += found == content
                    if found != content:
                        wrong.append(f"reader {number} after {sum(right)} right ones")
                # The kernel's pages hide what the program serves: have it asked anew.
                with contextlib.suppress(OSError), (mounted.point / path).open("rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

        readers = [threading.Thread(target=read, args=(number,)) for number in range(READERS)]
        for reader in readers:
            reader.start()
        try:
            for number in range(WRITES):
                before = sum(right)
                with contextlib.suppress(FileNotFoundError), cached.open("r+b") as file:
                    file.seek(number * SIZE // WRITES)
                    file.write(bytes([content[file.tell()] ^ 1]))
                until = time.monotonic() + HEALS_WITHIN
                while sum(right) == before:
                    assert time.monotonic() < until, f"no right byte since write {number}; wrong: {wrong}"
                    done.wait(0.001)
        finally:
            done.set()
            for reader in readers:
                reader.join()
        assert (mounted.point / path).read_bytes() == content
    assert wrong == []
    assert min(right) > 0
