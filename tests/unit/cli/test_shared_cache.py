"""Healing the shared store from this machine's cache."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import trio

from attachfs.cache.disk_cache import DiskCache, Entry
from attachfs.cli import shared_cache
from attachfs.model import Digest
from attachfs.shared_cache.http_address import HttpAddress
from attachfs.shared_cache.objects import Listed, ObjectStore
from attachfs.shared_cache.policy import SharedCache
from attachfs.units import MinFree
from tests.services.memory_store import BLOBS, Store, digest_of

RIGHT = next(iter(BLOBS.values()))


class Unlisted(DiskCache):
    """A cache that nobody may list: of a hundred thousand blobs, that takes long."""

    def entries(self) -> list[Entry]:
        raise AssertionError("the whole cache was listed")


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[DiskCache]:
    cache = Unlisted(tmp_path / "cache", 1 << 30, MinFree())
    cache.start()
    cache.index()
    yield cache
    cache.close()


async def test_a_wrong_object_is_replaced_without_listing_the_cache(cache: DiskCache) -> None:
    digest = digest_of(RIGHT)
    writer = cache.reserve(len(RIGHT))
    writer.write(RIGHT, 0)
    writer.admit(digest).close()
    store = Store()
    other = Digest("sha256", "0" * 64)
    store.objects |= {digest.hex: b"forged", other.hex: b"of nobody"}
    http = httpx.AsyncClient(transport=httpx.MockTransport(store))
    shared = SharedCache(ObjectStore(http, HttpAddress("https://store.example/cas/")), trio.current_time)
    listed = [Listed(digest, 6), Listed(other, 9)]  # as long as what is there, not as what should be
    found = [await shared_cache._check(shared, cache, one, replace=True) for one in listed]
    assert [check.state for check in found] == ["replaced", "wrong"]
    assert store.objects[digest.hex] == RIGHT
