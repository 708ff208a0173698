"""The exception tree and the one table from exceptions to errno. Nothing else decides an errno.

AttachfsError
├── UsageError            what the user gave cannot be used (arguments, configuration, secrets' files)
├── NotFound              ENOENT: the service said 404, or the name cannot exist
├── AccessDenied          EACCES: 401 after one renewal, or 403
├── ScanRefused           EPERM: refused by the scan policy
├── RateLimited           EBUSY: 429 and patience used up (not EAGAIN, which raw reads mishandle)
├── Interrupted           EINTR: the caller has a pending fatal signal
├── TimedOut              ETIMEDOUT: no answer, or no progress, in time
├── Unreachable           EHOSTUNREACH: cannot connect, DNS, TLS, the circuit is open, or offline
├── BadAnswer             EIO: other statuses, unreadable answers, short and long bodies, unknown hashes
├── IntegrityError        EBADMSG: bytes differ from the record, or two records differ
├── NoSpace               ENOSPC: no room in the cache nor in a temporary file
├── TooManyFiles          EMFILE: the process may open no more files
├── NoAttribute           ENODATA: there is no such extended attribute
├── IsDirectory, NotDirectory, ReadOnly
└── Unexpected            EIO: a fault of our own, or of the local disk
"""

import errno


class AttachfsError(Exception):
    """Anything attachfs reports on purpose.

    Args:
        reason: one sentence for a person, naming the object (a path, a URL's path) and never a secret.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class UsageError(AttachfsError):
    """What the user gave cannot be used; the message says what to do."""


class NotFound(AttachfsError):
    """The service said 404, or no such name can exist. The only thing that becomes ENOENT."""


class AccessDenied(AttachfsError):
    """401 after one renewal of the credentials, or 403."""


class ScanRefused(AttachfsError):
    """The scan policy forbids opening this attachment."""


class RateLimited(AttachfsError):
    """429, and waiting longer would break the deadline."""


class Interrupted(AttachfsError):
    """The calling process has a pending fatal signal."""


class TimedOut(AttachfsError):
    """No answer, or no progress, within the time allowed."""


class Unreachable(AttachfsError):
    """No connection: DNS, TCP, TLS, an open circuit, or offline."""


class BadAnswer(AttachfsError):
    """The service answered, but not with something that can be used."""


class IntegrityError(AttachfsError):
    """Bytes differ from the record, or two records of one attachment differ."""


class NoSpace(AttachfsError):
    """Neither the cache nor a temporary file has room."""


class TooManyFiles(AttachfsError):
    """The mount's process, or the machine, may open no more files."""


class NoAttribute(AttachfsError):
    """There is no such extended attribute."""


class IsDirectory(AttachfsError):
    """A directory where a file was expected."""


class NotDirectory(AttachfsError):
    """A file where a directory was expected."""


class ReadOnly(AttachfsError):
    """The filesystem is read-only."""


class Unexpected(AttachfsError):
    """A fault of our own or of the local disk."""


ERRNO: dict[type[AttachfsError], int] = {
    NotFound: errno.ENOENT,
    AccessDenied: errno.EACCES,
    ScanRefused: errno.EPERM,
    RateLimited: errno.EBUSY,
    Interrupted: errno.EINTR,
    TimedOut: errno.ETIMEDOUT,
    Unreachable: errno.EHOSTUNREACH,
    BadAnswer: errno.EIO,
    IntegrityError: errno.EBADMSG,
    NoSpace: errno.ENOSPC,
    TooManyFiles: errno.EMFILE,
    NoAttribute: errno.ENODATA,
    IsDirectory: errno.EISDIR,
    NotDirectory: errno.ENOTDIR,
    ReadOnly: errno.EROFS,
    Unexpected: errno.EIO,
    UsageError: errno.EINVAL,
}


def errno_of(error: BaseException) -> int:
    """Return the errno a program sees for `error`: its class's entry, or EIO for whatever is not ours."""
    return ERRNO.get(type(error), errno.EIO) if isinstance(error, AttachfsError) else errno.EIO


def first_of(error: BaseException) -> BaseException:
    """Return the exception inside groups of one; of a larger group the first that is ours, or the first."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    inner = [first_of(one) for one in error.exceptions]
    return next((one for one in inner if isinstance(one, AttachfsError)), inner[0])


def names_path(reason: str, path: str) -> bool:
    """Whether a reason names the path, so that a line need not name it again; the mount's own top is none."""
    return "/" in path.strip("/") and path in reason


def causes_of(error: BaseException) -> list[BaseException]:
    """Return the exceptions that led to `error`, the most telling (innermost) first."""
    found: list[BaseException] = []
    todo: list[BaseException | None] = [error]
    while todo and len(found) < 100:
        one = todo.pop()
        if one is None or one in found:
            continue
        found.append(one)
        todo += [one.__context__, one.__cause__]
        if isinstance(one, BaseExceptionGroup):
            todo += one.exceptions
    return found[::-1]
