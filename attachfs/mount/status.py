"""A running mount's status: what `attachfs status --json`, its extended attribute and metrics show.

Owns: the names in it. They are public, see attachfs-status in attachfs(1): one may be added, none changes.
"""

import dataclasses
import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict, TypeVar

from attachfs import __version__
from attachfs.blobs.store import BlobStore
from attachfs.cache.disk_cache import DiskCache
from attachfs.config.settings import Config
from attachfs.fuse.operations import Filesystem
from attachfs.ledger.answer_store import AnswerStats
from attachfs.ledger.outage import OutageStats
from attachfs.ledger.view import Ledger
from attachfs.mount import credentials, process
from attachfs.mount.custody import CustodyRecorder, CustodyStats
from attachfs.mount.origin import Origin
from attachfs.service.messages import ServiceStats
from attachfs.shared_cache.policy import SharedCache, SharedCacheStats

log = logging.getLogger(__name__)

P = TypeVar("P")


class Status(TypedDict):
    """A mount's status. Parts of it are empty where they do not apply or could not be had."""

    version: str
    pid: int
    mountpoint: str
    uptime_s: float
    log: str
    url: str
    ledger: str
    profile: str | None
    archive: str | None
    cache_dir: str | None
    credentials: str
    custody_log: str | None
    custody: CustodyStats | None
    scan_policy: str
    verify: str
    open_files: int
    open_directories: int
    inodes: int
    opened: int
    cache_hits: int
    downloading: int
    verified_bytes: int
    offline: bool
    stale: bool
    outage: OutageStats
    memory: AnswerStats
    cache: dict[str, Any]  # the fields of `CacheStats`
    requests: ServiceStats
    shared_cache: SharedCacheStats | None
    descriptors: process.Descriptors
    errors: dict[str, int]
    last_errors: list[dict[str, Any]]


class StatusReport:
    """Collects a mount's status from its parts, whenever it is asked for.

    Args:
        mountpoint: where it is mounted.
        log_place: where its log goes.
        born: when it was mounted, in nanoseconds since 1970.
        config: returns the settings in use.
        origin, ledger, blobs, cache, filesystem, shared, custody: the parts.
    """

    def __init__(
        self,
        mountpoint: Path,
        log_place: str,
        born: int,
        config: Callable[[], Config],
        *,
        origin: Origin,
        ledger: Ledger,
        blobs: BlobStore,
        cache: DiskCache,
        filesystem: Filesystem,
        shared: SharedCache | None,
        custody: CustodyRecorder | None,
    ) -> None:
        self._mountpoint = mountpoint
        self._log_place = log_place
        self._born = born
        self._config = config
        self._origin = origin
        self._ledger = ledger
        self._blobs = blobs
        self._cache = cache
        self._filesystem = filesystem
        self._shared = shared
        self._custody = custody

    def as_dict(self) -> Status:
        """Return the status as it is now."""
        config, filesystem, blobs = self._config(), self._filesystem, self._blobs
        memory, client, shared = self._origin.memory, self._origin.client, self._shared
        return {
            "version": __version__,
            "pid": os.getpid(),
            "mountpoint": str(self._mountpoint),
            "uptime_s": round((time.time_ns() - self._born) / 1e9, 1),
            "log": self._log_place,
            "url": config.url,
            "ledger": self._origin.url,
            "profile": config.profile,
            "archive": None if config.archive is None else str(config.archive),
            "cache_dir": str(config.cache_dir) if config.archive is None else None,
            "credentials": "none" if config.archive else credentials.describe(config),
            "custody_log": None if config.custody_log is None else str(config.custody_log),
            "custody": None if self._custody is None else self._custody.stats(),
            "scan_policy": config.scan_policy,
            "verify": config.verify,
            "open_files": len(filesystem.files),
            "open_directories": len(filesystem.directories),
            "inodes": len(filesystem.inodes),
            "opened": blobs.opened,
            "cache_hits": blobs.hits,
            "downloading": blobs.downloading,
            "verified_bytes": blobs.verified_bytes,
            "offline": config.offline,
            "stale": self._ledger.stale,
            "outage": self._ledger.outage.stats(),
            "memory": AnswerStats() if memory is None else _part("memory", memory.stats, AnswerStats()),
            "cache": _part("cache", lambda: dataclasses.asdict(self._cache.stats()), {}),
            "requests": ServiceStats() if client is None else _part("requests", client.stats, ServiceStats()),
            "shared_cache": None
            if shared is None
            else _part("shared_cache", shared.stats, SharedCacheStats()),
            "descriptors": _part("descriptors", process.descriptors, process.Descriptors()),
            "errors": dict(filesystem.faults.counts),
            "last_errors": filesystem.faults.latest(),
        }

    def as_json(self) -> bytes:
        """Return the status as it is now, as JSON."""
        return json.dumps(self.as_dict()).encode()


def _part(name: str, make: Callable[[], P], nothing: P) -> P:
    """Return a part of the status, `nothing` if it cannot be had: the others are shown all the same."""
    try:
        return make()
    except Exception as error:  # noqa: BLE001 - a statistic ends nothing, whatever is wrong with a disk
        log.warning("the stats lack %s: %s: %s", name, type(error).__name__, error)
        return nothing
