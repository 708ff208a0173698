"""Names that several may share: those of all assets, and those of one asset's events.

Owns: how a name leads to an identity, by the ledger alone. Assets and events differ only in what they are
called, and in the filtered request that finds all who share a name: `AssetNames` and `EventNames`.
What the rules are, and why, by_name.py says; what text becomes as a name, safe_names.py.
"""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Generic, TypeVar

from attachfs.errors import AttachfsError, NotFound, Unreachable
from attachfs.ledger.listings import Listing
from attachfs.ledger.outage import NO_ANSWER
from attachfs.ledger.ttl_cache import CacheEntry
from attachfs.ledger.view import Ledger
from attachfs.model import Asset, AssetRef, Event, EventRef
from attachfs.namespace import safe_names
from attachfs.namespace.nodes import BY_NAME

_UNDATED = "undated"
_WHEN = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{4})(?: .*)?", re.DOTALL)
_SLACK = timedelta(seconds=1)  # whether the service's bounds are inclusive is not documented
_MINUTE = timedelta(minutes=1)
_ALL = 1 << 40  # an index that no listing reaches

R = TypeVar("R", Asset, Event)
# Who may have a name: text, identity, and the suffix that the name has at least (PLAIN, SHORT, WHOLE).
Candidate = tuple[str, str, int]
Sharing = tuple[list[Candidate], bool]
CandidatePage = Callable[[str], Awaitable[tuple[list[Candidate], str]]]


class NamePager:
    """Brings names that may be shared, and knows whose each is so far.

    Args:
        page: returns what `NameTable.add` takes of the records on the page with a token, and the next token.
    """

    __slots__ = ("_page", "retry_at", "table")

    def __init__(self, page: CandidatePage) -> None:
        self._page: CandidatePage | None = page
        self.retry_at = math.inf  # the listing of records, which this is made of, has its own
        self.table = safe_names.NameTable()

    async def page(self, token: str) -> tuple[list[str], str]:
        """Return the names that the page with a token makes new, and the next page's token."""
        assert self._page is not None
        records, following = await self._page(token)
        if not following:
            self._page = None  # and all that it holds
        return self.new(records), following

    def new(self, records: Iterable[Candidate]) -> list[str]:
        """Return the names that records make new."""
        names = (self.table.add(*record) for record in records)
        return [name for name in names if name is not None]


class NameIndex:
    """The names of a listing's records, and whose each is.

    Args:
        base: the listing.
        page: see `NamePager`.
        what: the directory's path, for messages.
        generation: the ledger's, when it was made.
        before: an older one that is complete, served if the service does not answer.
    """

    def __init__(
        self,
        base: CacheEntry[Listing],
        page: CandidatePage,
        what: str,
        generation: int,
        before: "NameIndex | None" = None,
    ) -> None:
        self.base = base
        self.generation = generation
        self._pager = NamePager(page)
        self.listing: Listing = Listing(self._pager, what, None if before is None else before.listing)
        self._before = before

    @property
    def complete(self) -> bool:
        """Whether all names are known."""
        return self.listing.complete

    @property
    def is_stale(self) -> bool:
        """Whether the service did not answer for all of it: what it lacks may be there all the same."""
        base = self.base.get()
        return self.listing.old or base.old or base.retry_at < math.inf

    @property
    def owners(self) -> dict[str, str]:
        """Whose each name is: an identity."""
        if self.listing.old and self._before is not None:
            return self._before.owners
        return self._pager.table.owners

    def fill(self, records: Iterable[Candidate]) -> None:
        """Make it complete, of all the records there are."""
        names = self._pager.new(records)
        self.listing = Listing.of(names)

    def release_names(self) -> None:
        """Forget whose the names are: there is a newer index. Readers of the listing go on."""
        if self.complete:
            self._pager.table = safe_names.NameTable()

    def is_fresh(self, now: float, generation: int) -> bool:
        """Whether it need not be made anew."""
        times = self.base
        return generation == self.generation and now < min(times.expires, times.get().retry_at)


