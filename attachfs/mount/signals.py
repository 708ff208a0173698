"""What a running mount does when it is signalled, and what the service manager is told of it.

SIGTERM and SIGINT end it, within a bounded time. SIGHUP reads credentials and configuration again and
drops what is remembered of names and attributes. SIGUSR1 writes the figures into the log.
"""

import dataclasses
import functools
import json
import logging
import os
import signal
import termios
import threading
from collections.abc import Callable
from pathlib import Path

import trio

from attachfs.background import Background
from attachfs.blobs.store import BlobStore
from attachfs.config.settings import Config
from attachfs.errors import (
    AttachfsError,
    BadAnswer,
    RateLimited,
    TimedOut,
    Unreachable,
)
from attachfs.fuse.operations import Filesystem
from attachfs.ledger.view import Ledger
from attachfs.mount import credentials, unmount
from attachfs.mount import log as mount_log
from attachfs.mount.custody import CustodyRecorder
from attachfs.mount.mountinfo import mount_at
from attachfs.mount.systemd import Notifier
from attachfs.service.auth import Auth
from attachfs.service.client import Client
from attachfs.service.secret_file import Secret

log = logging.getLogger(__name__)

_ENDS_WITHIN = 20.0  # seconds to answer those who wait and to close what is open
_TELL_EVERY = 5.0  # seconds between two looks at what the service manager is told

CREDENTIALS = frozenset({"token_file", "client_id", "client_secret_file", "no_auth"})
# What changes while it is mounted. Anything else is told to need a remount.
LIVE = CREDENTIALS | {
    "log_level",
    "timeout",
    "metadata_ttl",
    "negative_ttl",
    "stale_ttl",
    "soft_timeout",
    "scan_policy",
}
_ABOUT_ITSELF = frozenset({"profile", "config", "state_dir", "origins"})


