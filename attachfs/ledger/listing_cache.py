"""Listings of assets and of their events, shared while they are fresh; the records they bring are kept.

A listing is read page by page, by whoever gets there first. While the service does not answer, an older
complete listing is served, or the pages that were kept on disk.
"""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from attachfs.errors import AttachfsError, NotFound, Unreachable
from attachfs.ledger.all_events import BulkEvents
from attachfs.ledger.backend import Backend
from attachfs.ledger.finder import Finder
from attachfs.ledger.listings import Listing
from attachfs.ledger.record_pages import PageReader, RecordPager, RecordsPage
from attachfs.ledger.records import RecordCache
from attachfs.ledger.ttl_cache import CacheEntry, TTLCache
from attachfs.model import Asset, AssetRef, Event, EventRef

_LISTINGS = 2_048  # listings of assets' events kept
_LISTED_IDS = 400_000  # ids kept in all listings together; one takes about 100 bytes

R = TypeVar("R", bound=Asset | Event)


class ListingCache:
    """The listings of all assets, of each asset's events, and of what has a name or a time.

    Args:
        backend: where pages come from, and for how long listings are shared.
        records: keeps what listings bring.
        bulk: all events, if they have been read.
    """

    def __init__(self, backend: Backend, records: RecordCache, bulk: BulkEvents) -> None:
        self._lifetimes = backend.lifetimes
        self._records = records
        self._bulk = bulk
        self._all_assets: CacheEntry[Listing] | None = None
        self._events: TTLCache[AssetRef, Listing] = TTLCache(_LISTINGS, backend.lifetimes.clock)
        self._pages = PageReader(backend, records, self._count_ids)
        self._finder = Finder(self._pages, backend, self._is_complete)
        self.find_assets = self._finder.find_assets
        self.find_events = self._finder.find_events
        self._listed = 0  # ids in listings, at most

    def clear(self) -> None:
        """Drop everything that is remembered. What is being asked for is not kept either."""
        self._pages.clear()
        self._finder.clear()
        self._all_assets = None
        self._events.clear()

    # -- shared listings ---------------------------------------------------------------------------

    def assets(self) -> Listing:
        """Return the listing of all assets: shared, read page by page as it is reached."""
        return self.shared_assets().get()

    def shared_assets(self) -> CacheEntry[Listing]:
        """Return the listing of all assets, and until when it is shared."""
        cached = self._all_assets
        if cached is None or not self._is_fresh(cached):
            cached = self._all_assets = self._lifetimes.entry(self.new_assets(_older(cached)))
        return cached

    def new_assets(self, before: CacheEntry[Listing] | None = None) -> Listing:
        """Return a listing of all assets that is not shared."""

        async def read(token: str) -> RecordsPage[Asset]:
            return await self._pages.assets_on_page(token, before=None if token else before)

        old = None if before is None else before.get()
        return Listing(RecordPager(read, self._lifetimes.clock), "assets", old)

    def share_assets(self, cached: CacheEntry[Listing]) -> None:
        """Let another listing of all assets be shared from now on."""
        self._all_assets = cached

    def cached_assets(self) -> CacheEntry[Listing] | None:
        """Return the shared listing of all assets, even if its time is over, if there is one."""
        return self._all_assets

    def events(self, asset: AssetRef) -> Listing:
        """Return the listing of an asset's events."""
        return self.shared_events(asset).get()

    def shared_events(self, asset: AssetRef) -> CacheEntry[Listing]:
        """Return the listing of an asset's events, and until when it is shared."""
        cached = self._fresh_events(asset)
        if cached is not None:
            return cached
        read = self._bulk.of(asset)
        old = _older(self._events.get(asset))
        if read is not None:
            listing = Listing.of([event.id for event in read.get()])
            bulk = CacheEntry(listing, read.expires, read.stale_until, read.learned)
            if self._lifetimes.clock() < read.expires:
                for event in read.get():
                    ref = EventRef(asset.realm, asset.asset, event.id)
                    self._records.event_table.put(ref, CacheEntry(event, *read[1:]))
                return bulk
            old = old or bulk

        async def page(token: str) -> RecordsPage[Event]:
            return await self._pages.events_on_page(asset, token, before=None if token else old)

        pager = RecordPager(page, self._lifetimes.clock)
        before = None if old is None else old.get()
        cached = self._lifetimes.entry(Listing(pager, f"{asset.path}/events", before))
        self._events.put(asset, cached)
        return cached

    def _fresh_events(self, asset: AssetRef) -> CacheEntry[Listing] | None:
        cached = self._events.fresh(asset)
        return cached if cached is not None and self._is_fresh(cached) else None

    def _is_complete(self, asset: AssetRef | None) -> bool:
        cached = self._all_assets if asset is None else self._events.get(asset)
        return cached is not None and cached.get().complete

    def _is_fresh(self, cached: CacheEntry[Listing]) -> bool:
        now = self._lifetimes.clock()
        return now < cached.expires and now < cached.get().retry_at

    def cached_events(self, asset: AssetRef, listing: Listing) -> list[Event] | None:
        """Return the events of an asset's listing, if it is complete and none has to be asked for."""
        if not listing.complete or listing.old:
            return None
        events = (self._records.fresh_record(EventRef(asset.realm, asset.asset, one)) for one in listing.ids)
        cached = [event for event in events if isinstance(event, Event)]
        return cached if len(cached) == len(listing.ids) else None

    def has_events(self, asset: AssetRef) -> bool:
        """Whether an asset's record and events are known, and need not be asked."""
        if self._records.asset_table.fresh(asset) is None:
            return False
        return self._fresh_events(asset) is not None or self._bulk.has(asset)

    def listed_events_by_asset(self) -> dict[AssetRef, list[str]]:
        """Return the events of those assets that were asked one by one lately."""
        return {
            asset: cached.get().ids
            for asset, cached in self._events.items()
            if asset.realm == "assets"
            and self._is_fresh(cached)
            and cached.get().complete
            and not cached.get().old
        }

    # -- pages -------------------------------------------------------------------------------------

    async def listed_assets(self, base: CacheEntry[Listing], number: int) -> tuple[list[Asset], bool]:
        """Return the assets that page `number` of a listing has brought, and whether it is the last.

        Raises:
            AttachfsError: it could not be had.
        """

        def cached(identity: str) -> CacheEntry[Asset] | None:
            return self._records.cached_record(AssetRef("assets", identity))

        async def fetch(identity: str) -> Asset:
            return await self._records.asset(AssetRef("assets", identity))

        return await _records_on_page(base, number, cached, self._pages.assets_on_page, fetch)

    async def listed_events(
        self, asset: AssetRef, base: CacheEntry[Listing], number: int
    ) -> tuple[list[Event], bool]:
        """Return the events that page `number` of an asset's listing has brought, and whether it is the last.

        Raises:
            AttachfsError: it could not be had.
        """

        def cached(identity: str) -> CacheEntry[Event] | None:
            return self._records.cached_record(EventRef(asset.realm, asset.asset, identity))

        async def read(token: str) -> RecordsPage[Event]:
            return await self._pages.events_on_page(asset, token)

        async def fetch(identity: str) -> Event:
            return await self._records.event(EventRef(asset.realm, asset.asset, identity))

        return await _records_on_page(base, number, cached, read, fetch)

    def _count_ids(self, ids: int) -> None:
        self._listed += ids
        if self._listed > _LISTED_IDS:
            kept = [cached.get() for _, cached in self._events.items()]
            if self._all_assets is not None:
                kept.append(self._all_assets.get())
            self._listed = ids + sum(len(one.ids) for one in kept)
            if self._listed > _LISTED_IDS:
                self._events.clear()  # whoever reads one keeps it; only the sharing ends
                self._all_assets = None
                self._listed = 0


