"""Each fault is told once; its repeats are counted."""

import logging

import pytest

from attachfs import errors
from attachfs.errors import AttachfsError, IntegrityError, TimedOut
from attachfs.fuse.fault_log import _KEPT, ErrorLog
from tests.services.manual_clock import ManualClock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def faults(clock: ManualClock, caplog: pytest.LogCaptureFixture) -> ErrorLog:
    caplog.set_level(logging.DEBUG)
    return ErrorLog(clock)


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_fault_is_logged_with_operation_path_reason_and_errno(
    faults: ErrorLog, caplog: pytest.LogCaptureFixture
) -> None:
    faults.record("open", "assets/x", TimedOut("no answer within 60 s"))
    assert told(caplog) == ["open assets/x: no answer within 60 s [ETIMEDOUT]"]
    assert caplog.records[0].levelno == logging.WARNING


def test_wrong_bytes_are_told_louder(faults: ErrorLog, caplog: pytest.LogCaptureFixture) -> None:
    faults.record("open", "x", IntegrityError("wrong"))
    assert caplog.records[0].levelno == logging.ERROR


def test_repeats_are_counted_not_told(
    faults: ErrorLog, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(100):
        faults.record("open", "x", TimedOut("slow"))
        clock.now += 2.9
    assert len(told(caplog)) == 1
    clock.now += 11
    faults.record("read", "x", TimedOut("slow"))
    assert told(caplog)[1:] == ["read x: slow [ETIMEDOUT] (and 99 times more before)"]


def test_after_a_while_a_single_fault_is_told_again(
    faults: ErrorLog, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    faults.record("open", "x", TimedOut("slow"))
    clock.now += 301
    faults.record("open", "x", TimedOut("slow"))
    assert told(caplog) == ["open x: slow [ETIMEDOUT]"] * 2


def test_other_paths_and_reasons_are_told_on_their_own(
    faults: ErrorLog, caplog: pytest.LogCaptureFixture
) -> None:
    faults.record("open", "x", TimedOut("slow"))
    faults.record("open", "y", TimedOut("slow"))
    faults.record("open", "x", TimedOut("slower"))
    assert len(told(caplog)) == 3


@pytest.mark.parametrize(
    "kind",
    [errors.NotFound, errors.NoAttribute, errors.Interrupted, errors.IsDirectory, errors.NotDirectory],
)
def test_ordinary_life_is_quiet(
    faults: ErrorLog, caplog: pytest.LogCaptureFixture, kind: type[AttachfsError]
) -> None:
    faults.record("lookup", "x", kind("r"))
    faults.record("lookup", "x", kind("r"))
    faults.flush()
    assert told(caplog) == []
    assert {record.levelno for record in caplog.records} == {logging.DEBUG}


def test_at_the_end_the_counts_are_told(faults: ErrorLog, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        faults.record("open", "x", TimedOut("slow"))
    faults.record("open", "y", TimedOut("slow"))
    caplog.clear()
    faults.flush()
    assert told(caplog) == ["x: slow (2 times more)"]
    caplog.clear()
    faults.flush()
    assert told(caplog) == []


def test_the_error_log_remembers_only_so_many_faults(faults: ErrorLog) -> None:
    for number in range(_KEPT + 100):
        faults.record("open", str(number), TimedOut("slow"))
    assert len(faults._logged) == _KEPT


def test_a_path_that_the_reason_names_is_there_once(
    faults: ErrorLog, caplog: pytest.LogCaptureFixture
) -> None:
    faults.record("open", "assets/x", TimedOut("assets/x: no answer"))
    assert told(caplog) == ["open: assets/x: no answer [ETIMEDOUT]"]


def test_a_bad_record_is_told_once_however_many_files_it_concerns(
    faults: ErrorLog, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(12_000):
        faults.record("lookup", f"assets/x/{number}", errors.BadAnswer("assets/x: the record is no JSON"))
    assert told(caplog) == ["lookup assets/x/0: assets/x: the record is no JSON [EIO]"]


def test_a_count_names_a_path_once_too(faults: ErrorLog, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        faults.record("open", "assets/x", TimedOut("assets/x: no answer"))
    faults.flush()
    assert told(caplog)[1:] == ["assets/x: no answer (once more)"]
