"""An open directory: a fixed head of entries, then what its listing brings."""

from typing import NamedTuple

from attachfs import model
from attachfs.ledger.listings import Listing
from attachfs.model import EVENTS, AssetRef, AttachmentRef, EventRef
from attachfs.namespace.nodes import ByNameNode, EventsDir, Node, child_of


class Entry(NamedTuple):
    """A directory's entry."""

    name: str
    node: Node


class Directory:
    """An open directory: a fixed head of entries, then what its listing brings.

    Entries keep their index for as long as the directory is open, so that a reader may stop and go on.
    `behind` is, for one of links, the directory that the files they lead to are in.
    """

    def __init__(
        self, node: Node, head: list[Entry], listing: Listing | None, behind: "Directory | None" = None
    ) -> None:
        self.node = node
        self.behind = behind
        self._head = head
        self._listing = listing

    @property
    def names(self) -> list[str]:
        """What its listing has brought so far; it grows."""
        return self._listing.ids if self._listing else []

    def child(self, name: str) -> Node:
        """Return the node of an entry that its listing brings."""
        return child_of(self.node, name)

    @property
    def available(self) -> int:
        """How many entries can be had without waiting."""
        return len(self._head) + (len(self._listing.ids) if self._listing else 0)

    @property
    def complete(self) -> bool:
        """Whether there are no more entries than those available."""
        return self._listing is None or self._listing.complete

    async def load_to(self, index: int) -> bool:
        """Wait until the entry at `index` is available; False if the directory ends before it.

        Raises:
            AttachfsError: a page of the listing could not be had.
        """
        if index < len(self._head):
            return True
        return self._listing is not None and await self._listing.load_to(index - len(self._head))

    def __getitem__(self, index: int) -> Entry:
        """Return an available entry."""
        if index < len(self._head):
            return self._head[index]
        assert self._listing is not None
        name = self._listing.ids[index - len(self._head)]
        return Entry(name, child_of(self.node, name))


def directory_of_record(node: AssetRef | EventRef, attachments: tuple[model.Attachment, ...]) -> Directory:
    """Return an asset's or event's directory: its attachments, and an asset's `events`."""
    files = _attachments(node, attachments)
    if isinstance(node, AssetRef):
        files.insert(0, Entry(EVENTS, EventsDir(node.realm, node.asset)))
    return Directory(node, files, None)


def directory_of_links(
    node: ByNameNode, owner: AssetRef | EventRef, files: dict[str, AttachmentRef]
) -> Directory:
    """Return a directory of `by-name` with a link for each file, and an asset's `events`."""
    head = [Entry(name, child_of(node, name)) for name in files]
    if isinstance(owner, AssetRef):
        head.insert(0, Entry(EVENTS, child_of(node, EVENTS)))
    behind = Directory(owner, [Entry(file.attachment, file) for file in files.values()], None)
    return Directory(node, head, None, behind)


def _attachments(owner: AssetRef | EventRef, attachments: tuple[model.Attachment, ...]) -> list[Entry]:
    """Return a file for each attachment, once however many attributes mention it."""
    return [Entry(name, child_of(owner, name)) for name in dict.fromkeys(a.id for a in attachments)]
