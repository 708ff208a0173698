"""A mount's custody log: a line for each open, mount and unmount, written before it succeeds.

Appending may block, so it is done in a thread, at most one at a time, for all opens that wait then: a hundred
of them never take the threads that downloads need.
"""

import errno
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypedDict

import trio

from attachfs.custody.chain import START
from attachfs.custody.writer import CustodyLog
from attachfs.errors import AttachfsError, Unexpected, UsageError, errno_of
from attachfs.fuse.observer import Opened

log = logging.getLogger(__name__)

_SYNC_WITHIN = 0.4  # seconds from a line to the fsync that brings it, and all since, to the disk


class CustodyStats(TypedDict):
    """How a mount's custody log is: up to its own last line."""

    path: str
    lines: int  # in the whole chain
    last_hash: str  # of the last of them, "" if there is none
    optional: bool
    error: str | None  # why the last line could not be written, or brought to the disk


class _Pending:
    """An open whose line is to be written."""

    __slots__ = ("done", "failure", "file")

    def __init__(self, file: Opened) -> None:
        self.file = file
        self.done = False
        self.failure: OSError | None = None


class CustodyRecorder:
    """Writes what happens on a mount into its custody log.

    Args:
        path: where the log is.
        mountpoint: where the mount is.
        optional: whether opens succeed also while it cannot be written.
        open_log: opens the log.
    """

    def __init__(
        self,
        path: Path,
        mountpoint: Path,
        *,
        optional: bool,
        open_log: Callable[[Path], CustodyLog] = CustodyLog,
    ) -> None:
        self._path = path
        self._mountpoint = mountpoint
        self._optional = optional
        self._open_log = open_log
        self._custody: CustodyLog | None = None
        self._limiter = trio.CapacityLimiter(1)
        self._writing = trio.Lock()
        self._pending: list[_Pending] = []
        self._written = trio.Event()
        self._unsynced = False  # what was written could not be brought to the disk
        self._last_error = ""  # why the last line could not be written, or brought to the disk

    def begin(self, url: str) -> None:
        """Open the log and note the mount. Blocks.

        Raises:
            UsageError: it cannot be written, and is not optional.
        """
        try:
            self._append(self._own("mount") | {"url": url, "result": "ok"})
        except OSError as error:
            if not self._optional:
                raise UsageError(
                    f"--custody-log {self._path} cannot be written: {error.strerror or error}; give another "
                    f"file, or --custody-log-optional to mount all the same"
                ) from error
            self._warn(error)

    def stats(self) -> CustodyStats:
        """Return how the log is. Never waits."""
        end = START if self._custody is None else self._custody.end
        return {
            "path": str(self._path),
            "lines": end.seq,
            "last_hash": end.hash if end.seq else "",
            "optional": self._optional,
            "error": self._last_error or None,
        }

    def end(self) -> None:
        """Note the end of the mount, and close the log. Blocks."""
        try:
            self._append(self._own("unmount") | {"result": "ok"})
        except OSError as error:
            self._warn(error)
        if self._custody is not None:
            self._custody.close()

    async def opened(self, file: Opened) -> None:
        """Note an open.

        Raises:
            Unexpected: it would have succeeded, but cannot be noted, and the log is not optional.
        """
        mine = _Pending(file)
        self._pending.append(mine)
        async with self._writing:
            if not mine.done:  # else whoever was before me has written mine too
                await self._write_pending()
        error = mine.failure
        if error is not None and file.error is None and not self._optional:
            raise Unexpected(
                f"{file.path}: the custody log cannot be written: {error.strerror or error}"
            ) from error

    async def _write_pending(self) -> None:
        """Write the lines of all who wait, in one thread's turn: changing threads costs more than a line."""
        batch, self._pending = self._pending, []
        try:
            failure = await trio.to_thread.run_sync(self._note_all, batch, limiter=self._limiter)
        except BaseException:
            self._pending = [*(one for one in batch if not one.done), *self._pending]
            raise
        if failure is not None:
            self._warn(failure)
        elif self._last_error:
            log.warning("the custody log %s can be written again", self._path)
            self._last_error = ""
        self._written.set()

    async def keep_synced(self) -> None:
        """Bring lines to the disk soon after they were written, several at a time, while this runs."""
        while True:
            await self._written.wait()
            await trio.sleep(_SYNC_WITHIN)
            self._written = trio.Event()
            await self.sync()

    async def sync(self) -> None:
        """Bring what was written to the disk; what fails is tried again, by the next open too."""
        custody = self._custody
        if custody is None:
            return
        try:
            await trio.to_thread.run_sync(custody.sync, limiter=self._limiter)
        except OSError as error:
            self._unsynced = True
            self._warn(error)

    async def rotate(self) -> None:
        """Go on in a new file if the log was renamed: at once, and not only with the next open."""
        try:
            await trio.to_thread.run_sync(self._reopen, limiter=self._limiter)
        except OSError as error:
            self._warn(error)

    # -- in the thread -----------------------------------------------------------------------------

    def _note_all(self, batch: Sequence["_Pending"]) -> OSError | None:
        """Write lines, each for itself; return the last failure."""
        failure = None
        for one in batch:
            try:
                self._note(one.file)
            except OSError as error:
                failure = one.failure = error
            one.done = True
        return failure

    def _note(self, file: Opened) -> None:
        if self._unsynced and self._custody is not None:
            self._custody.sync()  # what may be lost is not added to
            self._unsynced = False
        self._append(
            {
                "event": "open",
                "uid": file.uid,
                "pid": file.pid,
                "command": command_of(file.pid),
                "path": str(self._mountpoint / file.path),
                "digest": file.digest,
                "size": file.size,
                "result": "ok" if file.error is None else _errno_name(file.error),
            }
        )

    def _append(self, fields: dict[str, Any]) -> None:
        if self._custody is None:
            self._custody = self._open_log(self._path)
        self._custody.append(fields)

    def _reopen(self) -> None:
        if self._custody is None:
            self._custody = self._open_log(self._path)
        self._custody.follow()

    def _own(self, event: str) -> dict[str, Any]:
        pid = os.getpid()
        who = {"event": event, "uid": os.getuid(), "pid": pid, "command": command_of(pid)}
        return who | {"path": str(self._mountpoint)}

    def _warn(self, error: OSError) -> None:
        reason = error.strerror or str(error)
        if reason != self._last_error:
            then = "opens go on without it" if self._optional else "files do not open"
            log.error("the custody log %s cannot be written: %s: %s", self._path, reason, then)
        self._last_error = reason


def command_of(pid: int) -> str:
    """Return the name of a process's command, "" if it has gone or is of another namespace."""
    try:
        with Path(f"/proc/{pid}/comm").open("rb") as file:
            return file.read(64).decode("utf-8", "replace").rstrip("\n")
    except OSError:
        return ""


def _errno_name(error: AttachfsError) -> str:
    return errno.errorcode.get(errno_of(error), "EIO")
