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

import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Iterable
from datetime import UTC, datetime, timedelta

from attachfs.errors import NotFound, TimedOut, Unreachable
from attachfs.ledger.listings import Listing, no_page
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
_ALL = 1 << 40  # an index that no listing reaches


SlotsPage = Callable[[str], Awaitable[tuple[list[tuple[str, str, int]], str]]]


class NameListing(Listing):
    """A listing of names that may be shared, and who holds each so far.

    Args:
        page: returns what `Slots.add` takes of the records on the page with a token, and the next token;
            None: `fill` will be called.
        what: the directory's path, for messages.
        before: an older, complete listing.
    """

    __slots__ = ("_page", "slots")

    def __init__(self, page: SlotsPage | None, what: str, before: Listing | None) -> None:
        self.slots = safe_names.NameTable()
        super().__init__(no_page, what, before)
        self._page = page

    def fill(self, records: Iterable[tuple[str, str, int]]) -> None:
        """Make it complete, of all the records there are."""
        self.ids += self._new(records)
        self.complete = True

    def give_up(self) -> None:
        """Forget who holds the names: there is a newer one that knows. Who reads the names goes on."""
        if self.complete:
            self.slots = safe_names.NameTable()

    async def _bring(self, token: str) -> tuple[list[str], str]:
        assert self._page is not None
        records, following = await self._page(token)
        return self._new(records), following

    def _new(self, records: Iterable[tuple[str, str, int]]) -> list[str]:
        new = (self.slots.add(*record) for record in records)
        return [name for name in new if name is not None]

    def _add(self, ids: list[str]) -> None:
        self.ids += ids  # slots give each name out once

    async def _turn_page(self) -> None:
        before = self._before
        await super()._turn_page()
        if isinstance(before, NameListing) and self.ids is before.ids:
            self.slots = before.slots
        if self.complete:
            self._page = None  # and all that it holds


