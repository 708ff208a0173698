"""Reads whole listings again ahead of a long walk: a page brings what hundreds of requests would."""

from collections.abc import Callable

from attachfs import model
from attachfs.ledger.all_events import BulkEvents
from attachfs.ledger.lifetimes import Lifetimes
from attachfs.ledger.listing_cache import ListingCache
from attachfs.ledger.listings import Source
from attachfs.ledger.outage import Outage
from attachfs.ledger.record_pages import parse_in_slices
from attachfs.ledger.records import note_for
from attachfs.model import Event


class BulkRefresher:
    """Renews the listing of all assets, and that of all events, before their time is over.

    Args:
        events: keeps all events.
        listings: has the listing of all assets.
        lifetimes: says for how long both are good.
    """

    def __init__(self, events: BulkEvents, listings: ListingCache, lifetimes: Lifetimes) -> None:
        self._events = events
        self._listings = listings
        self._lifetimes = lifetimes

    def ttl_remaining(self) -> tuple[float, float]:
        """Return how long the listings of all assets and of all events are good: seconds, or below zero."""
        now, assets = self._lifetimes.clock(), self._listings.cached_assets()
        return (assets.expires if assets else 0) - now, self._events.expires - now

    def pages(self) -> tuple[int, float]:
        """Return how many pages the listings of all assets and of all events would be, by what is known."""
        assets = self._listings.cached_assets()
        count = len(assets.get().starts) if assets else 0
        seen = self._listings.listed_events_by_asset().values()
        return count, count * sum(map(len, seen)) / len(seen) if seen else count

    async def renew_assets(self, go_on: Callable[[int], bool]) -> bool:
        """Read the listing of all assets anew; return whether that is now the one that is shared.

        Args:
            go_on: called after each page with the number of pages read; False ends it.

        Raises:
            AttachfsError: a page could not be had.
        """
        generation = self._lifetimes.generation
        cached = self._lifetimes.entry(self._listings.new_assets())
        listing = cached.get()
        while await listing.load_to(len(listing.ids)):
            if not go_on(len(listing.starts)):
                return False
        now = self._lifetimes.clock()
        if now >= min(cached.expires, listing.retry_at) or generation != self._lifetimes.generation:
            return False
        self._listings.share_assets(cached)
        return True

    async def read_all_events(self, go_on: Callable[[int], bool]) -> bool:
        """Read the listing of all events; return whether it can be relied on (see `BulkEvents`).

        Args:
            go_on: called before each page with the number of pages read; False ends it.

        Raises:
            AttachfsError: a page could not be had.
        """
        return await self._events.read(
            lambda: self._lifetimes.entry(None), go_on, self._listings.listed_events_by_asset
        )


class AllEventsPager:
    """Brings the pages of the listing of all events.

    Args:
        source: the service's client.
        outage: is told of answers.
    """

    def __init__(self, source: Source, outage: Outage) -> None:
        self._source = source
        self._outage = outage

    async def page(self, token: str) -> tuple[list[tuple[str, Event]], str]:
        """Return the events on the page with a token, each with its asset's id, and the next token."""
        page = await self._source.events_page(None, token)
        self._outage.answered()
        note = note_for("assets/-/events")
        found = await parse_in_slices(page.records, lambda record: model.parse_event(record, None, note))
        return found, page.next_token
