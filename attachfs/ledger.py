"""The cached, single-flighted view of the ledger: assets, events, `/info`. The only metadata cache.

Records are kept for `metadata_ttl` in tables of bounded size, absences for `negative_ttl`. A listing is
read page by page, by whoever gets there first, and shared; the records it brings are kept, so that
walking down from it asks nothing twice. While the service cannot be reached, what was known lately
(`stale_ttl`) goes on being told: what is recorded does not change because nobody answers.
"""

import logging
from collections.abc import Awaitable, Callable, Hashable, Mapping
from types import MappingProxyType
from typing import Generic, NamedTuple, Protocol, TypeVar

import cachetools
import trio

from attachfs import model
from attachfs.errors import AccessDenied, AttachfsError, BadAnswer, NotFound, TimedOut, Unreachable
from attachfs.model import Asset, AssetRef, AttachmentRef, Digest, Event, EventRef, Info
from attachfs.singleflight import SingleFlight

log = logging.getLogger(__name__)

_RECORDS = 16_384  # records kept of each kind; a compact one takes some 300 bytes
_INFOS = 16_384  # /info bodies kept; one takes about 1 KiB
_LISTINGS = 4_096  # directories' listings kept
_LISTED_IDS = 400_000  # ids kept in all listings together; one takes about 100 bytes
_STALE_FOR = 5.0  # seconds after which an unreachable service is asked again
_COULD_NOT_ASK = (Unreachable, TimedOut)
_RAW = 64  # whole records kept for extended attributes
_FOUND = 16_384  # outcomes of filtered requests kept; most are one id
_NO_FILTERS: Mapping[str, str] = MappingProxyType({})

K = TypeVar("K")
T = TypeVar("T")
R = TypeVar("R", Asset, Event)


class Page(Protocol):
    """One page of a listing, as the client returns it."""

    @property
    def records(self) -> list[dict[str, object]]:
        """The page's records."""
        ...

    @property
    def next_token(self) -> str:
        """The next page's token, "" at the end."""
        ...


class Source(Protocol):
    """What the ledger view asks of the service's client."""

    async def assets_page(self, token: str = "", filters: Mapping[str, str] = _NO_FILTERS) -> Page:
        """Return one page of all assets that pass the filters."""
        ...

    async def events_page(
        self, asset: AssetRef | None, token: str = "", filters: Mapping[str, str] = _NO_FILTERS
    ) -> Page:
        """Return one page of an asset's events that pass the filters."""
        ...

    async def asset(self, ref: AssetRef) -> bytes:
        """Return an asset's record."""
        ...

    async def event(self, ref: EventRef) -> bytes:
        """Return an event's record."""
        ...

    async def info(self, ref: AttachmentRef) -> bytes:
        """Return an attachment's `/info`."""
        ...


class Known(NamedTuple, Generic[T]):
    """A value (or the error that stands for it) and the time, on the ledger's clock, it is good until.

    Until `stale_until` it may still be told when the service cannot be asked.
    """

    value: T | AttachfsError
    expires: float
    stale_until: float = 0.0

    def get(self) -> T:
        """Return the value, or raise the remembered error."""
        if isinstance(self.value, AttachfsError):
            raise self.value.with_traceback(None)
        return self.value


def _expiry(_key: object, known: Known[T], _now: float) -> float:
    return max(known.expires, known.stale_until)


