"""How the mount is, in one line, for the service manager: when it is ready, when it changes, when it ends."""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from attachfs.config.settings import Config
from attachfs.mount.status import Status
from attachfs.mount.systemd import Notifier

log = logging.getLogger(__name__)

_REPORT_EVERY = 5.0  # seconds


class ServiceStatus:
    """Reports a mount's state to the service manager, if there is one.

    Args:
        notifier: the service manager.
        mountpoint: where it is mounted.
        config: returns the settings in use.
        status: returns the mount's status.
    """

    def __init__(
        self,
        notifier: Notifier,
        mountpoint: Path,
        config: Callable[[], Config],
        status: Callable[[], Status],
    ) -> None:
        self._notifier = notifier
        self._mountpoint = mountpoint
        self._config = config
        self._status = status
        self._reloading = trio.Lock()

    @property
    def listening(self) -> bool:
        """Whether there is anybody to report to."""
        return self._notifier.listening

    def ready(self) -> None:
        """Report that the mount answers."""
        self._notifier.ready(self._state())

    def stopping(self) -> None:
        """Report that the mount is being taken down."""
        self._notifier.stopping("unmounting")

    @asynccontextmanager
    async def reloading(self) -> AsyncIterator[None]:
        """Report that the configuration is being read again, and the end of that, however it ends."""
        async with self._reloading:
            self._notifier.reloading()
            try:
                yield
            finally:
                self.ready()

    async def keep_reporting(self) -> None:
        """Report changes, for as long as this runs."""
        while True:
            await trio.sleep(_REPORT_EVERY)
            if not self._reloading.locked():
                self._notifier.status(self._state())

    def _state(self) -> str:
        state = f"{self._mountpoint}: {self._config().url}"
        try:
            status = self._status()
            if status["offline"]:
                return f"{state}, offline"
            if status["requests"].get("unreachable_since") is not None:
                return f"{state}, out of reach ({status['requests']['unreachable_reason']})"
            return f"{state}, {status['open_files']} open files, {status['downloading']} downloads"
        except Exception:  # a statistic ends nothing
            log.exception("the service manager could not be notified")
            return state
