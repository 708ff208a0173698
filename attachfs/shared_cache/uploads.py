"""Adds verified blobs to the shared store, behind everybody's back: two at a time, from the local cache."""

import logging
from collections.abc import Callable

import trio

from attachfs.cache.disk_cache import CachedBlob
from attachfs.model import Digest
from attachfs.shared_cache.objects import StoreError
from attachfs.shared_cache.policy import SharedCache

log = logging.getLogger(__name__)

WORKERS = 2
_QUEUE = 1000  # blobs waiting; what comes beyond is dropped


class Uploader:
    """A bounded queue of blobs to add. What waits at shutdown is dropped.

    Args:
        shared: the store.
        open_cached: opens a blob of the local cache, None if it has gone; called in threads.
    """

    def __init__(self, shared: SharedCache, open_cached: Callable[[Digest, int], CachedBlob | None]) -> None:
        self._shared = shared
        self._open = open_cached
        self._send, self._receive = trio.open_memory_channel[tuple[Digest, int]](_QUEUE)

    def offer(self, digest: Digest, size: int) -> None:
        """Queue a blob that was verified and admitted. Never waits."""
        if digest.alg != "sha256" or (self._shared.is_there(digest) and not self._shared.is_wrong(digest)):
            return
        try:
            self._send.send_nowait((digest, size))
        except trio.WouldBlock:
            self._shared.upload_drops += 1

    async def run(self) -> None:
        """Upload for ever."""
        async with trio.open_nursery() as nursery:
            for _ in range(WORKERS):
                nursery.start_soon(self._work)

    async def _work(self) -> None:
        async for digest, size in self._receive:
            if not self._shared.writes.admit():
                self._shared.upload_drops += 1
                continue
            try:
                await self._upload(digest, size)
                self._shared.writes.succeeded()
            except StoreError as error:
                self._shared.upload_drops += 1
                self._shared.writes.failed(error.reason, cost_time=error.kind == "slow")

    async def _upload(self, digest: Digest, size: int) -> None:
        blob = await trio.to_thread.run_sync(self._open, digest, size)
        if blob is None:
            return
        try:
            await add(self._shared, digest, size, blob.pread)
        finally:
            blob.close_soon()  # cancelled, at the end of the mount, it could not wait for a thread


async def add(shared: SharedCache, digest: Digest, size: int, read: Callable[[int, int], bytes]) -> bool:
    """Add a blob unless the store has it; replace what is known to be wrong. Return whether it was sent.

    Raises:
        Trouble: the store does not take it.
    """
    overwrite = shared.is_wrong(digest)
    if not overwrite:
        there = await shared.store.has(digest)
        overwrite = there is not None and there not in (size, -1)
        if there is not None and not overwrite:
            shared.stored(digest, size, new=False)
            return False
    sent = await shared.store.put(digest, size, read, overwrite=overwrite)
    shared.stored(digest, size, new=sent)
    return sent
