"""The namespace for people: `by-name/<asset>/<file>` and `by-name/<asset>/events/<when what>/<file>`.

Owns: what a node of `by-name` stands for. Assets and events are
directories; files are symbolic links into `assets/`, relative, so that they survive a bind mount. How a text
becomes a safe name is safe_names.py's. No two entries share a name, and what a name means depends on the
ledger alone: not on the mount, the order or size of pages, or what has been looked at before.

**An asset** is called by its `arc_display_name`, or its identity if it has none. Several may have one name,
and a listing is read page by page, so that nobody knows yet what the next page brings. Therefore, of those
with one name, the one with the smallest identity has it plain, and the others have ` (<first 8 digits>)`
behind it, or ` (<identity>)` if they share these too. This can be streamed: each new one makes exactly one
name new, its own or that of the one it displaces (`safe_names.NameTable`), and in the end the set is the same
in every order. While a listing runs, an entry is a name and not yet an asset; whose it is, is resolved when
it is entered. A name with a whole identity behind it always opens and never changes its meaning, listed or
not; one with eight digits does as well unless two that share a name share these. Scripts should use those.

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

from collections import OrderedDict
from collections.abc import Callable

from attachfs.ledger.listings import Listing
from attachfs.ledger.ttl_cache import CacheEntry
from attachfs.ledger.view import Ledger
from attachfs.model import Asset, AssetRef, AttachmentRef, Event, EventRef
from attachfs.namespace.file_names import FileNames
from attachfs.namespace.nodes import ByNameNode
from attachfs.namespace.shared_names import AssetNames, EventNames, check_name

_RECENT = 4_096  # directories whose owner is remembered, for their times
_EVENT_DIRECTORIES = 2_048  # assets whose events' names are kept
_EVENT_NAMES = 200_000  # names kept in all of them
_COUNTED_EVERY = 64  # new ones, after which all names are counted


class ByName:
    """Names over a ledger view.

    Args:
        ledger: the ledger view.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.files = FileNames(ledger)
        self._recent: OrderedDict[ByNameNode, AssetRef | EventRef] = OrderedDict()
        self._assets = AssetNames(ledger)
        self._events: OrderedDict[AssetRef, EventNames] = OrderedDict()
        self._uncounted = 0

    def assets(self) -> Listing:
        """Return the listing of all assets' names."""
        return self._assets.names()

    def events(self, asset: AssetRef) -> Listing:
        """Return the listing of the names of an asset's events."""
        return self._events_of(asset).names()

    async def renew(self, go_on: Callable[[int], bool]) -> None:
        """Work out the names of all assets anew, now that their listing has been read anew.

        Args:
            go_on: called after each page with the number of pages done; False ends it.

        Raises:
            AttachfsError: it could not be done.
        """
        await self._assets.renew(go_on)

    async def resolve(self, node: ByNameNode) -> AssetRef | EventRef | AttachmentRef:
        """Return what a node stands for; for an `events` directory its asset.

        Raises:
            NotFound: nothing has this name.
            AttachfsError: it could not be asked.
        """
        asset = AssetRef("assets", await self._assets.resolve(node.parts[0]))
        owner: AssetRef | EventRef = asset
        if len(node.parts) > 2:
            owner = EventRef("assets", asset.asset, await self._events_of(asset).resolve(node.parts[2]))
        if node.is_link:
            check_name(node.parts[-1])
            return await self.files.find(owner, node.parts[-1])
        if not node.is_events:
            self._remember(node, owner)
        return owner

    def resolved(self, node: ByNameNode) -> AssetRef | EventRef | None:
        """Return what a directory stands for, if a listing that is complete says so; nothing is asked."""
        owner = None if node.is_link else self._listed(node, complete=True)
        if owner is not None and not node.is_events:
            self._remember(node, owner)
        return owner

    def cached_owner(self, directory: ByNameNode) -> AssetRef | EventRef | None:
        """Return what is remembered of whose directory it is, for an asset's or event's; nothing is asked."""
        return self._recent.get(directory) or self._listed(directory)

    def cached_record(self, node: ByNameNode) -> CacheEntry[Asset] | CacheEntry[Event] | None:
        """Return what is remembered of a directory's owner, or a link's, for its time; nothing is asked."""
        directory = node if len(node.parts) in (1, 3) else node.parent
        assert directory is not None
        owner = self.cached_owner(directory)
        return None if owner is None else self._ledger.cached_record(owner)

    def _listed(self, directory: ByNameNode, *, complete: bool = False) -> AssetRef | EventRef | None:
        """Return the owner of a directory by listings; `complete`: by those that are at their end."""
        parts = directory.parts
        recent = None if complete else self._recent.get(ByNameNode(parts[:1]))
        identity = recent.asset if recent else self._assets.owner(parts[0], complete=complete)
        if identity is None:
            return None
        asset = AssetRef("assets", identity)
        if len(parts) < 3:
            return asset
        names = self._events.get(asset)
        event = None if names is None else names.owner(parts[2], complete=complete)
        return None if event is None else EventRef("assets", identity, event)

    def _remember(self, node: ByNameNode, owner: AssetRef | EventRef) -> None:
        self._recent[node] = owner
        self._recent.move_to_end(node)
        if len(self._recent) > _RECENT:
            self._recent.popitem(last=False)

    def _events_of(self, asset: AssetRef) -> EventNames:
        names = self._events.get(asset)
        if names is None:
            names = self._events[asset] = EventNames(self._ledger, asset)
            self._bound_events()
        self._events.move_to_end(asset)
        return names

    def _bound_events(self) -> None:
        self._uncounted += 1
        count = 0
        if self._uncounted >= _COUNTED_EVERY:
            self._uncounted = 0
            count = sum(map(len, self._events.values()))
        while len(self._events) > _EVENT_DIRECTORIES or count > _EVENT_NAMES:
            _, oldest = self._events.popitem(last=False)
            count -= len(oldest)
