"""SIGHUP: configuration and credentials are read again; names and attributes that are remembered go."""

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path

import trio

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
from attachfs.mount import credentials
from attachfs.mount import log as mount_log
from attachfs.mount.custody import CustodyRecorder
from attachfs.service.auth import Auth
from attachfs.service.client import Client
from attachfs.service.secret_file import Secret

log = logging.getLogger(__name__)

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


class Reloader:
    """What a mount was last configured with, and how it takes up changes.

    Args:
        config: what it was mounted with.
        mountpoint: where.
        reload: reads the configuration again, as it was read at first; None where that cannot be done.
        log_in: makes credentials of a client id and its secret; None: there is no service.
        client, ledger, blobs, filesystem: take up changes.
        custody: the custody log, which may have been rotated.
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
        custody: CustodyRecorder | None = None,
    ) -> None:
        self.config = config
        self._mountpoint = mountpoint
        self._reload = reload
        self._log_in = log_in
        self._client = client
        self._ledger = ledger
        self._blobs = blobs
        self._filesystem = filesystem
        self._custody = custody

    async def reload(self) -> None:
        """Read configuration and credentials again, and forget names and attributes."""
        if self._custody is not None:
            await self._custody.rotate()
        log.info("SIGHUP: reading the configuration and the credentials again")
        try:
            if self._reload is not None:
                await self._apply(await trio.to_thread.run_sync(self._reload))
        except AttachfsError as error:
            log.error("nothing was changed: %s", error.reason)  # noqa: TRY400 - the sentence is what matters
        self._ledger.clear()
        await self._filesystem.kernel.invalidate_metadata(self._mountpoint)
        log.info("names and attributes are forgotten")

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
            self._client.set_timeouts(now.timeout)
        self._filesystem.set_timeouts(now.timeout, now.negative_ttl)
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
