"""Pages of records: asked for once for all who want them, parsed, and their records kept.

While the service does not answer, a page that was kept on disk is served in its place.
"""

import math
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Generic, NamedTuple, TypeVar

import trio

from attachfs import model
from attachfs.errors import AccessDenied, NotFound, Unreachable
from attachfs.ledger.backend import Backend
from attachfs.ledger.lifetimes import RETRY_AFTER
from attachfs.ledger.listings import Listing, Page
from attachfs.ledger.offline import Aged, StoredAnswers, StoredPage
from attachfs.ledger.outage import NO_ANSWER
from attachfs.ledger.records import RecordCache, note_for
from attachfs.ledger.refresher import Refresher
from attachfs.ledger.ttl_cache import CacheEntry
from attachfs.model import NO_FILTERS, Asset, AssetRef, Event, EventRef

_SLICE = 100  # records that are parsed before others get their turn
_MANY_ATTRIBUTES = 500  # of one record; to parse them takes some 3 ms

R = TypeVar("R", bound=Asset | Event)
T = TypeVar("T")
Filters = Mapping[str, str]
PageKey = tuple[AssetRef | None, str, tuple[tuple[str, str], ...]]


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


class PageReader:
    """Reads pages of assets and of events.

    Args:
        backend: where pages come from, and for how long their records are good.
        records: keeps what pages bring.
        count: called with the number of records on each page.
    """

    def __init__(self, backend: Backend, records: RecordCache, count: Callable[[int], None]) -> None:
        self._source = backend.source
        self._lifetimes = backend.lifetimes
        self._outage = backend.outage
        self._stored = backend.stored
        self._records = records
        self._count = count
        self._asset_pages: Refresher[PageKey, RecordsPage[Asset]] = Refresher(backend)
        self._event_pages: Refresher[PageKey, RecordsPage[Event]] = Refresher(backend)

    def clear(self) -> None:
        """Keep nothing of what is being asked for."""
        self._asset_pages.clear()
        self._event_pages.clear()

    async def is_kept(self, kept: Callable[[StoredAnswers], Awaitable[Aged[StoredPage]]]) -> bool:
        """Whether a page is on disk, for when the service does not answer."""
        try:
            await self._from_disk(kept)
        except Unreachable:
            return False
        return True

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
        fetch_page: Callable[[], Awaitable[Page]],
        kept: Callable[[StoredAnswers], Awaitable[Aged[StoredPage]]],
        keep: Callable[[Page, float | None, int], Awaitable[RecordsPage[R]]],
        before: CacheEntry[Listing] | None,
    ) -> RecordsPage[R]:
        async def fetch() -> RecordsPage[R]:
            generation = self._lifetimes.generation
            try:
                page = await fetch_page()
            except (NotFound, AccessDenied):
                self._outage.answered()
                raise
            self._outage.answered()
            self._count(len(page.records))
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

        return await flights.get(key, fetch, fallback, lambda page: page)

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


async def parse_in_slices(
    records: list[dict[str, Any]], parse: Callable[[dict[str, Any]], T | None]
) -> list[T]:
    """Return what can be used of a page, in slices: others get their turn in between.

    A record with very many attributes is parsed in a thread.
    """
    parsed: list[T | None] = []
    for number, record in enumerate(records):
        if sum(len(value) for value in record.values() if isinstance(value, dict)) > _MANY_ATTRIBUTES:
            parsed.append(await trio.to_thread.run_sync(parse, record))
            continue
        if number and number % _SLICE == 0:
            await trio.lowlevel.checkpoint()
        parsed.append(parse(record))
    return [one for one in parsed if one is not None]
