"""What to ask for before it is asked for.

Today: a program that looks at a directory's files one after another (`ls -l`, a file manager, rsync)
gets all their `/info`s asked for side by side, as soon as the walk is recognised: it looks at the first
file listed, or at a second one. Looking at one file in the middle of a directory asks for one.
"""

from collections import OrderedDict

import trio

from attachfs.errors import AttachfsError
from attachfs.ledger import Ledger
from attachfs.model import AssetRef, AttachmentRef, EventRef
from attachfs.tree import Directory, Node

_DIRECTORIES = 256  # listed directories remembered
_WINDOW = 512  # attachments asked for ahead in one directory; an event has at most about 150


class _Walk:
    __slots__ = ("asked", "directory", "looked")

    def __init__(self, directory: Directory) -> None:
        self.directory = directory
        self.looked = 0  # files looked at since the directory was listed
        self.asked = False


class ReadAhead:
    """Watches what programs look at.

    Args:
        ledger: is asked ahead.
        nursery: where requests ahead run; their outcome is the ledger view's to keep.
    """

    def __init__(self, ledger: Ledger, nursery: trio.Nursery) -> None:
        self._ledger = ledger
        self._nursery = nursery
        self._walks: OrderedDict[Node, _Walk] = OrderedDict()

    def listed(self, directory: Directory) -> None:
        """Take note of a directory that has been listed."""
        if not isinstance(directory.node, AssetRef | EventRef):
            return
        self._walks[directory.node] = _Walk(directory)
        self._walks.move_to_end(directory.node)
        if len(self._walks) > _DIRECTORIES:
            self._walks.popitem(last=False)

    def stat(self, node: Node) -> None:
        """Take note of a file whose attributes are wanted and not known."""
        if not isinstance(node, AttachmentRef):
            return
        walk = self._walks.get(node.owner)
        if walk is None or walk.asked:
            return
        walk.looked += 1
        files = [
            entry.node
            for entry in (walk.directory[i] for i in range(walk.directory.available))
            if isinstance(entry.node, AttachmentRef)
        ]
        if walk.looked == 1 and files and files[0] != node:
            return
        walk.asked = True
        for file in files[:_WINDOW]:
            if file != node and self._ledger.known_info(file) is None:
                self._nursery.start_soon(self._ask, file)

    async def _ask(self, file: AttachmentRef) -> None:
        try:
            await self._ledger.info(file)
        except AttachfsError:
            return  # whoever looks at the file is told; nobody has yet
