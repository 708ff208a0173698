"""What went wrong, told once: each fault is logged with its path and reason, repeats are counted."""

import errno
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

from attachfs.errors import (
    AccessDenied,
    AttachfsError,
    BadAnswer,
    IntegrityError,
    Interrupted,
    IsDirectory,
    NoAttribute,
    NoSpace,
    NotDirectory,
    NotFound,
    RateLimited,
    ScanRefused,
    TimedOut,
    TooManyFiles,
    Unreachable,
    errno_of,
    names_path,
)

log = logging.getLogger(__name__)

_QUIET = (NotFound, NoAttribute, Interrupted, IsDirectory, NotDirectory)  # part of ordinary life
_KEPT = 1024  # faults remembered
_AGAIN = 300  # seconds after which the same fault is told again
_LATEST = 10  # of them shown in a mount's figures
_SHOWN = 500  # characters of a reason there

# How failed operations are counted: what a person would look into first comes first.
_KINDS: dict[type[AttachfsError], str] = {
    IntegrityError: "mismatch",
    ScanRefused: "scan_policy",
    AccessDenied: "access_denied",
    Unreachable: "unreachable",
    TimedOut: "timed_out",
    RateLimited: "rate_limited",
    BadAnswer: "bad_answer",
    NoSpace: "no_room",
    TooManyFiles: "too_many_files",
    AttachfsError: "other",
}


class _Logged:
    __slots__ = ("count", "since")

    def __init__(self, since: float) -> None:
        self.since = since
        self.count = 0


class ErrorLog:
    """A bounded memory of the faults that have been told.

    Args:
        clock: seconds, monotonic.
        wall: seconds since 1970.
    """

    def __init__(self, clock: Callable[[], float], wall: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._wall = wall
        self._logged: OrderedDict[tuple[str, str], _Logged] = OrderedDict()
        self.counts = dict.fromkeys(_KINDS.values(), 0)
        self._latest: deque[dict[str, Any]] = deque(maxlen=_LATEST)

    def record(self, operation: str, path: str, error: AttachfsError) -> None:
        """Log a fault, unless the same one was logged lately; then count it."""
        if isinstance(error, _QUIET):
            log.debug("%s %s: %s", operation, path, error.reason)
            return
        # A reason that names another thing (a record that cannot be read) is one for all that it concerns.
        named = names_path(error.reason, path)
        self.counts[_KINDS.get(type(error), "other")] += 1
        key = ("" if "assets/" in error.reason and not named else path, error.reason)
        logged = self._logged.get(key)
        now = self._clock()
        self._latest.append(
            {
                "time": round(self._wall()),
                "operation": operation,
                "path": path,
                "reason": error.reason[:_SHOWN],
                "errno": errno_of(error),
            }
        )
        if logged is not None and now - logged.since < _AGAIN:
            logged.count += 1
            return
        repeats = f" (and {_times(logged.count)} more before)" if logged is not None and logged.count else ""
        self._logged[key] = _Logged(now)
        self._logged.move_to_end(key)
        if len(self._logged) > _KEPT:
            (_, reason), oldest = self._logged.popitem(last=False)
            if oldest.count:
                log.warning("%s (%s more)", reason, _times(oldest.count))
        level = logging.ERROR if isinstance(error, IntegrityError) else logging.WARNING
        number = errno_of(error)
        log.log(
            level,
            "%s%s: %s [%s]%s",
            operation,
            "" if named else f" {path}",
            error.reason,
            errno.errorcode.get(number, number),
            repeats,
            extra={"path": path, "errno": number},
        )

    def latest(self) -> list[dict[str, Any]]:
        """Return the last faults, the newest last, ready for JSON."""
        return list(self._latest)

    def flush(self) -> None:
        """Log the counts that were not logged."""
        for (path, reason), logged in self._logged.items():
            if logged.count:
                where = "" if not path or names_path(reason, path) else f"{path}: "
                log.warning("%s%s (%s more)", where, reason, _times(logged.count))
        self._logged.clear()


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
