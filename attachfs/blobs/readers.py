"""Who reads a download, and what becomes of one that nobody reads any more.

Owns: the count of readers, and the scope in which a download runs: without readers it is stopped a little
later, and what came is kept for a while for somebody who wants more of it.
"""

import math
from typing import NamedTuple

import trio


class PausePolicy(NamedTuple):
    """What becomes of a download that nobody reads any more.

    Programs that look what a file is read its first bytes and close it, several in a row do: the download
    of a large file need not go on for them, and need not begin anew for the next one.
    """

    more: int = 2**20  # bytes that may still come
    within: float = 2.0  # seconds in which they may
    keep: float = 86400.0  # seconds for which what came is kept: a broken-off export goes on with it


NO_PAUSE = PausePolicy(0, 0, 0)


class Readers:
    """The readers of one download.

    Args:
        policy: when it stops without them, and for how long what came is kept.
    """

    def __init__(self, policy: PausePolicy) -> None:
        self._policy = policy
        self.count = 0
        self.cancelled = False  # it is not to be joined again
        self._stop_at = math.inf  # bytes stored; does not count while there are readers
        self._wanted = trio.Event()  # somebody waits for more than is there
        self._paused = False
        # What ends if nobody reads for too long: receiving, or being kept. Replaced in `_limited` only.
        self._scope = trio.CancelScope()

    def acquire(self) -> None:
        """Count a reader."""
        self.count += 1
        self._scope.deadline = math.inf

    def release(self, written: int, size: int) -> bool:
        """Take a reader back, when so much of the blob was stored. Return whether it was the last."""
        self.count -= 1
        if self.count:
            return False
        if self._policy == NO_PAUSE:
            self.cancelled = True
            self._scope.cancel()
        elif self._paused:
            self._scope.deadline = trio.current_time() + self._policy.keep
        elif written < size:  # else only the verdict is missing
            self._stop_at = written + self._policy.more
            self._scope.deadline = trio.current_time() + self._policy.within
        return True

    def keep_going(self) -> None:
        """Stop for want of readers no more: all has come."""
        self._scope.deadline = math.inf

    def want_more(self) -> None:
        """Have a paused download go on."""
        self._wanted.set()

    def clear_wanted(self) -> None:
        """Forget what was wanted until now: the download has stopped, and only later wants have it go on."""
        self._wanted = trio.Event()

    def discard(self) -> None:
        """Have a paused download that nobody reads discard its data. Its task does so."""
        self.cancelled = True
        self._wanted.set()

    def stored(self, written: int, size: int) -> None:
        """Stop the download if so much is enough for readers who have left."""
        if not self.count and self._stop_at <= written < size:
            self._scope.cancel()

    def attended(self, *, all_there: bool) -> trio.CancelScope:
        """Return a scope for what goes on while somebody reads, and as the policy allows after that."""
        return self._limited(math.inf if all_there else self._policy.within)

    async def wanted_again(self) -> bool:
        """Wait, paused, until somebody wants more. False: nobody does in time, or it was dismissed."""
        self._paused = True
        try:
            while not self._wanted.is_set():
                with self._limited(self._policy.keep):
                    await self._wanted.wait()
                if not self.count and not self._wanted.is_set():
                    return False
        finally:
            self._paused = False
        return not self.cancelled

    def _limited(self, alone: float) -> trio.CancelScope:
        self._scope = trio.CancelScope()
        if not self.count:
            self._scope.deadline = trio.current_time() + alone
        return self._scope