class ByName:
    """Names over a ledger view.

    Args:
        ledger: the ledger view; it keeps all that is remembered.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.files = FileNames(ledger)
        self._recent: OrderedDict[ByNameNode, AssetRef | EventRef] = OrderedDict()

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
        holder = self._holder(BY_NAME, parts[0], certain=True)
        if holder is None or node.is_link:
            return None
        owner: AssetRef | EventRef = AssetRef("assets", holder)
        if len(parts) > 2:
            holder = self._holder((BY_NAME, owner), parts[2], certain=True)
            if holder is None:
                return None
            owner = EventRef("assets", owner.asset, holder)
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
            asset = self._holder(BY_NAME, directory.parts[0])
            return None if asset is None else AssetRef("assets", asset)
        owner = self.known_owner(ByNameNode(directory.parts[:1]))
        event = None if owner is None else self._holder((BY_NAME, owner), directory.parts[2])
        return None if owner is None or event is None else EventRef("assets", owner.asset, event)

    def _holder(self, key: Hashable, name: str, *, certain: bool = False) -> str | None:
        """Return who holds a name in a listing that is known; `certain`: in one that is complete."""
        listing = self._ledger.known_listing(key)
        if not isinstance(listing, NameListing) or (certain and not listing.complete):
            return None
        return listing.slots.holders.get(name)

    # -- assets ------------------------------------------------------------------------------------

    def assets(self) -> Listing:
        """Return the listing of all assets' names."""
        base = self._ledger.shared_assets()
        return self._ledger.listing(BY_NAME, lambda before: self._names_of(base, before), base).get()

    async def renew(self, go_on: Callable[[int], bool]) -> None:
        """Work out the names of all assets anew, now that their listing has been read anew.

        Args:
            go_on: is asked after each page, with the number of pages done.

        Raises:
            AttachfsError: it could not be done.
        """
        base = self._ledger.shared_assets()
        listing = self._names_of(base, None)
        while await listing.reach(len(listing.ids)):
            if not go_on(len(listing.starts)):
                return
        old = self._ledger.known_listing(BY_NAME)
        self._ledger.share(BY_NAME, base._replace(value=listing))
        if isinstance(old, NameListing):
            old.give_up()

    def _names_of(self, base: CacheEntry[Listing], before: Listing | None) -> "NameListing":
        async def page(token: str) -> tuple[list[tuple[str, str, int]], str]:
            number = int(token or 0)
            assets, last = await self._ledger.listed_assets(base, number)
            return [_asset_slot(asset) for asset in assets], "" if last else str(number + 1)

        return NameListing(page, BY_NAME, before)

    async def _asset(self, name: str) -> AssetRef:
        _check(name)
        holder = self._holder(BY_NAME, name, certain=True)
        if holder is None:
            identity = safe_names.whole_identity(name)
            if identity is not None:
                asset = await self._ledger.asset(AssetRef("assets", identity))
                holder = identity if name == _whole(_asset_slot(asset)) else None
            else:
                holder = await self._find(name, self._find_assets, self.assets, BY_NAME)
        if holder is None:
            raise NotFound(f"{BY_NAME}/{name!a}: no asset has this name")
        return AssetRef("assets", holder)

    async def _find_assets(self, base: str) -> Iterable[tuple[str, str, int]]:
        if _asset_level(base, safe_names.origin(base)) == safe_names.WHOLE:
            return ()  # whoever is called so is not looked for by this name
        found = await self._ledger.find_assets(safe_names.origin(base))
        return [(base, identity, safe_names.first_level(base)) for identity in found]

    # -- events ------------------------------------------------------------------------------------

    def events(self, asset: AssetRef) -> Listing:
        """Return the listing of the names of an asset's events."""
        base = self._ledger.shared_events(asset)

        async def page(token: str) -> tuple[list[tuple[str, str, int]], str]:
            number = int(token or 0)
            events, last = await self._ledger.listed_events(asset, base, number)
            return [_event_slot(event) for event in events], "" if last else str(number + 1)

        def make(before: Listing | None) -> NameListing:
            what = f"the events of {asset.path}, by name"
            known = self._ledger.known_events(asset, base.get())
            if known is None:
                return NameListing(page, what, before)
            listing = NameListing(None, what, None)
            listing.fill(_event_slot(event) for event in known)
            return listing

        return self._ledger.listing((BY_NAME, asset), make, base).get()

    async def _event(self, asset: AssetRef, name: str) -> EventRef:
        _check(name)
        holder = self._holder((BY_NAME, asset), name, certain=True)
        if holder is None:
            identity = safe_names.whole_identity(name)
            if identity is not None:
                event = await self._ledger.event(EventRef("assets", asset.asset, identity))
                holder = identity if name == _whole(_event_slot(event)) else None
            else:

                async def find(base: str) -> Iterable[tuple[str, str, int]]:
                    return await self._find_events(asset, base)

                holder = await self._find(name, find, lambda: self.events(asset), (BY_NAME, asset))
        if holder is None:
            raise NotFound(f"{asset.path}: no event is called {name!a}")
        return EventRef("assets", asset.asset, holder)

    async def _find_events(self, asset: AssetRef, base: str) -> Iterable[tuple[str, str, int]]:
        if base.startswith(_UNDATED):
            listing = self.events(asset)
            await listing.reach(_ALL)
            found = tuple(listing.slots.holders.values()) if isinstance(listing, NameListing) else ()
        else:
            minute = _minute(base)
            if minute is None:
                return ()
            since, before = (t.isoformat() for t in (minute - _SLACK, minute + _MINUTE + _SLACK))
            found = await self._ledger.find_events(asset, since, before)
        events = [await self._ledger.event(EventRef("assets", asset.asset, one)) for one in found]
        return [slot for slot in map(_event_slot, events) if slot[0] == base]

    async def _find(
        self,
        name: str,
        find: Callable[[str], Awaitable[Iterable[tuple[str, str, int]]]],
        listing: Callable[[], Listing],
        key: Hashable,
    ) -> str | None:
        """Return who holds a name that has no whole identity in it, judging by all who share its base."""
        base, digits = safe_names.split(name)
        slots = safe_names.NameTable()
        try:
            for slot in sorted(await find(base)):
                slots.add(*slot)
        except NotFound:
            pass
        except (Unreachable, TimedOut):
            all_names = listing()
            await all_names.reach(_ALL)
            return self._holder(key, name)
        holder = slots.holders.get(name)
        if (
            holder is None and digits
        ):  # it is not listed so, as it has the name plain: it is meant all the same
            holder = next((one for one in slots.holders.values() if one.startswith(digits)), None)
        # What a listing has shown opens, even if the service's filter does not find it.
        return holder or self._holder(key, name)


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