class SharedNames(ABC, Generic[R]):
    """The names of what is in one directory.

    Args:
        ledger: the ledger view.
        what: the directory's path, for messages.
    """

    def __init__(self, ledger: Ledger, what: str) -> None:
        self._ledger = ledger
        self._what = what
        self._index: NameIndex | None = None

    def __len__(self) -> int:
        """How many names are kept."""
        return 0 if self._index is None else len(self._index.listing.ids)

    def names(self) -> Listing:
        """Return the listing of the names."""
        return self._current().listing

    def owner(self, name: str, *, complete: bool = False) -> str | None:
        """Return whose a name is by what has been listed; `complete`: by what cannot change any more."""
        index = self._fresh()
        if index is None or (complete and not index.complete):
            return None
        return index.owners.get(name)

    async def resolve(self, name: str) -> str:
        """Return the identity of what is called so.

        Raises:
            NotFound: nothing is.
            AttachfsError: it could not be asked.
        """
        check_name(name)
        owner = self.owner(name, complete=True)
        if owner is None:
            identity = safe_names.whole_identity(name)
            if identity is not None:
                owner = identity if await self._is_called(identity, name) else None
            else:
                owner = await self._find(name)
        if owner is None:
            raise NotFound(f"{self._what}: nothing is called {name!a}")
        return owner

    async def renew(self, go_on: Callable[[int], bool]) -> None:
        """Work out the names anew, now that the listing of the records has been read anew.

        Args:
            go_on: called after each page with the number of pages done; False ends it.

        Raises:
            AttachfsError: it could not be done.
        """
        index = self._make(self._records(), None)
        while await index.listing.load_to(len(index.listing.ids)):
            if not go_on(len(index.listing.starts)):
                return
        old, self._index = self._index, index
        if old is not None:
            old.release_names()

    async def _is_called(self, identity: str, name: str) -> bool:
        begun = self._ledger.clock()
        while True:
            base, _, _ = self._candidate(await self._record(identity))
            if name == safe_names.at_level(base, identity, safe_names.WHOLE):
                return True
            if await self._ledger.lacks(self._ref(identity), begun):
                return False

    # -- what assets and events differ in -----------------------------------------------------------

    @abstractmethod
    def _records(self) -> CacheEntry[Listing]:
        """Return the listing of the records."""

    @abstractmethod
    async def _on_page(self, base: CacheEntry[Listing], number: int) -> tuple[list[R], bool]:
        """Return the records on a page of a listing, and whether it is the last page."""

    @abstractmethod
    def _cached(self, listing: Listing) -> list[R] | None:
        """Return a listing's records if nothing has to be asked for them."""

    @abstractmethod
    def _ref(self, identity: str) -> AssetRef | EventRef:
        """Return what has an identity."""

    @abstractmethod
    async def _record(self, identity: str) -> R:
        """Return a record."""

    @abstractmethod
    def _candidate(self, record: R) -> Candidate:
        """Return what a record may be called."""

    @abstractmethod
    async def _sharing(self, base: str) -> Sharing:
        """Return all who share a name without its suffix, asked for, and whether that is current."""

    # -- the index ----------------------------------------------------------------------------------

    def _current(self) -> NameIndex:
        index = self._fresh()
        if index is None:
            base = self._records()
            index = self._make(base, self._older())
            records = self._cached(base.get())
            if records is not None:
                index.fill(map(self._candidate, records))
            self._index = index
        return index

    def _make(self, base: CacheEntry[Listing], before: NameIndex | None) -> NameIndex:
        async def page(token: str) -> tuple[list[Candidate], str]:
            number = int(token or 0)
            records, last = await self._on_page(base, number)
            return [self._candidate(record) for record in records], "" if last else str(number + 1)

        return NameIndex(base, page, self._what, self._ledger.generation, before)

    def _fresh(self) -> NameIndex | None:
        index = self._index
        if index is None or not index.is_fresh(self._ledger.clock(), self._ledger.generation):
            return None
        return index

    def _older(self) -> NameIndex | None:
        """Return an index that may be served in the place of a newer one."""
        index = self._index
        if index is None or not index.complete or index.generation != self._ledger.generation:
            return None
        return index if self._ledger.clock() < index.base.stale_until else None

    async def _all(self) -> NameIndex:
        index = self._current()
        await index.listing.load_to(_ALL)
        return index

    async def _find(self, name: str) -> str | None:
        """Return whose a name without a whole identity is: by all who share its base, as the plain one is."""
        base, digits = safe_names.split(name)
        table = safe_names.NameTable()
        unanswered: AttachfsError | None = None
        try:
            candidates, current = await self._sharing(base)
            for candidate in sorted(candidates):
                table.add(*candidate)
            if not current:
                unanswered = Unreachable(f"{self._what}: the service cannot be asked what is called {name!a}")
        except NotFound:
            pass
        except NO_ANSWER as error:
            unanswered = error
        owner = table.owners.get(name)
        if owner is None and digits:
            # Not listed under this name, as its owner has the plain one: it means that one all the same.
            owner = next((one for one in table.owners.values() if one.startswith(digits)), None)
        if owner is None and unanswered is not None:
            index = await self._all()
            owner = index.owners.get(name)
            if owner is None and index.is_stale:
                raise unanswered  # an old listing can say that something is there, never that it is not
            return owner
        # What a listing has shown opens, even if the service's filter does not find it.
        return owner or self.owner(name)


