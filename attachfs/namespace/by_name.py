"""The namespace for people: `by-name/<asset>/<file>` and `by-name/<asset>/events/<when what>/<file>`.

Lives here and only here: who is called what in `by-name`, and who is meant by a name. Assets and events are
directories; files are symbolic links into `assets/`, relative, so that they survive a bind mount. How a text
becomes a safe name is safe_names.py's. No two entries share a name, and what a name means depends on the
ledger alone: not on the mount, the order or size of pages, or what has been looked at before.

**An asset** is called by its `arc_display_name`, or its identity if it has none. Several may have one name,
and a listing is read page by page, so that nobody knows yet what the next page brings. Therefore, of those
with one name, the one with the smallest identity has it plain, and the others have ` (<first 8 digits>)`
behind it, or ` (<identity>)` if they share these too. This can be streamed: whoever comes makes exactly one
name new, its own or that of the one it displaces (`names.Slots`), and in the end the set is the same in every
order. While a listing runs, an entry is a name and not yet an asset; who is meant is settled when it is
entered. A name with a whole identity behind it opens always and never changes its meaning, listed or not;
one with eight digits does as well unless two that share a name share these. Scripts should use those.

A name is looked up with one request, for the assets whose `arc_display_name` is that text: all who can be
called so have exactly it. To keep that true, names that cannot be led back to the record always carry the
whole identity, and are looked up by it: texts that safety changed (but for a slash, which can be undone),
that are longer than 216 bytes, that look like an identity, and `*`, which the service would take for "any".
A text that looks as if it had a suffix always gets another. If the service cannot be asked, a listing that
is still known (or kept for `--offline`) decides.

**An event** is called by the minute of its `timestamp_accepted`, in UTC, and its type; sharing is as for
assets. A name is looked up with one request, for the asset's events of that minute.

What **a file** is called is file_names.py's.
"""

import math
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime, timedelta

from attachfs.errors import NotFound
from attachfs.ledger.listings import Listing
from attachfs.ledger.outage import NO_ANSWER
from attachfs.ledger.ttl_cache import CacheEntry
from attachfs.ledger.view import Ledger
from attachfs.model import Asset, AssetRef, AttachmentRef, Event, EventRef
from attachfs.namespace import safe_names
from attachfs.namespace.file_names import FileNames
from attachfs.namespace.nodes import BY_NAME, ByNameNode

_UNDATED = "undated"
_WHEN = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{4})(?: .*)?", re.DOTALL)
_SLACK = timedelta(seconds=1)  # whether the service's bounds are inclusive is not documented
_MINUTE = timedelta(minutes=1)
_RECENT = 4_096  # directories whose owner is remembered, for their times
_EVENT_INDEXES = 2_048  # assets whose events' names are kept
_EVENT_NAMES = 200_000  # names kept in all of them
_ALL = 1 << 40  # an index that no listing reaches


SlotsPage = Callable[[str], Awaitable[tuple[list[tuple[str, str, int]], str]]]


class NamePager:
    """Brings names that may be shared, and knows who holds each so far.

    Args:
        page: returns what `NameTable.add` takes of the records on the page with a token, and the next token.
    """

    __slots__ = ("_page", "retry_at", "table")

    def __init__(self, page: SlotsPage) -> None:
        self._page: SlotsPage | None = page
        self.retry_at = math.inf  # the listing of records, which this is made of, has its own
        self.table = safe_names.NameTable()

    async def page(self, token: str) -> tuple[list[str], str]:
        """Return the names that the page with a token makes new, and the next page's token."""
        assert self._page is not None
        records, following = await self._page(token)
        if not following:
            self._page = None  # and all that it holds
        return self.new(records), following

    def new(self, records: Iterable[tuple[str, str, int]]) -> list[str]:
        """Return the names that records make new."""
        names = (self.table.add(*record) for record in records)
        return [name for name in names if name is not None]


