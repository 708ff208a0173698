"""What an export takes of a mount: the records as received, written into the bag, and the files to copy."""

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

from attachfs import model
from attachfs.archive import layout
from attachfs.archive.entries import Exported, name_of
from attachfs.archive.layout import Events, Everything, Place
from attachfs.archive.writer import write_file
from attachfs.cli import output
from attachfs.cli.paths import read_record
from attachfs.errors import AttachfsError, Unexpected, UsageError
from attachfs.model import EVENTS, Asset, AssetRef, Attachment, AttachmentRef, Event, EventRef, is_uuid
from attachfs.mount.mountinfo import real_path


class Scanned(NamedTuple):
    """What one asset, event or file has: tag files written (path, SHA-256), and what is to be exported.

    Entries with an errno could not be read: `complete` is False then, and it is to be scanned again.
    """

    path: str
    tags: list[tuple[str, str]]
    entries: list[Exported]

    @property
    def complete(self) -> bool:
        """Whether everything could be read."""
        return not any(entry.errno for entry in self.entries)


def place_of(path: Path, point: Path) -> Place:
    """Return what a path on the mount at `point` stands for; a name below `by-name` means what it points to.

    Raises:
        UsageError: it is nothing that can be exported.
    """
    point = Path(os.path.realpath(point))
    found = Path(os.path.realpath(path))
    if not found.is_relative_to(point):
        raise UsageError(f"{path} leads out of the mount {point}")
    inside = found.relative_to(point)
    parts = inside.parts
    if parts[:1] == ("by-name",):
        return _named(found, parts[1:])
    place = layout.parse_place("/".join(parts))
    if place is None:
        hint = " one by one: it cannot be listed" if parts == ("publicassets",) else ""
        raise UsageError(f"{path} is not an asset, event or attachment; give one of these{hint}")
    return place


def _named(path: Path, names: tuple[str, ...]) -> Place:
    if not names:
        return Everything()
    kind = {1: "asset", 2: "asset", 3: "event"}[len(names)]
    named = path.parent if len(names) == 2 else path
    try:
        identity = json.loads(read_record(named, kind))["identity"]
    except OSError as error:
        raise UsageError(f"{path}: {output.reason_of(error)}") from error
    place = layout.parse_place(f"{identity}/{EVENTS}" if len(names) == 2 else str(identity))
    if place is None:
        raise UsageError(f"{path}: its record has no identity that can be exported")
    return place


class Source(NamedTuple):
    """The mount that is exported: where it is, and its device, by which another in its place is noticed."""

    point: Path
    device: int

    @classmethod
    def at(cls, point: Path) -> Self:
        """Return the mount at a place. OSError: it does not answer."""
        return cls(real_path(point), point.stat().st_dev)

    def check(self) -> None:
        """Make sure that the mount is still there: else everything would look refused, or absent.

        Raises:
            Unexpected: it is not.
        """
        try:
            if self.point.stat().st_dev == self.device:
                return
            reason = "it was unmounted"
        except OSError as error:
            reason = output.reason_of(error)
        raise Unexpected(
            f"the mount {self.point} has gone ({reason}): mount it again, and run this again to go on"
        )


