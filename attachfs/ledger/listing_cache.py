"""Listings of assets and of their events, shared while they are fresh; the records they bring are kept.

A listing is read page by page, by whoever gets there first. While the service does not answer, an older
complete listing is served, or the pages that were kept on disk.
"""

import math
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, Generic, NamedTuple, TypeVar

import trio

from attachfs import model
from attachfs.background import TaskStarter
from attachfs.errors import AccessDenied, AttachfsError, NotFound, Unreachable
from attachfs.ledger.all_events import BulkEvents
from attachfs.ledger.lifetimes import RETRY_AFTER, Lifetimes
from attachfs.ledger.listings import Listing, Page, Source
from attachfs.ledger.offline import Aged, StoredAnswers, StoredPage
from attachfs.ledger.outage import NO_ANSWER, Outage
from attachfs.ledger.records import RecordCache, note_for
from attachfs.ledger.refresher import Refresher
from attachfs.ledger.ttl_cache import CacheEntry, TTLCache
from attachfs.model import NO_FILTERS, Asset, AssetRef, Event, EventRef

_LISTINGS = 2_048  # listings of assets' events kept
_LISTED_IDS = 400_000  # ids kept in all listings together; one takes about 100 bytes
_FOUND = 16_384  # outcomes of filtered requests kept; most are one id
_SLICE = 100  # records that are parsed before others get their turn

R = TypeVar("R", bound=Asset | Event)
T = TypeVar("T")
Filters = Mapping[str, str]
PageKey = tuple[AssetRef | None, str, tuple[tuple[str, str], ...]]
FindKey = str | tuple[AssetRef, str, str]


class RecordsPage(NamedTuple, Generic[R]):
    """The records on a page, and the next page's token; `stale`: the service did not answer.

    `older`: nothing is known of this page, but an older listing may be served as a whole.
    """

    records: list[R]
    next_token: str
    stale: bool = False
    older: bool = False


class RecordPager(Generic[R]):
    """Brings the ids of a listing's records.

    Args:
        read: returns the page with a token.
        clock: seconds, monotonic.
    """

    __slots__ = ("_clock", "_read", "retry_at")

    def __init__(self, read: Callable[[str], Awaitable[RecordsPage[R]]], clock: Callable[[], float]) -> None:
        self._read = read
        self._clock = clock
        self.retry_at = math.inf

    async def page(self, token: str) -> tuple[list[str], str]:
        """Return the ids on the page with a token, and the next page's token."""
        try:
            page = await self._read(token)
        except NO_ANSWER:
            self.retry_at = self._clock() + RETRY_AFTER
            raise
        if page.stale:
            self.retry_at = min(self.retry_at, self._clock() + RETRY_AFTER)
        if page.older:
            raise Unreachable("the service does not answer, but an older listing is known")
        return [record.id for record in page.records], page.next_token