class SignalHandler:
    """A mount's signals.

    Args:
        config: what it was mounted with.
        mountpoint: where.
        reload: reads the configuration again, as it was read at first; None where that cannot be done.
        log_in: makes credentials of a client id and its secret; None: there is no service.
        client, ledger, blobs, filesystem: what is told of changes.
        notifier: the service manager.
        tasks: starts what goes on beside the signals.
        figures: returns the mount's figures as JSON.
        custody: its custody log, which may have been rotated.
    """

    def __init__(
        self,
        config: Config,
        mountpoint: Path,
        reload: Callable[[], Config] | None,
        log_in: Callable[[str, Path | Secret], Auth] | None,
        *,
        client: Client | None,
        ledger: Ledger,
        blobs: BlobStore,
        filesystem: Filesystem,
        notifier: Notifier,
        tasks: Background,
        figures: Callable[[], bytes],
        custody: CustodyRecorder | None = None,
    ) -> None:
        self.config = config
        self._custody = custody
        self._mountpoint = mountpoint
        self._reload = reload
        self._log_in = log_in
        self._client = client
        self._ledger = ledger
        self._blobs = blobs
        self._filesystem = filesystem
        self._notifier = notifier
        self._tasks = tasks
        self.figures = figures
        self._reloading = trio.Lock()
        self._terminal: int | None
        try:
            self._terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError:
            self._terminal = None  # in the background, or started by no person

    async def run(self, scope: trio.CancelScope) -> None:
        """Do what signals say; cancel `scope` at the one that ends the mount."""
        watched = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
        with trio.open_signal_receiver(*watched) as signals:
            if self._notifier.listening:
                self._tasks.keep_running("telling the service manager", self._keep_telling)
            async for number in signals:
                if number == signal.SIGUSR1:
                    self._tasks.part("SIGUSR1", "no figures are logged").start_soon(self._log_figures)
                elif number == signal.SIGHUP and not self._hung_up():
                    self._tasks.part("SIGHUP", "what was not read again stays as it was").start_soon(
                        self.reload
                    )
                else:
                    log.info("%s: unmounting", signal.Signals(number).name)
                    _end_within(_ENDS_WITHIN)
                    try:
                        self._notifier.stopping("unmounting")
                        await self._name_users()
                    except Exception:  # whoever it is does not keep the mount from ending
                        log.exception("it is not known who uses the mount")
                    finally:
                        scope.cancel()

    async def _log_figures(self) -> None:
        log.info("figures: %s", self.figures().decode())

    def ready(self) -> None:
        """Tell the service manager that the mount answers."""
        self._notifier.ready(self._state())

    # -- SIGHUP ------------------------------------------------------------------------------------

    async def reload(self) -> None:
        """Read configuration and credentials again, and forget names and attributes."""
        async with self._reloading:
            self._notifier.reloading()
            if self._custody is not None:
                await self._custody.rotate()
            log.info("SIGHUP: reading the configuration and the credentials again")
            try:
                if self._reload is not None:
                    await self._apply(await trio.to_thread.run_sync(self._reload))
            except AttachfsError as error:
                log.error("nothing was changed: %s", error.reason)  # noqa: TRY400 - the sentence is what matters
            self._ledger.forget()
            await self._filesystem.kernel.forget_metadata(self._mountpoint)
            log.info("names and attributes are forgotten")
            self._notifier.ready(self._state())

    async def _apply(self, new: Config) -> None:
        old = self.config
        changed = {
            field.name
            for field in dataclasses.fields(Config)
            if field.name not in _ABOUT_ITSELF and getattr(old, field.name) != getattr(new, field.name)
        }
        self.config = now = dataclasses.replace(old, **{name: getattr(new, name) for name in LIVE})
        mount_log.set_level(now.log_level)
        if self._client is not None:
            self._client.retime(now.timeout)
        self._filesystem.retime(now.timeout, now.negative_ttl)
        self._ledger.set_ttls(now.metadata_ttl, now.negative_ttl, now.stale_ttl, now.soft_timeout)
        self._blobs.change_policy(now.scan_policy)
        for name in sorted(changed & LIVE):
            log.info("%s is now %s", name.replace("_", "-"), getattr(now, name))
        if changed - LIVE:
            names = ", ".join(sorted(name.replace("_", "-") for name in changed - LIVE))
            log.warning("changed, but only a new mount will use it: %s", names)
        if self._client is not None and self._log_in is not None and not now.offline:
            await self._renew_credentials(self._client, self._log_in, now, changed=changed)

    async def _renew_credentials(
        self,
        client: Client,
        log_in: Callable[[str, Path | Secret], Auth],
        now: Config,
        *,
        changed: set[str],
    ) -> None:
        try:
            auth = credentials.choose(now, log_in)
            await auth.header()
        except (Unreachable, TimedOut, RateLimited, BadAnswer) as error:
            log.warning("the credentials could not be tried: %s", error.reason)
            if not changed & CREDENTIALS:
                return  # those at hand may well be good for some time
        except AttachfsError as error:
            log.error("the credentials in use are kept: %s", error.reason)  # noqa: TRY400 - as above
            return
        client.authenticate(auth)

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
                    log.warning("%s is %s, and detached all the same", self._mountpoint, unmount.who(found))

    # -- the service manager -----------------------------------------------------------------------

    async def _keep_telling(self) -> None:
        while True:
            await trio.sleep(_TELL_EVERY)
            if not self._reloading.locked():
                self._notifier.status(self._state())

    def _state(self) -> str:
        state = f"{self._mountpoint}: {self.config.url}"
        try:
            figures = json.loads(self.figures())
            if figures["offline"]:
                return f"{state}, offline"
            if figures["requests"]["unreachable_since"] is not None:
                return f"{state}, out of reach ({figures['requests']['unreachable_reason']})"
            return f"{state}, {figures['open_files']} open files, {figures['downloading']} downloads"
        except Exception:  # a statistic ends nothing
            log.exception("the service manager is not told how the mount is")
            return state


def _end_within(seconds: float) -> None:
    """End the process the hard way if it has not ended by itself. Nothing that is kept suffers from it."""
    timer = threading.Timer(seconds, os._exit, (1,))
    timer.daemon = True
    timer.start()
