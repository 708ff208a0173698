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

from attachfs.background import TaskStarter
from attachfs.errors import AttachfsError
from attachfs.fuse.access_order import AccessPattern
from attachfs.fuse.crawl import BulkRefresher, Crawl
from attachfs.ledger.view import Ledger
from attachfs.model import AssetRef, Attachment, AttachmentRef, EventRef
from attachfs.namespace.directory import Directory
from attachfs.namespace.nodes import ByNameNode, EventsDir, Node, Place
from attachfs.namespace.tree import Tree

_DIRECTORIES = 256  # listed directories remembered
_WINDOW = 512  # attachments whose /info is asked for ahead in one directory; an event has at most about 150
_DOUBLINGS = 6  # of what is asked ahead in a walk: at most 64 files or assets
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
        self.requested = False
        self.size = directory.available
        self._number = number
        self._pattern: AccessPattern[AttachmentRef] | None = None

    @property
    def pattern(self) -> AccessPattern[AttachmentRef]:
        """The walk over its files."""
        if self._pattern is None:
            self._pattern = AccessPattern(self.files, (self._number, lambda file: file.attachment))
        return self._pattern

    @property
    def files(self) -> list[AttachmentRef]:
        """The files listed, in the listing's order."""
        nodes = (self.directory[i].node for i in range(self.directory.available))
        return [node for node in nodes if isinstance(node, AttachmentRef)]


class ReadAhead:
    """Watches what programs do, and asks ahead.

    Args:
        tree: knows what entries stand for.
        ledger: is asked for listings and `/info`s; keeps the answers, whatever they are.
        blobs: fetches and verifies; keeps what is right.
        nursery: where requests ahead run.
        number: an inode's number, which some programs sort by.
        budget: bytes the cache may hold at most; no more than a quarter of it is fetched ahead.
    """

    def __init__(
        self,
        tree: Tree,
        ledger: Ledger,
        blobs: Prefetcher,
        nursery: TaskStarter,
        number: Callable[[Node], int],
        budget: int,
    ) -> None:
        self._tree = tree
        self._ledger = ledger
        self._blobs = blobs
        self._nursery = nursery
        self._number = number
        self._budget = min(_BUDGET, budget // 4)
        self._directories: OrderedDict[Node, _Files] = OrderedDict()
        self._refresher = BulkRefresher(ledger, tree, nursery)
        self._crawls: dict[Node, Crawl] = {}  # by the directory of assets
        self._does = _LISTS
        self._crawling: AssetRef | None = None
        self._fetched: OrderedDict[AttachmentRef, int] = OrderedDict()  # ahead, and not opened yet

    # -- what programs do --------------------------------------------------------------------------

    def listed(self, directory: Directory) -> None:
        """Take note of a directory whose entries have been read."""
        if directory.node in (Place.ASSETS, Place.BY_NAME):
            crawl = self._crawls.get(directory.node)
            if crawl is None or crawl.directory.names is not directory.names:
                self._crawls[directory.node] = Crawl(
                    directory, self._number, self._ledger.clock, self._in_thread
                )
            return
        if not isinstance(directory.node, AssetRef | EventRef):
            return
        cached = self._directories.get(directory.node)
        if cached is None or cached.directory is not directory or cached.size != directory.available:
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
        if files is None or files.requested:
            return
        files.looked += 1
        siblings = files.files
        # The first one listed, or a second one: a walk. One in the middle: somebody looks at that one.
        if files.looked == 1 and siblings and siblings[0] != file:
            return
        files.requested = True
        for sibling in siblings[:_WINDOW]:
            if sibling != file:
                self._start_info(sibling)

    def opened(self, file: AttachmentRef) -> None:
        """Take note of a file that is being opened."""
        self._fetched.pop(file, None)
        self._on_the_way(file, _OPENS)
        files = self._directories.get(file.owner)
        if files is None:
            return
        streak = files.pattern.step(file)
        if streak >= _FEW:
            for ahead in files.pattern.ahead(2 ** min(streak, _DOUBLINGS)):
                self._start(self._bytes, ahead)

    def entered(self, node: Node) -> None:
        """Take note of a directory that is being opened."""
        if isinstance(node, EventsDir) and node.realm == "assets":
            crawl, name = self._crawls.get(Place.ASSETS), node.asset
        elif isinstance(node, ByNameNode) and node.is_events:
            crawl, name = self._crawls.get(Place.BY_NAME), node.parts[0]
        else:
            return
        if crawl is None:
            return
        streak = crawl.step(name)
        if not streak:
            self._does = _LISTS
        self._crawling = self._tree.cached_asset(node)
        if self._does == _LISTS and self._crawling is not None:
            crawl.requested += not self._ledger.has_events(self._crawling)
        for ahead in crawl.pattern.ahead(2 ** min(streak, _DOUBLINGS)):
            asset = self._tree.cached_asset(crawl.directory.child(ahead))
            if asset is not None:
                self._fetch_ahead(asset, crawl)
        if crawl.done:
            del self._crawls[crawl.directory.node]  # with all that it knows of the order
        else:
            self._refresher.consider(crawl)

    # -- what is asked ahead -----------------------------------------------------------------------

    def _fetch_ahead(self, asset: AssetRef, crawl: Crawl) -> None:
        """Ask for what a walk will want of an asset, unless it is known or about to be."""
        cached = self._ledger.has_events(asset)
        if self._does == _LISTS and (cached or self._refresher.reads_events):
            return
        crawl.requested += not cached
        self._start(self._asset, asset)

    def _on_the_way(self, file: AttachmentRef, does: int) -> None:
        """Take note of what a walk from asset to asset does with the files of the asset it is at."""
        if self._crawling == AssetRef(file.realm, file.asset):
            self._does = max(self._does, does)

    async def _asset(self, asset: AssetRef) -> None:
        """Ask for an asset's events, and for as much of their files as the walk looks at."""
        record = await self._ledger.asset(asset)
        listing = self._ledger.events(asset)
        await listing.load_to(0)
        if self._does == _LISTS:
            return
        files = _refs(asset, record.attachments)
        for one in listing.ids:
            event = EventRef(asset.realm, asset.asset, one)
            files += _refs(event, (await self._ledger.event(event)).attachments)
        for file in files:
            if self._does == _OPENS:
                self._start(self._bytes, file)
            else:
                self._start_info(file)

    def _start_info(self, file: AttachmentRef) -> None:
        """Ask for a file's `/info` unless it is known; on the disk, while the service is silent."""
        if self._ledger.cached_info(file) is None and not self._ledger.start_info(file):
            self._start(self._info, file)

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
        while len(self._fetched) > 4 * 2**_DOUBLINGS:
            self._fetched.popitem(last=False)  # the walk went elsewhere, and nobody came for it

    def _in_thread(self, work: Callable[[], Callable[[], None]]) -> None:
        self._nursery.start_soon(self._sort, work)

    @staticmethod
    async def _sort(work: Callable[[], Callable[[], None]]) -> None:
        install = await trio.to_thread.run_sync(work)
        install()

    def _start(self, fetch: Callable[[Any], Awaitable[None]], what: object) -> None:
        self._nursery.start_soon(self._quietly, fetch, what)

    async def _quietly(self, fetch: Callable[[Any], Awaitable[None]], what: object) -> None:
        try:
            await fetch(what)
        except AttachfsError:
            return  # whoever asks for it is told; nobody has yet


def _refs(owner: AssetRef | EventRef, attachments: tuple[Attachment, ...]) -> list[AttachmentRef]:
    return [owner.attachment(one) for one in dict.fromkeys(attachment.id for attachment in attachments)]
