"""Whether a mount answers: the one place that asks, for a bounded time.

A mount whose process hangs would hang whoever touches it. So a child process asks, and is left behind if it
must be; a later question reaps it, once the kernel lets go of it.
"""

import contextlib
import errno
import json
import os
import select
import signal
from enum import Enum
from pathlib import Path
from typing import Any

from attachfs.model import STATUS_XATTR

ANSWERS_WITHIN = 5.0  # seconds; figures come from memory
_BIGGEST = 65_536  # bytes of an extended attribute
_GONE = (errno.ENOTCONN, errno.ECONNABORTED, errno.ENODEV)

_unreaped: dict[int, Path] = {}  # processes that wait for a mount, by their id


class State(Enum):
    """How a mount answers."""

    ALIVE = "alive"
    DEAD = "dead"  # its process is gone
    HUNG = "hung"  # there is one, and it does not answer


def probe(point: Path, within: float | None = None) -> tuple[State, bytes]:
    """Ask a mount for its figures; return its state and what it said.

    What it said is empty where it does not tell us, as another user's does not.

    Args:
        point: where it is mounted.
        within: seconds to wait; None: `ANSWERS_WITHIN`.
    """
    _reap()
    if point in _unreaped.values():
        return State.HUNG, b""  # somebody waits there already
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        answer = b"!"
        try:
            os.statvfs(point)
            answer = b"+" + os.getxattr(point, STATUS_XATTR)
        except OSError as error:
            answer = b"-" if error.errno in _GONE else b"+"  # whatever else it says, somebody said it
        finally:
            with contextlib.suppress(OSError):
                os.write(writing, answer)
            os._exit(0)
    os.close(writing)
    try:
        poll = select.poll()
        poll.register(reading)
        if not poll.poll(1000 * (ANSWERS_WITHIN if within is None else within)):
            os.kill(pid, signal.SIGKILL)  # may take effect only once the mount answers
            _unreaped[pid] = point
            return State.HUNG, b""
        said = os.read(reading, _BIGGEST + 1)
        os.waitpid(pid, 0)
    finally:
        os.close(reading)
    return (State.ALIVE, said[1:]) if said.startswith(b"+") else (State.DEAD, b"")


def stats(point: Path) -> dict[str, Any] | None:
    """Return a running mount's figures; None where none is mounted there, or it does not tell us."""
    try:
        found = json.loads(probe(point)[1])
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _reap() -> None:
    for pid in list(_unreaped):
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(pid, os.WNOHANG)[0] == 0:
                continue
        _unreaped.pop(pid, None)  # another thread may have been first
