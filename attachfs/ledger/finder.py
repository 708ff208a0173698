"""Finds assets by name and events by time, by filtered requests whose outcomes are kept."""

import math
from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeVar

from attachfs import model
from attachfs.errors import NotFound, Unreachable
from attachfs.ledger.backend import Backend
from attachfs.ledger.listings import Listing
from attachfs.ledger.record_pages import PageReader, RecordPager, RecordsPage
from attachfs.ledger.refresher import Refresher
from attachfs.ledger.ttl_cache import CacheEntry, TTLCache
from attachfs.model import Asset, AssetRef, Event

_FOUND = 16_384  # outcomes kept; most are one id

R = TypeVar("R", bound=Asset | Event)


class Found(NamedTuple):
    """The ids of what was found; not `current`: as of earlier, as the service does not answer."""

    ids: tuple[str, ...]
    current: bool


FindKey = str | tuple[AssetRef, str, str]


class Finder:
    """Asks the service which records pass a filter.

    Args:
        pages: reads the pages of an answer.
        backend: says for how long an outcome is good, and whether the service answers.
        is_complete: whether an asset's events, or all assets (None), are known by a listing that is complete.
    """

    def __init__(
        self,
        pages: PageReader,
        backend: Backend,
        is_complete: Callable[[AssetRef | None], bool],
    ) -> None:
        self._pages = pages
        self._lifetimes = backend.lifetimes
        self._outage = backend.outage
        self._is_complete = is_complete
        self._found: TTLCache[FindKey, tuple[str, ...]] = TTLCache(_FOUND, backend.lifetimes.clock)
        self._finds: Refresher[FindKey, CacheEntry[tuple[str, ...]]] = Refresher(backend)

    def clear(self) -> None:
        """Drop everything that is remembered. What is being asked for is not kept either."""
        self._finds.clear()
        self._found.clear()

    async def find_assets(self, display_name: str) -> Found:
        """Return the assets that have exactly this name, by a filtered request.

        Raises:
            NotFound: there are none.
            AttachfsError: the service could not be asked.
        """

        async def page(token: str) -> RecordsPage[Asset]:
            return await self._pages.assets_on_page(token, {"attributes.arc_display_name": display_name})

        return await self._find(
            display_name, page, lambda asset: asset.display_name == display_name, self._assets_are_cached
        )

    async def find_events(self, asset: AssetRef, since: str, before: str) -> Found:
        """Return an asset's events that were accepted between two times (RFC 3339).

        Raises:
            NotFound: there are none.
            AttachfsError: the service could not be asked.
        """

        async def page(token: str) -> RecordsPage[Event]:
            times = {"timestamp_accepted_since": since, "timestamp_accepted_before": before}
            return await self._pages.events_on_page(asset, token, times)

        async def cached() -> bool:
            return await self._events_are_cached(asset)

        first, last = model.parse_time_ns(since), model.parse_time_ns(before)
        return await self._find(
            (asset, since, before), page, lambda event: first <= event.time_ns < last, cached
        )

    async def _find(
        self,
        key: FindKey,
        page: Callable[[str], Awaitable[RecordsPage[R]]],
        fits: Callable[[R], bool],
        listing_is_cached: Callable[[], Awaitable[bool]],
    ) -> Found:
        begun = self._lifetimes.clock()

        async def read(token: str) -> RecordsPage[R]:
            found = await page(token)
            # A service may compare more loosely than we do, or not know the filter.
            return found._replace(records=[one for one in found.records if fits(one)])

        async def fetch() -> CacheEntry[tuple[str, ...]]:
            generation = self._lifetimes.generation
            pager = RecordPager(read, self._lifetimes.clock)
            listing = Listing(pager, f"those with {key!a}")
            while await listing.load_to(len(listing.ids)):
                pass
            cached = self._outcome(key, listing)
            if generation == self._lifetimes.generation:
                self._found.put(key, cached)
            return cached

        async def fallback() -> CacheEntry[tuple[str, ...]] | None:
            old = self._found.get(key)
            if old is not None:
                self._outage.served(old.learned)
                return self._lifetimes.stale(old)
            if await listing_is_cached():
                error = Unreachable(f"the service cannot be reached to find {key!a}; look in the listing")
                return CacheEntry(error, 0.0)
            return None

        def unwrap(entry: CacheEntry[tuple[str, ...]]) -> Found:
            return Found(entry.get(), self._lifetimes.is_current(entry, begun))

        cached = self._found.fresh(key)
        return await self._finds.get(key, fetch, fallback, unwrap) if cached is None else unwrap(cached)

    def _outcome(self, key: FindKey, listing: Listing) -> CacheEntry[tuple[str, ...]]:
        cached: CacheEntry[tuple[str, ...]]
        if listing.ids:
            cached = self._lifetimes.entry(tuple(listing.ids))
        else:
            cached = self._lifetimes.absence(NotFound(f"the ledger has nothing with {key!a}"))
        if listing.retry_at == math.inf:
            return cached
        # It is what was kept on disk: as the service has not answered, nobody knows whether there is more.
        if not listing.ids:
            cached = cached._replace(value=Unreachable(f"the service cannot be asked what has {key!a}"))
        return cached._replace(expires=min(cached.expires, listing.retry_at), learned=-math.inf)

    async def _assets_are_cached(self) -> bool:
        return self._is_complete(None) or await self._pages.is_kept(lambda stored: stored.assets_page())

    async def _events_are_cached(self, asset: AssetRef) -> bool:
        return self._is_complete(asset) or await self._pages.is_kept(lambda stored: stored.events_page(asset))
