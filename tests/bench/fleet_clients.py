"""Workstations without kernel mounts: all that a mount has below the filesystem, and a reader above it.

    python -m tests.bench.fleet_clients JOB.json

Started by `tests.bench.fleet`, one process for each processor. Each workstation has a client of the service,
a ledger view, a blob store, a disk cache, pins and a shared cache of its own, as a mount makes them. It reads
all files in an order of its own, and compares the hash of each.
"""

import contextlib
import hashlib
import json
import logging
import random
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TypedDict

import trio

from attachfs.background import Background
from attachfs.blobs.store import BlobStore
from attachfs.cache.disk_cache import DiskCache
from attachfs.config.settings import load
from attachfs.ledger.view import Ledger
from attachfs.model import AttachmentRef
from attachfs.mount.origin import of_service, pins_of
from attachfs.mount.sharing import open_shared_cache, share

_CHUNK = 2**20  # bytes read at a time


class Job(TypedDict):
    """What one process of clients is to do."""

    options: dict[str, str]  # the mount's
    files: dict[str, str]  # path to SHA-256
    workstations: list[int]
    at_once: int  # workstations that read side by side
    seconds: float  # after which no more is read
    upload: bool  # whether to wait until all is in the shared cache


class Done(TypedDict):
    """What it did."""

    reads: int
    hits: int  # of the shared cache
    seconds: float


def ref_of(path: str) -> AttachmentRef:
    """Return what a path on a mount stands for: an asset's attachment."""
    _, asset, attachment = path.split("/")
    return AttachmentRef("assets", asset, None, attachment)


class Clients:
    """The workstations of one process."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._turns = trio.CapacityLimiter(job["at_once"])
        self.reads = 0
        self.hits = 0

    async def run(self) -> Done:
        """Have all workstations read everything, or as much as time allows."""
        began = trio.current_time()
        with trio.move_on_after(self._job["seconds"]):
            async with trio.open_nursery() as nursery:
                for number in self._job["workstations"]:
                    nursery.start_soon(self._workstation, number)
        return {"reads": self.reads, "hits": self.hits, "seconds": trio.current_time() - began}

    async def _workstation(self, number: int) -> None:
        async with self._turns:
            with tempfile.TemporaryDirectory(prefix=f"fleet-{number}-") as name:
                base = Path(name)
                options = {**self._job["options"], "cache_dir": str(base / "cache")}
                config = replace(load(options, environ={}), state_dir=base / "state")
                async with contextlib.AsyncExitStack() as stack, trio.open_nursery() as nursery:
                    tasks = Background(nursery)
                    cache = DiskCache(config.cache_dir, config.cache_size, config.cache_min_free)
                    cache.start(f"workstation {number}")
                    stack.callback(cache.close)
                    await trio.to_thread.run_sync(cache.index)
                    pins = pins_of(config)
                    stack.callback(pins.close)
                    shared = await stack.enter_async_context(open_shared_cache(config))
                    origin = await of_service(config, stack, tasks)
                    sharing = share(config, shared, origin.blobs, cache)
                    if sharing.uploader is not None:
                        tasks.keep_running("filling the shared cache", sharing.uploader.run)
                    blobs = BlobStore(
                        Ledger(origin.records, tasks),
                        sharing.source,
                        cache,
                        pins,
                        tasks,
                        namespace=origin.namespace,
                        on_admitted=sharing.on_admitted,
                    )
                    try:
                        await self._read_all(blobs, number)
                        while shared is not None and self._job["upload"]:
                            stats = shared.stats()
                            if stats["uploaded"] + stats["upload_drops"] >= len(self._job["files"]):
                                break
                            await trio.sleep(0.05)  # uploads go on behind the reader's back
                    finally:
                        self.hits += 0 if shared is None else shared.hits
                        nursery.cancel_scope.cancel()

    async def _read_all(self, blobs: BlobStore, number: int) -> None:
        files = list(self._job["files"].items())
        random.Random(number).shuffle(files)
        for path, expected in files:
            blob = await blobs.open(ref_of(path))
            found = hashlib.sha256()
            for offset in range(0, blob.size, _CHUNK):
                found.update(await blob.read(offset, _CHUNK))
            blob.close()
            if found.hexdigest() != expected:
                raise SystemExit(f"{path}: wrong bytes")
            self.reads += 1


def main() -> None:
    """Read a job from the command line's file, do it, and print what was done."""
    logging.basicConfig(level=logging.ERROR)  # that the service limits the rate is what this is about
    job: Job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    sys.stdout.write(json.dumps(trio.run(Clients(job).run)) + "\n")


if __name__ == "__main__":
    main()
