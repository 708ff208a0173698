"""What a running mount does when it is signalled.

SIGTERM and SIGINT end it, within a bounded time. SIGHUP reads credentials and configuration again and
drops what is remembered of names and attributes. SIGUSR1 writes the figures into the log.
"""

import functools
import logging
import os
import signal
import termios
import threading
from pathlib import Path

import trio

from attachfs.background import Background
from attachfs.mount import unmount
from attachfs.mount.mountinfo import mount_at
from attachfs.mount.reload import Reloader
from attachfs.mount.service_status import ServiceStatus
from attachfs.mount.status import StatusReport

log = logging.getLogger(__name__)

_ENDS_WITHIN = 20.0  # seconds to answer those who wait and to close what is open


class SignalHandler:
    """A mount's signals.

    Args:
        mountpoint: where it is mounted.
        reloader: what SIGHUP does.
        service: the service manager.
        tasks: starts what goes on beside the signals.
        report: collects the mount's status.
    """

    def __init__(
        self,
        mountpoint: Path,
        reloader: Reloader,
        service: ServiceStatus,
        tasks: Background,
        report: StatusReport,
    ) -> None:
        self._mountpoint = mountpoint
        self._reloader = reloader
        self._service = service
        self._tasks = tasks
        self.report = report
        self._terminal: int | None
        try:
            self._terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError:
            self._terminal = None  # in the background, or started by no person

    async def run(self, scope: trio.CancelScope) -> None:
        """Do what signals say; cancel `scope` at the one that ends the mount."""
        watched = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
        with trio.open_signal_receiver(*watched) as signals:
            if self._service.listening:
                self._tasks.keep_running("reporting to the service manager", self._service.keep_reporting)
            async for number in signals:
                if number == signal.SIGUSR1:
                    self._tasks.part("SIGUSR1", "the status is not logged").start_soon(self._log_status)
                elif number == signal.SIGHUP and not self._hung_up():
                    self._tasks.part("SIGHUP", "what was not read again is unchanged").start_soon(
                        self._reload
                    )
                else:
                    log.info("%s: unmounting", signal.Signals(number).name)
                    _end_within(_ENDS_WITHIN)
                    try:
                        self._service.stopping()
                        await self._name_users()
                    except Exception:  # whoever it is does not keep the mount from ending
                        log.exception("the programs that use the mount could not be found")
                    finally:
                        scope.cancel()

    async def _log_status(self) -> None:
        log.info("status: %s", self.report.as_json().decode())

    def ready(self) -> None:
        """Tell the service manager that the mount answers."""
        self._service.ready()

    async def _reload(self) -> None:
        async with self._service.reloading():
            await self._reloader.reload()

    # -- the end -----------------------------------------------------------------------------------

    def _hung_up(self) -> bool:
        """Whether the terminal that the mount was started from has gone: then SIGHUP means to end."""
        if self._terminal is None:
            return False
        try:
            termios.tcgetattr(self._terminal)
        except termios.error:
            return True
        return False

    async def _name_users(self) -> None:
        there = mount_at(self._mountpoint)
        if there is not None:
            with trio.move_on_after(2):
                work = functools.partial(unmount.users, there)
                found = await trio.to_thread.run_sync(work, abandon_on_cancel=True)
                if found:
                    log.warning("%s is %s, and detached anyway", self._mountpoint, unmount.who(found))


def _end_within(seconds: float) -> None:
    """End the process the hard way if it has not ended by itself. Nothing that is kept suffers from it."""
    timer = threading.Timer(seconds, os._exit, (1,))
    timer.daemon = True
    timer.start()
