"""Reads far ahead of a stream, on a real kernel: the index of an archive, and the end of a wrong file."""

import contextlib
import errno
import hashlib
import io
import mmap
import os
import random
import re
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mount.conftest import Mounted, run_mount
from tests.services.threaded_ledger import Handler, ScriptedLedger, serve

KiB, MiB = 2**10, 2**20
BLOCK = 128 * KiB
MEMBERS = 72


def archive() -> bytes:
    """Return a ZIP archive of so many members of a MiB each, none of them compressed."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        for number in range(MEMBERS):
            made.writestr(f"photo {number:03}.raw", random.Random(number).randbytes(MiB))
    return file.getvalue()


ARCHIVE = archive()


class Bench:
    """A ledger with one attachment that sends parts at once, and the whole as far as the test lets it."""

    def __init__(self, base: Path) -> None:
        self.ledger = ScriptedLedger()
        self.path = base / "mnt" / self.ledger.add("one", ARCHIVE)
        self.sends = ARCHIVE  # the whole
        self.parts: bytes | None = ARCHIVE
        self.until = 0  # what the stream has sent so far
        self.asked: list[tuple[int, int]] = []
        self.go_on = threading.Event()
        self.ledger.bend["blob"] = self._send

    def _send(self, request: Handler) -> bool:
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("Range", ""))
        if asked is None or self.parts is None:
            self._send_whole(request)
            return True
        start, stop = int(asked[1]), int(asked[2]) + 1
        self.asked.append((start, stop))
        request.send_response(206)
        request.send_header("Content-Length", str(stop - start))
        request.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(self.parts)}")
        request.end_headers()
        request.wfile.write(self.parts[start:stop])
        return True

    def _send_whole(self, request: Handler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(self.sends)))
        request.end_headers()
        request.wfile.write(self.sends[: self.until])
        assert self.go_on.wait(120)
        request.wfile.write(self.sends[self.until :])


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@contextlib.contextmanager
def mounted_on(bench: Bench, base: Path, *options: str) -> Iterator[Mounted]:
    try:
        with (
            serve(bench.ledger, base / "token") as server,
            run_mount(base, *options, server=server) as mounted,
        ):
            try:
                yield mounted
            finally:
                bench.go_on.set()
    finally:
        bench.go_on.set()


def verified(path: Path) -> bytes:
    return os.getxattr(path, "user.attachfs.verified")


def test_an_archive_is_listed_and_a_member_read_before_the_stream_has_come_there(
    bench: Bench, tmp_path: Path
) -> None:
    """The stream brings all of it, and what was read ahead has come twice.

    Promise 21: "However many programs read a file at the same time, its bytes are fetched once, except for
    what is read far ahead of a stream; while they are cached, they are not fetched again, not even by a
    later mount."
    """
    bench.until = 3 * MiB
    with mounted_on(bench, tmp_path):
        with zipfile.ZipFile(bench.path) as found:
            names = [info.filename for info in found.infolist()]
            assert names == [f"photo {number:03}.raw" for number in range(MEMBERS)]
            assert found.read("photo 050.raw") == random.Random(50).randbytes(MiB)
            assert not bench.go_on.is_set()
            assert verified(bench.path) == b"no"
            bench.go_on.set()
            assert found.testzip() is None
        assert hashlib.sha256(bench.path.read_bytes()).digest() == hashlib.sha256(ARCHIVE).digest()
        assert verified(bench.path) == b"yes"
        assert sum(stop - start for start, stop in bench.asked) < 8 * MiB
        assert bench.ledger.counts["blob"] == 1 + len(bench.asked)


def test_who_reads_in_order_asks_for_no_parts(bench: Bench, tmp_path: Path) -> None:
    """However large the reads, and however the kernel cuts them up."""
    bench.go_on.set()
    with mounted_on(bench, tmp_path):
        fd = os.open(bench.path, os.O_RDONLY | os.O_DIRECT)
        try:
            with contextlib.closing(mmap.mmap(-1, 16 * MiB)) as buffer:
                data = bytearray()
                while count := os.preadv(fd, [buffer], len(data)):
                    data += buffer[:count]
        finally:
            os.close(fd)
        assert data == ARCHIVE
        assert bench.path.read_bytes() == ARCHIVE
    assert bench.asked == []
    assert bench.ledger.counts["blob"] == 1


def test_a_wrong_file_is_not_read_whole_without_an_error_even_from_its_end(
    bench: Bench, tmp_path: Path
) -> None:
    """Block by block, in that order, by the same program; and by the next that opens it beside.

    What is stored may be read up to the part that is withheld by then, which is somewhere in the middle.

    Promise 3: "With stream verification, bytes are served as they arrive, or ahead of that where the
    service sends parts, except for one part of at most 128 KiB: it is withheld until the whole file and
    everything served ahead have been verified, so that no program reads a wrong file to its end without an
    error."
    """
    wrong = bytearray(ARCHIVE)
    wrong[5 * MiB] ^= 1
    bench.sends = bench.parts = bytes(wrong)
    bench.until = 3 * MiB
    with mounted_on(bench, tmp_path):
        got, failed = dict[int, bytes](), dict[int, int | None]()
        fds = [os.open(bench.path, os.O_RDONLY) for _ in range(2)]
        try:
            blocks = range(0, len(ARCHIVE), BLOCK)
            for start in reversed(blocks[5 * 8 :]):
                os.posix_fadvise(fds[0], 0, 0, os.POSIX_FADV_RANDOM)
                got[start] = os.pread(fds[0], BLOCK, start)
            for start in blocks[:8]:
                got[start] = os.pread(fds[0], BLOCK, start)
            bench.go_on.set()
            for start in blocks:
                for fd in fds:
                    try:
                        got[start] = os.pread(fd, BLOCK, start)
                    except OSError as error:
                        failed[start] = error.errno
        finally:
            for fd in fds:
                os.close(fd)
        assert set(failed.values()) == {errno.EBADMSG}
        assert set(failed) - set(got)
        assert verified(bench.path) == b"no"


def test_a_wrong_part_of_a_right_file_fails_who_has_it_open_and_is_shown_to_nobody_else(
    bench: Bench, tmp_path: Path
) -> None:
    """The verified file is in the cache all the same, and opens once the other has closed it.

    Promise 3: "With stream verification, bytes are served as they arrive, or ahead of that where the
    service sends parts, except for one part of at most 128 KiB: it is withheld until the whole file and
    everything served ahead have been verified, so that no program reads a wrong file to its end without an
    error."
    """
    bench.parts = bytes(len(ARCHIVE))
    bench.until = 3 * MiB
    end = len(ARCHIVE) - 4096
    with mounted_on(bench, tmp_path) as mounted:
        fd = os.open(bench.path, os.O_RDONLY)
        try:
            assert os.pread(fd, 4096, end) == bytes(4096)
            bench.go_on.set()
            until(mounted, lambda: any("differs from the verified whole" in line for line in mounted.log))
            with pytest.raises(OSError) as caught:
                os.pread(fd, 4096, len(ARCHIVE) - MiB)
            assert caught.value.errno == errno.EBADMSG
            with pytest.raises(OSError) as caught:
                bench.path.read_bytes()
            assert caught.value.errno == errno.EBADMSG
        finally:
            os.close(fd)
        until(
            mounted, lambda: not mounted.status()["open_files"]
        )  # the kernel tells after close(2) has returned
        assert verified(bench.path) == b"yes"
        assert bench.path.read_bytes() == ARCHIVE
        assert bench.ledger.counts["blob"] == 1 + len(bench.asked)


def until(mounted: Mounted, condition: Callable[[], bool]) -> None:
    """Wait for what the mount does by itself."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        mounted.status()


@contextlib.contextmanager
def started(*command: str | Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_service_without_parts_is_waited_for(bench: Bench, tmp_path: Path) -> None:
    """It is asked once whether it sends parts, and then there is one transfer for all."""
    bench.parts = None
    bench.until = 3 * MiB
    with mounted_on(bench, tmp_path):
        listing = "import sys, zipfile; print(len(zipfile.ZipFile(sys.argv[1]).infolist()))"
        with contextlib.ExitStack() as processes:
            program = (sys.executable, "-I", "-S", "-c", listing, bench.path)
            readers = [processes.enter_context(started(*program)) for _ in range(2)]
            bench.ledger.wait_for(lambda: bench.ledger.counts["blob"] >= 2)
            bench.go_on.set()
            for reader in readers:
                assert reader.communicate(timeout=60)[0].strip() == str(MEMBERS)
        assert bench.path.read_bytes() == ARCHIVE
        assert bench.ledger.counts["blob"] <= 3  # two may have been on their way when the first answer came
