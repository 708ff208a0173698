"""The events of all assets, by the one listing that has them all (`assets/-/events`), for a long walk.

A page of it brings as much as hundreds of requests for the events of single assets. But in which order it
comes the service does not document, nor what becomes of that order when something is added meanwhile. So
nothing of it is known to be all of an asset's events before it has been read to its end; and then only if

- the whole of it was read while what its first page said was still good, and is told no longer than that;
- nothing was seen to move meanwhile: no event came twice, and the first page, asked for again at the end, is
  as it was. As records are never taken away, what a reading can miss is what has moved behind its back, and
  so far that others filled a page before it and left the first page as it was: 500 at once, in that order;
- it has every event that the assets had which were asked one by one before it: it could leave some out on
  principle.

Even then some assets are asked by themselves. One of which it says nothing: it may have no event, or the
listing may not have it. And one whose event is the last on a page: if all events of an asset move together
when it gets another, the rest of them may have gone to where nobody looks any more.

Reading it whole costs a request for each 500 events of the ledger, and is begun only by a walk that would
make several times as many; a walk that stops ends it, and it ends itself where there is more than fits.
"""

import logging
from collections.abc import Awaitable, Callable

from attachfs.ledger.listings import Tokens
from attachfs.ledger.record_tables import pack_event, pack_id, unpack_events
from attachfs.ledger.ttl_cache import CacheEntry
from attachfs.model import AssetRef, Event, EventRef

log = logging.getLogger(__name__)

_ROOM = 48 * 2**20  # bytes of packed events; one with an attachment takes some 150
_PLACE = 150  # bytes that an asset's place takes beside its events

_NEVER: CacheEntry[None] = CacheEntry(None, 0.0)

EventsPage = Callable[[str], Awaitable[tuple[list[tuple[str, Event]], str]]]


class BulkEvents:
    """All events of all assets, if they have been read.

    Args:
        page: returns the events on the page with a token, each with its asset's id, and the next token.
        clock: seconds, monotonic.
    """

    def __init__(self, page: EventsPage, clock: Callable[[], float]) -> None:
        self._page = page
        self._clock = clock
        self._packed: dict[bytes, bytes] = {}
        self._times: CacheEntry[None] = _NEVER

    @property
    def expires(self) -> float:
        """Until when they are good, on the ledger's clock; in the past if they have not been read."""
        return self._times.expires

    def of(self, asset: AssetRef) -> CacheEntry[list[Event]] | None:
        """Return an asset's events, be they old, and until when these are all; None: nothing is known."""
        if asset.realm != "assets" or self._clock() >= max(self._times.expires, self._times.stale_until):
            return None
        packed = self._packed.get(pack_id(asset.asset))
        return None if packed is None else CacheEntry(unpack_events(packed), *self._times[1:])

    def has(self, asset: AssetRef) -> bool:
        """Whether an asset's events are known, and need not be asked."""
        return (
            asset.realm == "assets"
            and self._clock() < self._times.expires
            and pack_id(asset.asset) in self._packed
        )

    def event(self, ref: EventRef) -> CacheEntry[Event] | None:
        """Return an event, be it old."""
        events = self.of(AssetRef(ref.realm, ref.asset))
        for event in events.get() if events is not None else ():
            if event.id == ref.event:
                return CacheEntry(event, *self._times[1:])
        return None

    def clear(self) -> None:
        """Drop everything, also what is being read."""
        self._packed = {}
        self._times = _NEVER

    async def read(
        self,
        fresh_entry: Callable[[], CacheEntry[None]],
        go_on: Callable[[int], bool],
        seen: Callable[[], dict[AssetRef, list[str]]],
    ) -> bool:
        """Read all; return whether they are known now.

        Args:
            fresh_entry: returns until when it is good what is learnt now.
            go_on: is asked before each page, with the number of pages read.
            seen: returns the events of assets that were asked one by one.

        Raises:
            AttachfsError: a page could not be had.
        """
        before, times = self._packed, fresh_entry()
        packed, why = await self._read(go_on, times.expires)
        if not why and any(not _holds(packed, asset, ids) for asset, ids in seen().items()):
            why = "it leaves out events that an asset has"
        if not why and self._packed is not before:
            why = "it was to be forgotten meanwhile"
        if why:
            log.info("the listing of all events cannot be used: %s", why)
            return False
        self._packed, self._times = packed, times
        return True

    async def _read(self, go_on: Callable[[int], bool], deadline: float) -> tuple[dict[bytes, bytes], str]:
        """Return the packed events of each asset, and why they cannot be relied on, or ""."""
        reading, tokens = _Reading(self._packed), Tokens("the events of all assets")
        first: list[str] = []
        pages = 0
        token = ""
        while pages == 0 or token:
            if not go_on(pages):
                return {}, "the walk went elsewhere, or there is more of it than a walk would ask for"
            events, token = await self._page(token)
            tokens.meet(token)
            first = first or [event.id for _, event in events]
            pages += 1
            why = reading.add(events, last=not token)
            if why or self._clock() >= deadline:
                return {}, why or "what was read first is old already"
        if pages > 1 and first != [event.id for _, event in (await self._page(""))[0]]:
            return {}, "something was added meanwhile"
        return reading.whole(), ""


class _Reading:
    """What one reading has brought so far.

    Args:
        before: what an older one has brought: what is the same is kept once.
    """

    def __init__(self, before: dict[bytes, bytes]) -> None:
        self._before = before
        self._packed: dict[bytes, bytes] = {}
        self._cut: set[bytes] = set()  # assets of which there may be more on the next page
        self._space = 0

    def add(self, events: list[tuple[str, Event]], *, last: bool) -> str:
        """Add a page; return why nothing can be relied on any more, or ""."""
        for asset, event in events:
            key, one = pack_id(asset), pack_event(event)
            cached = self._packed.get(key)
            if cached is None:
                self._space += _PLACE
            elif pack_id(event.id) in cached:
                return "an event came twice"
            self._space += len(one)
            together = one if cached is None else cached + one
            old = self._before.get(key)
            self._packed[key] = old if old is not None and old == together else together
        if events and not last:
            self._cut.add(pack_id(events[-1][0]))
        return "there are too many" if self._space > _ROOM else ""

    def whole(self) -> dict[bytes, bytes]:
        """Return the events of those assets of which they are all."""
        for key in self._cut:
            del self._packed[key]
        return self._packed


def _holds(packed: dict[bytes, bytes], asset: AssetRef, ids: list[str]) -> bool:
    cached = packed.get(pack_id(asset.asset))
    return cached is None or {event.id for event in unpack_events(cached)} >= set(ids)
