"""How the story is told: identities made from names, and the originals of attachments. No story itself."""

import os
import shutil
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from attachfs.demo.records import Blob
from attachfs.demo.store import Store, attachment

_NAMESPACE = uuid.UUID("6a1d3c52-8a55-5d0e-9f3e-2b0c4f6f7a11")


def uid(name: str) -> str:
    """Return the UUID that stands for `name` in every demo ledger."""
    return str(uuid.uuid5(_NAMESPACE, name))


@dataclass
class Story:
    """Where the interesting attachments are, as paths below the mount.

    `odd` is an event with oddly named attachments, `public_asset` a public asset, `untracked` an asset that
    listings leave out, `shared` one blob in several places, `superseded` a picture that only the asset's
    first event still has; `rewritten` is on an event whose record is no longer what the log sealed; `legacy`
    is recorded in the shape from before 2023, `publish` in asset_attributes.

    `digests` has the recorded SHA-256 of every attachment by its path, those that cannot be read included;
    `unreadable` says which those are, and why.
    """

    photo: str = ""
    pdf: str = ""
    footage: str = ""
    sbom: str = ""
    archive: str = ""
    empty: str = ""
    tampered: str = ""
    infected: str = ""
    forbidden: str = ""
    unscanned: str = ""
    odd: str = ""
    public_asset: str = ""
    public: str = ""
    legacy: str = ""
    publish: str = ""
    superseded: str = ""
    rewritten: str = ""
    untracked: str = ""
    shared: list[str] = field(default_factory=list)
    digests: dict[str, str] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)

    def places(self) -> dict[str, str]:
        """Return the single paths by their names here, for whoever cannot have the object."""
        return {name: value for name, value in vars(self).items() if isinstance(value, str)}

    def originals(self, directory: Path) -> dict[str, Path]:
        """Lay the true bytes of every attachment out below `directory`, as the mount does, and return where.

        Those in `unreadable`, and those of the asset that no listing shows, are left out.
        """
        laid: dict[str, Path] = {}
        for path, file in self.files.items():
            if path in self.unreadable or path.startswith(f"{self.untracked}/"):
                continue
            target = directory / path
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(file, target)
            except OSError:
                shutil.copyfile(file, target)
            laid[path] = target
        return laid


class StoryWriter:
    """Puts assets, events and blobs into a store under identities made from names."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.story = Story()

    def blob(self, name: str, content: bytes | BinaryIO, at: str, *, scan: str = "SCANNED_OK") -> Blob:
        """Store a blob."""
        return self.store.add_blob(content, blob_id=uid(f"blob {name}"), at=at, scan=scan)

    def attach(self, name: str, content: bytes | BinaryIO, at: str, display_name: str = "") -> dict[str, str]:
        """Store a blob under its file's name and return the attribute value that attaches it."""
        return attachment(self.blob(name, content, at), name, display_name)

    def asset(
        self, name: str, kind: str, at: str, attributes: dict[str, Any], *, public: bool = False
    ) -> str:
        """Create an asset; its display name is `name`."""
        return self.store.create_asset(
            {"arc_display_name": name, "arc_display_type": kind, **attributes},
            asset_id=uid(f"asset {name}"),
            event_id=uid(f"event 0 {name}"),
            public=public,
            at=at,
        )

    def event(
        self,
        asset: str,
        kind: str,
        at: str,
        attributes: dict[str, Any],
        asset_attributes: dict[str, Any] | None = None,
        *,
        operation: str = "Record",
        who: str = "",
    ) -> str:
        """Create an event of a type."""
        event = self.store.create_event(
            asset,
            {"arc_display_type": kind, **attributes},
            asset_attributes,
            operation=operation,
            event_id=uid(f"event {kind} {at} {asset}"),
            at=at,
            principal=who or None,
        )
        assert event is not None
        return f"assets/{asset}/events/{event}"

    def finish(self) -> Story:
        """Record what is attached where, and return the story."""
        for path, blob in self.store.attachments():
            self.story.digests[path] = blob.digest
            self.story.files[path] = self.store.original(blob.id)
        return self.story


def path_of(place: str, value: dict[str, str]) -> str:
    """Return the path of an attachment below the place that carries it."""
    identity = value.get("arc_blob_identity") or value["arc_attachment_identity"]
    return f"{place}/{identity.rsplit('/', 1)[-1]}"