class NameIndex:
    """The names of a listing's records, and who holds each.

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
        page: SlotsPage,
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
    def holders(self) -> dict[str, str]:
        """Who holds each name, by its identity."""
        if self.listing.old and self._before is not None:
            return self._before.holders
        return self._pager.table.holders

    def fill(self, records: Iterable[tuple[str, str, int]]) -> None:
        """Make it complete, of all the records there are."""
        names = self._pager.new(records)
        self.listing = Listing.of(names)

    def release_names(self) -> None:
        """Forget who holds the names: there is a newer one that knows. Who reads the names goes on."""
        if self.complete:
            self._pager.table = safe_names.NameTable()

    def is_fresh(self, now: float, generation: int) -> bool:
        """Whether it need not be made anew."""
        times = self.base
        return generation == self.generation and now < min(times.expires, times.get().retry_at)


class ByName:
    """Names over a ledger view.

    Args:
        ledger: the ledger view; it keeps all that is remembered.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.files = FileNames(ledger)
        self._recent: OrderedDict[ByNameNode, AssetRef | EventRef] = OrderedDict()
        self._assets: NameIndex | None = None
        self._events: OrderedDict[AssetRef, NameIndex] = OrderedDict()
        self._event_names = 0  # in those that are complete, at most

    # -- who is meant ------------------------------------------------------------------------------

    async def resolve(self, node: ByNameNode) -> AssetRef | EventRef | AttachmentRef:
        """Return what a node stands for; for an `events` directory its asset.

        Raises:
            NotFound: nothing has this name.
            AttachfsError: it could not be asked.
        """
        asset = await self._asset(node.parts[0])
        owner = await self._event(asset, node.parts[2]) if len(node.parts) > 2 else asset
        if node.is_link:
            _check(node.parts[-1])
            return await self.files.find(owner, node.parts[-1])
        if not node.is_events:
            self._remember(node, owner)
        return owner

    def settled(self, node: ByNameNode) -> AssetRef | EventRef | None:
        """Return what a directory stands for, if a listing that is complete says so; nothing is asked."""
        parts = node.parts
        holder = self._holder(None, parts[0], certain=True)
        if holder is None or node.is_link:
            return None
        asset = AssetRef("assets", holder)
        owner: AssetRef | EventRef = asset
        if len(parts) > 2:
            holder = self._holder(asset, parts[2], certain=True)
            if holder is None:
                return None
            owner = EventRef("assets", asset.asset, holder)
        if not node.is_events:
            self._remember(node, owner)
        return owner

    def _remember(self, node: ByNameNode, owner: AssetRef | EventRef) -> None:
        self._recent[node] = owner
        self._recent.move_to_end(node)
        if len(self._recent) > _RECENT:
            self._recent.popitem(last=False)

    def known_owner(self, directory: ByNameNode) -> AssetRef | EventRef | None:
        """Return what is remembered of whose directory it is, for an asset's or event's; nothing is asked."""
        return self._recent.get(directory) or self._listed(directory)

    def known_record(self, node: ByNameNode) -> CacheEntry[Asset] | CacheEntry[Event] | None:
        """Return what is remembered of a directory's owner, or a link's, for its time; nothing is asked."""
        directory = node if len(node.parts) in (1, 3) else node.parent
        assert directory is not None
        owner = self.known_owner(directory)
        return None if owner is None else self._ledger.known_record(owner)

    def _listed(self, directory: ByNameNode) -> AssetRef | EventRef | None:
        """Return the owner of a directory according to a listing that runs or is complete."""
        if len(directory.parts) == 1:
            asset = self._holder(None, directory.parts[0])
            return None if asset is None else AssetRef("assets", asset)
        owner = self.known_owner(ByNameNode(directory.parts[:1]))
        if not isinstance(owner, AssetRef):
            return None
        event = self._holder(owner, directory.parts[2])
        return None if event is None else EventRef("assets", owner.asset, event)

    def _holder(self, asset: AssetRef | None, name: str, *, certain: bool = False) -> str | None:
        """Return who holds a name in an index that is known; `certain`: in one that is complete.

        Args:
            asset: whose events the names are of; None: the names are of assets.
            name: the name.
            certain: whether whoever holds it must not change any more.
        """
        index = self._fresh(self._assets if asset is None else self._events.get(asset))
        if index is None or (certain and not index.complete):
            return None
        return index.holders.get(name)

    def _fresh(self, index: NameIndex | None) -> NameIndex | None:
        if index is None or not index.is_fresh(self._ledger.clock(), self._ledger.generation):
            return None
        return index

    def _older(self, index: NameIndex | None) -> NameIndex | None:
        """Return an index that may be served in the place of a newer one."""
        if index is None or not index.complete or index.generation != self._ledger.generation:
            return None
        return index if self._ledger.clock() < index.base.stale_until else None

    # -- assets ------------------------------------------------------------------------------------

    def assets(self) -> Listing:
        """Return the listing of all assets' names."""
        index = self._fresh(self._assets)
        if index is None:
            index = self._assets = self._names_of(
                self._ledger.listings.shared_assets(), self._older(self._assets)
            )
        return index.listing

    async def renew(self, go_on: Callable[[int], bool]) -> None:
        """Work out the names of all assets anew, now that their listing has been read anew.

        Args:
            go_on: called after each page with the number of pages done; False ends it.

        Raises:
            AttachfsError: it could not be done.
        """
        index = self._names_of(self._ledger.listings.shared_assets(), None)
        while await index.listing.reach(len(index.listing.ids)):
            if not go_on(len(index.listing.starts)):
                return
        old, self._assets = self._assets, index
        if old is not None:
            old.release_names()

    def _names_of(self, base: CacheEntry[Listing], before: NameIndex | None) -> NameIndex:
        async def page(token: str) -> tuple[list[tuple[str, str, int]], str]:
            number = int(token or 0)
            assets, last = await self._ledger.listings.listed_assets(base, number)
            return [_asset_slot(asset) for asset in assets], "" if last else str(number + 1)

        return NameIndex(base, page, BY_NAME, self._ledger.generation, before)

    async def _asset(self, name: str) -> AssetRef:
        _check(name)
        holder = self._holder(None, name, certain=True)
        if holder is None:
            identity = safe_names.whole_identity(name)
            if identity is not None:
                asset = await self._ledger.asset(AssetRef("assets", identity))
                holder = identity if name == _whole(_asset_slot(asset)) else None
            else:
                holder = await self._find(name, self._find_assets, self.assets, None)
        if holder is None:
            raise NotFound(f"{BY_NAME}/{name!a}: no asset has this name")
        return AssetRef("assets", holder)

    async def _find_assets(self, base: str) -> Iterable[tuple[str, str, int]]:
        if _asset_level(base, safe_names.origin(base)) == safe_names.WHOLE:
            return ()  # whoever is called so is not looked for by this name
        found = await self._ledger.listings.find_assets(safe_names.origin(base))
        return [(base, identity, safe_names.first_level(base)) for identity in found]

    # -- events ------------------------------------------------------------------------------------

    def events(self, asset: AssetRef) -> Listing:
        """Return the listing of the names of an asset's events."""
        return self._index_of_events(asset).listing

    def _index_of_events(self, asset: AssetRef) -> NameIndex:
        known = self._events.get(asset)
        index = self._fresh(known)
        if index is not None:
            return index
        base = self._ledger.listings.shared_events(asset)

        async def page(token: str) -> tuple[list[tuple[str, str, int]], str]:
            number = int(token or 0)
            events, last = await self._ledger.listings.listed_events(asset, base, number)
            return [_event_slot(event) for event in events], "" if last else str(number + 1)

        what = f"the events of {asset.path}, by name"
        index = NameIndex(base, page, what, self._ledger.generation, self._older(known))
        events = self._ledger.listings.known_events(asset, base.get())
        if events is not None:
            index.fill(_event_slot(event) for event in events)
        self._keep(asset, index)
        return index

    def _keep(self, asset: AssetRef, index: NameIndex) -> None:
        self._events[asset] = index
        self._events.move_to_end(asset)
        self._event_names += len(index.listing.ids)
        if self._event_names > _EVENT_NAMES:
            self._event_names = sum(len(one.listing.ids) for one in self._events.values())
        while len(self._events) > _EVENT_INDEXES or self._event_names > _EVENT_NAMES:
            _, oldest = self._events.popitem(last=False)
            self._event_names -= len(oldest.listing.ids)

    async def _event(self, asset: AssetRef, name: str) -> EventRef:
        _check(name)
        holder = self._holder(asset, name, certain=True)
        if holder is None:
            identity = safe_names.whole_identity(name)
            if identity is not None:
                event = await self._ledger.event(EventRef("assets", asset.asset, identity))
                holder = identity if name == _whole(_event_slot(event)) else None
            else:

                async def find(base: str) -> Iterable[tuple[str, str, int]]:
                    return await self._find_events(asset, base)

                holder = await self._find(name, find, lambda: self.events(asset), asset)
        if holder is None:
            raise NotFound(f"{asset.path}: no event is called {name!a}")
        return EventRef("assets", asset.asset, holder)

    async def _find_events(self, asset: AssetRef, base: str) -> Iterable[tuple[str, str, int]]:
        if base.startswith(_UNDATED):
            index = self._index_of_events(asset)
            await index.listing.reach(_ALL)
            found = tuple(index.holders.values())
        else:
            minute = _minute(base)
            if minute is None:
                return ()
            since, before = (t.isoformat() for t in (minute - _SLACK, minute + _MINUTE + _SLACK))
            found = await self._ledger.listings.find_events(asset, since, before)
        events = [await self._ledger.event(EventRef("assets", asset.asset, one)) for one in found]
        return [slot for slot in map(_event_slot, events) if slot[0] == base]

    async def _find(
        self,
        name: str,
        find: Callable[[str], Awaitable[Iterable[tuple[str, str, int]]]],
        listing: Callable[[], Listing],
        asset: AssetRef | None,
    ) -> str | None:
        """Return who holds a name that has no whole identity in it, judging by all who share its base."""
        base, digits = safe_names.split(name)
        slots = safe_names.NameTable()
        try:
            for slot in sorted(await find(base)):
                slots.add(*slot)
        except NotFound:
            pass
        except NO_ANSWER:
            all_names = listing()
            await all_names.reach(_ALL)
            return self._holder(asset, name)
        holder = slots.holders.get(name)
        if (
            holder is None and digits
        ):  # it is not listed so, as it has the name plain: it is meant all the same
            holder = next((one for one in slots.holders.values() if one.startswith(digits)), None)
        # What a listing has shown opens, even if the service's filter does not find it.
        return holder or self._holder(asset, name)


