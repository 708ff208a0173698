"""A running mount's figures as JSON."""

import dataclasses
import json
import logging
import os
from collections.abc import Callable
from typing import Any

from attachfs import __version__
from attachfs.blobs.store import BlobStore
from attachfs.cache.disk_cache import DiskCache
from attachfs.config.settings import Config
from attachfs.fuse.operations import Filesystem
from attachfs.ledger.view import Ledger
from attachfs.mount import credentials, process
from attachfs.mount.origin import Origin
from attachfs.shared_cache.policy import SharedCache

log = logging.getLogger(__name__)


def status_json(
    config: Config,
    about: dict[str, Any],
    origin: Origin,
    ledger: Ledger,
    blobs: BlobStore,
    cache: DiskCache,
    filesystem: Filesystem,
    shared: SharedCache | None,
) -> bytes:
    """Return the running mount's figures as JSON."""
    stats: dict[str, Any] = {
        "version": __version__,
        "pid": os.getpid(),
        **about,
        "url": config.url,
        "ledger": origin.url,
        "profile": config.profile,
        "archive": None if config.archive is None else str(config.archive),
        "cache_dir": str(config.cache_dir) if config.archive is None else None,
        "credentials": "none" if config.archive else credentials.describe(config),
        "custody_log": None if config.custody_log is None else str(config.custody_log),
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
        "stale": ledger.stale,
        "outage": ledger.outage.stats(),
        "memory": {} if origin.memory is None else _part("memory", origin.memory.stats),
        "cache": _part("cache", lambda: dataclasses.asdict(cache.stats())),
        "requests": {} if origin.client is None else _part("requests", origin.client.stats),
        "shared_cache": None if shared is None else _part("shared_cache", shared.stats),
        "descriptors": _part("descriptors", process.descriptors),
        "errors": dict(filesystem.faults.counts),
        "last_errors": filesystem.faults.latest(),
    }
    return json.dumps(stats).encode()


def _part(name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return a part of the figures, empty if it cannot be had: the others are shown all the same."""
    try:
        return make()
    except Exception as error:  # noqa: BLE001 - a statistic ends nothing, whatever is wrong with a disk
        log.warning("the figures lack %s: %s: %s", name, type(error).__name__, error)
        return {}
