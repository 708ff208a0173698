"""Work in the background of a mount, guarded at this one place.

An exception that leaves a task ends its trio nursery, and with it the mount. No work that nobody waits for is
worth that. So every part of a mount starts its tasks through a `Background`: whatever a task raises
becomes one ERROR line with a traceback, which says what is lost; a loop starts again after a pause.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVarTuple

import trio

from attachfs.errors import first_of

Ts = TypeVarTuple("Ts")

_FIRST_PAUSE = 1.0  # seconds before a loop that has failed starts again; doubled each time
_LONGEST_PAUSE = 60.0

log = logging.getLogger(__name__)


class TaskStarter(Protocol):
    """Starts tasks that outlive the call: a `Background`, one of its parts, or a trio nursery."""

    def start_soon(
        self, work: Callable[[*Ts], Awaitable[object]], /, *args: *Ts, name: object = None
    ) -> None:
        """Run `work` in a task of its own."""
        ...


class Background:
    """The tasks of a mount, or of one part of it.

    Args:
        nursery: where they run.
        what: what the tasks do, for the log: a noun.
        lost: what a failure costs, for the log: a sentence.
    """

    def __init__(
        self, nursery: trio.Nursery, what: str = "background work", lost: str = "it is not done"
    ) -> None:
        self._nursery = nursery
        self._what = what
        self._lost = lost

    def part(self, what: str, lost: str) -> "Background":
        """Return a starter for one part of the mount, which the log then names."""
        return Background(self._nursery, what, lost)

    def start_soon(
        self, work: Callable[[*Ts], Awaitable[object]], /, *args: *Ts, name: object = None
    ) -> None:
        """Run `work` once. If it fails, the log says what is lost."""
        self._nursery.start_soon(self._once, lambda: work(*args), name=name or work)

    def keep_running(self, what: str, work: Callable[[*Ts], Awaitable[object]], *args: *Ts) -> None:
        """Run `work`, a loop; start it again, after a pause, each time that it fails.

        Args:
            what: what it does, for the log: a noun.
            work: the loop. If it returns, it is done.
            args: what it is called with.
        """
        self._nursery.start_soon(self._repeat, what, lambda: work(*args), name=work)

    async def _once(self, work: Callable[[], Awaitable[object]]) -> None:
        await _guarded(work, self._what, self._lost)

    @staticmethod
    async def _repeat(what: str, work: Callable[[], Awaitable[object]]) -> None:
        pause = _FIRST_PAUSE
        while True:
            begun = trio.current_time()
            if await _guarded(work, what, "it starts again"):
                return
            if trio.current_time() - begun > _LONGEST_PAUSE:
                pause = _FIRST_PAUSE
            await trio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)


async def _guarded(work: Callable[[], Awaitable[object]], what: str, lost: str) -> bool:
    """Run `work`; return whether it came to its end. Cancellation passes."""
    try:
        await work()
    except Exception as error:  # noqa: BLE001 - what this is for
        _report(error, what, lost)
        return False
    except BaseExceptionGroup as group:
        foreign, failures = group.split(Exception)
        if foreign is not None:
            _report(foreign, what, lost)
        if failures is not None:
            raise failures from None
        return False
    return True


def _report(error: BaseException, what: str, lost: str) -> None:
    inner = first_of(error)
    log.error("%s failed (%s: %s): %s", what, type(inner).__name__, inner, lost, exc_info=error)
