"""The namespace without FUSE: nodes, lookup, children, attributes, extended attributes.

    /assets/<asset>/<attachment>                         a file
    /assets/<asset>/events/<event>/<attachment>          a file
    /publicassets/<asset>/…                              the same; entered by name, never listed
    /by-name/<asset name>/…                              symbolic links to the files; see by_name.py

A node is an identity and nothing else. What is known about it lives in the ledger view.
"""

from contextlib import suppress
from typing import NamedTuple

from attachfs import model
from attachfs.errors import AccessDenied, AttachfsError, NoAttribute, NotDirectory, NotFound
from attachfs.ledger.listings import Listing
from attachfs.ledger.ttl_cache import CacheEntry
from attachfs.ledger.view import Ledger
from attachfs.model import EVENTS, AssetRef, AttachmentRef, EventRef, Info, is_uuid
from attachfs.namespace.by_name import ByName
from attachfs.namespace.directory import Directory, Entry, directory_of_links, directory_of_record
from attachfs.namespace.nodes import ROOT, ByNameNode, EventsDir, Node, Place, child_of
from attachfs.namespace.xattrs import (
    FileXattrs,
    RecordXattrs,
    encoded,
    listed,
    of_file_is_possible,
    record_value,
)


class Attributes(NamedTuple):
    """What `stat` tells: `size` in bytes (0 for directories), time in ns, seconds for which it is good.

    `size_known` is False where the size is not known yet: such attributes must not be kept by anybody.
    """

    is_dir: bool
    size: int
    time_ns: int
    valid_for: float
    size_known: bool = True
    is_link: bool = False


