"""The cached, single-flighted view of the ledger: assets, events, `/info`. The only metadata cache.

A listing is
read page by page, by whoever gets there first, and shared; the records it brings are kept, so that
walking down from it asks nothing twice. While the service cannot be reached, what was known lately
(`stale_ttl`) goes on being told: what is recorded does not change because nobody answers.

A walk over the whole ledger may take longer than a record is good. For it the listing of all assets, and that
of all events, are read anew before their time is over (`renew_assets`, `read_all_events`): a page brings what
hundreds of requests would.
"""

import logging
from collections.abc import Awaitable, Callable, Hashable, Mapping
from contextlib import suppress
from typing import TypeVar

import trio

from attachfs import model
from attachfs.background import TaskStarter
from attachfs.errors import AttachfsError, NotFound, Unreachable
from attachfs.ledger.listings import Listed, Listing, Source
from attachfs.ledger.records import Records, note_for
from attachfs.ledger.single_flight import SingleFlight
from attachfs.ledger.ttl_cache import CacheEntry, TTLCache
from attachfs.model import NO_FILTERS, Asset, AssetRef, Event, EventRef

log = logging.getLogger(__name__)

_LISTINGS = 2_048  # directories' listings kept
_WIDE = 4  # listings kept of all assets, and of their names
_LISTED_IDS = 400_000  # ids kept in all listings together; one takes about 100 bytes
_FOUND = 16_384  # outcomes of filtered requests kept; most are one id

R = TypeVar("R", Asset, Event)


