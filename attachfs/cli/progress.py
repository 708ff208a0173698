"""How far a long command has come: a bar on a terminal, else a line from time to time. To standard error."""

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from attachfs.cli import output
from attachfs.units import format_size

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.status import Status

_EVERY = 10.0  # seconds between plain lines


class Progress:
    """Bytes and files done, of so many. `advance` may be called from any thread.

    Args:
        what: the work, in a word.
        size: bytes in all.
        files: files in all.
        clock: seconds.
    """

    def __init__(
        self, what: str, size: int = 0, files: int = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._what = what
        self._size = size
        self._files = files
        self._clock = clock
        self._began = self._reported_at = clock()
        self._lock = threading.Lock()
        self.bytes_done = 0
        self.files_done = 0
        self._bar: Bar | None = None
        if sys.stderr.isatty():
            self._bar = _bar()
            self._task = self._bar.add_task(what, total=size, files=self._of_files())

    def of(self, size: int, files: int) -> Self:
        """Set how much it is in all, once that is known, and begin to count the time."""
        self._size, self._files = size, files
        self._began = self._reported_at = self._clock()
        if self._bar is not None:
            self._bar.update(self._task, total=size, files=self._of_files())
        return self

    def stop(self) -> None:
        """Take the bar away; the terminal is as before."""
        if self._bar is not None:
            self._bar.stop()

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def seconds(self) -> float:
        """How long it has been going on."""
        return self._clock() - self._began

    def advance(self, size: int = 0, files: int = 0) -> None:
        """Count bytes and files that are done."""
        with self._lock:
            self.bytes_done += size
            self.files_done += files
            if self._bar is not None:
                self._bar.update(self._task, advance=size, files=self._of_files())
            elif self._clock() - self._reported_at >= _EVERY:
                self._reported_at = self._clock()
                output.note(f"{self._what}: {self.line()}")

    def line(self) -> str:
        """Return where it stands in words: `3 of 7 files, 1 MiB of 9 MiB, 500 KiB/s, 16 s left`."""
        rate = self.bytes_done / max(self.seconds, 1e-9)
        remaining = f", {(self._size - self.bytes_done) / rate:.0f} s left" if rate else ""
        return (
            f"{self._of_files()}, {format_size(self.bytes_done)} of {format_size(self._size)}, "
            f"{format_size(int(rate))}/s{remaining}"
        )

    def _of_files(self) -> str:
        return f"{self.files_done:,} of {output.count(self._files, 'file')}"


class Counter:
    """How many have been found so far, of nobody knows how many: a line on a terminal, else now and then.

    Args:
        what: the work, in a few words.
        clock: seconds.
    """

    def __init__(self, what: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._what = what
        self._clock = clock
        self._reported_at = clock()
        self._status = _status(what) if sys.stderr.isatty() else None

    def __enter__(self) -> Self:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def show(self, text: str) -> None:
        """Show how many they are."""
        if self._status is not None:
            self._status.update(f"{self._what}: {text}")
        elif self._clock() - self._reported_at >= _EVERY:
            self._reported_at = self._clock()
            output.note(f"{self._what}: {text}")


def _status(what: str) -> "Status":
    from rich.console import Console

    return Console(stderr=True).status(what)


def _bar() -> "Bar":
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as Bar

    return Bar(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TextColumn("{task.fields[files]}", markup=False),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=sys.stdout.isatty(),  # lines of results go above the bar, files stay files
    )
