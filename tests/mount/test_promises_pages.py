"""What the kernel keeps of a file: pages of a stream that failed, was given up, or was of another record."""

import contextlib
import errno
import fcntl
import hashlib
import mmap
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mount.conftest import Mounted, run_mount
from tests.services.threaded_ledger import Handler, ScriptedLedger, identity, serve

KiB, MiB = 1024, 2**20
SIZE = MiB + 1


def content(seed: int, size: int = SIZE) -> bytes:
    return random.Random(seed).randbytes(size)


def read_direct(path: Path) -> bytes:
    """Read past the kernel's page cache."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    data = bytearray()
    try:
        with contextlib.closing(mmap.mmap(-1, 256 * KiB)) as buffer:
            while count := os.preadv(fd, [buffer], len(data)):
                data += buffer[:count]
    finally:
        os.close(fd)
    return bytes(data)


def read_mapped(path: Path) -> bytes:
    """Read through a map, in another process: a fault would hold up the ledger's threads in this one."""
    program = (
        "import mmap, sys\n"
        "with open(sys.argv[1], 'rb') as f, mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ) as m:\n"
        "    sys.stdout.buffer.write(bytes(m))\n"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", program, path], stdout=-1, check=True)
    return done.stdout


READERS: dict[str, Callable[[Path], bytes]] = {
    "read": Path.read_bytes,
    "O_DIRECT": read_direct,
    "mmap": read_mapped,
}


class Bench:
    """A ledger with one attachment, `path`; it sends `sends`, and stops half-way while it `stalls`."""

    def __init__(self, base: Path) -> None:
        self.ledger = ScriptedLedger()
        self.right = content(1)
        self.sends = self.right
        self.stalls = False
        self.gate = threading.Event()
        self.path = base / "mnt" / self.ledger.add("one", self.right)
        self.ledger.bend["blob"] = self._send

    def _send(self, request: Handler) -> bool:
        if not request.path.endswith(identity("one")):
            return False
        sent = self.sends
        request.send_response(200)
        request.send_header("Content-Length", str(len(sent)))
        request.end_headers()
        if self.stalls:
            request.wfile.write(sent[: len(sent) // 2])
            self.gate.wait(60)
            sent = sent[len(sent) // 2 :]
        request.wfile.write(sent)
        return True

    def record(self, content: bytes) -> None:
        """Have the ledger record other bytes, everywhere."""
        digest = hashlib.sha256(content).hexdigest()
        self.ledger.infos[identity("one")]["hash"]["value"] = digest
        self.ledger.anchors[identity("one")] = digest

    def forget(self, mounted: Mounted) -> None:
        """Have the mount forget names, attributes and failures."""
        said = len(mounted.log)
        mounted.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 30
        while not any("are forgotten" in line for line in mounted.log[said:]):
            assert time.monotonic() < deadline
            mounted.status()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@contextlib.contextmanager
def mounted_on(bench: Bench, base: Path, *options: str) -> Iterator[Mounted]:
    try:
        with (
            serve(bench.ledger, base / "token") as server,
            run_mount(base, "--verify=stream", *options, server=server) as mounted,
        ):
            yield mounted
    finally:
        bench.gate.set()


@pytest.mark.parametrize("first", READERS)
@pytest.mark.parametrize("then", READERS)
def test_pages_of_a_stream_that_failed_are_not_shown_once_the_service_is_healed(
    bench: Bench, tmp_path: Path, first: str, then: str
) -> None:
    """The program that met the error may still have the file open, and mapped.

    Promise 12: "No program that opens a file later sees what a stream served before it failed or was
    abandoned."
    """
    bench.sends, bench.stalls = content(2), True
    with mounted_on(bench, tmp_path) as mounted, contextlib.ExitStack() as held:
        fd = os.open(bench.path, os.O_RDONLY)
        held.callback(os.close, fd)
        assert os.pread(fd, 128 * KiB, 0) == bench.sends[: 128 * KiB]
        if first == "mmap":  # of what is there; not touched once the stream has failed
            mapped = held.enter_context(mmap.mmap(fd, 0, prot=mmap.PROT_READ))
            assert mapped[: 128 * KiB] == bench.sends[: 128 * KiB]
        bench.gate.set()
        with pytest.raises(OSError) as caught:
            os.pread(fd, 1, SIZE - 1)
        assert caught.value.errno == errno.EBADMSG
        bench.sends, bench.stalls = bench.right, False
        bench.forget(mounted)
        assert READERS[then](bench.path) == bench.right
        if first != "mmap":
            assert READERS[first](bench.path) == bench.right
        with contextlib.closing(mmap.mmap(-1, 4096)) as buffer, pytest.raises(OSError) as caught:
            os.preadv(direct_twin(fd, held), [buffer], 0)
        assert caught.value.errno == errno.EBADMSG


def direct_twin(fd: int, held: contextlib.ExitStack) -> int:
    """Return a descriptor of the same open file; from here on it is read past the page cache."""
    twin = os.dup(fd)
    held.callback(os.close, twin)
    fcntl.fcntl(twin, fcntl.F_SETFL, os.O_DIRECT)
    return twin


@pytest.mark.parametrize("then", READERS)
def test_pages_of_a_stream_that_was_given_up_are_not_shown(bench: Bench, tmp_path: Path, then: str) -> None:
    """The service stalls in the middle of wrong bytes, the program loses patience, the service is healed.

    What came is kept for whoever wants the rest, so the next may still fail over it; but not read it.
    """
    bench.sends, bench.stalls = content(2), True
    with mounted_on(bench, tmp_path) as mounted:
        fd = os.open(bench.path, os.O_RDONLY)
        assert os.pread(fd, 128 * KiB, 0) == bench.sends[: 128 * KiB]
        os.close(fd)
        bench.sends, bench.stalls = bench.right, False
        bench.gate.set()
        for _ in range(2):
            try:
                assert READERS[then](bench.path) == bench.right
            except (OSError, subprocess.CalledProcessError):
                bench.forget(mounted)
        assert READERS[then](bench.path) == bench.right
        assert READERS["read"](bench.path) == bench.right


def test_a_record_that_changes_under_an_open_stream_is_refused(bench: Bench, tmp_path: Path) -> None:
    """Else pages of the one would stand in the middle of the other."""
    bench.stalls = True
    other = content(3)
    with mounted_on(bench, tmp_path) as mounted:
        fd = os.open(bench.path, os.O_RDONLY)
        try:
            assert os.pread(fd, 4096, 0) == bench.right[:4096]
            bench.record(other)
            bench.forget(mounted)
            with pytest.raises(OSError) as caught:
                bench.path.read_bytes()
            assert caught.value.errno == errno.EBADMSG
            bench.gate.set()
            bench.stalls = False
            assert os.pread(fd, SIZE, 0) == bench.right
        finally:
            os.close(fd)
    assert any("open" in line and identity("one") in line for line in mounted.log)


@pytest.mark.parametrize("cached", [False, True])
def test_pages_of_a_record_whose_pin_was_released_are_not_shown(
    bench: Bench, tmp_path: Path, *, cached: bool
) -> None:
    """Somebody has looked at the new record and accepted it: from then on it is the new bytes."""
    other = content(3)
    twin = tmp_path / "mnt" / bench.ledger.add("twin", other)
    with mounted_on(bench, tmp_path) as mounted:
        assert bench.path.read_bytes() == bench.right
        assert bench.path.read_bytes() == bench.right  # from the cache: the kernel may keep these pages
        held = os.open(bench.path, os.O_PATH)  # it does, as long as it knows the file
        try:
            if cached:
                assert twin.read_bytes() == other
            bench.record(other)
            bench.sends = other
            bench.forget(mounted)
            with pytest.raises(OSError) as caught:
                bench.path.read_bytes()
            assert caught.value.errno == errno.EBADMSG
            pins = tmp_path / "state" / "attachfs" / "pins.sqlite"
            with contextlib.closing(sqlite3.connect(pins)) as database, database:
                database.execute("DELETE FROM pins WHERE key LIKE ?", [f"%{identity('one')}%"])
            bench.forget(mounted)
            assert bench.path.read_bytes() == other
            assert read_mapped(bench.path) == other
        finally:
            os.close(held)


@pytest.mark.parametrize("mode", ["strict", "stream"])
@pytest.mark.parametrize("opened", ["while fetched", "from the cache"])
def test_a_cached_file_changed_while_it_is_open_is_not_served(
    bench: Bench, tmp_path: Path, opened: str, mode: str
) -> None:
    """Neither to the program that has it open nor to the next.

    Promise 11: "A cached file that changes on the disk while it is open fails with EBADMSG wherever the
    kernel has not read it yet."
    """
    with mounted_on(bench, tmp_path, f"--verify={mode}") as mounted:
        if opened == "from the cache":
            assert bench.path.read_bytes() == bench.right
        fd = os.open(bench.path, os.O_RDONLY)
        direct = os.open(bench.path, os.O_RDONLY | os.O_DIRECT)
        try:
            with contextlib.closing(mmap.mmap(-1, 256 * KiB)) as buffer:
                assert os.preadv(direct, [buffer], SIZE // 4096 * 4096) == SIZE % 4096
                (blob,) = mounted.cached()
                with blob.open("r+b") as file:
                    file.write(b"wrong")
                with pytest.raises(OSError) as caught:
                    os.preadv(direct, [buffer], 0)
                assert caught.value.errno == errno.EBADMSG
            if opened == "while fetched":  # the kernel has no page of it yet
                with pytest.raises(OSError) as caught:
                    os.pread(fd, 5, 0)
                assert caught.value.errno == errno.EBADMSG
        finally:
            os.close(fd)
            os.close(direct)
        assert read_direct(bench.path) == bench.right
        assert bench.path.read_bytes() == bench.right
        assert bench.ledger.counts["blob"] == 2


@pytest.mark.parametrize("ttl", ["0", "0.001", "60"])
def test_the_whole_file_is_read_however_short_records_are_remembered(
    bench: Bench, tmp_path: Path, ttl: str
) -> None:
    with mounted_on(bench, tmp_path, f"--metadata-ttl={ttl}"):
        for _ in range(3):
            assert bench.path.stat().st_size == SIZE
            assert bench.path.read_bytes() == bench.right
            assert read_direct(bench.path) == bench.right
