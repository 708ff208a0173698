"""One request as it goes from attempt to attempt, and what an attempt comes to."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import trio

from attachfs.errors import AttachfsError
from attachfs.service.messages import Request, Response

STALL = 10.0  # seconds for which a body may stand still

T = TypeVar("T")


@dataclass(slots=True)
class Done(Generic[T]):
    """An attempt that brought what was asked for."""

    value: T


@dataclass(slots=True)
class Again:
    """An attempt to be repeated.

    `error`: what it ends with if there is no next one; None: nothing failed. `cause`: the library's
    exception. `wait`: seconds asked for. `counts`: it uses up one of the attempts. `fresh`: on a new
    connection.
    """

    error: AttachfsError | None = None
    cause: BaseException | None = None
    wait: float = 0.0
    counts: bool = True
    fresh: bool = False


class RequestState:
    """What happened to one request so far."""

    def __init__(self, request: Request, what: str, timeout: float, now: float) -> None:
        self.request = request
        self.what = what
        self.timeout = timeout
        self.deadline = now + timeout
        self.scope = trio.CancelScope()
        self.attempts = 0
        self.sent = 0
        self.sent_at = now
        self.reused = False  # the connection was
        self.answered = False  # the head has come
        self.silent = False  # and it was noted that it has not
        self.fresh = False
        self.renewed = self.reconnected = False
        self.last: AttachfsError | None = None
        self.header: str | None = None  # what the last request was authorized with
        self.strayed = False  # it was redirected to another origin

    def within(self, seconds: float) -> None:
        """Let the attempt end unless something happens within `seconds`."""
        self.scope.deadline = min(self.deadline, trio.current_time() + seconds)

    def progress(self) -> None:
        """Note that a piece of the body has come."""
        self.within(STALL)


Finish = Callable[[Response, RequestState], Awaitable[T]]


def whole(limit: int) -> Finish[bytes]:
    """Return what reads an answer's whole body, of at most `limit` bytes."""

    async def finish(answer: Response, state: RequestState) -> bytes:
        body = await answer.body.read(limit, state.progress)
        await answer.aclose()
        return body

    return finish


async def unread(answer: Response, _state: RequestState) -> Response:
    """Return an answer whose body has not begun; the caller closes it."""
    return answer
