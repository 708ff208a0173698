"""Entries: what `stat` and a lookup are told, in the form the kernel wants it.

A file that is known is told again and again: its entry is kept ready for as long as the ledger believes the
record that it was made from, so that a lookup of it is a look into a table.
"""

import stat
from collections import OrderedDict
from typing import NamedTuple

import pyfuse3
from pyfuse3 import InodeT, ModeT

from attachfs.fuse.inodes import InodeTable
from attachfs.ledger.derived import Derived
from attachfs.ledger.ttl_cache import CacheEntry
from attachfs.ledger.view import Ledger
from attachfs.model import AttachmentRef, Info
from attachfs.namespace.nodes import Node
from attachfs.namespace.tree import Attributes, Tree

IO_SIZE = 128 * 1024  # bytes; what the kernel asks for at a time, and cp with it
_BLOCK = 512  # bytes, the unit of st_blocks
_READY = 4096  # entries kept ready; one takes some 700 bytes, and may hold on to an /info of 1 KiB
_ABSENT_FOR = 3600.0  # seconds for which an absence is remembered at most


class Ownership(NamedTuple):
    """Who owns everything, and the permission bits that are taken away."""

    uid: int
    gid: int
    umask: int


class _CachedEntry(Derived):
    """A file's entry, its inode's number, and the attributes in it."""

    __slots__ = ("attributes", "entry", "number")

    def __init__(
        self,
        ledger: Ledger,
        file: AttachmentRef,
        cached: CacheEntry[Info],
        made: tuple[int, Attributes, pyfuse3.EntryAttributes],
    ) -> None:
        super().__init__(ledger, file, cached)
        self.number, self.attributes, self.entry = made


class Entries:
    """Makes entries, and keeps those of known files ready.

    Args:
        tree: the namespace.
        inodes: what the kernel knows.
        ownership: uid, gid and umask of everything.
    """

    def __init__(self, tree: Tree, inodes: InodeTable, ownership: Ownership) -> None:
        self._tree = tree
        self._ledger = tree.ledger
        self._inodes = inodes
        self._uid, self._gid = ownership.uid, ownership.gid
        self._file = ModeT((stat.S_IFREG | 0o444) & ~ownership.umask)
        self._directory = ModeT((stat.S_IFDIR | 0o555) & ~ownership.umask)
        self._link = ModeT(stat.S_IFLNK | 0o777)  # what is asked for is its target's
        self._ready: OrderedDict[tuple[Node, bytes], _CachedEntry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._ready)

    def make(self, number: int, attributes: Attributes, entry_timeout: float) -> pyfuse3.EntryAttributes:
        """Return the entry of the inode `number`."""
        entry = pyfuse3.EntryAttributes()
        size, time_ns = attributes.size, attributes.time_ns
        entry.st_ino = InodeT(number)
        entry.st_mode = self._directory if attributes.is_dir else self._file
        if attributes.is_link:
            entry.st_mode = self._link
        # 1 for directories too: find(1) then does not infer from it how many directories are below.
        entry.st_nlink = 1
        entry.st_uid = self._uid
        entry.st_gid = self._gid
        entry.st_size = size
        entry.st_blksize = IO_SIZE
        entry.st_blocks = -(-size // _BLOCK)
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = time_ns
        entry.entry_timeout = entry_timeout
        entry.attr_timeout = attributes.valid_for if attributes.size_known else 0
        return entry

    @staticmethod
    def absent(seconds: float) -> pyfuse3.EntryAttributes:
        """Return a negative entry: the kernel may remember for a while that there is no such name."""
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = InodeT(0)
        entry.entry_timeout = min(seconds, _ABSENT_FOR)
        return entry

    def found(self, parent: Node, name: bytes, node: Node, attributes: Attributes) -> pyfuse3.EntryAttributes:
        """Return the entry of what was looked up, and count the lookup. A known file's is kept ready.

        Raises:
            IntegrityError: it is open, and was told to have another size.
        """
        number = self._inodes.number(node)
        live = self._inodes.peek(number)
        if live is not None:
            live.update_attributes(attributes)
        entry = self.make(number, attributes, attributes.valid_for)
        _, inode = self._inodes.remember(node, number)
        inode.returned(attributes)
        if isinstance(node, AttachmentRef):
            self._keep((parent, name), node, (number, attributes, entry))
        return entry

    def ready(self, parent: Node, name: bytes) -> pyfuse3.EntryAttributes | None:
        """Return the entry of a file that is known, and count the lookup; None if there is none ready.

        Raises:
            IntegrityError: it is open, and was told to have another size.
        """
        ready = self._ready.get((parent, name))
        if ready is None or not (ttl_remaining := ready.ttl_remaining()):
            return None
        number, attributes = ready.number, ready.attributes
        inode = self._inodes.peek(number)
        if inode is None:
            # The kernel has forgotten it since. If numbers have been disputed, it may have another one now.
            if self._inodes.disputed:
                return None
            _, inode = self._inodes.remember(ready.file, number)
            inode.returned(attributes)
        else:
            if inode.node is not ready.file and inode.node != ready.file:
                return None
            if inode.attributes is not attributes:
                inode.update_attributes(attributes)
            inode.lookups += 1
        entry = ready.entry
        entry.entry_timeout = entry.attr_timeout = ttl_remaining
        return entry

    def _keep(
        self,
        key: tuple[Node, bytes],
        file: AttachmentRef,
        made: tuple[int, Attributes, pyfuse3.EntryAttributes],
    ) -> None:
        cached = self._ledger.cached_info(file)
        # What has been told may be of a record that was replaced while somebody waited for it.
        if cached is None or made[1][:3] != self._tree.attributes_of(file, cached)[:3]:
            return
        self._ready[key] = _CachedEntry(self._ledger, file, cached, made)
        self._ready.move_to_end(key)
        if len(self._ready) > _READY:
            self._ready.popitem(last=False)
