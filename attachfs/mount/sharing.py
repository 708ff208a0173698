"""The shared cache of a mount: opened from its settings, put before the service, filled behind it."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple

import trio

from attachfs.blobs.source import BlobSource
from attachfs.cache.disk_cache import DiskCache
from attachfs.config.settings import Config
from attachfs.model import Digest
from attachfs.mount.credentials import is_in_clear
from attachfs.service.secret_file import read_private
from attachfs.shared_cache.connect import open_store
from attachfs.shared_cache.http_address import authorization_of
from attachfs.shared_cache.policy import SharedCache
from attachfs.shared_cache.source import SharedCacheSource
from attachfs.shared_cache.uploads import Uploader


class Sharing(NamedTuple):
    """What a mount without a shared cache has too: a source of bytes, and perhaps the rest."""

    source: BlobSource
    shared: SharedCache | None = None
    uploader: Uploader | None = None

    @property
    def on_admitted(self) -> Callable[[Digest, int], None] | None:
        """What is to be told of new blobs."""
        return None if self.uploader is None else self.uploader.offer


@asynccontextmanager
async def open_shared_cache(config: Config) -> AsyncIterator[SharedCache | None]:
    """Yield the shared cache that the settings name, None if they name none.

    Raises:
        UsageError: the settings cannot be used.
    """
    if config.shared_cache is None:
        yield None
        return
    path = config.shared_cache_credentials_file
    credentials = None
    if path is not None:
        text, _ = read_private(path, "--shared-cache-credentials-file")
        credentials = authorization_of(text, path), path
    store, http = open_store(
        config.shared_cache,
        credentials,
        ca_file=config.shared_cache_ca_file,
        in_clear=lambda url: not config.shared_cache_insecure and is_in_clear(url),
    )
    async with http:
        yield SharedCache(store, trio.current_time)


def share(config: Config, shared: SharedCache | None, service: BlobSource, cache: DiskCache) -> Sharing:
    """Return where a mount's bytes come from: the service, perhaps with the shared cache before it."""
    if shared is None:
        return Sharing(service)
    uploader = Uploader(shared, cache.open) if config.shared_cache_write else None
    return Sharing(SharedCacheSource(service, shared), shared, uploader)