class AssetNames(SharedNames[Asset]):
    """The names of all assets."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__(ledger, BY_NAME)

    def _records(self) -> CacheEntry[Listing]:
        return self._ledger.listings.shared_assets()

    async def _on_page(self, base: CacheEntry[Listing], number: int) -> tuple[list[Asset], bool]:
        return await self._ledger.listings.listed_assets(base, number)

    def _cached(self, listing: Listing) -> list[Asset] | None:
        del listing  # there may be hundreds of thousands: they are named page by page
        return None

    def _ref(self, identity: str) -> AssetRef:
        return AssetRef("assets", identity)

    async def _record(self, identity: str) -> Asset:
        return await self._ledger.asset(self._ref(identity))

    def _candidate(self, record: Asset) -> Candidate:
        base = safe_names.safe(record.display_name, safe_names.SHARED_LIMIT)
        return base, record.id, _asset_suffix(base, record.display_name)

    async def _sharing(self, base: str) -> Sharing:
        if _asset_suffix(base, safe_names.origin(base)) == safe_names.WHOLE:
            return [], True  # whoever is called so is not looked for by this name
        ids, current = await self._ledger.listings.find_assets(safe_names.origin(base))
        return [(base, identity, safe_names.first_level(base)) for identity in ids], current


class EventNames(SharedNames[Event]):
    """The names of an asset's events."""

    def __init__(self, ledger: Ledger, asset: AssetRef) -> None:
        super().__init__(ledger, f"the events of {asset.path}, by name")
        self._asset = asset

    def _records(self) -> CacheEntry[Listing]:
        return self._ledger.listings.shared_events(self._asset)

    async def _on_page(self, base: CacheEntry[Listing], number: int) -> tuple[list[Event], bool]:
        return await self._ledger.listings.listed_events(self._asset, base, number)

    def _cached(self, listing: Listing) -> list[Event] | None:
        return self._ledger.listings.cached_events(self._asset, listing)

    def _ref(self, identity: str) -> EventRef:
        return EventRef("assets", self._asset.asset, identity)

    async def _record(self, identity: str) -> Event:
        return await self._ledger.event(self._ref(identity))

    def _candidate(self, record: Event) -> Candidate:
        when = _UNDATED
        if record.time_ns:
            when = datetime.fromtimestamp(record.time_ns // 10**9, UTC).strftime("%Y-%m-%d %H%M")
        base = safe_names.safe(f"{when} {safe_names.safe(record.display_type)}", safe_names.SHARED_LIMIT)
        return base, record.id, safe_names.first_level(base)

    async def _sharing(self, base: str) -> Sharing:
        current = True
        if base.startswith(_UNDATED):  # no filter finds these
            index = await self._all()
            if index.is_stale:
                raise Unreachable(f"not all of {self._what} can be listed without the service")
            found = tuple(index.owners.values())
        else:
            minute = _minute(base)
            if minute is None:
                return [], True
            since, before = (t.isoformat() for t in (minute - _SLACK, minute + _MINUTE + _SLACK))
            found, current = await self._ledger.listings.find_events(self._asset, since, before)
        candidates = [self._candidate(await self._record(one)) for one in found]
        return [one for one in candidates if one[0] == base], current


def check_name(name: str) -> None:
    """Refuse what cannot be a name here, before anything is asked.

    Raises:
        NotFound: it cannot.
    """
    if safe_names.safe(name) != name:
        raise NotFound(f"{name!a} cannot be a name below {BY_NAME}")


def _asset_suffix(base: str, display_name: str) -> int:
    """Return how much of its identity an asset's name has at least: all, if no request could find it."""
    can_be_found = (
        safe_names.origin(base) == display_name
        and len(base.encode()) <= safe_names.SHARED_LIMIT
        and base not in ("", "*")
    )
    return safe_names.first_level(base) if can_be_found else safe_names.WHOLE


def _minute(name: str) -> datetime | None:
    """Return the minute at which an event of this name was accepted."""
    found = _WHEN.fullmatch(name)
    try:
        return datetime.strptime(found[1], "%Y-%m-%d %H%M").replace(tzinfo=UTC) if found else None
    except ValueError:
        return None
