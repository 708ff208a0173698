"""The errno table: whole, and what each entry says."""

import errno

import pytest

from attachfs import errors
from attachfs.errors import (
    AttachfsError,
    BadAnswer,
    IntegrityError,
    NotFound,
    TimedOut,
    errno_of,
    first_of,
)

TABLE = {
    errors.NotFound: "ENOENT",
    errors.AccessDenied: "EACCES",
    errors.ScanRefused: "EPERM",
    errors.RateLimited: "EBUSY",
    errors.Interrupted: "EINTR",
    errors.TimedOut: "ETIMEDOUT",
    errors.Unreachable: "EHOSTUNREACH",
    errors.BadAnswer: "EIO",
    errors.IntegrityError: "EBADMSG",
    errors.NoSpace: "ENOSPC",
    errors.TooManyFiles: "EMFILE",
    errors.NoAttribute: "ENODATA",
    errors.IsDirectory: "EISDIR",
    errors.NotDirectory: "ENOTDIR",
    errors.ReadOnly: "EROFS",
    errors.Unexpected: "EIO",
    errors.UsageError: "EINVAL",
}


def test_every_exception_has_its_errno() -> None:
    assert set(AttachfsError.__subclasses__()) == set(TABLE) == set(errors.ERRNO)


@pytest.mark.parametrize(("kind", "name"), TABLE.items(), ids=TABLE.values())
def test_each_exception_has_the_errno_that_is_promised(kind: type[AttachfsError], name: str) -> None:
    assert errno.errorcode[errno_of(kind("x"))] == name


@pytest.mark.parametrize(
    "error", [AttachfsError("x"), FileNotFoundError(), ValueError(), KeyboardInterrupt()]
)
def test_nothing_else_ever_looks_like_an_absence(error: BaseException) -> None:
    assert errno_of(error) == errno.EIO


def test_an_error_carries_its_reason() -> None:
    error = BadAnswer("why")
    assert error.reason == str(error) == "why"


def test_a_group_of_one_is_what_it_holds() -> None:
    error = TimedOut("x")
    assert first_of(error) is error
    assert first_of(ExceptionGroup("", [ExceptionGroup("", [error])])) is error


def test_of_a_group_ours_comes_first() -> None:
    error = IntegrityError("x")
    assert first_of(ExceptionGroup("", [ValueError(), error, NotFound("y")])) is error
    assert first_of(ExceptionGroup("", [ValueError(), ExceptionGroup("", [error])])) is error


def test_a_group_without_ours_gives_its_first() -> None:
    error = ValueError()
    assert first_of(BaseExceptionGroup("", [error, KeyboardInterrupt()])) is error