class Listing:
    """The ids in a directory, page by page, in the service's order, each once.

    Args:
        fetch: returns the ids of the page with a token ("" for the first), and the next page's token.
        what: the directory's path, for messages.
        before: an older, complete listing, told if the service cannot be reached for the first page.
    """

    def __init__(
        self,
        fetch: Callable[[str], Awaitable[tuple[list[str], str]]],
        what: str,
        before: "Listing | None" = None,
    ) -> None:
        self._fetch = fetch
        self._what = what
        self._before = before
        self._lock = trio.Lock()
        self._token = ""
        self._tokens: set[str] = set()
        self._seen: set[str] = set()
        self.ids: list[str] = []
        self.complete = False

    async def reach(self, index: int) -> bool:
        """Read pages until `index` is among `ids`; return False if the listing ends before it.

        Raises:
            AttachfsError: a page could not be had. What came before stays; the next call asks again.
        """
        while index >= len(self.ids) and not self.complete:
            async with self._lock:
                # Another reader may have brought the page while we waited for the lock.
                if index >= len(self.ids) and not self.complete:
                    await self._turn_page()
        return index < len(self.ids)

    async def _turn_page(self) -> None:
        try:
            ids, token = await self._fetch(self._token)
        except _COULD_NOT_ASK:
            if self._before is None or self.ids:
                raise
            self.ids = self._before.ids
            self.complete = True
            return
        self._before = None
        for one in ids:
            if one not in self._seen:  # a listing that shifts between pages repeats entries
                self._seen.add(one)
                self.ids.append(one)
        if token in self._tokens:
            raise BadAnswer(f"{self._what}: the listing goes round in circles (a page token came twice)")
        if token:
            self._tokens.add(token)
            self._token = token
        else:
            self.complete = True
            self._seen.clear()
            self._tokens.clear()


