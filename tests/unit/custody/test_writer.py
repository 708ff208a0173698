"""Appending: by several processes, through rotation, after a kill in the middle of a line."""

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from attachfs.custody.chain import ZERO, Finding, Kind, Verifier, parse
from attachfs.custody.writer import CustodyLog


def now() -> datetime:
    return datetime(2026, 11, 25, 12, tzinfo=UTC)


def fill(log: CustodyLog, count: int, what: str = "open") -> None:
    for number in range(count):
        log.append({"event": what, "number": number})


def check(*files: Path) -> tuple[list[Finding], int]:
    from attachfs.cli.custody import read_lines

    verifier = Verifier()
    found = [finding for finding in verifier.findings(read_lines(files)) if finding.kind is not Kind.NOTE]
    return found, verifier.lines


def test_lines_make_a_chain_and_the_file_is_its_owners(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = CustodyLog(path, now)
    fill(log, 3)
    log.close()
    assert check(path) == ([], 3)
    assert path.stat().st_mode & 0o777 == 0o600
    first = parse(path.read_bytes().splitlines()[0])
    assert first is not None
    assert (first.previous, first.fields["time"]) == (ZERO, "2026-11-25T12:00:00.000000Z")


def test_a_later_process_goes_on(tmp_path: Path) -> None:
    for _ in range(3):
        log = CustodyLog(tmp_path / "log")
        fill(log, 2)
        log.close()
    assert check(tmp_path / "log") == ([], 6)


def work(path: Path, count: int) -> None:
    log = CustodyLog(path)
    fill(log, count)
    log.close()


def test_several_processes_write_one_chain_while_it_is_rotated(tmp_path: Path) -> None:
    path = tmp_path / "log"
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=work, args=(path, 300)) for _ in range(4)]
    for process in processes:
        process.start()
    rotated: list[Path] = []
    while any(process.is_alive() for process in processes):
        if len(rotated) < 5 and path.exists() and path.stat().st_size > 20_000:
            rotated.append(path.rename(tmp_path / f"log.{len(rotated)}"))
        processes[0].join(0.01)
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    files = [*rotated, *([path] if path.exists() else [])]
    assert check(*files) == ([], 1200)
    assert len(rotated) > 1


def test_a_rename_needs_no_signal_and_the_chain_goes_on_in_the_new_file(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = CustodyLog(path)
    fill(log, 2)
    old = path.rename(tmp_path / "log.1")
    fill(log, 2)
    assert check(old) == ([], 2)
    assert check(old, path) == ([], 4)
    assert [finding.kind for finding in check(path)[0]] == [Kind.BEGINNING]


@pytest.mark.parametrize("create", [False, True])
def test_who_comes_after_a_rotation_finds_the_end_beside(tmp_path: Path, create: bool) -> None:  # noqa: FBT001
    path = tmp_path / "log"
    for name in ("log.2", "log.1"):
        log = CustodyLog(path)
        fill(log, 2)
        log.close()
        path.rename(tmp_path / name)
    (tmp_path / "log.key").write_bytes(b"\x00\n" * 500)  # something else that begins alike
    if create:
        path.touch()
    fill(CustodyLog(path), 2)
    assert check(tmp_path / "log.2", tmp_path / "log.1", path) == ([], 6)


def test_a_file_that_is_cut_to_nothing_goes_on_with_the_chain(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = CustodyLog(path)
    fill(log, 3)
    copy = tmp_path / "copy"
    copy.write_bytes(path.read_bytes())
    os.truncate(path, 0)
    fill(log, 2)
    assert check(copy, path) == ([], 5)


@pytest.mark.parametrize("cut", [1, 2, 50, 200])
def test_a_torn_line_is_kept_and_the_chain_goes_on(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "log"
    log = CustodyLog(path)
    fill(log, 3)
    log.close()
    os.truncate(path, path.stat().st_size - cut)
    assert [finding.kind for finding in check(path)[0]] == [Kind.TORN]
    torn = path.read_bytes()
    fill(CustodyLog(path), 2)
    assert path.read_bytes().startswith(torn + b"\n")
    assert check(path) == ([], 5)


def test_a_chain_goes_on_after_a_first_line_that_was_torn(tmp_path: Path) -> None:
    path = tmp_path / "log"
    for beginning in (b"{", b'{"seq":1,"time":"2026'):
        path.write_bytes(beginning)
        fill(CustodyLog(path), 2)
        assert check(path) == ([], 3)


KILLED = """
import sys
from pathlib import Path
from attachfs.custody.writer import CustodyLog
log = CustodyLog(Path(sys.argv[1]))
print("ready", flush=True)
while True:
    log.append({"event": "open", "text": "x" * 2000})
"""


def test_killed_at_any_moment_the_chain_is_whole_or_torn_at_its_end(tmp_path: Path) -> None:
    path = tmp_path / "log"
    for _ in range(4):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        before = path.stat().st_size if path.exists() else 0
        process.stdout.readline()
        while path.stat().st_size < before + 50_000:
            process.poll()
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        found, lines = check(path)
        assert {finding.kind for finding in found} <= {Kind.TORN}
        assert lines > 20
    fill(CustodyLog(path), 1)
    assert check(path)[0] == []


@pytest.mark.parametrize("content", [b"root:x:0:0:root:/root:/bin/bash\n", b"\x7fELF" + bytes(100_000), b"x"])
def test_a_file_that_is_something_else_is_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "passwd"
    path.write_bytes(content)
    with pytest.raises(OSError, match="other content"):
        CustodyLog(path)
    assert path.read_bytes() == content


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="not a regular file"):
        CustodyLog(tmp_path / "fifo")
    with pytest.raises(IsADirectoryError):
        CustodyLog(tmp_path)


def test_a_write_that_fails_is_told_and_half_a_line_is_completed_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log"
    log = CustodyLog(path)
    fill(log, 1)
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:30]))
    with pytest.raises(OSError, match="No space") as caught:
        log.append({"event": "open"})
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.undo()
    fill(log, 1)
    assert check(path) == ([], 3)


def test_a_sync_that_failed_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = CustodyLog(tmp_path / "log")
    fill(log, 1)
    synced: list[int] = []

    def fail(fd: int) -> None:
        synced.append(fd)
        if len(synced) == 1:
            raise OSError(errno.EIO, "I/O error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="I/O error"):
        log.sync()
    log.sync()
    log.sync()
    assert len(synced) == 2  # and nothing to do the third time


def test_foreign_text_is_one_line_of_ascii_and_bounded(tmp_path: Path) -> None:
    path = tmp_path / "log"
    CustodyLog(path).append({"path": "a\nb\u202e\udcff" + "\U0001f600" * 100_000})
    assert check(path) == ([], 1)
    raw = path.read_bytes()
    assert raw.isascii()
    assert len(raw) < 1 << 16
