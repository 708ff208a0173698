"""When the machine gives no more: which resource an error is for want of, and what helps.

Many layers meet such an error first, and each would name a cause of its own (a connection that cannot be
made, a cache that cannot be written). So it is looked for among the causes, where errors become errnos.
"""

import errno
import resource

from attachfs.errors import AttachfsError, TooManyFiles, Unexpected, causes_of

_NO_THREAD = "can't start new thread"


def scarcity_of(error: BaseException) -> AttachfsError | None:
    """Return an error that names the resource for want of which `error` came to be; None: it was none."""
    for cause in causes_of(error):
        if isinstance(cause, OSError) and cause.errno == errno.ENFILE:
            return TooManyFiles("the machine has no file descriptor left: raise fs.file-max with sysctl(8)")
        if isinstance(cause, OSError) and cause.errno == errno.EMFILE:
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            return TooManyFiles(
                f"all of the {limit} files that the mount may open are open: close some, or mount again "
                f"with a higher limit (ulimit -n, or LimitNOFILE= in the unit)"
            )
        if isinstance(cause, MemoryError) or getattr(cause, "errno", None) == errno.ENOMEM:
            return Unexpected(
                "no memory is left: end other programs, or mount again with a higher limit (ulimit -v, or "
                "MemoryMax= in the unit)"
            )
        if isinstance(cause, RuntimeError) and _NO_THREAD in str(cause):
            return Unexpected(
                "no thread can be started: end other programs, or mount again with a higher limit "
                "(ulimit -u, or TasksMax= in the unit)"
            )
    return None
