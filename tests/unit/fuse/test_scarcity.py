"""What an error is for want of."""

import errno

import pytest

from attachfs.errors import NoSpace, TooManyFiles, Unexpected, Unreachable
from attachfs.fuse.scarcity import scarcity_of


def caused(outer: Exception, cause: Exception) -> Exception:
    outer.__cause__ = cause
    return ExceptionGroup("", [outer])


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (caused(NoSpace("no room"), OSError(errno.EMFILE, "")), TooManyFiles, "ulimit -n, or LimitNOFILE="),
        (caused(Unreachable("no"), OSError(errno.ENFILE, "")), TooManyFiles, "fs.file-max"),
        (MemoryError(), Unexpected, "MemoryMax="),
        (OSError(errno.ENOMEM, ""), Unexpected, "ulimit -v"),
        (caused(NoSpace("no"), RuntimeError("can't start new thread")), Unexpected, "TasksMax="),
    ],
)
def test_a_resource_that_is_used_up_is_named_with_its_remedy_whoever_met_it(
    error: Exception, kind: type[Exception], words: str
) -> None:
    found = scarcity_of(error)
    assert type(found) is kind
    assert words in found.reason


@pytest.mark.parametrize("error", [NoSpace("no room"), RuntimeError("other"), OSError(errno.ENOSPC, "")])
def test_other_errors_are_for_want_of_nothing(error: Exception) -> None:
    assert scarcity_of(error) is None