class ListingCache:
    """The listings of all assets, of each asset's events, and of what has a name or a time.

    Args:
        source: the service's client.
        nursery: where shared requests run.
        lifetimes: says for how long listings are shared.
        outage: knows whether the service answers.
        stored: what is kept on disk; None: nothing is.
        records: keeps what listings bring.
        bulk: all events, if they have been read.
    """

    def __init__(
        self,
        source: Source,
        nursery: TaskStarter,
        lifetimes: Lifetimes,
        outage: Outage,
        stored: StoredAnswers | None,
        records: RecordCache,
        bulk: BulkEvents,
    ) -> None:
        self._source = source
        self._lifetimes = lifetimes
        self._outage = outage
        self._stored = stored
        self._records = records
        self._bulk = bulk
        self._all_assets: CacheEntry[Listing] | None = None
        self._events: TTLCache[AssetRef, Listing] = TTLCache(_LISTINGS, lifetimes.clock)
        self._found: TTLCache[FindKey, tuple[str, ...]] = TTLCache(_FOUND, lifetimes.clock)
        self._asset_pages: Refresher[PageKey, RecordsPage[Asset]] = Refresher(nursery, lifetimes, outage)
        self._event_pages: Refresher[PageKey, RecordsPage[Event]] = Refresher(nursery, lifetimes, outage)
        self._finds: Refresher[FindKey, CacheEntry[tuple[str, ...]]] = Refresher(nursery, lifetimes, outage)
        self._listed = 0  # ids in listings, at most

    def forget(self) -> None:
        """Drop everything that is remembered. What is being asked for is not kept either."""
        for flights in (self._asset_pages, self._event_pages, self._finds):
            flights.forget()
        self._all_assets = None
        self._events.clear()
        self._found.clear()

    # -- shared listings ---------------------------------------------------------------------------

    def assets(self) -> Listing:
        """Return the listing of all assets: shared, read page by page as it is reached."""
        return self.shared_assets().get()

    def shared_assets(self) -> CacheEntry[Listing]:
        """Return the listing of all assets, and until when it is shared."""
        known = self._all_assets
        if known is None or not self._is_fresh(known):
            known = self._all_assets = self._lifetimes.entry(self.new_assets(_older(known)))
        return known

    def new_assets(self, before: CacheEntry[Listing] | None = None) -> Listing:
        """Return a listing of all assets that is not shared."""

        async def read(token: str) -> RecordsPage[Asset]:
            return await self.assets_on_page(token, before=None if token else before)

        old = None if before is None else before.get()
        return Listing(RecordPager(read, self._lifetimes.clock), "assets", old)

    def share_assets(self, known: CacheEntry[Listing]) -> None:
        """Let another listing of all assets be shared from now on."""
        self._all_assets = known

    def known_assets(self) -> CacheEntry[Listing] | None:
        """Return the shared listing of all assets, even if its time is over, if there is one."""
        return self._all_assets

    def events(self, asset: AssetRef) -> Listing:
        """Return the listing of an asset's events."""
        return self.shared_events(asset).get()

    def shared_events(self, asset: AssetRef) -> CacheEntry[Listing]:
        """Return the listing of an asset's events, and until when it is shared."""
        known = self._fresh_events(asset)
        if known is not None:
            return known
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
            return await self.events_on_page(asset, token, before=None if token else old)

        pager = RecordPager(page, self._lifetimes.clock)
        before = None if old is None else old.get()
        known = self._lifetimes.entry(Listing(pager, f"{asset.path}/events", before))
        self._events.put(asset, known)
        return known

    def _fresh_events(self, asset: AssetRef) -> CacheEntry[Listing] | None:
        known = self._events.fresh(asset)
        return known if known is not None and self._is_fresh(known) else None

    def _is_fresh(self, known: CacheEntry[Listing]) -> bool:
        now = self._lifetimes.clock()
        return now < known.expires and now < known.get().retry_at

    def known_events(self, asset: AssetRef, listing: Listing) -> list[Event] | None:
        """Return the events of an asset's listing, if it is complete and none has to be asked for."""
        if not listing.complete or listing.old:
            return None
        events = (self._records.fresh_record(EventRef(asset.realm, asset.asset, one)) for one in listing.ids)
        known = [event for event in events if isinstance(event, Event)]
        return known if len(known) == len(listing.ids) else None

    def has_events(self, asset: AssetRef) -> bool:
        """Whether an asset's record and events are known, and need not be asked."""
        if self._records.asset_table.fresh(asset) is None:
            return False
        return self._fresh_events(asset) is not None or self._bulk.has(asset)

    def listed_events_by_asset(self) -> dict[AssetRef, list[str]]:
        """Return the events of those assets that were asked one by one lately."""
        return {
            asset: known.get().ids
            for asset, known in self._events.items()
            if asset.realm == "assets"
            and self._is_fresh(known)
            and known.get().complete
            and not known.get().old
        }

    # -- pages -------------------------------------------------------------------------------------

    async def listed_assets(self, base: CacheEntry[Listing], number: int) -> tuple[list[Asset], bool]:
        """Return the assets that page `number` of a listing has brought, and whether it is the last.

        Raises:
            AttachfsError: it could not be had.
        """

        def known(identity: str) -> CacheEntry[Asset] | None:
            return self._records.known_record(AssetRef("assets", identity))

        async def ask(identity: str) -> Asset:
            return await self._records.asset(AssetRef("assets", identity))

        return await _records_on_page(base, number, known, self.assets_on_page, ask)

    async def listed_events(
        self, asset: AssetRef, base: CacheEntry[Listing], number: int
    ) -> tuple[list[Event], bool]:
        """Return the events that page `number` of an asset's listing has brought, and whether it is the last.

        Raises:
            AttachfsError: it could not be had.
        """

        def known(identity: str) -> CacheEntry[Event] | None:
            return self._records.known_record(EventRef(asset.realm, asset.asset, identity))

        async def read(token: str) -> RecordsPage[Event]:
            return await self.events_on_page(asset, token)

        async def ask(identity: str) -> Event:
            return await self._records.event(EventRef(asset.realm, asset.asset, identity))

        return await _records_on_page(base, number, known, read, ask)

    async def assets_on_page(
        self, token: str, filters: Filters = NO_FILTERS, before: CacheEntry[Listing] | None = None
    ) -> RecordsPage[Asset]:
        """Return the assets on one page of a listing, and keep them.

        Args:
            token: the page's; "" for the first.
            filters: what the assets have to pass.
            before: an older listing that may be served in its place.
        """

        async def keep(page: Page, age: float | None, generation: int) -> RecordsPage[Asset]:
            note = note_for("assets")
            assets = await parse_in_slices(page.records, lambda record: model.parse_asset(record, None, note))
            times = self._times(age)
            if times is not None and generation == self._lifetimes.generation:
                self._records.asset_table.put_listed(assets, times)
            return RecordsPage(assets, page.next_token, stale=age is not None)

        return await self._page(
            self._asset_pages,
            (None, token, tuple(sorted(filters.items()))),
            lambda: self._source.assets_page(token, filters),
            lambda stored: stored.assets_page(token, filters),
            keep,
            before,
        )

    async def events_on_page(
        self,
        asset: AssetRef,
        token: str,
        filters: Filters = NO_FILTERS,
        before: CacheEntry[Listing] | None = None,
    ) -> RecordsPage[Event]:
        """Return the events on one page of an asset's listing, and keep them; see `assets_on_page`."""

        async def keep(page: Page, age: float | None, generation: int) -> RecordsPage[Event]:
            note = note_for(asset.path)
            found = await parse_in_slices(
                page.records, lambda record: model.parse_event(record, asset.asset, note)
            )
            events = [event for _, event in found]
            times = self._times(age)
            if times is not None and generation == self._lifetimes.generation:
                for event in events:
                    ref = EventRef(asset.realm, asset.asset, event.id)
                    self._records.event_table.put(ref, times._replace(value=event))
            return RecordsPage(events, page.next_token, stale=age is not None)

        return await self._page(
            self._event_pages,
            (asset, token, tuple(sorted(filters.items()))),
            lambda: self._source.events_page(asset, token, filters),
            lambda stored: stored.events_page(asset, token, filters),
            keep,
            before,
        )

    async def _page(
        self,
        flights: Refresher[PageKey, RecordsPage[R]],
        key: PageKey,
        ask: Callable[[], Awaitable[Page]],
        kept: Callable[[StoredAnswers], Awaitable[Aged[StoredPage]]],
        keep: Callable[[Page, float | None, int], Awaitable[RecordsPage[R]]],
        before: CacheEntry[Listing] | None,
    ) -> RecordsPage[R]:
        async def fetch() -> RecordsPage[R]:
            generation = self._lifetimes.generation
            try:
                page = await ask()
            except (NotFound, AccessDenied):
                self._outage.answered()
                raise
            self._outage.answered()
            self._count_ids(len(page.records))
            return await keep(page, None, generation)

        async def fallback() -> RecordsPage[R] | None:
            if before is not None and self._lifetimes.clock() < before.stale_until:
                self._outage.served(before.learned)
                return RecordsPage([], "", stale=True, older=True)
            generation = self._lifetimes.generation
            try:
                page, age = await self._from_disk(kept)
            except Unreachable:
                return None
            self._outage.served(self._lifetimes.clock() - age)
            return await keep(page, age, generation)

        return await flights.get(key, fetch, fallback)

    async def _from_disk(
        self, kept: Callable[[StoredAnswers], Awaitable[Aged[StoredPage]]]
    ) -> Aged[StoredPage]:
        """Return a page that an earlier mount has kept, or this one.

        Raises:
            Unreachable: there is none, or it is too old.
        """
        if self._stored is None:
            raise Unreachable("nothing is kept on disk")
        found = await kept(self._stored)
        if found.age >= self._lifetimes.stale_ttl:
            raise Unreachable("what is kept on disk is too old")
        return found

    def _times(self, age: float | None) -> CacheEntry[Any] | None:
        """Return an entry with the times of what was learned now, or is `age` seconds old."""
        return self._lifetimes.entry(None) if age is None else self._lifetimes.kept(None, age)

    def _count_ids(self, ids: int) -> None:
        self._listed += ids
        if self._listed > _LISTED_IDS:
            kept = [known.get() for _, known in self._events.items()]
            if self._all_assets is not None:
                kept.append(self._all_assets.get())
            self._listed = ids + sum(len(one.ids) for one in kept)
            if self._listed > _LISTED_IDS:
                self._events.clear()  # whoever reads one keeps it; only the sharing ends
                self._all_assets = None
                self._listed = 0

    # -- by filters --------------------------------------------------------------------------------

    async def find_assets(self, display_name: str) -> tuple[str, ...]:
        """Return the ids of the assets that have exactly this name, by a filtered request.

        Raises:
            NotFound: there are none.
            AttachfsError: the service could not be asked.
        """

        async def page(token: str) -> RecordsPage[Asset]:
            return await self.assets_on_page(token, {"attributes.arc_display_name": display_name})

        return await self._find(
            display_name, page, lambda asset: asset.display_name == display_name, self._knows_assets
        )

    async def find_events(self, asset: AssetRef, since: str, before: str) -> tuple[str, ...]:
        """Return the ids of an asset's events that were accepted between two times (RFC 3339).

        Raises:
            NotFound: there are none.
            AttachfsError: the service could not be asked.
        """

        async def page(token: str) -> RecordsPage[Event]:
            times = {"timestamp_accepted_since": since, "timestamp_accepted_before": before}
            return await self.events_on_page(asset, token, times)

        async def known() -> bool:
            return await self._knows_events(asset)

        first, last = model.parse_time_ns(since), model.parse_time_ns(before)
        return await self._find(
            (asset, since, before), page, lambda event: first <= event.time_ns < last, known
        )

    async def _find(
        self,
        key: FindKey,
        page: Callable[[str], Awaitable[RecordsPage[R]]],
        fits: Callable[[R], bool],
        listing_known: Callable[[], Awaitable[bool]],
    ) -> tuple[str, ...]:
        async def read(token: str) -> RecordsPage[R]:
            found = await page(token)
            # A service may compare more loosely than we do, or not know the filter.
            return found._replace(records=[one for one in found.records if fits(one)])

        async def fetch() -> CacheEntry[tuple[str, ...]]:
            generation = self._lifetimes.generation
            pager = RecordPager(read, self._lifetimes.clock)
            listing = Listing(pager, f"those with {key!a}")
            while await listing.reach(len(listing.ids)):
                pass
            known = self._outcome(key, listing)
            if generation == self._lifetimes.generation:
                self._found.put(key, known)
            return known

        async def fallback() -> CacheEntry[tuple[str, ...]] | None:
            old = self._found.get(key)
            if old is not None:
                self._outage.served(old.learned)
                return self._lifetimes.stale(old)
            if await listing_known():
                error = Unreachable(f"the service cannot be asked what has {key!a}; look in the listing")
                return CacheEntry(error, 0.0)
            return None

        known = self._found.fresh(key)
        if known is None:
            known = await self._finds.get(key, fetch, fallback)
        return known.get()

    def _outcome(self, key: FindKey, listing: Listing) -> CacheEntry[tuple[str, ...]]:
        known: CacheEntry[tuple[str, ...]]
        if listing.ids:
            known = self._lifetimes.entry(tuple(listing.ids))
        else:
            known = self._lifetimes.absence(NotFound(f"the ledger has nothing with {key!a}"))
        return known._replace(expires=min(known.expires, listing.retry_at))

    async def _knows_assets(self) -> bool:
        known = self._all_assets
        return (known is not None and known.get().complete) or await self._is_kept(
            lambda stored: stored.assets_page()
        )

    async def _knows_events(self, asset: AssetRef) -> bool:
        known = self._events.get(asset)
        return (known is not None and known.get().complete) or await self._is_kept(
            lambda stored: stored.events_page(asset)
        )

    async def _is_kept(self, kept: Callable[[StoredAnswers], Awaitable[Aged[StoredPage]]]) -> bool:
        with suppress(Unreachable):
            await self._from_disk(kept)
            return True
        return False


