"""What stands in the tree: the kinds of node, their paths, and which child a name means.

A node is an identity and nothing else. What is known about it lives in the ledger view.
"""

from enum import Enum
from typing import NamedTuple

from attachfs.errors import NotFound
from attachfs.model import EVENTS, AssetRef, AttachmentRef, EventRef, Realm

BY_NAME = "by-name"


class Place(Enum):
    """The directories that are there on every ledger."""

    ROOT = ""
    ASSETS = "assets"
    PUBLICASSETS = "publicassets"
    BY_NAME = BY_NAME

    @property
    def path(self) -> str:
        """The path below the mount; the root's is empty."""
        return self.value


class EventsDir(NamedTuple):
    """An asset's `events` directory. `name` keeps it apart from the asset's own node."""

    realm: Realm
    asset: str
    name: str = EVENTS

    @property
    def path(self) -> str:
        """The path below the mount, without a leading slash."""
        return f"{self.owner.path}/{EVENTS}"

    @property
    def owner(self) -> AssetRef:
        """The asset whose events they are."""
        return AssetRef(self.realm, self.asset)


class ByNameNode(NamedTuple):
    """A node below `by-name`: its path and nothing else; what it stands for is resolved on use."""

    parts: tuple[str, ...]

    @property
    def path(self) -> str:
        """The path below the mount, without a leading slash."""
        return "/".join((BY_NAME, *self.parts))

    @property
    def parent(self) -> "ByNameNode | None":
        """The directory it is in; None for `by-name` itself."""
        return ByNameNode(self.parts[:-1]) if len(self.parts) > 1 else None

    @property
    def is_events(self) -> bool:
        """Whether it is an asset's `events` directory: no file is called so."""
        return len(self.parts) == 2 and self.parts[1] == EVENTS

    @property
    def is_link(self) -> bool:
        """Whether it is a symbolic link."""
        return len(self.parts) == 4 or (len(self.parts) == 2 and not self.is_events)

    @property
    def link_size(self) -> int:
        """The length of the link's target: all identities have the same."""
        nobody = "0" * 36
        event = nobody if len(self.parts) == 4 else None
        return len(self.target(AttachmentRef("assets", nobody, event, nobody)))

    def target(self, file: AttachmentRef) -> str:
        """Return the link's target."""
        return "../" * len(self.parts) + file.path


Node = Place | AssetRef | EventsDir | EventRef | AttachmentRef | ByNameNode


ROOT = Place.ROOT


def parent_of(node: Node) -> Node:
    """Return the directory that holds `node`; the root's is the root."""
    match node:
        case Place():
            return ROOT
        case AssetRef():
            return Place(node.realm)
        case EventRef():
            return EventsDir(node.realm, node.asset)
        case ByNameNode():
            return node.parent or Place.BY_NAME
        case EventsDir() | AttachmentRef():
            return node.owner


def child_of(parent: Node, name: str) -> Node:
    """Return the node that `name` means in the directory `parent`, whether it exists or not.

    Raises:
        NotFound: `parent` has no children.
    """
    match parent:
        case Place.ASSETS:
            return AssetRef("assets", name)
        case Place.PUBLICASSETS:
            return AssetRef("publicassets", name)
        case EventsDir():
            return EventRef(parent.realm, parent.asset, name)
        case AssetRef() | EventRef():
            return parent.attachment(name)
        case Place.BY_NAME | ByNameNode():
            return ByNameNode((*(parent.parts if isinstance(parent, ByNameNode) else ()), name))
    raise NotFound(f"{parent.path}/{name}")
