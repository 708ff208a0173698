"""A watch over the event loop of a mount's process: no step of a task may block it for long.

This machine may be busy: a step can take long because nobody let it run. So what counts of a step is the
processor time that it used; or, if that is more, the time it took less what it spent waiting for a processor
(schedstat) and less what a thread beside it that does nothing had to wait for the interpreter meanwhile.
"""

import os
import sys
import threading
import time
import traceback
from pathlib import Path

import trio

COMPUTED = 0.2  # seconds of processor; 50 ms on a machine of its own, and a shared one is slower
WAITED = 0.25  # seconds asleep; a busy machine's disk holds up who only touches a page of the program
_SUSPECT = min(COMPUTED, WAITED)
_TICK = 0.005


class Watchdog(trio.abc.Instrument):
    """Writes a line and a stack to `report` for each step that blocks the loop."""

    def __init__(self, report: Path) -> None:
        self._report = report
        self._began = self._cpu = self._queued = 0.0
        self._lag = 0.0  # of the idle thread, since the step began
        self._stack = ""

    def before_run(self) -> None:
        thread = threading.get_native_id()
        self._schedstat = os.open(f"/proc/self/task/{thread}/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        self._loop = threading.get_ident()
        threading.Thread(target=self._idle, daemon=True).start()

    def before_task_step(self, _task: trio.lowlevel.Task) -> None:
        self._lag, self._stack = 0.0, ""
        self._queued, self._cpu = self._queue_time(self._schedstat), time.thread_time()
        self._began = time.perf_counter()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        took = time.perf_counter() - self._began
        began, self._began = self._began, 0.0
        if took < _SUSPECT or not began:
            return
        cpu = time.thread_time() - self._cpu
        queued = self._queue_time(self._schedstat) - self._queued
        time.sleep(4 * _TICK)  # for the idle thread, which may not have been awake since
        waited = took - queued - self._lag
        if cpu >= COMPUTED or waited >= WAITED:
            with self._report.open("a") as report:
                report.write(f"{task.name}: {cpu:.3f} s of processor, {waited:.3f} s in all\n{self._stack}\n")

    @staticmethod
    def _queue_time(schedstat: int) -> float:
        return int(os.pread(schedstat, 100, 0).split()[1]) / 1e9

    def _idle(self) -> None:
        own = os.open(f"/proc/self/task/{threading.get_native_id()}/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        before, queued_before = time.perf_counter(), self._queue_time(own)
        while True:
            time.sleep(_TICK)
            now, queued = time.perf_counter(), self._queue_time(own)
            self._lag += max(0.0, now - before - _TICK - (queued - queued_before))
            before, queued_before = now, queued
            began, frame = self._began, sys._current_frames().get(self._loop)
            if began and now - began > _SUSPECT / 2 and frame is not None and not self._stack:
                self._stack = "".join(traceback.format_stack(frame)[-6:])


def watch(report: Path) -> None:
    """Watch every event loop that this process runs."""
    run = trio.run

    def watched(*args: object, **more: object) -> object:
        return run(*args, instruments=[Watchdog(report)], **more)  # type: ignore[arg-type]

    trio.run = watched  # type: ignore[assignment]
