"""A thread for what may take long and nobody waits for: closing a removed file of gigabytes, for one."""

import threading
from collections import deque
from collections.abc import Callable

_WAIT = 30.0  # seconds; after that, what is still to be done counts as in use


class Closer:
    """Runs jobs one after another in a thread that is there only while there are any. Thread-safe.

    Locks: its own is innermost; no job runs under it.
    """

    def __init__(self) -> None:
        self._jobs = deque[Callable[[], None]]()
        self._running = False
        self._changed = threading.Condition()

    def run(self, job: Callable[[], None]) -> None:
        """Have a job done soon; it raises nothing. Does not wait."""
        with self._changed:
            self._jobs.append(job)
            if self._running:
                return
            self._running = True
        try:
            threading.Thread(target=self._work, name="attachfs-closer").start()
        except RuntimeError:  # no thread is to be had: better late than never
            self._work()

    def wait(self) -> bool:
        """Wait until nothing is left to do; False: there was nothing. Called in threads."""
        with self._changed:
            if not self._running:
                return False
            return self._changed.wait_for(lambda: not self._running, _WAIT)

    def _work(self) -> None:
        while True:
            with self._changed:
                if not self._jobs:
                    self._running = False
                    self._changed.notify_all()
                    return
                job = self._jobs.popleft()
            job()
