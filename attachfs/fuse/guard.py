"""The one boundary at which an exception becomes an errno; one that left a handler would end the mount."""

import functools
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, overload

from pyfuse3 import FUSEError

from attachfs.errors import AttachfsError, Unexpected, errno_of, first_of
from attachfs.fuse.fault_log import ErrorLog
from attachfs.fuse.scarcity import scarcity_of

log = logging.getLogger(__name__)


class HasErrorLog(Protocol):
    """Whose handlers are guarded."""

    faults: ErrorLog


F = TypeVar("F", bound=HasErrorLog)
A = TypeVar("A")
P = ParamSpec("P")
R = TypeVar("R")
Handler = Callable[Concatenate[F, A, P], Coroutine[Any, Any, R]]


class Decorator(Protocol):
    """Guards any handler."""

    def __call__(self, work: Handler[F, A, P, R], /) -> Handler[F, A, P, R]:
        """Return the guarded handler."""
        ...


@overload
def guard(path_of: Callable[..., str]) -> Decorator: ...


@overload
def guard(
    path_of: Callable[..., str], quick: Callable[Concatenate[F, A, P], R | None]
) -> Callable[[Handler[F, A, P, R]], Handler[F, A, P, R]]: ...


def guard(path_of: Callable[..., str], quick: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """Return a decorator for a handler: whatever goes wrong is logged once and becomes an errno.

    Args:
        path_of: names the path of a request for the log, of the same arguments as the handler.
        quick: is called first, and answers what is known without waiting; None leaves it to the handler.
    """

    def decorate(work: Handler[F, A, P, R]) -> Handler[F, A, P, R]:
        @functools.wraps(work)
        async def guarded(self: F, first: A, /, *args: P.args, **kwargs: P.kwargs) -> R:
            try:
                if quick is not None:
                    answer: R | None = quick(self, first, *args, **kwargs)
                    if answer is not None:
                        return answer
                return await work(self, first, *args, **kwargs)
            except FUSEError:
                raise
            except Exception as error:
                describe = functools.partial(path_of, self, first, *args)
                raise FUSEError(_report(self.faults, work.__name__, describe, error)) from error

        return guarded

    return decorate


def _report(faults: ErrorLog, operation: str, describe: Callable[[], str], error: Exception) -> int:
    """Log what went wrong in a handler; return the errno for it."""
    inner = first_of(error)
    if isinstance(inner, FUSEError):
        return inner.errno
    reason = scarcity_of(error) or inner
    try:
        if not isinstance(reason, AttachfsError):
            log.error("%s failed because of a bug in attachfs", operation, exc_info=error)
            reason = Unexpected(f"{type(inner).__name__}: a bug in attachfs")
        faults.record(operation, describe(), reason)
    except Exception:  # the log must not do what it reports
        log.exception("%s failed, and its path cannot be named", operation)
    return errno_of(reason)
