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


# What mounted tests allow a step, in turns of a loop that is timed in the same thread right after a step
# that looks long: a slow or busy machine makes both longer. 16 turns took 50 ms on the machine on which this
# was measured. Twice as many are allowed, as what runs on a processor's other half may have gone between the
# step and the turns.
TURNS = 33
_ALWAYS_FINE = 0.1  # seconds of processor, however fast the machine is
_SERVES = "pyfuse-"  # begins the names of the tasks that answer the kernel
_LOOKS = 0.025  # seconds between looks at where a step is


class ProcessorWatchdog(trio.abc.Instrument):
    """Writes a line and a stack to `report` for each step that computes for long; cheap enough for all tests.

    Steps that wait (for a disk, for a lock) it does not see: on a busy machine they cannot be told from steps
    that were not let run. `Watchdog` sees them.
    """

    def __init__(self, report: Path) -> None:
        self._report = report
        self._began = self._cpu = 0.0
        self._stack = ""
        self._serves = False  # before the mount answers nobody waits for it: it may load certificates

    def before_run(self) -> None:
        self._loop = threading.get_ident()
        threading.Thread(target=self._look, daemon=True).start()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._serves = self._serves or task.name.startswith(_SERVES)
        self._stack = ""
        self._began, self._cpu = time.perf_counter(), time.thread_time()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        used = time.thread_time() - self._cpu
        self._began = 0.0
        if used < _ALWAYS_FINE or not self._serves:
            return
        turns = used / max(_turn() for _ in range(3))
        if turns > TURNS:
            with self._report.open("a") as report:
                report.write(f"{task.name}: {used:.3f} s of processor, or {turns:.0f} turns\n{self._stack}\n")

    def _look(self) -> None:
        while True:
            time.sleep(_LOOKS)
            began, frame = self._began, sys._current_frames().get(self._loop)
            if began and time.perf_counter() - began > _LOOKS and frame is not None and not self._stack:
                self._stack = "".join(traceback.format_stack(frame)[-6:])


def _turn() -> float:
    """Return the seconds of processor that a fixed piece of work takes now."""
    began, total = time.thread_time(), 0
    for number in range(100_000):
        total += number & 7
    return time.thread_time() - began


def watch(report: Path) -> None:
    """Watch every event loop that this process runs, for steps that wait as well."""
    install(Watchdog(report))


def install(watchdog: trio.abc.Instrument) -> None:
    """Have every event loop that this process runs watched."""
    run = trio.run

    def watched(*args: object, **more: object) -> object:
        more["instruments"] = [*more.get("instruments", ()), watchdog]  # type: ignore[misc]
        return run(*args, **more)  # type: ignore[arg-type]

    trio.run = watched  # type: ignore[assignment]
