"""Assets, events and `/info`, asked for one by one, by one request for many who ask, and remembered.

Records are kept for `metadata_ttl` in tables of bounded size, absences for `negative_ttl`. While the service
cannot be reached, what was known lately (`stale_ttl`) goes on being told.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from attachfs import model
from attachfs.background import TaskStarter
from attachfs.errors import (
    AccessDenied,
    AttachfsError,
    BadAnswer,
    NotFound,
    Unreachable,
)
from attachfs.ledger.all_events import BulkEvents
from attachfs.ledger.listings import COULD_NOT_ASK, Source
from attachfs.ledger.record_tables import AssetTable, EventTable
from attachfs.ledger.single_flight import SingleFlight
from attachfs.ledger.ttl_cache import CacheEntry, TTLCache
from attachfs.model import (
    Asset,
    AssetRef,
    AttachmentRef,
    Digest,
    Event,
    EventRef,
    Info,
)

log = logging.getLogger(__name__)

_RECORDS = 4_096  # records kept of each kind as they are; one takes about 1 KiB
_LISTED = 200_000  # assets kept packed, as listings brought them; one takes some 300 bytes
_INFOS = 16_384  # /info bodies kept; one takes about 1 KiB
_STALE_FOR = 5.0  # seconds after which an unreachable service is asked again
_RAW = 64  # whole records kept for extended attributes

K = TypeVar("K")
T = TypeVar("T")


class Records:
    """What is known of single assets, events and attachments.

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
        self._source = source
        self._ttl = metadata_ttl
        self._negative_ttl = negative_ttl
        self._stale_ttl = max(stale_ttl, metadata_ttl)
        self.revision = 0  # changes with whatever is known of attachments
        self.stale = False  # whether the last answer was an old one, for want of a new one
        self.clock = clock
        self._infos: TTLCache[AttachmentRef, Info] = TTLCache(_INFOS, clock)
        self._assets = AssetTable(_RECORDS, _LISTED, clock)
        self._all_events = BulkEvents(self._all_events_page, clock)
        self._events = EventTable(_RECORDS, clock, self._all_events.event)
        self._raw: TTLCache[AssetRef | EventRef, bytes] = TTLCache(_RAW, clock)
        self._info_flights: SingleFlight[AttachmentRef, CacheEntry[Info]] = SingleFlight(nursery)
        self._record_flights: SingleFlight[AssetRef | EventRef, bytes] = SingleFlight(nursery)

    def retime(self, metadata_ttl: float, negative_ttl: float, stale_ttl: float) -> None:
        """Change for how long what is learned from now on is good."""
        self._ttl = metadata_ttl
        self._negative_ttl = negative_ttl
        self._stale_ttl = max(stale_ttl, metadata_ttl)

    def forget(self) -> None:
        """Drop everything that is remembered."""
        self._all_events.forget()
        for table in (self._infos, self._assets, self._events, self._raw):
            table.clear()
        self.revision += 1

    # -- attachments -------------------------------------------------------------------------------

    async def info(self, ref: AttachmentRef, *, fresh: bool = False) -> Info:
        """Return an attachment's `/info`; `fresh` asks again even if it is known.

        Raises:
            AttachfsError: as the service answered; 404 and refusals are remembered for `negative_ttl`.
        """
        known = None if fresh else self._infos.fresh(ref)
        if known is None:
            known = await self._info_flights.do(ref, lambda: self._ask_info(ref))
        return known.get()

    def known_info(self, ref: AttachmentRef) -> CacheEntry[Info] | None:
        """Return what is remembered of an attachment's `/info`, without asking."""
        return self._infos.fresh(ref)

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

    async def _ask_info(self, ref: AttachmentRef) -> CacheEntry[Info]:
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
        known = self._assets.fresh(ref) or await self._ask(self._assets, ref, self._parsed_asset(ref))
        return known.get()

    async def event(self, ref: EventRef) -> Event:
        """Return an event's record.

        Raises:
            AttachfsError: as the service answered, or its answer is about another event.
        """
        known = self._events.fresh(ref) or await self._ask(self._events, ref, self._parsed_event(ref))
        return known.get()

    def known_record(self, ref: AssetRef | EventRef) -> CacheEntry[Asset] | CacheEntry[Event] | None:
        """Return what is remembered of an asset or event, without asking, be it old."""
        return self._assets.get(ref) if isinstance(ref, AssetRef) else self._events.get(ref)

    def fresh_record(self, ref: AssetRef | EventRef) -> Asset | Event | None:
        """Return an asset or event that is known and need not be asked again."""
        known = self._assets.fresh(ref) if isinstance(ref, AssetRef) else self._events.fresh(ref)
        return None if known is None or isinstance(known.value, AttachfsError) else known.value

    async def raw_record(self, ref: AssetRef | EventRef) -> bytes:
        """Return an asset's or event's whole record as JSON, kept for a while.

        Raises:
            AttachfsError: as the service answered.
        """
        whole = self._raw.fresh(ref)
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
        self._raw.put(ref, self._good(body))
        return body

    async def _fetch_record(self, ref: AssetRef | EventRef) -> bytes:
        if isinstance(ref, AssetRef):
            return await self._source.asset(ref)
        return await self._source.event(ref)

    async def _parsed_asset(self, ref: AssetRef) -> Asset:
        asset = model.parse_asset(model.decode(await self._record(ref), ref.path), ref, note_for(ref.path))
        if asset is None:
            raise BadAnswer(f"{ref.path}: the answer is about another asset")
        return asset

    async def _parsed_event(self, ref: EventRef) -> Event:
        record = model.decode(await self._record(ref), ref.path)
        found = model.parse_event(record, ref.asset, note_for(ref.path))
        if found is None or found[1].id != ref.event:
            raise BadAnswer(f"{ref.path}: the answer is about another event")
        return found[1]

    async def _ask(self, table: TTLCache[K, T], key: K, answer: Awaitable[T]) -> CacheEntry[T]:
        """Await `answer` and remember it, or that it does not exist or is refused."""
        known: CacheEntry[T]
        try:
            known = self._good(await answer)
            self._tell_stale(None)
        except (NotFound, AccessDenied) as error:
            known = CacheEntry(error, self.clock() + self._negative_ttl)
        except COULD_NOT_ASK as error:
            old = table.get(key)
            if old is None or isinstance(old.value, AttachfsError):
                raise
            self._tell_stale(error)
            known = old._replace(expires=min(self.clock() + _STALE_FOR, old.stale_until))
        table.put(key, known)
        return known

    def _good(self, value: T) -> CacheEntry[T]:
        now = self.clock()
        return CacheEntry(value, now + self._ttl, now + self._stale_ttl)

    def _tell_stale(self, error: AttachfsError | None) -> None:
        """Say once, each way, that old answers are being given."""
        if self.stale != (error is not None):
            self.stale = error is not None
            if error is not None:
                log.warning("telling what was known before, as the service cannot be asked: %s", error.reason)
            else:
                log.warning("the service answers again: what is told is current")

    async def _all_events_page(self, token: str) -> tuple[list[tuple[str, Event]], str]:
        page = await self._source.events_page(None, token)
        self._tell_stale(None)
        found = (model.parse_event(record, None, note_for("assets/-/events")) for record in page.records)
        return [one for one in found if one is not None], page.next_token


def note_for(where: str) -> model.Note:
    """Return what tells the log of a record that cannot be used."""
    return lambda text: log.warning("%s: %s", where, text)
