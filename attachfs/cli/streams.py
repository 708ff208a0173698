"""Standard input, output and error as they are found: closed, full, in any encoding, cut off by `head`."""

import contextlib
import errno
import io
import os
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, NoReturn

from attachfs.cli import output

if TYPE_CHECKING:
    from typing_extensions import Buffer

# What a stream is opened on that came closed. Results must not vanish in silence: writing them fails (EBADF).
_INSTEAD = ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY))


def prepare() -> None:
    """Open those of 0, 1 and 2 that are closed, lest a file or socket gets their number, and let all print.

    What an encoding does not have is printed as an escape.
    """
    for number, mode in _INSTEAD:
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, mode)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - as long as the program
    if sys.stdout is None:
        sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), encoding="utf-8", write_through=True)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    if sys.stderr is None or sys.stderr is sys.__stderr__:
        sys.stderr = io.TextIOWrapper(
            io.BufferedWriter(_StandardError(2, "w", closefd=False)),
            encoding="utf-8" if sys.stderr is None else sys.stderr.encoding,
            errors="backslashreplace",
            write_through=True,
        )


class _StandardError(io.FileIO):
    """Where complaints go. If it is full there is nobody to tell, and the exit status still counts."""

    def write(self, data: "Buffer") -> int:
        """Write, if it can be done."""
        with contextlib.suppress(OSError):
            return super().write(data) or 0
        return memoryview(data).nbytes


def finish() -> None:
    """Have nothing left that could fail once the program has decided on its exit status."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                _discard(stream.fileno())


@contextlib.contextmanager
def output_failures_reported() -> Iterator[None]:
    """End the program as others end, if standard output cannot be written.

    A reader that has gone (`| head`) ends it by SIGPIPE, without a word; anything else (a full disk) is told,
    with exit status 1.
    """
    try:
        yield
        sys.stdout.flush()
    except SystemExit:
        with output_failures_reported():
            sys.stdout.flush()
        raise
    except BrokenPipeError:
        _end_by(signal.SIGPIPE)
    except OSError as error:
        if error.filename is not None or error.errno not in _OF_WRITING:
            raise
        _discard(1)
        output.complain("standard output cannot be written", output.reason_of(error))
        raise SystemExit(output.DIFFERS) from None


_OF_WRITING = (errno.ENOSPC, errno.EBADF, errno.EIO, errno.EDQUOT, errno.EFBIG, errno.ENXIO)


def _end_by(number: signal.Signals) -> NoReturn:
    _discard(1)
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)  # it is blocked


def _discard(number: int) -> None:
    """Have what is left in the buffer go nowhere, so that nothing fails once more at the end."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, number)
    os.close(null)
