"""Work that Ctrl-C ends at once, though the kernel lets nobody out of a call to a mount that waits.

A system call on a mount returns when the mount answers, and Python sees a signal only then. So the work is
done in a thread, the main thread waits for it and for signals, and on Ctrl-C the whole process is ended: a
mount answers those who are being killed. What has to be written before that, `before_end` is given.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from attachfs.cli import output

_SIGNALS = (signal.SIGTERM, signal.SIGHUP)  # which end the process in `before_end` as Ctrl-C does

_before_end: list[Callable[[int], None]] = []


class _Terminated(BaseException):
    """A signal other than Ctrl-C's asks the process to end."""

    def __init__(self, number: int) -> None:
        self.number = number


@contextmanager
def before_end(write: Callable[[int], None]) -> Iterator[None]:
    """Call `write` with the number of the signal that ends the process, if one does within the block.

    That is SIGINT, SIGTERM or SIGHUP. For the main thread. Ignored signals stay ignored.
    """
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, handler in before.items():
        if handler is signal.SIG_DFL:
            signal.signal(number, _terminate)
    _before_end.append(write)
    try:
        yield
    except (KeyboardInterrupt, _Terminated) as caught:
        _end(lambda: "interrupted", caught)
    finally:
        _before_end.remove(write)
        for number, handler in before.items():
            signal.signal(number, handler)


def _terminate(number: int, _: FrameType | None) -> NoReturn:
    raise _Terminated(number)


def run(work: Callable[[], int], summary: Callable[[], str] = lambda: "interrupted") -> int:
    """Do the work and return its exit code; on Ctrl-C print `summary()` and end the process, status 130.

    What the work raises is raised here.
    """
    outcome: list[int] = []
    failure: list[BaseException] = []

    def do() -> None:
        try:
            outcome.append(work())
        except BaseException as error:  # noqa: BLE001 - it is raised where it can be told
            failure.append(error)

    worker = threading.Thread(target=do, daemon=True)
    try:
        worker.start()
        worker.join()
    except (KeyboardInterrupt, _Terminated) as caught:
        _end(summary, caught)
    if failure:
        raise failure[0]
    return outcome[0]


def _end(summary: Callable[[], str], caught: KeyboardInterrupt | _Terminated) -> NoReturn:
    number = caught.number if isinstance(caught, _Terminated) else signal.SIGINT
    try:
        for write in _before_end:
            write(number)
        text = summary()
        sys.stdout.flush()
        output.note(text)
        sys.stderr.flush()
    finally:
        os._exit(128 + number)