class Ledger:
    """The ledger as the tree sees it.

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
        nursery: trio.Nursery,
        *,
        metadata_ttl: float = 60,
        negative_ttl: float = 5,
        stale_ttl: float = 3600,
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        self._source = source
        self._ttl = metadata_ttl
        self._negative_ttl = negative_ttl
        self._stale_ttl = max(stale_ttl, metadata_ttl)
        self.revision = 0  # changes with whatever is known of attachments
        self.stale = False  # whether the last answer was an old one, for want of a new one
        self.clock = clock
        self._infos: cachetools.TLRUCache[AttachmentRef, Known[Info]] = cachetools.TLRUCache(
            _INFOS, _expiry, timer=clock
        )
        self._assets: cachetools.TLRUCache[AssetRef, Known[Asset]] = cachetools.TLRUCache(
            _RECORDS, _expiry, timer=clock
        )
        self._events: cachetools.TLRUCache[EventRef, Known[Event]] = cachetools.TLRUCache(
            _RECORDS, _expiry, timer=clock
        )
        self._raw: cachetools.TLRUCache[AssetRef | EventRef, Known[bytes]] = cachetools.TLRUCache(
            _RAW, _expiry, timer=clock
        )
        self._listings: cachetools.TLRUCache[Hashable, Known[Listing]] = cachetools.TLRUCache(
            _LISTINGS, _expiry, timer=clock
        )
        self._found: cachetools.TLRUCache[Hashable, Known[tuple[str, ...]]] = cachetools.TLRUCache(
            _FOUND, _expiry, timer=clock
        )
        self._listed = 0  # ids in listings since the table was last cleared
        self._info_flights: SingleFlight[AttachmentRef, Known[Info]] = SingleFlight(nursery)
        self._record_flights: SingleFlight[AssetRef | EventRef, bytes] = SingleFlight(nursery)
        self._found_flights: SingleFlight[Hashable, Known[tuple[str, ...]]] = SingleFlight(nursery)

    # -- attachments -------------------------------------------------------------------------------

    async def info(self, ref: AttachmentRef, *, fresh: bool = False) -> Info:
        """Return an attachment's `/info`; `fresh` asks again even if it is known.

        Raises:
            AttachfsError: as the service answered; 404 and refusals are remembered for `negative_ttl`.
        """
        known = None if fresh else self._fresh(self._infos, ref)
        if known is None:
            known = await self._info_flights.do(ref, lambda: self._ask_info(ref))
        return known.get()

    def known_info(self, ref: AttachmentRef) -> Known[Info] | None:
        """Return what is remembered of an attachment's `/info`, without asking."""
        return self._fresh(self._infos, ref)

    async def anchors(self, ref: AttachmentRef) -> set[Digest] | None:
        """Return the hashes that the owner's attributes record for an attachment (the ledger's anchor).

        None: the owner's record mentions no hash for it, or may not be read. More than one: they differ.

        Raises:
            AttachfsError: the record could not be asked for (an outage is not an absence).
        """
        try:
            owner: Asset | Event
            if isinstance(ref.owner, AssetRef):
                owner = await self.asset(ref.owner)
            else:
                owner = await self.event(ref.owner)
        except (AccessDenied, NotFound):
            return None
        found = {a.anchor for a in owner.attachments if a.id == ref.attachment and a.anchor is not None}
        return found or None

    async def _ask_info(self, ref: AttachmentRef) -> Known[Info]:
        known = await self._ask(self._infos, ref, self._parsed_info(ref))
        self.revision += 1
        return known

    async def _parsed_info(self, ref: AttachmentRef) -> Info:
        return model.parse_info(await self._source.info(ref), ref)

    # -- assets and events -------------------------------------------------------------------------

    async def asset(self, ref: AssetRef) -> Asset:
        """Return an asset's record.

        Raises:
            AttachfsError: as the service answered, or its answer is about another asset.
        """
        known = self._fresh(self._assets, ref) or await self._ask(self._assets, ref, self._parsed_asset(ref))
        return known.get()

    async def event(self, ref: EventRef) -> Event:
        """Return an event's record.

        Raises:
            AttachfsError: as the service answered, or its answer is about another event.
        """
        known = self._fresh(self._events, ref) or await self._ask(self._events, ref, self._parsed_event(ref))
        return known.get()

    def known_record(self, ref: AssetRef | EventRef) -> Known[Asset] | Known[Event] | None:
        """Return what is remembered of an asset or event, without asking, be it old."""
        return self._assets.get(ref) if isinstance(ref, AssetRef) else self._events.get(ref)

    async def raw_record(self, ref: AssetRef | EventRef) -> bytes:
        """Return an asset's or event's whole record as JSON, kept for a while.

        Raises:
            AttachfsError: as the service answered.
        """
        whole = self._fresh(self._raw, ref)
        if whole is None:
            record = self.known_record(ref)
            if record is not None and self.clock() < record.expires:
                record.get()  # a refusal is remembered
            if isinstance(ref, AssetRef):
                (await self._ask(self._assets, ref, self._parsed_asset(ref))).get()
            else:
                (await self._ask(self._events, ref, self._parsed_event(ref))).get()
            whole = self._raw.get(ref)
            if whole is None:
                raise Unreachable(f"{ref.path}: its whole record was not seen, and cannot be asked for")
        return whole.get()

    async def _record(self, ref: AssetRef | EventRef) -> bytes:
        """Ask for a record now, and keep it for those who want the whole of it."""
        body = await self._record_flights.do(ref, lambda: self._fetch_record(ref))
        self._raw[ref] = self._good(body)
        return body

    async def _fetch_record(self, ref: AssetRef | EventRef) -> bytes:
        if isinstance(ref, AssetRef):
            return await self._source.asset(ref)
        return await self._source.event(ref)

    async def _parsed_asset(self, ref: AssetRef) -> Asset:
        asset = model.parse_asset(model.decode(await self._record(ref), ref.path), ref, _note(ref.path))
        if asset is None:
            raise BadAnswer(f"{ref.path}: the answer is about another asset")
        return asset

    async def _parsed_event(self, ref: EventRef) -> Event:
        record = model.decode(await self._record(ref), ref.path)
        found = model.parse_event(record, ref.asset, _note(ref.path))
        if found is None or found[1].id != ref.event:
            raise BadAnswer(f"{ref.path}: the answer is about another event")
        return found[1]

    async def _ask(self, table: cachetools.TLRUCache[K, Known[T]], key: K, answer: Awaitable[T]) -> Known[T]:
        """Await `answer` and remember it, or that it does not exist or is refused."""
        known: Known[T]
        try:
            known = self._good(await answer)
            self._tell_stale(None)
        except (NotFound, AccessDenied) as error:
            known = Known(error, self.clock() + self._negative_ttl)
        except _COULD_NOT_ASK as error:
            old: Known[T] | None = table.get(key)
            if old is None or isinstance(old.value, AttachfsError):
                raise
            self._tell_stale(error)
            known = old._replace(expires=min(self.clock() + _STALE_FOR, old.stale_until))
        table[key] = known
        return known

    def _good(self, value: T) -> Known[T]:
        now = self.clock()
        return Known(value, now + self._ttl, now + self._stale_ttl)

    def _fresh(self, table: cachetools.TLRUCache[K, Known[T]], key: K) -> Known[T] | None:
        """Return what is known and need not be asked again."""
        known: Known[T] | None = table.get(key)
        return known if known is not None and self.clock() < known.expires else None

    def _tell_stale(self, error: AttachfsError | None) -> None:
        """Say once, each way, that old answers are being given."""
        if self.stale != (error is not None):
            self.stale = error is not None
            if error is not None:
                log.warning("telling what was known before, as the service cannot be asked: %s", error.reason)
            else:
                log.warning("the service answers again: what is told is current")

    # -- listings ----------------------------------------------------------------------------------

    def assets(self) -> Listing:
        """Return the listing of all assets: shared, read page by page as it is reached."""

        async def fetch(token: str) -> tuple[list[str], str]:
            assets, following = await self.assets_on_page(token)
            return [asset.id for asset in assets], following

        return self.listing(None, lambda before: Listing(fetch, "assets", before))

    def events(self, asset: AssetRef) -> Listing:
        """Return the listing of an asset's events."""

        async def fetch(token: str) -> tuple[list[str], str]:
            events, following = await self.events_on_page(asset, token)
            return [event.id for event in events], following

        return self.listing(asset, lambda before: Listing(fetch, f"{asset.path}/events", before))

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

        known = self._fresh(self._found, key)
        if known is None:
            known = await self._found_flights.do(key, lambda: self._ask(self._found, key, ask()))
        return known.get()

    def retime(self, metadata_ttl: float, negative_ttl: float, stale_ttl: float) -> None:
        """Change for how long what is learned from now on is good."""
        self._ttl = metadata_ttl
        self._negative_ttl = negative_ttl
        self._stale_ttl = max(stale_ttl, metadata_ttl)

    def forget(self) -> None:
        """Drop everything that is remembered."""
        for table in (self._infos, self._assets, self._events, self._raw, self._listings, self._found):
            table.clear()
        self.revision += 1

    def listing(self, key: Hashable, make: Callable[[Listing | None], Listing]) -> Listing:
        """Return the shared listing under `key`; `make` makes it, given an older one that is complete."""
        known = self._fresh(self._listings, key)
        if known is None:
            old = self._listings.get(key)
            before = old.get() if old is not None and old.get().complete else None
            known = self._listings[key] = self._good(make(before))
        return known.get()

    def known_listing(self, key: Hashable) -> Listing | None:
        """Return the shared listing under `key` if there is one, and it is not old."""
        known = self._fresh(self._listings, key)
        return None if known is None else known.get()

    def _count_ids(self, ids: int) -> None:
        self._listed += ids
        if self._listed > _LISTED_IDS:
            self._listings.clear()  # whoever reads one keeps it; only the sharing ends
            self._listed = 0

    async def assets_on_page(
        self, token: str, filters: Mapping[str, str] = _NO_FILTERS
    ) -> tuple[list[Asset], str]:
        """Return the assets on one page of a listing, and the next page's token. The assets are kept."""
        page = await self._source.assets_page(token, filters)
        self._count_ids(len(page.records))
        self._tell_stale(None)
        assets = []
        for record in page.records:
            asset = model.parse_asset(record, None, _note("assets"))
            if asset is not None:
                assets.append(asset)
                self._assets[AssetRef("assets", asset.id)] = self._good(asset)
        return assets, page.next_token

    async def events_on_page(
        self, asset: AssetRef, token: str, filters: Mapping[str, str] = _NO_FILTERS
    ) -> tuple[list[Event], str]:
        """Return the events on one page of an asset's listing, and the next page's token; they are kept."""
        page = await self._source.events_page(asset, token, filters)
        self._count_ids(len(page.records))
        self._tell_stale(None)
        events = []
        for record in page.records:
            found = model.parse_event(record, asset.asset, _note(asset.path))
            if found is not None:
                events.append(found[1])
                self._events[EventRef(asset.realm, asset.asset, found[1].id)] = self._good(found[1])
        return events, page.next_token


def _note(where: str) -> model.Note:
    return lambda text: log.warning("%s: %s", where, text)
