"""`attachfs cache shared …`, `attachfs prefetch --to-shared`: look at a fleet's cache, check it, fill it."""

import hashlib
import os
import random
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import click
import trio

from attachfs.cache.disk_cache import DiskCache
from attachfs.cli import arguments, output
from attachfs.cli import paths as places
from attachfs.cli.groups import Group
from attachfs.cli.progress import Progress
from attachfs.config.settings import Config
from attachfs.errors import UsageError
from attachfs.model import Digest
from attachfs.mount.sharing import open_shared_cache
from attachfs.shared_cache.objects import Listed, Missing, StoreError
from attachfs.shared_cache.policy import SharedCache
from attachfs.shared_cache.uploads import add
from attachfs.text import printable
from attachfs.units import format_size

_SAMPLE = 100  # objects hashed unless --all is given
_TEST = b"attachfs: a test of the shared cache\n"
_TEST_DIGEST = Digest("sha256", hashlib.sha256(_TEST).hexdigest())

OPTIONS = (
    "shared-cache",
    "shared-cache-write",
    "shared-cache-credentials-file",
    "shared-cache-ca-file",
    "shared-cache-insecure",
)
_options = arguments.locating_options(
    "url", "cache-dir", "cache-size", "cache-min-free", "profile", "config", *OPTIONS
)


def _run(config: Config, work: Callable[[SharedCache], Awaitable[int]]) -> int:
    """Return what `work` returns for the configured store.

    Raises:
        UsageError: none is configured.
    """

    async def inside() -> int:
        async with open_shared_cache(config) as shared:
            if shared is None:
                raise UsageError(
                    "no shared cache is configured: give --shared-cache URL, or set shared-cache"
                )
            return await work(shared)

    return trio.run(inside)


# -- stat ----------------------------------------------------------------------------------------------


async def _stat(shared: SharedCache, *, as_json: bool) -> int:
    objects = size = 0
    try:
        async with shared.store.listed() as listed:
            async for one in listed:
                objects += 1
                size += one.size
    except StoreError as failure:
        output.complain(shared.store.name, failure.reason)
        return output.UNKNOWN
    if as_json:
        output.say_json({"store": shared.store.name, "objects": objects, "bytes": size})
    else:
        output.print_facts([("store", shared.store.name), ("blobs", f"{objects:,}, {format_size(size)}")])
    return output.OK


# -- verify --------------------------------------------------------------------------------------------


class _Check(NamedTuple):
    """How one object was found: `right`, `missing`, `wrong`, `replaced` or `unread`."""

    digest: Digest
    state: str
    reason: str = ""


async def _chosen(shared: SharedCache, cache: DiskCache, sample: int | None) -> Sequence[Listed]:
    """Return which objects are checked: of the store's listing, or of what is cached here if it has none."""
    try:
        async with shared.store.listed() as listed:
            found = [one async for one in listed]
    except StoreError as failure:
        if failure.kind != "refused":
            raise
        found = [Listed(one.digest, one.size) for one in cache.entries() if one.digest.alg == "sha256"]
    if sample is not None and len(found) > sample:
        found = random.sample(found, sample)
    return found


async def _check(shared: SharedCache, cache: DiskCache, one: Listed, *, replace: bool) -> _Check:
    try:
        found = await _hash_of(shared, one.digest, one.size)
        if found == one.digest.hex:
            return _Check(one.digest, "right")
        reason = f"its bytes hash to {found}"
    except Missing:
        return _Check(one.digest, "missing")
    except StoreError as failure:
        if failure.kind not in ("wrong", "broken"):
            return _Check(one.digest, "unread", failure.reason)
        reason = failure.reason
    if replace and await _replace(shared, cache, one.digest):
        return _Check(one.digest, "replaced", reason)
    return _Check(one.digest, "wrong", reason)


async def _hash_of(shared: SharedCache, digest: Digest, size: int) -> str:
    """Return the SHA-256 of what the store holds under a digest.

    Raises:
        Missing, StoreError: there is none, or it cannot be had.
    """
    stream = await shared.store.open(digest, size)
    try:
        found = hashlib.sha256()
        while piece := await stream.next():
            found.update(piece)
    finally:
        await stream.aclose()
    return found.hexdigest()


async def _replace(shared: SharedCache, cache: DiskCache, digest: Digest) -> bool:
    """Put the local cache's verified bytes in place of wrong ones; False if there are none here."""
    size = await trio.to_thread.run_sync(cache.size_of, digest)
    blob = None if size is None else await trio.to_thread.run_sync(cache.open, digest, size)
    if blob is None or size is None:
        return False
    with blob:
        try:
            return await shared.store.put(digest, size, blob.pread, overwrite=True)
        except StoreError:
            return False