class Tree:
    """The tree over a ledger.

    Args:
        ledger: the ledger view.
        base_url: the service's address, for `user.xdg.origin.url`.
        born_ns: the time of the directories that are always there.
        fixed_ttl: seconds for which the directories that are always there may be remembered.
    """

    def __init__(self, ledger: Ledger, base_url: str, born_ns: int, *, fixed_ttl: float = 3600) -> None:
        self._ledger = ledger
        self.by_name = ByName(ledger)
        self._born_ns = born_ns
        self._fixed_ttl = fixed_ttl
        self._unknown = Attributes(False, 0, 0, 0, size_known=False)
        self._file_xattrs = FileXattrs(ledger, base_url)
        self._record_xattrs = RecordXattrs()

    @property
    def ledger(self) -> Ledger:
        """What it is a tree of."""
        return self._ledger

    async def lookup(self, parent: Node, name: str) -> tuple[Node, Attributes]:
        """Return the child called `name` and its attributes, having made sure that it exists.

        Raises:
            NotFound: it does not exist; no request is made for a name that cannot.
            AttachfsError: it could not be asked.
        """
        node = self._named(parent, name)
        if isinstance(node, ByNameNode):
            if not node.is_events and self.by_name.resolved(node) is None:
                await self.by_name.resolve(node)
        elif isinstance(node, AttachmentRef):
            return node, await self.attributes(node)
        if isinstance(node, AssetRef | EventRef):
            # Policies work per attribute: an attachment below may be readable although its owner's record is
            # not. As with a directory without r, one can pass through but not list it.
            with suppress(AccessDenied):
                await self._ledger.record(node)
        return node, self.cached_attributes(node)

    def cached_asset(self, node: Node) -> AssetRef | None:
        """Return which asset a directory of assets' entry is, or an `events` directory's, without asking."""
        if isinstance(node, AssetRef):
            return node
        if isinstance(node, EventsDir):
            return node.owner
        if isinstance(node, ByNameNode):
            owner = self.by_name.cached_owner(ByNameNode(node.parts[:1]))
            return owner if isinstance(owner, AssetRef) else None
        return None

    def cached_file(self, parent: Node, name: str) -> tuple[Node, Attributes] | None:
        """Return the file that `name` would be below `parent`, and what is known of it without asking."""
        if isinstance(parent, AssetRef | EventRef) and is_uuid(name):
            node = child_of(parent, name)
            return node, self.cached_attributes(node)
        return None

    async def link_target(self, node: Node) -> str:
        """Return where a symbolic link leads.

        Raises:
            NotFound: it is none, or no file has this name any more.
            AttachfsError: it could not be asked.
        """
        if isinstance(node, ByNameNode) and node.is_link:
            file = await self.by_name.resolve(node)
            if isinstance(file, AttachmentRef):
                return node.target(file)
        raise NotFound(f"{node.path} is no symbolic link")

    def cached_directory(self, node: Node) -> Directory | None:
        """Return a directory to be read, if nothing has to be asked for it."""
        if isinstance(node, AssetRef | EventRef):
            record = self._ledger.fresh_record(node)
            return None if record is None else directory_of_record(node, record.attachments)
        if isinstance(node, ByNameNode):
            return self._cached_named(node)
        if isinstance(node, AttachmentRef):
            return None
        head: list[Entry] = []
        listing: Listing | None = None
        if isinstance(node, EventsDir):
            listing = self._ledger.events(node.owner)
        elif node is Place.ROOT:
            head = [Entry(p.value, p) for p in (Place.ASSETS, Place.PUBLICASSETS, Place.BY_NAME)]
        elif node is not Place.PUBLICASSETS:
            listing = (self.by_name if node is Place.BY_NAME else self._ledger).assets()
        return Directory(node, head, listing)

    def _cached_named(self, node: ByNameNode) -> Directory | None:
        owner = self.by_name.resolved(node)
        if owner is None:
            return None
        if node.is_events and isinstance(owner, AssetRef):
            return Directory(node, [], self.by_name.events(owner))
        files = self.by_name.files.cached(owner)
        return None if files is None else directory_of_links(node, owner, files)

    async def open_directory(self, node: Node) -> Directory:
        """Return a directory to be read.

        Raises:
            NotDirectory: `node` is a file.
            AttachfsError: its contents could not be asked.
        """
        cached = self.cached_directory(node)
        if cached is not None:
            return cached
        match node:
            case AssetRef() | EventRef():
                return directory_of_record(node, (await self._ledger.record(node)).attachments)
            case AttachmentRef():
                raise NotDirectory(f"{node.path} is a file")
            case ByNameNode():
                return await self._open_named(node)
        raise NotFound(node.path)

    async def _open_named(self, node: ByNameNode) -> Directory:
        owner = await self.by_name.resolve(node)
        if isinstance(owner, AttachmentRef):
            raise NotDirectory(f"{node.path} is a symbolic link")
        if node.is_events:
            assert isinstance(owner, AssetRef)
            return Directory(node, [], self.by_name.events(owner))
        return directory_of_links(node, owner, await self.by_name.files.all(owner))

    async def attributes(self, node: Node) -> Attributes:
        """Return a node's attributes, asking for `/info` where a file's is not known.

        Raises:
            AttachfsError: it could not be asked.
        """
        if isinstance(node, AttachmentRef):
            info = await self._ledger.info(node)
            if not info.time_ns:
                with suppress(AttachfsError):  # what is readable without its owner stays so
                    await self._ledger.record(node.owner)
            cached = self._ledger.cached_info(node)
            time_ns = self._time_of(node, info)
            expires = 0 if cached is None or time_ns is None else cached.expires
            return Attributes(False, info.size, time_ns or 0, self.ttl_remaining(expires))
        return self.cached_attributes(node)

    def cached_attributes(self, node: Node) -> Attributes:
        """Return a node's attributes from what is known, without asking."""
        if isinstance(node, AttachmentRef):
            return self.attributes_of(node, self._ledger.cached_info(node))
        if isinstance(node, Place):
            return Attributes(True, 0, self._born_ns, self._fixed_ttl)
        if isinstance(node, ByNameNode):
            return self._named_attributes(node)
        ref = node.owner if isinstance(node, EventsDir) else node
        record = self._ledger.cached_record(ref)
        if record is None or isinstance(record.value, Exception):
            return Attributes(True, 0, 0, 0)
        return Attributes(True, 0, record.value.time_ns, self.ttl_remaining(record.expires))

    def attributes_of(self, file: AttachmentRef, cached: CacheEntry[Info] | None) -> Attributes:
        """Return the attributes of a file of which this `/info` is known."""
        if cached is None or not isinstance(cached.value, Info):
            return self._unknown
        time_ns = self._time_of(file, cached.value)
        if time_ns is None:
            return self._unknown
        return Attributes(False, cached.value.size, time_ns, self.ttl_remaining(cached.expires))

    def _time_of(self, file: AttachmentRef, info: Info) -> int | None:
        """Return a file's time: its own, else its owner's, else 1970; None if the owner's is not known.

        A backup takes a file for changed whose time has changed: it must be the same on every mount.
        """
        if info.time_ns:
            return info.time_ns
        owner = self._ledger.cached_record(file.owner)
        if owner is None:
            return None
        return 0 if isinstance(owner.value, Exception) else owner.value.time_ns

    def ttl_remaining(self, expires: float) -> float:
        """Return the seconds until a time on the ledger's clock, 0 after it."""
        return max(0.0, expires - self._ledger.clock())

    def _named_attributes(self, node: ByNameNode) -> Attributes:
        """Return the owner's time, for a directory and for the links in it."""
        record = self.by_name.cached_record(node)
        size = node.link_size if node.is_link else 0
        found = Attributes(not node.is_link, size, 0, 0, is_link=node.is_link)
        if record is None or isinstance(record.value, Exception):
            return found
        return found._replace(time_ns=record.value.time_ns, valid_for=self.ttl_remaining(record.expires))

    def xattr_is_possible(self, node: Node, name: str) -> bool:
        """Whether an extended attribute may exist, judging by its name: no request is made for others."""
        if isinstance(node, AttachmentRef):
            return of_file_is_possible(name)
        prefix = _record_prefix(node)
        return prefix is not None and name.startswith(f"{prefix}.")

    async def xattr(self, node: Node, name: str) -> bytes:
        """Return an extended attribute's value.

        Raises:
            NoAttribute: there is none of that name.
            AttachfsError: it could not be asked.
        """
        if not self.xattr_is_possible(node, name):
            raise NoAttribute(f"{node.path} has no attribute {name}")
        node = await self._recorded(node)
        if isinstance(node, AttachmentRef):
            return self._file_xattrs.value(node, await self._ledger.info(node), name)
        if isinstance(node, AssetRef | EventRef):
            raw = await self._ledger.raw_record(node)
            value = record_value(raw, node.path, name)
            if value is not None:
                return value
        values = await self._xattrs(node)
        if name not in values:
            raise NoAttribute(f"{node.path} has no attribute {name}")
        return values[name]

    def cached_xattr(self, node: Node, name: bytes) -> bytes | None:
        """Return a file's extended attribute from what is known, or None if it has to be asked for.

        Raises:
            NoAttribute: there is none of that name.
            AttachfsError: the file is known not to be there, or not to be readable.
        """
        return self._file_xattrs.cached(node, name) if isinstance(node, AttachmentRef) else None

    def cached_xattr_names(self, node: Node) -> list[bytes] | None:
        """Return the names of a node's listed extended attributes, or None if they have to be asked for.

        Raises:
            AttachfsError: a file is known not to be there, or not to be readable.
        """
        if isinstance(node, AttachmentRef):
            return self._file_xattrs.cached_names(node)
        prefix = _record_prefix(node)
        if prefix is None:
            return []
        owner = self.by_name.cached_owner(node) if isinstance(node, ByNameNode) else node
        record = self._ledger.fresh_record(owner) if isinstance(owner, AssetRef | EventRef) else None
        return None if record is None else self._record_xattrs.cached_names(prefix, record.fields)

    async def xattr_names(self, node: Node) -> list[bytes]:
        """Return the names of the listed extended attributes.

        Raises:
            AttachfsError: they could not be asked.
        """
        return listed(await self._xattrs(await self._recorded(node)))

    async def _recorded(self, node: Node) -> Node:
        """Return whose record a node's extended attributes are: a named directory has its owner's."""
        if isinstance(node, ByNameNode) and _record_prefix(node) is not None:
            return await self.by_name.resolve(node)
        return node

    async def _xattrs(self, node: Node) -> dict[str, bytes]:
        if isinstance(node, AttachmentRef):
            return self._file_xattrs.all(node, await self._ledger.info(node))
        if isinstance(node, AssetRef | EventRef):
            prefix = _record_prefix(node)
            fields = model.flatten(await self._ledger.raw_record(node), node.path)
            return encoded({f"{prefix}.{k}": v for k, v in fields.items()})
        return {}

    def _named(self, parent: Node, name: str) -> Node:
        """Return the node that `name` would be below `parent`; NotFound if there can be none."""
        match parent:
            case Place.ROOT if name in (Place.ASSETS.value, Place.PUBLICASSETS.value, Place.BY_NAME.value):
                return Place(name)
            case Place.BY_NAME | ByNameNode(is_link=False):
                return child_of(parent, name)
            case ByNameNode():
                raise NotDirectory(f"{parent.path} is a symbolic link")
            case AssetRef() if name == EVENTS:
                return EventsDir(parent.realm, parent.asset)
            case AttachmentRef():
                raise NotDirectory(f"{parent.path} is a file")
        if parent is ROOT or not is_uuid(name):
            raise NotFound(f"{parent.path}/{name!a} cannot exist: it is not an identity")
        return child_of(parent, name)


def _record_prefix(node: Node) -> str | None:
    """Return how the extended attributes of a node that has a record begin."""
    depth = len(node.parts) if isinstance(node, ByNameNode) else 0
    if isinstance(node, AssetRef) or depth == 1:
        return "user.asset"
    return "user.event" if isinstance(node, EventRef) or depth == 3 else None