def _check(name: str) -> None:
    """Refuse what cannot be a name here, before anything is asked."""
    if safe_names.safe(name) != name:
        raise NotFound(f"{name!a} cannot be a name below {BY_NAME}")


def _asset_slot(asset: Asset) -> tuple[str, str, int]:
    """Return what an asset is called, its identity, and the level at which its names begin."""
    base = safe_names.safe(asset.display_name, safe_names.SHARED_LIMIT)
    return base, asset.id, _asset_level(base, asset.display_name)


def _asset_level(base: str, display_name: str) -> int:
    can_be_found = (
        safe_names.origin(base) == display_name
        and len(base.encode()) <= safe_names.SHARED_LIMIT
        and base not in ("", "*")
    )
    return safe_names.first_level(base) if can_be_found else safe_names.WHOLE


def _event_slot(event: Event) -> tuple[str, str, int]:
    when = _UNDATED
    if event.time_ns:
        when = datetime.fromtimestamp(event.time_ns // 10**9, UTC).strftime("%Y-%m-%d %H%M")
    base = safe_names.safe(f"{when} {safe_names.safe(event.display_type)}", safe_names.SHARED_LIMIT)
    return base, event.id, safe_names.first_level(base)


def _whole(slot: tuple[str, str, int]) -> str:
    base, identity, _ = slot
    return safe_names.at_level(base, identity, safe_names.WHOLE)


def _minute(name: str) -> datetime | None:
    """Return the minute at which an event of this name was accepted."""
    found = _WHEN.fullmatch(name)
    try:
        return datetime.strptime(found[1], "%Y-%m-%d %H%M").replace(tzinfo=UTC) if found else None
    except ValueError:
        return None