class Ledger(Records):
    """The ledger as the tree sees it: records, and listings of them.

    Args:
        source: the service's client.
        nursery: where shared requests run.
        metadata_ttl: seconds for which a record is good.
        negative_ttl: seconds for which an absence or a refusal is remembered.
        stale_ttl: seconds for which a record may be told while the service cannot be reached.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        source: Source,
        nursery: TaskStarter,
        *,
        metadata_ttl: float = 60,
        negative_ttl: float = 5,
        stale_ttl: float = 3600,
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        super().__init__(
            source,
            nursery,
            metadata_ttl=metadata_ttl,
            negative_ttl=negative_ttl,
            stale_ttl=stale_ttl,
            clock=clock,
        )
        self._listings: TTLCache[Hashable, Listing] = TTLCache(_LISTINGS, self.clock)
        self._wide: TTLCache[Hashable, Listing] = TTLCache(_WIDE, self.clock)
        self._found: TTLCache[Hashable, tuple[str, ...]] = TTLCache(_FOUND, self.clock)
        self._found_flights: SingleFlight[Hashable, CacheEntry[tuple[str, ...]]] = SingleFlight(nursery)
        self._listed = 0  # ids in listings, at most
        self._forgotten = 0

    # -- listings ----------------------------------------------------------------------------------

    def assets(self) -> Listing:
        """Return the listing of all assets: shared, read page by page as it is reached."""
        return self.shared_assets().get()

    def shared_assets(self) -> CacheEntry[Listing]:
        """Return the listing of all assets, and until when it is shared."""
        return self.listing(None, self._listing_of_assets)

    def _listing_of_assets(self, before: Listing | None) -> Listing:
        async def fetch(token: str) -> tuple[list[str], str]:
            assets, following = await self.assets_on_page(token)
            return [asset.id for asset in assets], following

        return Listing(fetch, "assets", before)

    def events(self, asset: AssetRef) -> Listing:
        """Return the listing of an asset's events."""
        return self.shared_events(asset).get()

    def shared_events(self, asset: AssetRef) -> CacheEntry[Listing]:
        """Return the listing of an asset's events, and until when it is shared."""
        known = self._listings.fresh(asset)
        if known is not None:
            return known
        read = self._all_events.of(asset)
        if read is not None and self.clock() < read.expires:
            events = read.get()
            for event in events:
                ref = EventRef(asset.realm, asset.asset, event.id)
                self._events.put(ref, CacheEntry(event, read.expires, read.stale_until))
            return CacheEntry(Listed([event.id for event in events]), read.expires, read.stale_until)

        async def fetch(token: str) -> tuple[list[str], str]:
            events, following = await self.events_on_page(asset, token)
            return [event.id for event in events], following

        old = None if read is None else Listed([event.id for event in read.get()])
        return self.listing(asset, lambda before: Listing(fetch, f"{asset.path}/events", before or old))

    def known_events(self, asset: AssetRef, listing: Listing) -> list[Event] | None:
        """Return the events of an asset's listing, if it is complete and none has to be asked for."""
        if not listing.complete or listing.old:
            return None
        events = (self.fresh_record(EventRef(asset.realm, asset.asset, one)) for one in listing.ids)
        known = [event for event in events if isinstance(event, Event)]
        return known if len(known) == len(listing.ids) else None

    def knows_events(self, asset: AssetRef) -> bool:
        """Whether an asset's record and events are known, and need not be asked."""
        if self._assets.fresh(asset) is None:
            return False
        listing = self._listings.fresh(asset)
        return listing is not None or self._all_events.has(asset)

    async def listed_assets(self, base: CacheEntry[Listing], number: int) -> tuple[list[Asset], bool]:
        """Return the assets that page `number` of a listing has brought, and whether it is the last.

        Raises:
            AttachfsError: it could not be had.
        """

        def known(identity: str) -> CacheEntry[Asset] | None:
            return self._assets.get(AssetRef("assets", identity))

        async def ask(identity: str) -> Asset:
            return await self.asset(AssetRef("assets", identity))

        return await _records_on_page(base, number, known, self.assets_on_page, ask)

    async def listed_events(
        self, asset: AssetRef, base: CacheEntry[Listing], number: int
    ) -> tuple[list[Event], bool]:
        """Return the events that page `number` of an asset's listing has brought, and whether it is the last.

        Raises:
            AttachfsError: it could not be had.
        """

        def known(identity: str) -> CacheEntry[Event] | None:
            return self._events.get(EventRef(asset.realm, asset.asset, identity))

        async def read(token: str) -> tuple[list[Event], str]:
            return await self.events_on_page(asset, token)

        async def ask(identity: str) -> Event:
            return await self.event(EventRef(asset.realm, asset.asset, identity))

        return await _records_on_page(base, number, known, read, ask)

    # -- ahead of a long walk --------------------------------------------------------------------------

    @property
    def ttl(self) -> float:
        """Seconds for which a record is good."""
        return self._ttl

    def left(self) -> tuple[float, float]:
        """Return how long the listings of all assets and of all events are good: seconds, or below zero."""
        now, assets = self.clock(), self._wide.get(None)
        return (assets.expires if assets else 0) - now, self._all_events.expires - now

    def pages(self) -> tuple[int, float]:
        """Return how many pages the listings of all assets and of all events would be, by what is known."""
        assets = self._wide.get(None)
        count = len(assets.get().starts) if assets else 0
        seen = self._seen_events().values()
        return count, count * sum(map(len, seen)) / len(seen) if seen else count

    async def renew_assets(self, go_on: Callable[[int], bool]) -> bool:
        """Read the listing of all assets anew; return whether that is now the one that is shared.

        Args:
            go_on: is asked after each page, with the number of pages read.

        Raises:
            AttachfsError: a page could not be had.
        """
        forgotten, known = self._forgotten, self._good(self._listing_of_assets(None))
        listing = known.get()
        while await listing.reach(len(listing.ids)):
            if not go_on(len(listing.starts)):
                return False
        if self.clock() >= known.expires or forgotten != self._forgotten:
            return False
        self._wide.put(None, known)
        return True

    async def read_all_events(self, go_on: Callable[[int], bool]) -> bool:
        """Read the listing of all events; return whether it can be relied on (see `BulkEvents`).

        Args:
            go_on: is asked before each page, with the number of pages read.

        Raises:
            AttachfsError: a page could not be had.
        """
        return await self._all_events.read(lambda: self._good(None), go_on, self._seen_events)

    def _seen_events(self) -> dict[AssetRef, list[str]]:
        """Return the events of those assets that were asked one by one lately."""
        now = self.clock()
        return {
            key: known.value.ids
            for key, known in self._listings.items()
            if isinstance(key, AssetRef)
            and key.realm == "assets"
            and now < known.expires
            and isinstance(known.value, Listing)
            and known.value.complete
            and not known.value.old
        }

    # -- by filters ------------------------------------------------------------------------------------

    async def find_assets(self, display_name: str) -> tuple[str, ...]:
        """Return the ids of the assets that have exactly this name, by a filtered request.

        Raises:
            NotFound: there are none.
            AttachfsError: the service could not be asked.
        """

        async def page(token: str) -> tuple[list[Asset], str]:
            return await self.assets_on_page(token, {"attributes.arc_display_name": display_name})

        return await self._find(display_name, page, lambda asset: asset.display_name == display_name)

    async def find_events(self, asset: AssetRef, since: str, before: str) -> tuple[str, ...]:
        """Return the ids of an asset's events that were accepted between two times (RFC 3339).

        Raises:
            NotFound: there are none.
            AttachfsError: the service could not be asked.
        """

        async def page(token: str) -> tuple[list[Event], str]:
            times = {"timestamp_accepted_since": since, "timestamp_accepted_before": before}
            return await self.events_on_page(asset, token, times)

        first, last = model.parse_time_ns(since), model.parse_time_ns(before)
        return await self._find((asset, since, before), page, lambda event: first <= event.time_ns < last)

    async def _find(
        self,
        key: Hashable,
        page: Callable[[str], Awaitable[tuple[list[R], str]]],
        fits: Callable[[R], bool],
    ) -> tuple[str, ...]:
        async def ask() -> tuple[str, ...]:
            listing = Listing(fetch, f"those with {key!a}")
            while await listing.reach(len(listing.ids)):
                pass
            if not listing.ids:
                raise NotFound(f"the ledger has nothing with {key!a}")
            return tuple(listing.ids)

        async def fetch(token: str) -> tuple[list[str], str]:
            records, following = await page(token)
            # A service may compare more loosely than we do, or not know the filter.
            return [one.id for one in records if fits(one)], following

        known = self._found.fresh(key)
        if known is None:
            known = await self._found_flights.do(key, lambda: self._ask(self._found, key, ask()))
        return known.get()

    def forget(self) -> None:
        """Drop everything that is remembered."""
        super().forget()
        self._forgotten += 1
        for table in (self._listings, self._wide, self._found):
            table.clear()

    def listing(
        self,
        key: Hashable,
        make: Callable[[Listing | None], Listing],
        like: CacheEntry[Listing] | None = None,
    ) -> CacheEntry[Listing]:
        """Return the shared listing under `key`.

        Args:
            key: what it is of.
            make: makes it, given an older one that is complete.
            like: the listing that it is made of: it is shared as long as that one.
        """
        table = self._table_of(key)
        known = table.fresh(key)
        if known is None:
            old = table.get(key)
            before = old.get() if old is not None and old.get().complete else None
            known = self._good(make(before))
            if like is not None:
                known = known._replace(expires=like.expires, stale_until=like.stale_until)
            self.share(key, known)
        return known

    def share(self, key: Hashable, known: CacheEntry[Listing]) -> None:
        """Let a listing be shared from now on."""
        self._table_of(key).put(key, known)

    def _table_of(self, key: Hashable) -> TTLCache[Hashable, Listing]:
        """Return where a listing is kept: those of thousands of assets do not drive out that of all."""
        return self._listings if isinstance(key, tuple) else self._wide

    def known_listing(self, key: Hashable) -> Listing | None:
        """Return the shared listing under `key` if there is one, and it is not old."""
        known = self._table_of(key).fresh(key)
        return None if known is None else known.get()

    def _count_ids(self, ids: int) -> None:
        self._listed += ids
        if self._listed > _LISTED_IDS:
            kept = (known.value for table in (self._listings, self._wide) for _, known in table.items())
            self._listed = ids + sum(len(one.ids) for one in kept if isinstance(one, Listing))
            if self._listed > _LISTED_IDS:
                self._listings.clear()  # whoever reads one keeps it; only the sharing ends
                self._wide.clear()
                self._listed = 0

    async def assets_on_page(
        self, token: str, filters: Mapping[str, str] = NO_FILTERS
    ) -> tuple[list[Asset], str]:
        """Return the assets on one page of a listing, and the next page's token. The assets are kept."""
        page = await self._source.assets_page(token, filters)
        self._count_ids(len(page.records))
        self._tell_stale(None)
        assets = []
        for record in page.records:
            asset = model.parse_asset(record, None, note_for("assets"))
            if asset is not None:
                assets.append(asset)
        times = self._good(None)
        self._assets.put_listed(assets, times.expires, times.stale_until)
        return assets, page.next_token

    async def events_on_page(
        self, asset: AssetRef, token: str, filters: Mapping[str, str] = NO_FILTERS
    ) -> tuple[list[Event], str]:
        """Return the events on one page of an asset's listing, and the next page's token; they are kept."""
        page = await self._source.events_page(asset, token, filters)
        self._count_ids(len(page.records))
        self._tell_stale(None)
        events = []
        for record in page.records:
            found = model.parse_event(record, asset.asset, note_for(asset.path))
            if found is not None:
                events.append(found[1])
                self._events.put(EventRef(asset.realm, asset.asset, found[1].id), self._good(found[1]))
        return events, page.next_token


