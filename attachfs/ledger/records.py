"""Assets, events and `/info`, asked for one by one, by one request for many callers, and remembered.

Records are kept for `metadata_ttl` in tables of bounded size, absences for `negative_ttl`. While the service
does not answer, what was known (`stale_ttl`) goes on being served, from memory or from disk.
"""

import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Generic, TypeVar, overload

import trio

from attachfs import model
from attachfs.errors import AccessDenied, AttachfsError, BadAnswer, NotFound, Unreachable
from attachfs.ledger.backend import Backend
from attachfs.ledger.offline import Aged, StoredAnswers
from attachfs.ledger.record_tables import AssetTable, EventTable
from attachfs.ledger.refresher import Refresher
from attachfs.ledger.ttl_cache import CacheEntry, TTLCache
from attachfs.model import Asset, AssetRef, AttachmentRef, Digest, Event, EventRef, Info

log = logging.getLogger(__name__)

_RECORDS = 4_096  # records kept of each kind as they are; one takes about 1 KiB
_LISTED = 200_000  # assets kept packed, as listings brought them; one takes some 300 bytes
_INFOS = 16_384  # /info bodies kept; one takes about 1 KiB
_RAW = 64  # whole records kept for extended attributes
_NOTES = 5  # lines that the log gets about one record or page that cannot be used

_LARGE = 256 * 1024  # bytes of a record; parsing them takes some 10 ms

K = TypeVar("K", bound=AssetRef | EventRef | AttachmentRef)
V = TypeVar("V")


class RecordKind(Generic[K, V]):
    """Records of one kind, each asked for by its reference.

    Args:
        backend: where they come from, and for how long they are good.
        table: keeps them.
        fetch: returns a record's body from the service.
        kept: returns a record's body as it was kept on disk.
        parse: returns the record in a body.
        learned: called with what was learned of a reference: the body it came in, and the entry.
    """

    def __init__(
        self,
        backend: Backend,
        table: TTLCache[K, V],
        *,
        fetch: Callable[[K], Awaitable[bytes]],
        kept: Callable[[StoredAnswers, K], Awaitable[Aged[bytes]]],
        parse: Callable[[bytes, K], V],
        learned: Callable[[K, bytes | None, CacheEntry[V]], None],
    ) -> None:
        self.table = table
        self._refresher: Refresher[K, CacheEntry[V]] = Refresher(backend)
        self._lifetimes = backend.lifetimes
        self._outage = backend.outage
        self._stored = backend.stored
        self._request = fetch
        self._kept = kept
        self._parse = parse
        self._learned = learned

    def clear(self) -> None:
        """Drop everything that is remembered. What is being asked for is not kept either."""
        self._refresher.clear()
        self.table.clear()

    # Not a coroutine of its own: a request's stack is resumed frame by frame at each of its task switches.
    def get(self, ref: K, *, anew: bool = False) -> Coroutine[Any, Any, V]:
        """Return a record; `anew`: fetch it even if it is cached and fresh.

        Raises:
            AttachfsError: as the service answered, now or within the negative time.
        """
        cached = None if anew else self.table.fresh(ref)
        if cached is not None:
            return _value_of(cached)
        return self._refresher.get(ref, lambda: self._fetch(ref), lambda: self._cached(ref), CacheEntry.get)

    def start(self, ref: K) -> bool:
        """Ask for a record that is not known, without waiting. False: the service is silent."""
        return self._refresher.start(ref, lambda: self._fetch(ref))

    async def stored(self, ref: K) -> Aged[bytes]:
        """Return a record's body as it was kept on disk, and its age.

        Raises:
            Unreachable: it was never seen, or nothing is kept.
        """
        if self._stored is None:
            raise Unreachable(f"{ref.path}: its whole record was never seen, and cannot be fetched now")
        return await self._kept(self._stored, ref)

    async def _fetch(self, ref: K) -> CacheEntry[V]:
        """Ask the service, and remember the record, or that it does not exist or is refused."""
        generation = self._lifetimes.generation
        body: bytes | None = None
        cached: CacheEntry[V]
        try:
            body = await self._request(ref)
            cached = self._lifetimes.entry(await self._parsed(body, ref))
        except (NotFound, AccessDenied) as error:
            cached = self._lifetimes.absence(error)
        self._outage.answered()
        if generation == self._lifetimes.generation:
            self.table.put(ref, cached)
            self._learned(ref, body, cached)
        return cached

    async def _parsed(self, body: bytes, ref: K) -> V:
        """Return the record in a body; a large one takes a while, and is parsed in a thread."""
        if len(body) <= _LARGE:
            return self._parse(body, ref)
        return await trio.to_thread.run_sync(self._parse, body, ref)

    async def _cached(self, ref: K) -> CacheEntry[V] | None:
        """Return what may be served while the service does not answer."""
        generation = self._lifetimes.generation
        body: bytes | None = None
        old = self.table.get(ref)
        cached = None if old is None else self._lifetimes.stale(old)
        if cached is None:
            try:
                body, age = await self.stored(ref)
                cached = self._lifetimes.kept(await self._parsed(body, ref), age)
            except (Unreachable, BadAnswer):
                pass  # it was never seen, or is damaged
        if cached is None:
            return None
        self._outage.served(cached.learned)
        if generation == self._lifetimes.generation:
            self.table.put(ref, cached)
            self._learned(ref, body, cached)
        return cached