class Scanner:
    """Reads what there is below a mount, and writes the records into a bag. Thread-safe.

    Args:
        source: the mount.
        bag: the bag's directory.
        work: where files are written before they get their names.
    """

    def __init__(self, source: Source, bag: Path, work: Path) -> None:
        self._source = source
        self._point = source.point
        self._bag = bag
        self._work = work

    def places(self, places: Iterable[Place]) -> Iterator[Place | Exported]:
        """Yield the places, all assets one by one; or why they could not be listed."""
        for place in places:
            if not isinstance(place, Everything):
                yield place
                continue
            try:
                with os.scandir(self._point / place.path) as entries:
                    yield from (AssetRef("assets", entry.name) for entry in entries)
            except OSError as error:
                yield self._failure(place.path, error)

    def scan(self, place: Place | Exported) -> Scanned:
        """Write a place's records, and those of its owners, and return what is to be exported of it."""
        if isinstance(place, Exported | Everything):
            return Scanned(place.path, [], [place] if isinstance(place, Exported) else [])
        found = Scanned(place.path, [], [])
        asset = AssetRef(place.realm, place.asset)
        record = self._owner(asset, found)
        if isinstance(place, AssetRef):
            self._files(asset, record, found, record, None)
        if isinstance(place, AssetRef | Events):
            self._events(asset, record, found)
        elif isinstance(place, EventRef):
            self._event(place, record, found)
        else:
            event = None
            if isinstance(place.owner, EventRef):
                event = self._owner(place.owner, found)
            self._file(place, event or record, found, record, event)
        return found

    def _events(self, asset: AssetRef, record: Asset | Event | None, found: Scanned) -> None:
        folder = f"{asset.path}/{EVENTS}"
        try:
            names = _names(self._point / folder)
        except OSError as error:
            found.entries.append(self._failure(folder, error))
            return
        for name in names:
            self._event(EventRef(asset.realm, asset.asset, name), record, found)

    def _event(self, ref: EventRef, asset: Asset | Event | None, found: Scanned) -> None:
        event = self._owner(ref, found)
        self._files(ref, event, found, asset, event)

    def _owner(self, ref: AssetRef | EventRef, found: Scanned) -> Asset | Event | None:
        """Write an asset's or event's record and return what it says."""
        try:
            raw = read_record(self._point / ref.path, "asset" if isinstance(ref, AssetRef) else "event")
        except OSError as error:
            found.entries.append(self._failure(ref.path, error))
            return None
        path = layout.record_path(ref)
        found.tags.append((path, write_file(self._bag, path, raw, self._work)))
        with contextlib.suppress(AttachfsError):
            body = model.decode(raw, ref.path)
            if isinstance(ref, AssetRef):
                return model.parse_asset(body, ref, _ignore)
            parsed = model.parse_event(body, ref.asset, _ignore)
            return parsed[1] if parsed else None
        return None

    def _files(
        self,
        ref: AssetRef | EventRef,
        owner: Asset | Event | None,
        found: Scanned,
        asset: Asset | Event | None,
        event: Asset | Event | None,
    ) -> None:
        try:
            names = _names(self._point / ref.path)
        except OSError as error:
            if owner is not None:  # else its record has failed for the same reason
                found.entries.append(self._failure(ref.path, error))
            return
        for name in names:
            ids = (ref.realm, ref.asset, ref.event if isinstance(ref, EventRef) else None)
            self._file(AttachmentRef(*ids, name), owner, found, asset, event)

    def _file(
        self,
        ref: AttachmentRef,
        owner: Asset | Event | None,
        found: Scanned,
        asset: Asset | Event | None,
        event: Asset | Event | None,
    ) -> None:
        """Write a file's record and note it for export."""
        fields: dict[str, Any] = {
            "path": ref.path,
            "name": _title(ref.attachment, owner),
            "asset": asset.display_name if isinstance(asset, Asset) else "",
            "event": _event_title(event) if isinstance(event, Event) else "",
        }
        try:
            raw = read_record(self._point / ref.path, "attachment")
        except OSError as error:
            found.entries.append(self._failure(error=error, **fields))
            return
        path = layout.record_path(ref)
        found.tags.append((path, write_file(self._bag, path, raw, self._work)))
        try:
            found.entries.append(Exported(**fields, **_recorded(raw, ref)))
        except AttachfsError as error:
            found.entries.append(Exported(**fields, errno="EIO", reason=error.reason))

    def _failure(self, path: str, error: OSError, **fields: Any) -> Exported:
        self._source.check()
        return Exported(path, errno=name_of(error.errno), reason=output.reason_of(error), **fields)


def _recorded(raw: bytes, ref: AttachmentRef) -> dict[str, Any]:
    info = model.parse_info(raw, ref)
    body = model.decode(raw, ref.path)
    accepted = body.get("timestamp_accepted")
    return {
        "size": info.size,
        "alg": info.digest.alg if info.digest else "",
        "hex": info.digest.hex if info.digest else "",
        "mime_type": info.mime_type[:200],
        "accepted": accepted[:40] if isinstance(accepted, str) else "",
        "scan": info.scanned_status[:40],
        "scan_reason": info.scanned_bad_reason[:200],
    }


def _title(attachment: str, owner: Asset | Event | None) -> str:
    """Return what people call a file, as its owner's record has it."""
    mentions: tuple[Attachment, ...] = owner.attachments if owner is not None else ()
    for one in mentions:
        if one.id == attachment:
            return (one.file_name or one.display_name or one.key)[:500]
    return ""


def _event_title(event: Event) -> str:
    when = output.moment(event.time_ns / 1e9).replace("T", " ").removesuffix("Z") if event.time_ns else ""
    return f"{when} {event.display_type}".strip()[:500]


def _ignore(_: str) -> None:
    """Leave to the mount's log what is odd about a record."""


def _names(directory: Path) -> list[str]:
    """Return the identities in a directory of the mount."""
    with os.scandir(directory) as entries:
        return sorted(entry.name for entry in entries if is_uuid(entry.name))
