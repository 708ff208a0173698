"""The custody log of a real mount: every open is in it before it succeeds, and the chain holds."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from attachfs.demo.spawn import DemoServer
from tests.mount.conftest import Mount, Mounted, run_mount
from tests.services.threaded_ledger import Handler, ScriptedLedger, serve

ENDS_WITHIN = 30


def attachfs(mounted: Mounted, *arguments: object) -> subprocess.CompletedProcess[str]:
    base = mounted.point.parent
    return subprocess.run(
        [sys.executable, "-m", "attachfs", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "XDG_STATE_HOME": str(base / "state"), "XDG_CONFIG_HOME": str(base / "config")},
    )


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def opens(path: Path) -> list[dict[str, Any]]:
    return [line for line in lines(path) if line["event"] == "open"]


def files_of(mounted: Mounted) -> list[Path]:
    return sorted((mounted.point / "assets").glob("*/events/*/*"))[:40]  # some of them do not open


READER = """
import sys, time
until = time.monotonic() + float(sys.argv[1])
count = 0
while time.monotonic() < until:
    for path in sys.argv[2:]:
        try:
            with open(path, "rb") as file:
                file.read(1)
            count += 1
        except OSError:
            pass
print(count)
"""


def test_of_sixteen_busy_readers_every_open_is_in_the_log_and_the_chain_holds(
    mount: Mount, tmp_path: Path
) -> None:
    """A custody log is complete.

    Promise 34: "With a custody log, every open of an attachment is recorded before it succeeds, with the
    hash of the line before; attachfs custody verify finds any line that was changed, removed, inserted or
    moved."
    """
    log = tmp_path / "custody.log"
    seconds = os.environ.get("ATTACHFS_BUSY", "3")
    with mount(f"--custody-log={log}") as mounted:
        paths = [str(path) for path in files_of(mounted)]
        command = [sys.executable, "-c", READER, seconds, *paths]
        readers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(16)]
        counts = {reader.pid: int(reader.communicate()[0]) for reader in readers}
    seen = opens(log)
    for pid, count in counts.items():
        own = [line for line in seen if line["pid"] == pid and line["result"] == "ok"]
        assert len(own) == count
        assert count > 0
    assert [line["event"] for line in (lines(log)[0], lines(log)[-1])] == ["mount", "unmount"]
    done = attachfs(mounted, "custody", "verify", log)
    assert done.returncode == 0, done.stdout + done.stderr
    raw = log.read_text().splitlines(keepends=True)
    log.write_text("".join([*raw[:7], *raw[8:]]))
    done = attachfs(mounted, "custody", "verify", log)
    assert done.returncode == 1
    assert "line 8 of the log is missing" in done.stdout


def test_a_line_says_who_opened_what_and_what_came_of_it(
    mount: Mount, ledger: DemoServer, tmp_path: Path
) -> None:
    log = tmp_path / "custody.log"
    with mount("-o", f"custody_log={log}") as mounted:
        for name in ("photo", "tampered", "infected"):
            mounted.sh(f"cat {ledger.story[name]} >/dev/null", check=False)
        photo, tampered, infected = opens(log)  # while it is mounted: before the open has succeeded
        text = attachfs(mounted, "custody", "show", log).stdout
        recorded = {
            name: os.getxattr(mounted.point / ledger.story[name], "user.hash.sha256").decode()
            for name in ("photo", "tampered")
        }
    path = mounted.point / ledger.story["photo"]
    assert (photo["path"], photo["command"], photo["uid"]) == (str(path), "cat", os.getuid())
    for line, name in ((photo, "photo"), (tampered, "tampered")):
        assert line["digest"] == f"sha256:{recorded[name]}"
    assert photo["size"] > 0
    assert [line["result"] for line in (photo, tampered, infected)] == ["ok", "EBADMSG", "EPERM"]
    assert "EBADMSG" in text
    assert ledger.token_file is not None
    assert ledger.token_file.read_text().split()[-1] not in log.read_text()


@pytest.mark.parametrize("optional", [False, True])
def test_while_it_cannot_be_written_nothing_opens_unless_it_is_optional(
    mount: Mount,
    ledger: DemoServer,
    tmp_path: Path,
    optional: bool,  # noqa: FBT001
) -> None:
    """A custody log cannot be circumvented by filling the disk.

    Promise 35: "While the custody log cannot be written, no attachment opens (EIO), unless
    --custody-log-optional is given."
    """
    log = tmp_path / "custody.log"
    options = ["--custody-log-optional"] if optional else []
    with mount(f"--custody-log={log}", *options) as mounted:
        path = mounted.point / ledger.story["photo"]
        whole = path.read_bytes()
        log.rename(tmp_path / "custody.log.1")
        log.mkdir()
        if optional:
            assert path.read_bytes() == whole
        else:
            with pytest.raises(OSError) as caught:
                path.read_bytes()
            assert caught.value.errno == errno.EIO
        log.rmdir()
        assert path.read_bytes() == whole
        assert len(opens(log)) == 1
    assert any("cannot be written" in line for line in mounted.log)  # whole, now that it has ended
    done = attachfs(mounted, "custody", "verify", tmp_path / "custody.log.1", log)
    assert done.returncode == 0, done.stdout


def test_a_log_that_cannot_be_used_is_told_at_once(mount: Mount, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="custody-log-optional"), mount(f"--custody-log={tmp_path}"):
        pass


def test_rotation_by_rename_and_sighup_goes_on_in_the_new_file(
    mount: Mount, ledger: DemoServer, tmp_path: Path
) -> None:
    log, old = tmp_path / "custody.log", tmp_path / "custody.log.1"
    with mount(f"--custody-log={log}") as mounted:
        path = mounted.point / ledger.story["photo"]
        path.read_bytes()
        log.rename(old)
        mounted.process.send_signal(signal.SIGHUP)
        ended = time.monotonic() + ENDS_WITHIN
        while not log.exists():
            assert time.monotonic() < ended
            mounted.sh("true")
        path.read_bytes()
        assert [line["event"] for line in lines(old)] == ["mount", "open"]
        assert [line["event"] for line in lines(log)] == ["open"]
    assert attachfs(mounted, "custody", "verify", log, old).returncode == 0


def test_verify_is_noted_beside_the_mounts_own_lines(
    mount: Mount, ledger: DemoServer, tmp_path: Path
) -> None:
    log = tmp_path / "custody.log"
    with mount(f"--custody-log={log}") as mounted:
        reading = threading.Thread(
            target=mounted.sh, args=("cat assets/*/* >/dev/null",), kwargs={"check": False}
        )
        reading.start()
        assert attachfs(mounted, "verify", mounted.point / ledger.story["photo"]).returncode == 0
        reading.join()
    results = [line["result"] for line in lines(log) if line["event"] == "verify"]
    assert results == ["begun", "exit status 0"]
    done = attachfs(mounted, "custody", "verify", log)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
@pytest.mark.parametrize("operation", ["verify", "export"])
def test_a_signal_that_ends_an_operation_is_its_end_in_the_log(
    operation: str, number: signal.Signals, tmp_path: Path
) -> None:
    """SIGKILL cannot be noted; then the log says that there is no end."""
    log, ledger, release = tmp_path / "custody.log", ScriptedLedger(), threading.Event()
    path = ledger.add("one", os.urandom(100_000))

    def hold(_: Handler) -> bool:
        assert release.wait(ENDS_WITHIN)
        return False

    ledger.bend["blob"] = hold
    with serve(ledger, tmp_path / "token") as server:
        with run_mount(tmp_path, f"--custody-log={log}", server=server) as mounted:
            target = [str(tmp_path / "bag")] if operation == "export" else []
            command = [sys.executable, "-m", "attachfs", operation, str(mounted.point / path), *target]
            process = subprocess.Popen(command, stderr=subprocess.PIPE)
            ledger.wait_for(lambda: ledger.counts["blob"] > 0)
            process.send_signal(number)
            process.communicate(timeout=ENDS_WITHIN)
            release.set()
        expected = -number if number == signal.SIGKILL else 128 + number
        assert process.returncode == expected
        results = [line["result"] for line in lines(log) if line["event"] == operation]
        verified, shown = (attachfs(mounted, "custody", what, log) for what in ("verify", "show"))
        assert verified.returncode == shown.returncode == 0
        unended = f"the {operation} of {mounted.point / path} has no line of its end"
        if number == signal.SIGKILL:
            assert results == ["begun"]
            assert unended in verified.stdout
            assert "begun, no end" in shown.stdout
        else:
            assert results == ["begun", f"interrupted by {number.name}"]
            assert unended not in verified.stdout
            assert "no end" not in shown.stdout


def test_the_status_says_how_the_log_is(mount: Mount, ledger: DemoServer, tmp_path: Path) -> None:
    log = tmp_path / "custody.log"
    with mount(f"--custody-log={log}") as mounted:
        path = mounted.point / ledger.story["photo"]
        path.read_bytes()
        last = attachfs(mounted, "custody", "verify", log).stderr.split()[-1]
        status = json.loads(attachfs(mounted, "status", "--json", mounted.point).stdout)["custody"]
        assert status == {"path": str(log), "lines": 2, "last_hash": last, "optional": False, "error": None}
        assert f"{log}: 2 lines, the last {last}" in attachfs(mounted, "status", mounted.point).stdout
        log.rename(tmp_path / "custody.log.1")
        log.mkdir()
        with pytest.raises(OSError):
            path.read_bytes()
        assert json.loads(attachfs(mounted, "status", "--json", mounted.point).stdout)["custody"]["error"]
        assert "CANNOT BE WRITTEN" in attachfs(mounted, "status", mounted.point).stdout
        log.rmdir()
