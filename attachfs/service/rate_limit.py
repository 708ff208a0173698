"""How long a 429 keeps everybody waiting."""

import math
import random
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import trio

from attachfs.errors import RateLimited

_SANE_WAIT = 3600.0  # seconds; a wait asked for beyond that is a mistake, and ignored
_LONGEST_WAIT = 300.0  # seconds for which nothing at all is asked; then one round finds out
_FIRST_FLOOR = 0.5  # seconds to wait where nothing usable is said, doubling from round to round
_HIGHEST_FLOOR = 30.0
_SPREAD = 0.1  # of the wait, at random on top, so that many mounts do not return together


def requested_wait(headers: Mapping[str, str], wall: float) -> float | None:
    """Return the seconds a 429 or 503 asks to wait, the longer if it says two, None if nothing usable.

    Args:
        headers: the response's, with lower-case or case-insensitive keys.
        wall: seconds since 1970, for a date that comes without the service's own.
    """
    said = (
        _sane_seconds(headers.get("archivist-rate-limit-reset")),
        _sane_seconds(headers.get("retry-after")),
        _until_date(headers.get("retry-after"), headers.get("date"), wall),
    )
    return max((wait for wait in said if wait is not None), default=None)


def _sane_seconds(text: str | None) -> float | None:
    if text is None or not re.fullmatch(
        r"\s*\d{1,20}(?:\.\d{0,20})?(?:[eE][+-]?\d{1,3})?\s*", text, re.ASCII
    ):
        return None
    seconds = float(text)
    return seconds if math.isfinite(seconds) and seconds <= _SANE_WAIT else None


def _until_date(text: str | None, server_date: str | None, wall: float) -> float | None:
    until = _timestamp(text)
    if until is None:
        return None
    # The service's clock, where it tells it: ours may be a year off.
    now = _timestamp(server_date)
    wait = max(0.0, until - (wall if now is None else now))
    return wait if wait <= _SANE_WAIT else None


def _timestamp(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        moment: datetime = parsedate_to_datetime(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


class RateLimitGate:
    """Shut while the service asks for patience; every request waits at it.

    Args:
        clock: seconds, the event loop's.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._reopens = -math.inf
        self._shut_at = -math.inf
        self._rounds = 0  # 429s in a row, counting those of one burst once

    @property
    def remaining(self) -> float:
        """Seconds until it opens, 0 if it is open."""
        return max(0.0, self._reopens - self._clock())

    def shut(self, requested: float | None, began: float) -> bool:
        """Shut for as long as asked for; return whether this 429 is news.

        Args:
            requested: seconds, None where nothing usable was said.
            began: when the request was sent. One sent before the gate was shut last tells nothing new,
                and counts for its wait only.
        """
        news = began > self._shut_at
        if news:
            self._rounds += 1
            self._shut_at = self._clock()
        floor = min(_HIGHEST_FLOOR, _FIRST_FLOOR * 2 ** min(self._rounds - 1, 10))
        wait = min(_LONGEST_WAIT, max(requested or 0.0, floor))
        wait *= 1 + random.uniform(0, _SPREAD)  # noqa: S311 - spread, not secrecy
        self._reopens = max(self._reopens, self._clock() + wait)
        return news

    def succeeded(self, began: float) -> None:
        """Note that a request sent after the last 429 was served."""
        if began > self._shut_at:
            self._rounds = 0

    async def passed(self, what: str, deadline: float) -> None:
        """Wait until it is open.

        Raises:
            RateLimited: it will not be before `deadline`.
        """
        while (remaining := self.remaining) > 0:
            if self._reopens >= deadline:
                raise RateLimited(
                    f"{what}: the service limits the rate and asks to wait {math.ceil(remaining)} s"
                )
            await trio.sleep(remaining)