async def _records_on_page(
    base: CacheEntry[Listing],
    number: int,
    known: Callable[[str], CacheEntry[R] | None],
    read: Callable[[str], Awaitable[tuple[list[R], str]]],
    ask: Callable[[str], Awaitable[R]],
) -> tuple[list[R], bool]:
    """Return the records of a listing's page as the listing found them, or newer, and whether it is the last.

    Args:
        base: the listing.
        number: the page's.
        known: returns what is remembered of one.
        read: reads a page again, if not all are remembered.
        ask: asks for a single one, if the page has changed meanwhile.
    """
    listing = base.get()
    while number >= len(listing.starts):
        if listing.complete:
            if listing.old:
                raise Unreachable("the service cannot be asked, and only an older listing is known")
            return [], True
        await listing.reach(len(listing.ids))
    start, token = listing.starts[number]
    end = listing.starts[number + 1][0] if number + 1 < len(listing.starts) else len(listing.ids)
    ids = listing.ids[start:end]
    found = {}
    for identity in ids:
        one = known(identity)
        if one is not None and one.expires >= base.expires and not isinstance(one.value, AttachfsError):
            found[identity] = one.value
    if len(found) < len(ids):
        found |= {record.id: record for record in (await read(token))[0]}
    for identity in ids:
        if identity not in found:
            with suppress(NotFound):
                found[identity] = await ask(identity)
    records = [found[identity] for identity in ids if identity in found]
    return records, listing.complete and number + 1 >= len(listing.starts)
