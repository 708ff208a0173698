"""The cached view of the ledger: what the packages above know of records and listings.

Puts the package's parts together: records (records.py), listings of them (listing_cache.py) and what reads
whole listings ahead of a long walk (bulk.py). The only metadata cache.
"""

import logging
from collections.abc import Callable

import trio

from attachfs.background import TaskStarter
from attachfs.ledger.all_events import BulkEvents
from attachfs.ledger.backend import Backend
from attachfs.ledger.bulk import AllEventsPager, BulkRefresher
from attachfs.ledger.lifetimes import Lifetimes
from attachfs.ledger.listing_cache import ListingCache
from attachfs.ledger.listings import Source
from attachfs.ledger.offline import StoredAnswers
from attachfs.ledger.outage import Outage
from attachfs.ledger.records import RecordCache

log = logging.getLogger(__name__)


class Ledger:
    """The ledger as the tree sees it: records, and listings of them.

    Args:
        source: the service's client.
        nursery: where shared requests run.
        metadata_ttl: seconds for which a record is good.
        negative_ttl: seconds for which an absence or a refusal is remembered.
        stale_ttl: seconds for which a record may be served while the service does not answer.
        soft_timeout: seconds that an answer is waited for where something stale could be served instead.
        clock: seconds, monotonic.
        stored: what is kept on disk, for outages; None: nothing is.
    """

    def __init__(
        self,
        source: Source,
        nursery: TaskStarter,
        *,
        metadata_ttl: float = 60,
        negative_ttl: float = 5,
        stale_ttl: float = 3600,
        soft_timeout: float = 2,
        clock: Callable[[], float] = trio.current_time,
        stored: StoredAnswers | None = None,
    ) -> None:
        self.clock = clock
        self._stored = stored
        self._lifetimes = Lifetimes(metadata_ttl, negative_ttl, stale_ttl, soft_timeout, clock)
        self.outage = Outage(clock)
        self._all_events = BulkEvents(AllEventsPager(source, self.outage).page, clock)
        backend = Backend(source, nursery, self._lifetimes, self.outage, stored)
        self.records = RecordCache(backend, self._all_events.event)
        self.listings = ListingCache(backend, self.records, self._all_events)
        self.bulk = BulkRefresher(self._all_events, self.listings, self._lifetimes)
        # What the packages above call most stands here by its own name, without a call in between.
        self.info = self.records.info
        self.cached_info = self.records.cached_info
        self.start_info = self.records.start_info
        self.asset = self.records.asset
        self.event = self.records.event
        self.record = self.records.record
        self.anchors = self.records.anchors
        self.cached_record = self.records.cached_record
        self.fresh_record = self.records.fresh_record
        self.raw_record = self.records.raw_record
        self.lacks = self.records.lacks
        self.assets = self.listings.assets
        self.events = self.listings.events
        self.has_events = self.listings.has_events

    @property
    def ttl(self) -> float:
        """Seconds for which a record is good."""
        return self._lifetimes.ttl

    @property
    def revision(self) -> int:
        """Changes with whatever is known of attachments."""
        return self.records.revision

    @property
    def generation(self) -> int:
        """Changes when everything is forgotten."""
        return self._lifetimes.generation

    @property
    def stale(self) -> bool:
        """Whether the service does not answer, and what was known before is served."""
        return self.outage.active

    def set_ttls(
        self, metadata_ttl: float, negative_ttl: float, stale_ttl: float, soft_timeout: float
    ) -> None:
        """Change for how long what is learned from now on is good, and an answer is waited for."""
        self._lifetimes.set_ttls(metadata_ttl, negative_ttl, stale_ttl, soft_timeout)

    def clear(self) -> None:
        """Drop everything that is remembered, and keep no answer that was asked for before."""
        self._lifetimes.generation += 1
        if self._stored is not None:
            self._stored.store.begin_generation()
        self._all_events.clear()
        self.records.clear()
        self.listings.clear()