async def _verify(shared: SharedCache, config: Config, *, as_json: bool, sample: int | None) -> int:
    cache = DiskCache(config.cache_dir, config.cache_size, config.cache_min_free)
    cache.start(exclusive=False)
    counts: Counter[str] = Counter()
    try:
        chosen = await _chosen(shared, cache, sample)
        with Progress("cache shared verify", sum(one.size for one in chosen), len(chosen)) as progress:
            for one in chosen:
                check = await _check(shared, cache, one, replace=config.shared_cache_write)
                progress.advance(one.size, files=1)
                counts[check.state] += 1
                if as_json:
                    output.say_json({"digest": str(one.digest), "state": check.state, "reason": check.reason})
                elif check.state not in ("right", "missing"):
                    output.say(printable(f"{one.digest}: {check.state.upper()}: {check.reason}"))
    except StoreError as failure:
        output.complain(shared.store.name, failure.reason)
        return output.UNKNOWN
    finally:
        cache.close()
    words = ", ".join(
        f"{counts[state]:,} {state}" for state in ("right", "missing", "replaced", "wrong", "unread")
    )
    output.note(f"cache shared verify: {output.count(sum(counts.values()), 'blob')}: {words}")
    if counts["wrong"]:
        return output.DIFFERS
    return output.UNKNOWN if counts["unread"] else output.OK


# -- prefetch --to-shared ------------------------------------------------------------------------------


def fill(paths: Sequence[Path], config: Config, *, jobs: int) -> int:
    """Add the files at and below paths of a mount to the store; 1 if one differs or could not be added."""

    async def work(shared: SharedCache) -> int:
        counts: Counter[str] = Counter()
        files = list(places.walk(paths))
        todo = iter(files)
        with Progress("prefetch --to-shared", 0, len(files)) as progress:

            async def add_some() -> None:
                for found in todo:
                    counts[await _add(shared, found)] += 1
                    progress.advance(files=1)

            async with trio.open_nursery() as nursery:
                for _ in range(jobs):
                    nursery.start_soon(add_some)
        output.note(
            f"prefetch: {output.count(counts['added'], 'file')} added to {shared.store.name}, "
            f"{counts['there']:,} already there, {counts['failed']:,} failed"
        )
        return output.DIFFERS if counts["failed"] else output.OK

    return _run(config, work)


async def _add(shared: SharedCache, found: places.Found) -> str:
    try:
        if found.problem is not None:
            raise found.problem
        digest = Digest("sha256", await trio.to_thread.run_sync(_digest_of, found.path))
        size = (await trio.to_thread.run_sync(found.path.stat)).st_size
        if await shared.store.has(digest) == size:
            return "there"
        fd = await trio.to_thread.run_sync(os.open, found.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            # The mount verifies what it gives; bytes that differ are an error before the end, and the store
            # never gets the whole of such a file.
            sent = await add(shared, digest, size, lambda length, offset: os.pread(fd, length, offset))
        finally:
            os.close(fd)
    except OSError as error:
        output.complain(found.path, output.reason_of(error))
        return "failed"
    except StoreError as failure:
        output.complain(found.path, f"the shared cache: {failure.reason}")
        return "failed"
    return "added" if sent else "there"


def _digest_of(path: Path) -> str:
    return os.getxattr(path, "user.hash.sha256").decode("ascii")


# -- doctor --------------------------------------------------------------------------------------------


async def probe(config: Config) -> AsyncIterator[tuple[str, str]]:
    """Yield what works of the configured store, as (`ok` or `wrong`, words): reach, write, read, verify."""
    async with open_shared_cache(config) as shared:
        if shared is None:
            return
        name = shared.store.name
        try:
            there = await shared.store.has(_TEST_DIGEST)
            yield "ok", f"{name} answers"
            if config.shared_cache_write:
                await shared.store.put(
                    _TEST_DIGEST, len(_TEST), lambda length, at: _TEST[at : at + length], overwrite=True
                )
                yield "ok", f"{name} takes a test object"
                there = len(_TEST)
            if there is not None:
                right = await _hash_of(shared, _TEST_DIGEST, len(_TEST)) == _TEST_DIGEST.hex
                yield "ok" if right else "wrong", f"{name} gives {'it' if right else 'something else'} back"
        except Missing:
            yield "wrong", f"{name} took a test object and does not have it"
        except StoreError as failure:
            yield "wrong", f"{name}: {failure.reason}"


# -- commands ------------------------------------------------------------------------------------------


@click.group("shared", cls=Group)
def group() -> None:
    """Inspect and check the shared cache."""


@group.command("stat")
@arguments.as_json
@_options
def shared_stat(as_json: bool, **given: str | None) -> None:
    """Show how much the shared cache holds. A plain HTTP server cannot tell: exit status 3."""

    async def work(shared: SharedCache) -> int:
        return await _stat(shared, as_json=as_json)

    sys.exit(_run(arguments.settings(given), work))


@group.command("verify")
@arguments.as_json
@click.option("--all", "everything", is_flag=True, help=f"Hash all, not {_SAMPLE} taken at random.")
@_options
def shared_verify(as_json: bool, everything: bool, **given: str | None) -> None:
    """Hash blobs in the shared cache.

    With --shared-cache-write, wrong ones are replaced from this machine's cache. On a plain HTTP server, only
    blobs that are cached here are checked.

    Exit status: 0 all are right, 1 a wrong one is left, 3 something could not be read.
    """
    config = arguments.settings(given)

    async def work(shared: SharedCache) -> int:
        return await _verify(shared, config, as_json=as_json, sample=None if everything else _SAMPLE)

    sys.exit(_run(config, work))