def _older(cached: CacheEntry[Listing] | None) -> CacheEntry[Listing] | None:
    """Return a listing that may be served in the place of a newer one: a complete one."""
    return cached if cached is not None and cached.get().complete else None


async def _records_on_page(
    base: CacheEntry[Listing],
    number: int,
    cached: Callable[[str], CacheEntry[R] | None],
    read: Callable[[str], Awaitable[RecordsPage[R]]],
    fetch: Callable[[str], Awaitable[R]],
) -> tuple[list[R], bool]:
    """Return the records of a listing's page as the listing found them, or newer, and whether it is the last.

    Args:
        base: the listing.
        number: the page's.
        cached: returns what is remembered of one.
        read: reads a page again, if not all are remembered.
        fetch: fetches a single one, if the page has changed meanwhile.
    """
    listing = base.get()
    while number >= len(listing.starts):
        if listing.complete:
            if listing.old:
                raise Unreachable("the service cannot be reached, and only an older listing is known")
            return [], True
        await listing.load_to(len(listing.ids))
    start, token = listing.starts[number]
    end = listing.starts[number + 1][0] if number + 1 < len(listing.starts) else len(listing.ids)
    ids = listing.ids[start:end]
    found = {}
    expires = min(base.expires, listing.retry_at)
    # One that was learned before the listing may have changed since: names follow what the listing found.
    for identity in ids:
        one = cached(identity)
        if one is not None and one.expires >= expires and not isinstance(one.value, AttachfsError):
            found[identity] = one.value
    if len(found) < len(ids):
        found |= {record.id: record for record in (await read(token)).records}
    for identity in ids:
        if identity not in found:  # it has moved to another page, or is gone
            with suppress(NotFound):
                found[identity] = await fetch(identity)
    records = [found[identity] for identity in ids if identity in found]
    return records, listing.complete and number + 1 >= len(listing.starts)
