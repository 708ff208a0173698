"""A blob on its way: one body, and a transfer that takes up what broke off.

Owns: how slow is stalled, and which bytes a partial answer may bring.
"""

import math
import random
import re
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import trio

from attachfs.errors import BadAnswer, TimedOut
from attachfs.service.attempt import STALL
from attachfs.service.messages import Response

_MIN_PROGRESS = 16 * 1024  # bytes that a body must bring within each timeout: slower is stalled
_RESUMPTIONS = 3  # in a row that bring less than that
_RESUME_PAUSE = 0.5  # seconds at most before the first of them, doubling

_CONTENT_RANGE = re.compile(
    r"bytes[ \t]+([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)", re.ASCII | re.IGNORECASE
)


class Chunk(NamedTuple):
    """A piece of a blob. An `offset` of 0 after bytes have come means: the transfer began anew."""

    offset: int
    data: bytes
    discards: bool = False


class BlobBody:
    """A blob's bytes as they come: an async iterator of pieces.

    `offset`: where they start. `end`: where they are announced to stop, None if they are not. `etag`: the
    service's name for this version, None if it has none. `received`: how many came so far.
    `broken`: the body ended before its end, and asking for the rest may help.

    Raises (while iterating):
        BadAnswer: the body broke off, has another length than announced, or is longer than recorded.
        TimedOut: too little came within the timeout.
    """

    def __init__(
        self,
        answer: Response,
        what: str,
        requested: int,
        size: int | None,
        timeout: float,
        clock: Callable[[], float],
    ) -> None:
        self._answer = answer
        self._what = what
        self._size = size
        self._timeout = timeout
        self._clock = clock
        self.etag = answer.header("etag")
        self.length = answer.body.length
        self.received = 0
        self.broken = False
        self.offset = 0
        self.end: int | None = self.length
        if answer.status == 416:
            # What was recorded is not there; or ranges do not work. Only asking for all of it tells.
            raise _NoSuchRangeError(f"{what}: the service has no bytes from {requested} on (416)")
        if answer.status == 206:
            self.offset = requested
            self.end = self._ranged(answer.header("content-range"), requested)
        if size is not None and self.end is not None and self.end > size:
            raise BadAnswer(f"{what}: {self.end} bytes are announced, the record says {size}")
        # Seconds of waiting left until enough must have come, and how much has since it was renewed.
        self.first_byte_timeout = timeout
        self._progress = 0

    def _ranged(self, text: str | None, requested: int) -> int:
        found = _CONTENT_RANGE.fullmatch((text or "").strip())
        if found is None:
            raise BadAnswer(f"{self._what}: a part came that does not say which (206)")
        first, last = int(found[1]), int(found[2])
        total = math.inf if found[3] == "*" else int(found[3])
        wrong = first != requested or not first <= last < total
        wrong = wrong or (self.length is not None and self.length != last - first + 1)
        if self._size is not None and total != math.inf:
            wrong = wrong or total != self._size
        if wrong:
            raise BadAnswer(f"{self._what}: the service sent another part than the one requested (206)")
        return last + 1

    def __aiter__(self) -> "BlobBody":
        return self

    async def __anext__(self) -> bytes:
        began = self._clock()
        with trio.move_on_after(min(self.first_byte_timeout, STALL)) as scope:
            try:
                piece = await self._answer.body.next()
            except BadAnswer as error:
                self.broken = self._answer.body.broken
                raise BadAnswer(f"{error.reason} (after {self.offset + self.received} bytes)") from error
            finally:
                # Only waiting is counted: how long the caller takes between pieces is its own affair.
                self.first_byte_timeout = max(0.0, self.first_byte_timeout - (self._clock() - began))
        if scope.cancelled_caught and self.first_byte_timeout > 0:
            self.broken = True  # the connection may be dead without either end knowing
            raise StalledError(
                f"{self._what}: nothing came for {STALL:g} s, after {self.offset + self.received} bytes"
            )
        if scope.cancelled_caught:
            raise TimedOut(
                f"{self._what}: less than {_MIN_PROGRESS} bytes came within {self._timeout:g} s, "
                f"after {self.offset + self.received} bytes"
            )
        if not piece:
            if self.end is not None and self.offset + self.received != self.end:
                self.broken = True
                raise BadAnswer(
                    f"{self._what}: the answer ends after {self.offset + self.received} bytes, "
                    f"{self.end} were announced"
                )
            raise StopAsyncIteration
        self._progress += len(piece)
        if self._progress >= _MIN_PROGRESS:
            self._progress = 0
            self.first_byte_timeout = self._timeout
        self.received += len(piece)
        if self._size is not None and self.offset + self.received > self._size:
            raise BadAnswer(f"{self._what}: more bytes came than the {self._size} of the record")
        return piece

    async def aclose(self) -> None:
        """End the transfer. Cannot be cancelled; a second call does nothing."""
        await self._answer.aclose()


