"""What to ask for before it is asked for.

A program that looks at a directory's files one after another (`ls -l`, a file manager) gets all their
`/info`s asked for side by side. One that opens a directory's files in an order (`cp -r`, `tar`) gets the
next small ones fetched and verified before it opens them. One that goes from asset to asset (`find`,
`rsync`) gets the next assets' events asked for, and, if it looks at files or opens them on its way, their
`/info`s or bytes as well. Windows grow while a guess is right and close when it is not: opening one file
fetches one file.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import trio

from attachfs.errors import AttachfsError
from attachfs.ledger import Ledger
from attachfs.model import AssetRef, Attachment, AttachmentRef, EventRef
from attachfs.tree import Directory, EventsDir, Node, Place
from attachfs.walks import Walk

_DIRECTORIES = 256  # listed directories remembered
_WINDOW = 512  # attachments whose /info is asked for ahead in one directory; an event has at most about 150
_FILES_AHEAD = 64
_ASSETS_AHEAD = 64
_FEW = 2  # steps in one order before bytes are fetched ahead
_SMALL = 4 * 2**20  # bytes; a larger file is fetched when it is opened
_BUDGET = 64 * 2**20  # bytes fetched ahead and not opened yet
# What a walk from asset to asset does in the directories it comes to.
_LISTS, _LOOKS, _OPENS = range(3)


class Prefetcher(Protocol):
    """What fetches and verifies bytes ahead."""

    async def prefetch(self, ref: AttachmentRef) -> None:
        """Have a file's bytes at hand, verified."""
        ...


class _Files:
    """A listed directory, and what programs do with its files."""

    def __init__(self, directory: Directory, number: Callable[[Node], int]) -> None:
        self.directory = directory
        self.looked = 0  # files looked at since it was listed
        self.asked = False
        self.size = directory.available
        self.walk = Walk(self.files, (number, lambda file: file.attachment))

    @property
    def files(self) -> list[AttachmentRef]:
        """The files listed, in the listing's order."""
        nodes = (self.directory[i].node for i in range(self.directory.available))
        return [node for node in nodes if isinstance(node, AttachmentRef)]


