"""Who is waiting in a handler, and until when: deadlines, and callers that have been killed meanwhile.

The kernel does not tell a handler that its caller was interrupted, and a caller that waits for open,
lookup, getattr or getxattr cannot be killed before the answer. So one task looks, now and then, at the
pending signals of those who have waited for a while (proc(5): SigPnd, ShdPnd and the masks).
"""

import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trio

from attachfs.errors import Interrupted, TimedOut

_POLL = 0.25  # seconds between two looks; a killed caller is answered well within a second

# Signals that do not end a process by default (signal(7)).
_HARMLESS = {
    signal.SIGCHLD,
    signal.SIGCONT,
    signal.SIGURG,
    signal.SIGWINCH,
    signal.SIGSTOP,
    signal.SIGTSTP,
    signal.SIGTTIN,
    signal.SIGTTOU,
}
_FATAL = sum(1 << (number - 1) for number in range(1, 32) if number not in _HARMLESS)


def has_fatal_signal(status: str) -> bool:
    """Whether a `/proc/<pid>/status` shows a pending signal that will end the process by default."""
    masks = {}
    for line in status.splitlines():
        name, _, value = line.partition(":")
        if name in ("SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt"):
            masks[name] = int(value, 16)
    pending = masks.get("SigPnd", 0) | masks.get("ShdPnd", 0)
    kept = masks.get("SigBlk", 0) | masks.get("SigIgn", 0) | masks.get("SigCgt", 0)
    return bool(pending & ~kept & _FATAL)


class _Wait:
    __slots__ = ("interrupted", "pid", "scope")

    def __init__(self, pid: int, scope: trio.CancelScope) -> None:
        self.pid = pid
        self.scope = scope
        self.interrupted = False


class WaitingRoom:
    """The handlers that are waiting now."""

    def __init__(self) -> None:
        self._waits: set[_Wait] = set()
        self._occupied = trio.Event()

    def __len__(self) -> int:
        return len(self._waits)

    @contextmanager
    def wait(self, pid: int, seconds: float = math.inf) -> Iterator[None]:
        """Bound what happens inside.

        Args:
            pid: the caller; 0 where it is not known.
            seconds: how long it may take.

        Raises:
            TimedOut: it took longer.
            Interrupted: the caller has been killed.
        """
        with trio.CancelScope(deadline=trio.current_time() + seconds) as scope:
            wait = _Wait(pid, scope)
            self._waits.add(wait)
            self._occupied.set()
            try:
                yield
            finally:
                self._waits.discard(wait)
        if scope.cancelled_caught:
            if wait.interrupted:
                raise Interrupted("the caller was killed while waiting")
            raise TimedOut(f"no answer within {seconds:g} s")

    async def watch(self) -> None:
        """Release killed callers, for as long as it runs."""
        while True:
            if not self._waits:
                self._occupied = trio.Event()
                await self._occupied.wait()
            before = set(self._waits)
            await trio.sleep(_POLL)
            for wait in before & self._waits:
                if wait.pid and _was_killed(wait.pid):
                    wait.interrupted = True
                    wait.scope.cancel()


def _was_killed(pid: int) -> bool:
    try:
        return has_fatal_signal(Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace"))
    except (OSError, ValueError):
        return False
