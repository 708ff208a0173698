"""The log: its forms, where it goes, and repeats folded."""

import json
import logging
import logging.handlers
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from attachfs.config import settings
from attachfs.errors import UsageError
from attachfs.mount import log, log_place
from attachfs.mount.log import Folding, Journal, Json, Text


def record(message: str, *args: object, level: int = logging.WARNING, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("attachfs.test", level, "", 0, message, args, None)
    made.__dict__.update(extra)
    return made


class TestForms:
    def test_json_is_one_object_a_line(self) -> None:
        made = record("a\nb %s", "\u202e\x1b[2J", path="assets/x", errno=74)
        line = Json().format(made)
        assert line.isascii()
        assert "\n" not in line
        found = json.loads(line)
        assert found["message"] == "a\nb \u202e\x1b[2J"
        assert (found["level"], found["logger"], found["path"], found["errno"]) == (
            "warning",
            "attachfs.test",
            "assets/x",
            74,
        )
        assert found["time"].endswith("+00:00")
        assert "traceback" not in found

    def test_a_traceback_is_a_field(self) -> None:
        made = record("failed", level=logging.ERROR)
        try:
            int("why")
        except ValueError as error:
            made.exc_info = (ValueError, error, error.__traceback__)
        assert "ValueError: invalid literal" in json.loads(Json().format(made))["traceback"]

    def test_a_message_cannot_begin_a_line_or_move_a_cursor(self) -> None:
        line = Text("%(levelname)s %(message)s").format(record("%s", "x\n2026 ERROR fake\x1b[2J\u202e"))
        assert line == "WARNING x\\n2026 ERROR fake\\x1b[2J\\u202e"

    @pytest.mark.parametrize(
        ("level", "number"),
        [(logging.DEBUG, 7), (logging.INFO, 6), (logging.WARNING, 4), (logging.ERROR, 3), (50, 3)],
    )
    def test_the_journal_gets_priorities(self, level: int, number: int) -> None:
        assert Journal(Text("%(message)s")).format(record("x", level=level)) == f"<{number}>x"


class TestFolding:
    def test_repeated_log_lines_are_folded_and_counted(self) -> None:
        now = [0.0]
        folding = Folding(lambda: now[0])
        assert folding.filter(record("same %d", 1))
        assert not any(folding.filter(record("same %d", 1)) for _ in range(9))
        assert folding.filter(record("same %d", 2))
        now[0] = 61
        again = record("same %d", 1)
        assert folding.filter(again)
        assert again.getMessage() == "same 1 (and 9 times more before)"

    def test_what_is_no_warning_is_left_alone(self) -> None:
        folding = Folding()
        assert all(folding.filter(record("x", level=logging.INFO)) for _ in range(3))

    def test_only_so_many_log_lines_are_remembered_for_folding(self) -> None:
        folding = Folding(lambda: 0.0)
        for number in range(log._FOLDED + 10):
            folding.filter(record(str(number)))
        assert len(folding._seen) == log._FOLDED


class TestWhereItGoes:
    @pytest.fixture(autouse=True)
    def restore(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setattr(logging, "raiseExceptions", logging.raiseExceptions)
        root = logging.getLogger()
        handlers, level = root.handlers[:], root.level
        root.handlers[:] = []
        yield
        for handler in root.handlers[:]:
            handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)

    def test_the_log_goes_to_a_file(self, tmp_path: Path) -> None:
        file = tmp_path / "log"
        log.set_up(settings.load({"log_file": str(file), "log_format": "json"}, {}, {}), background=True)
        logging.getLogger("attachfs").info("hello")
        logging.getLogger("attachfs").debug("not this")
        assert json.loads(file.read_text())["message"] == "hello"
        log.set_level("debug")
        logging.getLogger("attachfs").debug("this")
        assert len(file.read_text().splitlines()) == 2

    def test_a_file_that_cannot_be_written(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="cannot be written"):
            log.set_up(settings.load({"log_file": str(tmp_path)}, {}, {}), background=True)

    def test_the_log_goes_to_stderr(self, capfd: pytest.CaptureFixture[str]) -> None:
        log.set_up(settings.load({}, {}, {}), background=False)
        logging.getLogger("attachfs").warning("hello")
        assert capfd.readouterr().err.endswith(" WARNING hello\n")

    def test_a_stream_to_the_journal(self, tmp_path: Path) -> None:
        with (tmp_path / "stream").open("wb") as stream:
            found = os.fstat(stream.fileno())
            good = {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
            assert log_place.journal_stream(good, stream.fileno())
            assert not log_place.journal_stream({}, stream.fileno())
            assert not log_place.journal_stream({"JOURNAL_STREAM": "1:2"}, stream.fileno())
            number = stream.fileno()
        assert not log_place.journal_stream(good, number)

    def test_the_log_goes_to_the_systems(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        address = tmp_path / "log.socket"
        monkeypatch.setattr(log_place, "SYSLOG", str(address))
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as system:
            system.bind(str(address))
            assert log.set_up(settings.load({}, {}, {}), background=True) in ("journal", "syslog")
            logging.getLogger("attachfs").warning("hello")
            assert system.recv(4096) == b"<28>attachfs[%d]: hello\0" % os.getpid()


class TestPlaces:
    def test_without_a_system_log_a_mount_in_the_background_has_a_file_of_its_own(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(log_place, "SYSLOG", str(tmp_path / "none"))
        place = log_place.place_of(None, tmp_path, Path("/home/me/my ledger"), background=True)
        assert place == f"{tmp_path}/home-me-my_ledger.log"
        assert log_place.command_for({"log": place}, tmp_path, Path("/x")) == Path(place)
        # One that has ended is found again.
        assert log_place.command_for(None, tmp_path, Path("/home/me/my ledger")) == Path(place)

    def test_a_file_that_the_user_names_comes_first(self, tmp_path: Path) -> None:
        for background in (True, False):
            assert (
                log_place.place_of(Path("/x.log"), tmp_path, Path("/mnt"), background=background) == "/x.log"
            )

    def test_a_mounts_lines_are_found_in_the_journal_by_its_process(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
        found = log_place.command_for({"log": "journal", "pid": 7}, tmp_path, Path("/mnt"))
        assert found == ["/usr/bin/journalctl", "--no-pager", "_PID=7"]
        monkeypatch.setattr("shutil.which", lambda _: None)
        assert "not installed" in str(
            log_place.command_for({"log": "journal", "pid": 7}, tmp_path, Path("/"))
        )

    @pytest.mark.parametrize("place", ["syslog", "stderr"])
    def test_where_nothing_can_show_it_a_sentence_says_where_it_is(self, tmp_path: Path, place: str) -> None:
        assert place.replace("stderr", "standard error") in str(
            log_place.command_for({"log": place}, tmp_path, Path("/"))
        )

    def test_a_file_of_its_own_is_bounded(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(log, "_FILE_BYTES", 1000)
        handler = log._own_file(tmp_path / "state" / "mnt.log", Text("%(message)s"))
        for number in range(100):
            handler.handle(logging.LogRecord("x", logging.INFO, "", 0, "line %d" + "." * 40, (number,), None))
        handler.close()
        files = sorted((tmp_path / "state").iterdir())
        assert [file.name for file in files] == ["mnt.log", "mnt.log.1"]
        assert all(file.stat().st_size <= 1000 for file in files)
        assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
        assert "line 99" in files[0].read_text()

    def test_a_state_directory_that_cannot_be_written_costs_the_log_and_no_more(self, tmp_path: Path) -> None:
        (tmp_path / "state").touch()
        handler = log._own_file(tmp_path / "state" / "mnt.log", Text("%(message)s"))
        assert isinstance(handler, logging.NullHandler)
