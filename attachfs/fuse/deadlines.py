"""Who is waiting in a handler, and until when: deadlines, and callers that have been killed meanwhile.

The kernel does not tell a handler that its caller was interrupted, and a caller that waits for open,
lookup, getattr or getxattr cannot be killed before the answer. So one task looks, now and then, at the
pending signals of those who have waited for a while (proc(5): SigPnd, ShdPnd and the masks).
"""

import math
import signal
from pathlib import Path
from types import TracebackType

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


class Deadline:
    """One handler's waiting, as a `with` block; a class, as generators cost more and most do not wait."""

    __slots__ = ("_active", "_seconds", "interrupted", "pid", "scope")

    def __init__(self, active: set["Deadline"], pid: int, seconds: float) -> None:
        self._active = active
        self._seconds = seconds
        self.pid = pid
        self.scope = trio.CancelScope(deadline=trio.current_time() + seconds)
        self.interrupted = False

    def __enter__(self) -> None:
        self.scope.__enter__()
        self._active.add(self)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._active.discard(self)
        self.scope.__exit__(kind, error, traceback)
        if self.scope.cancelled_caught:
            if self.interrupted:
                raise Interrupted("the caller was killed while waiting") from None
            raise TimedOut(f"no answer within {self._seconds:g} s") from None


class RequestDeadlines:
    """The handlers that are waiting now."""

    def __init__(self) -> None:
        self._waits: set[Deadline] = set()
        self._occupied = trio.Event()

    def __len__(self) -> int:
        return len(self._waits)

    def wait(self, pid: int, seconds: float = math.inf) -> Deadline:
        """Bound what happens inside.

        Args:
            pid: the caller; 0 where it is not known.
            seconds: how long it may take.

        Raises:
            TimedOut: it took longer.
            Interrupted: the caller has been killed.
        """
        self._occupied.set()
        return Deadline(self._waits, pid, seconds)

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
