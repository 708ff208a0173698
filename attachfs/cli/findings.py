"""What a check of this machine or set-up found, and what to do about it."""

from enum import StrEnum
from typing import NamedTuple

from attachfs.errors import UsageError


class State(StrEnum):
    """How a check went. A note is neither wrong nor as usual."""

    OK = "ok"
    NOTE = "note"
    WRONG = "WRONG"
    UNKNOWN = "unknown"


class Finding(NamedTuple):
    """What a check found, and what to do about it."""

    check: str
    state: State
    detail: str
    remedy: str = ""


def usage_finding(check: str, error: UsageError, remedy: str) -> Finding:
    """Return a finding for an error whose sentence is 'what is wrong: what to do'."""
    detail, colon, own = error.reason.partition(": ")
    return Finding(check, State.WRONG, detail, own if colon else remedy)
