"""Work that Ctrl-C ends at once, though the kernel lets nobody out of a call to a mount that waits.

A system call on a mount returns when the mount answers, and Python sees a signal only then. So the work is
done in a thread, the main thread waits for it and for signals, and on Ctrl-C the whole process is ended: a
mount answers those who are being killed.
"""

import os
import sys
import threading
from collections.abc import Callable

from attachfs.cli import output


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
    except KeyboardInterrupt:
        _end(summary)
    if failure:
        raise failure[0]
    return outcome[0]


def _end(summary: Callable[[], str]) -> None:
    try:
        text = summary()
        sys.stdout.flush()
        output.note(text)
        sys.stderr.flush()
    finally:
        os._exit(output.INTERRUPTED)