class ReadAhead:
    """Watches what programs do, and asks ahead.

    Args:
        ledger: is asked for listings and `/info`s; keeps the answers, whatever they are.
        blobs: fetches and verifies; keeps what is right.
        nursery: where requests ahead run.
        number: an inode's number, which some programs sort by.
        room: bytes the cache may hold at most; no more than a quarter of it is fetched ahead.
    """

    def __init__(
        self,
        ledger: Ledger,
        blobs: Prefetcher,
        nursery: trio.Nursery,
        number: Callable[[Node], int],
        room: int,
    ) -> None:
        self._ledger = ledger
        self._blobs = blobs
        self._nursery = nursery
        self._number = number
        self._budget = min(_BUDGET, room // 4)
        self._directories: OrderedDict[Node, _Files] = OrderedDict()
        self._assets: Walk[AssetRef] = Walk([])
        self._assets_of: Directory | None = None  # whose entries that walk goes through, and how many
        self._assets_known = 0
        self._listed_assets: Directory | None = None
        self._does = _LISTS
        self._walking: AssetRef | None = None
        self._fetched: OrderedDict[AttachmentRef, int] = OrderedDict()  # ahead, and not opened yet

    # -- what programs do --------------------------------------------------------------------------

    def listed(self, directory: Directory) -> None:
        """Take note of a directory whose entries have been read."""
        if directory.node is Place.ASSETS:
            self._listed_assets = directory
            return
        if not isinstance(directory.node, AssetRef | EventRef):
            return
        known = self._directories.get(directory.node)
        if known is None or known.directory is not directory or known.size != directory.available:
            self._directories[directory.node] = _Files(directory, self._number)
        self._directories.move_to_end(directory.node)
        if len(self._directories) > _DIRECTORIES:
            self._directories.popitem(last=False)

    def stat(self, file: Node) -> None:
        """Take note of a file whose attributes are wanted and not known."""
        if not isinstance(file, AttachmentRef):
            return
        self._on_the_way(file, _LOOKS)
        files = self._directories.get(file.owner)
        if files is None or files.asked:
            return
        files.looked += 1
        siblings = files.files
        # The first one listed, or a second one: a walk. One in the middle: somebody looks at that one.
        if files.looked == 1 and siblings and siblings[0] != file:
            return
        files.asked = True
        for sibling in siblings[:_WINDOW]:
            if sibling != file and self._ledger.known_info(sibling) is None:
                self._start(self._info, sibling)

    def opened(self, file: AttachmentRef) -> None:
        """Take note of a file that is being opened."""
        self._fetched.pop(file, None)
        self._on_the_way(file, _OPENS)
        files = self._directories.get(file.owner)
        if files is None:
            return
        streak = files.walk.step(file)
        if streak >= _FEW:
            for ahead in files.walk.ahead(min(_FILES_AHEAD, 2**streak)):
                self._start(self._bytes, ahead)

    def entered(self, node: Node) -> None:
        """Take note of a directory that is being opened."""
        if not isinstance(node, EventsDir) or self._listed_assets is None or node.realm != "assets":
            return
        asset = AssetRef(node.realm, node.asset)
        assets = self._walk_of_assets()
        streak = assets.step(asset)
        if not streak:
            self._does = _LISTS
        self._walking = asset
        for ahead in assets.ahead(min(_ASSETS_AHEAD, 2**streak)):
            self._start(self._asset, ahead)

    # -- what is asked ahead -----------------------------------------------------------------------

    def _walk_of_assets(self) -> Walk[AssetRef]:
        assert self._listed_assets is not None
        if self._assets_of is not self._listed_assets:
            self._assets_of = self._listed_assets
            self._assets_known = 0
            self._assets = Walk([], (self._number, lambda ref: ref.asset))
        if self._assets_known != self._listed_assets.available:
            self._assets_known = self._listed_assets.available
            nodes = (self._listed_assets[i].node for i in range(self._assets_known))
            self._assets.extend([node for node in nodes if isinstance(node, AssetRef)])
        return self._assets

    def _on_the_way(self, file: AttachmentRef, does: int) -> None:
        """Take note of what a walk from asset to asset does with the files of the asset it is at."""
        if self._walking == AssetRef(file.realm, file.asset):
            self._does = max(self._does, does)

    async def _asset(self, asset: AssetRef) -> None:
        """Ask for an asset's events, and for as much of their files as the walk looks at."""
        record = await self._ledger.asset(asset)
        listing = self._ledger.events(asset)
        await listing.reach(0)
        if self._does == _LISTS:
            return
        files = _refs(asset, record.attachments)
        for one in listing.ids:
            event = EventRef(asset.realm, asset.asset, one)
            files += _refs(event, (await self._ledger.event(event)).attachments)
        for file in files:
            self._start(self._bytes if self._does == _OPENS else self._info, file)

    async def _info(self, file: AttachmentRef) -> None:
        await self._ledger.info(file)

    async def _bytes(self, file: AttachmentRef) -> None:
        """Fetch and verify a small file, if the budget allows."""
        if file in self._fetched:
            return
        self._fetched[file] = 0
        try:
            size = (await self._ledger.info(file)).size
            if size > _SMALL or sum(self._fetched.values()) + size > self._budget:
                self._fetched.pop(file, None)
                return
            if file in self._fetched:  # nobody has opened it meanwhile
                self._fetched[file] = size
                await self._blobs.prefetch(file)
        except AttachfsError:
            self._fetched.pop(file, None)
            raise
        while len(self._fetched) > 4 * _FILES_AHEAD:
            self._fetched.popitem(last=False)  # the walk went elsewhere, and nobody came for it

    def _start(self, ask: Callable[[Any], Awaitable[None]], what: object) -> None:
        self._nursery.start_soon(self._quietly, ask, what)

    async def _quietly(self, ask: Callable[[Any], Awaitable[None]], what: object) -> None:
        try:
            await ask(what)
        except AttachfsError:
            return  # whoever asks for it is told; nobody has yet


def _refs(owner: AssetRef | EventRef, attachments: tuple[Attachment, ...]) -> list[AttachmentRef]:
    event = owner.event if isinstance(owner, EventRef) else None
    return [
        AttachmentRef(owner.realm, owner.asset, event, one)
        for one in dict.fromkeys(attachment.id for attachment in attachments)
    ]