def _older(known: CacheEntry[Listing] | None) -> CacheEntry[Listing] | None:
    """Return a listing that may be served in the place of a newer one: a complete one."""
    return known if known is not None and known.get().complete else None


async def parse_in_slices(
    records: list[dict[str, Any]], parse: Callable[[dict[str, Any]], T | None]
) -> list[T]:
    """Return what can be used of a page, in slices: others get their turn in between."""
    parsed: list[T] = []
    for start in range(0, len(records), _SLICE):
        if start:
            await trio.lowlevel.checkpoint()
        found = (parse(record) for record in records[start : start + _SLICE])
        parsed += [one for one in found if one is not None]
    return parsed


async def _records_on_page(
    base: CacheEntry[Listing],
    number: int,
    known: Callable[[str], CacheEntry[R] | None],
    read: Callable[[str], Awaitable[RecordsPage[R]]],
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
    expires = min(base.expires, listing.retry_at)
    for identity in ids:
        one = known(identity)
        if one is not None and one.expires >= expires and not isinstance(one.value, AttachfsError):
            found[identity] = one.value
    if len(found) < len(ids):
        found |= {record.id: record for record in (await read(token)).records}
    for identity in ids:
        if identity not in found:
            with suppress(NotFound):
                found[identity] = await ask(identity)
    records = [found[identity] for identity in ids if identity in found]
    return records, listing.complete and number + 1 >= len(listing.starts)