async def _value_of(cached: CacheEntry[V]) -> V:
    return cached.get()


class RecordCache:
    """What is known of single assets, events and attachments.

    Args:
        backend: where records come from, and for how long they are good.
        others: looks up events that are known from elsewhere.
    """

    def __init__(self, backend: Backend, others: Callable[[EventRef], CacheEntry[Event] | None]) -> None:
        source, self._clock = backend.source, backend.lifetimes.clock
        self._learned_lately = backend.lifetimes.is_current
        self._anchors_of: Asset | Event | None = None  # whose anchors are at hand, by attachment
        self._anchors: dict[str, set[Digest]] = {}
        self.revision = 0  # changes with whatever is known of attachments
        self._raw: TTLCache[AssetRef | EventRef, bytes] = TTLCache(_RAW, self._clock)
        self.asset_table = AssetTable(_RECORDS, _LISTED, self._clock)
        self.event_table = EventTable(_RECORDS, self._clock, others)
        self._assets = RecordKind(
            backend,
            self.asset_table,
            fetch=source.asset,
            kept=StoredAnswers.asset,
            parse=_parse_asset,
            learned=self._keep_raw,
        )
        self._events = RecordKind(
            backend,
            self.event_table,
            fetch=source.event,
            kept=StoredAnswers.event,
            parse=_parse_event,
            learned=self._keep_raw,
        )
        self._infos: RecordKind[AttachmentRef, Info] = RecordKind(
            backend,
            TTLCache(_INFOS, self._clock),
            fetch=source.info,
            kept=StoredAnswers.info,
            parse=model.parse_info,
            learned=self._note_change,
        )
        # An owner's record, whichever kind of owner it is.
        self._owners: dict[type, RecordKind[Any, Any]] = {AssetRef: self._assets, EventRef: self._events}

    def clear(self) -> None:
        """Drop everything that is remembered. What is being asked for is not kept either."""
        for kind in (self._assets, self._events, self._infos):
            kind.clear()
        self._raw.clear()
        self.revision += 1

    def info(self, ref: AttachmentRef, *, anew: bool = False) -> Coroutine[Any, Any, Info]:
        """Return an attachment's `/info`; `anew`: ask even if it is known and need not be asked.

        Raises:
            AttachfsError: as the service answered; 404 and refusals are remembered for `negative_ttl`.
        """
        return self._infos.get(ref, anew=anew)

    def start_info(self, ref: AttachmentRef) -> bool:
        """Ask for an `/info` that is not known, without waiting. False: the service is silent."""
        return self._infos.start(ref)

    def cached_info(self, ref: AttachmentRef) -> CacheEntry[Info] | None:
        """Return what is remembered of an attachment's `/info`, without asking."""
        return self._infos.table.fresh(ref)

    async def anchors(self, ref: AttachmentRef) -> set[Digest] | None:
        """Return the hashes that the owner's attributes record for an attachment (the ledger's anchor).

        None: the owner's record mentions no hash for it, or may not be read. More than one: they differ.

        Raises:
            AttachfsError: the record could not be asked for (an outage is not an absence).
        """
        try:
            owner = await self.record(ref.owner)
        except (AccessDenied, NotFound):
            return None
        if owner is not self._anchors_of:
            # Files of one owner are opened one after another: going through all of them each time would take
            # a time that grows with their square.
            anchors: dict[str, set[Digest]] = {}
            for one in owner.attachments:
                if one.anchor is not None:
                    anchors.setdefault(one.id, set()).add(one.anchor)
            self._anchors_of, self._anchors = owner, anchors
        return self._anchors.get(ref.attachment)

    async def asset(self, ref: AssetRef) -> Asset:
        """Return an asset's record.

        Raises:
            AttachfsError: as the service answered, or its answer is about another asset.
        """
        return await self._assets.get(ref)

    async def event(self, ref: EventRef) -> Event:
        """Return an event's record.

        Raises:
            AttachfsError: as the service answered, or its answer is about another event.
        """
        return await self._events.get(ref)

    async def record(self, ref: AssetRef | EventRef, *, anew: bool = False) -> Asset | Event:
        """Return an asset's or event's record; `anew`: ask even if it is known and need not be asked.

        Raises:
            AttachfsError: as the service answered, or its answer is about something else.
        """
        record: Asset | Event = await self._owners[type(ref)].get(ref, anew=anew)
        return record

    @overload
    def cached_record(self, ref: AssetRef) -> CacheEntry[Asset] | None: ...
    @overload
    def cached_record(self, ref: EventRef) -> CacheEntry[Event] | None: ...
    def cached_record(self, ref: AssetRef | EventRef) -> CacheEntry[Asset] | CacheEntry[Event] | None:
        """Return what is remembered of an asset or event, even if stale, without asking."""
        return self._owners[type(ref)].table.get(ref)

    def fresh_record(self, ref: AssetRef | EventRef) -> Asset | Event | None:
        """Return an asset or event that is known and need not be asked again."""
        cached: CacheEntry[Asset | Event] | None = self._owners[type(ref)].table.fresh(ref)
        return None if cached is None or isinstance(cached.value, AttachfsError) else cached.value

    async def lacks(self, ref: AssetRef | EventRef, since: float) -> bool:
        """Whether the ledger lacks what an asset's or event's record, read since a time, does.

        A record that is served for want of an answer may lack what was added to it. Then the service is asked
        once more, and False means that the record is to be read again.

        Args:
            ref: the asset or event.
            since: when its record was asked for, on the ledger's clock.

        Raises:
            AttachfsError: as the service answered, or it still does not.
        """
        if self._is_current(ref, since):
            return True
        await self.record(ref, anew=True)
        if not self._is_current(ref, since):
            raise Unreachable(f"{ref.path}: the service does not answer, and what is known of it is old")
        return False

    def _is_current(self, ref: AssetRef | EventRef, since: float) -> bool:
        cached = self.cached_record(ref)
        # What is not kept at all was not served for want of an answer either.
        return cached is None or self._learned_lately(cached, since)

    async def raw_record(self, ref: AssetRef | EventRef) -> bytes:
        """Return an asset's or event's whole record as JSON, kept for a while.

        Raises:
            AttachfsError: as the service answered.
        """
        whole = self._raw.fresh(ref)
        if whole is None:
            cached = self.cached_record(ref)
            if cached is not None and self._clock() < cached.expires:
                cached.get()  # a refusal is remembered
            await self.record(ref, anew=True)
            whole = self._raw.get(ref)
            if whole is None:
                return (await self._owners[type(ref)].stored(ref)).value
        return whole.get()

    def _keep_raw(
        self, ref: AssetRef | EventRef, body: bytes | None, cached: CacheEntry[Asset] | CacheEntry[Event]
    ) -> None:
        if body is not None:
            self._raw.put(ref, CacheEntry(body, cached.expires, cached.stale_until, cached.learned))

    def _note_change(self, _ref: AttachmentRef, _body: bytes | None, _cached: CacheEntry[Info]) -> None:
        self.revision += 1


def _parse_asset(body: bytes, ref: AssetRef) -> Asset:
    asset = model.parse_asset(model.decode(body, ref.path), ref, note_for(ref.path))
    if asset is None:
        raise BadAnswer(f"{ref.path}: the answer is about another asset")
    return asset


def _parse_event(body: bytes, ref: EventRef) -> Event:
    found = model.parse_event(model.decode(body, ref.path), ref.asset, note_for(ref.path))
    if found is None or found[1].id != ref.event:
        raise BadAnswer(f"{ref.path}: the answer is about another event")
    return found[1]


def note_for(where: str) -> model.Note:
    """Return what tells the log of a record, or of a page's records, that cannot be used: in a few lines."""
    remaining = _NOTES

    def note(text: str) -> None:
        nonlocal remaining
        if remaining > 0:
            log.warning("%s: %s", where, text)
        elif remaining == 0:
            log.warning("%s: more of it cannot be used; this is not logged any further", where)
        remaining -= 1

    return note