def brings_just(answer: Response, start: int, stop: int, size: int) -> bool:
    """Whether an answer brings the bytes in [start, stop) of `size`, and nothing else."""
    found = _CONTENT_RANGE.fullmatch((answer.header("content-range") or "").strip())
    if answer.status != 206 or found is None or answer.body.length not in (None, stop - start):
        return False
    return found.groups() == (str(start), str(stop - 1), str(size))


class _NoSuchRangeError(BadAnswer):
    """416."""


class StalledError(BadAnswer):
    """A body stood still."""


OpenBody = Callable[[int, float | None], Awaitable[BlobBody]]


class Transfer:
    """A blob's chunks, over as many bodies as it takes.

    Args:
        open_body: opens a body from an offset on, within so many seconds (None: the timeout).
        size: the recorded length.
        start: where to begin.
    """

    def __init__(self, open_body: OpenBody, size: int, start: int) -> None:
        self._open_body = open_body
        self._size = size
        self._position = start
        self._body: BlobBody | None = None
        self._etag: str | None = None
        self._failures = 0  # in a row, without progress
        self._reached = start + _MIN_PROGRESS  # what lies beyond is progress
        self._first_byte_timeout: float | None = None
        self._ended = start >= size > 0  # nothing is left to ask for; an empty blob is asked for all the same

    @property
    def etag(self) -> str | None:
        """The service's name for the version that comes; None: not known yet, or it has none."""
        return self._etag

    def __aiter__(self) -> "Transfer":
        return self

    async def __anext__(self) -> Chunk:
        while not self._ended:
            body = self._body or await self._open()
            try:
                data = await anext(body)
            except StopAsyncIteration:
                await self.aclose()
                # A part may end before the whole does; a whole body that is short is the caller's to judge.
                self._ended = not body.offset or not body.received or self._position >= self._size
                continue
            except BadAnswer as error:
                await self.aclose()
                if not body.broken:
                    raise
                await self._pause(error)
                self._first_byte_timeout = max(1.0, body.first_byte_timeout)
                continue
            chunk = Chunk(self._position, data)
            self._position += len(data)
            if self._position >= self._reached:
                # Only what had not come before counts: a service that begins anew each time, and breaks off
                # at the same place each time, is given up on.
                self._failures = 0
                self._reached = self._position + _MIN_PROGRESS
            return chunk
        raise StopAsyncIteration

    async def _open(self) -> BlobBody:
        """Ask from the position on; begin anew if the service does not give just that."""
        try:
            body = await self._open_body(self._position, self._first_byte_timeout)
        except _NoSuchRangeError as error:
            await self._pause(error)
            self._position = 0
            return await self._open()
        self._first_byte_timeout = None
        if body.offset and self._etag is not None and body.etag not in (None, self._etag):
            # Another version than the one the first bytes are from.
            await body.aclose()
            self._position = 0
            self._etag = None
            return await self._open()
        self._etag = body.etag or self._etag
        self._position = body.offset
        self._body = body
        return body

    async def _pause(self, error: BadAnswer) -> None:
        """Wait a little before the next attempt, or give up."""
        self._failures += 1
        if self._failures > _RESUMPTIONS:
            kind = TimedOut if isinstance(error, StalledError) else BadAnswer
            raise kind(error.reason) from error
        await trio.sleep(random.uniform(0, _RESUME_PAUSE * 2 ** (self._failures - 1)))  # noqa: S311 - jitter

    async def aclose(self) -> None:
        """End the transfer. Cannot be cancelled; a second call does nothing."""
        body, self._body = self._body, None
        if body is not None:
            await body.aclose()
