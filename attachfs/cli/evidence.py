"""Event records for `attachfs prove`: from a mount's extended attributes, a bag, or a file."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from attachfs import model
from attachfs.archive import layout
from attachfs.archive.folder import BagFolder
from attachfs.cli import output
from attachfs.cli import paths as places
from attachfs.errors import AttachfsError, UsageError
from attachfs.model import AssetRef, AttachmentRef, Digest, EventRef
from attachfs.mount.mountinfo import Mount
from attachfs.proof import massif, seal
from attachfs.proof.errors import ProofError, State

_RECORD_LIMIT = 8 << 20  # bytes
_REALMS = ("assets", "publicassets")


class Evidence(NamedTuple):
    """An event to be proven: where it was found, its record, or why there is none.

    `attachment` is the id of the attachment that was asked about, `digest` the hash that its own record has.
    """

    path: str
    event: dict[str, Any]
    problem: ProofError | None = None
    attachment: str = ""
    digest: str = ""


def from_file(path: Path) -> Evidence:
    """Return an event whose record is in a file.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_RECORD_LIMIT + 1)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    if len(raw) > _RECORD_LIMIT:
        raise UsageError(f"{path} is larger than a record can be")
    return _parsed(str(path), raw)


def from_bag(folder: BagFolder) -> Iterator[Evidence]:
    """Yield the events of a bag."""
    for realm in _REALMS:
        for path in folder.walk(f"{layout.RECORDS}/{realm}"):
            place = layout.parse_place(path.removeprefix(f"{layout.RECORDS}/").removesuffix(".json"))
            if not isinstance(place, EventRef) or not path.endswith(".json"):
                continue
            try:
                yield _parsed(place.path, folder.read(path, _RECORD_LIMIT))
            except AttachfsError as error:
                yield _missing(place.path, error.reason)
            except OSError as error:
                yield _missing(place.path, output.reason_of(error))


def from_mount(mount: Mount, path: Path) -> Iterator[Evidence]:
    """Yield the events of a path on a mount: those that carry a file, those of an asset, or all below it."""
    try:
        inside = str(path.resolve().relative_to(mount.point.resolve()))
    except (OSError, ValueError) as error:
        yield _missing(str(path), str(error))
        return
    place = layout.parse_place("" if inside == "." else inside)
    if isinstance(place, layout.Everything):
        for asset in _names(mount.point / "assets"):
            yield from _of_asset(mount.point, AssetRef("assets", asset))
    elif isinstance(place, AssetRef | layout.Events):
        yield from _of_asset(mount.point, AssetRef(place.realm, place.asset))
    elif isinstance(place, EventRef):
        yield _of_event(mount.point, place)
    elif isinstance(place, AttachmentRef):
        yield from _of_attachment(mount.point, place)
    elif path.is_dir() and inside.partition("/")[0] not in _REALMS:
        for found in places.walk([path]):  # by-name: links, which lead to attachments
            if found.problem is None:
                yield from from_mount(mount, found.path)
    else:
        yield _missing(str(path), "it is neither an attachment nor an event nor an asset")


def _of_asset(point: Path, ref: AssetRef) -> Iterator[Evidence]:
    try:
        events = _names(point / ref.path / "events")
    except OSError as error:
        yield _missing(str(point / ref.path), output.reason_of(error))
        return
    for event in events:
        yield _of_event(point, EventRef(ref.realm, ref.asset, event))


def _of_attachment(point: Path, ref: AttachmentRef) -> Iterator[Evidence]:
    path = str(point / ref.path)
    try:
        digest = places.text_xattr(point / ref.path, "user.hash.sha256") or ""
    except OSError as error:
        yield _missing(path, output.reason_of(error))
        return
    if isinstance(ref.owner, EventRef):
        candidates: Iterable[Evidence] = [_of_event(point, ref.owner)]
    else:
        candidates = _of_asset(point, ref.owner)
    found = False
    for one in candidates:
        if one.problem is not None or ref.attachment in _attached(one.event):
            found = True
            yield one._replace(attachment=ref.attachment, digest=digest)
    if not found:
        yield _missing(path, "no event that can be read carries this attachment")


def _of_event(point: Path, ref: EventRef) -> Evidence:
    path = point / ref.path
    try:
        return _parsed(str(path), places.read_record(path, "event"))
    except OSError as error:
        return _missing(str(path), output.reason_of(error))


def _names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir() if model.is_uuid(entry.name))


def _parsed(path: str, raw: bytes) -> Evidence:
    try:
        return Evidence(path, model.decode(raw, path))
    except AttachfsError as error:
        return _missing(path, error.reason)


def _missing(path: str, reason: str) -> Evidence:
    return Evidence(path, {}, ProofError(State.NO_RECORD, reason))


def _attached(event: dict[str, Any]) -> dict[str, Digest | None]:
    """Return the attachments that an event carries, and the hash that it records of each."""
    found: dict[str, Digest | None] = {}
    for name in ("event_attributes", "asset_attributes"):
        attributes = event.get(name)
        if isinstance(attributes, dict):
            for one in model.parse_attachments(attributes, lambda _: None):
                found[one.id] = found.get(one.id) or one.anchor
    return found


def check_digest(evidence: Evidence) -> None:
    """Compare the hash that an event records of an attachment with the one that the file has.

    Raises:
        ProofError: they differ, or the event records none.
    """
    if not evidence.attachment:
        return
    recorded = _attached(evidence.event).get(evidence.attachment)
    if recorded is None:
        raise ProofError(State.NOT_REPRODUCIBLE, "the event records no hash of the attachment")
    if recorded.alg == "sha256" and evidence.digest and recorded.hex != evidence.digest:
        raise ProofError(
            State.HASH_DIFFERS, f"the event records {recorded.hex}, and the file's record {evidence.digest}"
        )


class BagLogs:
    """The massifs and seals in a bag."""

    def __init__(self, folder: BagFolder) -> None:
        self._folder = folder
        self._heights: dict[str, int] = {}

    def massif_of(self, tenant: str, leaf_number: int) -> tuple[bytes, bytes]:
        """Return the massif that holds a leaf, and its seal.

        Raises:
            ProofError: they are not there.
        """
        number = leaf_number >> (self._height(tenant) - 1)
        return (
            self._read(f"{layout.PROOF}/{tenant}/massifs/{number:016d}.log", massif.MAX_SIZE),
            self._read(f"{layout.PROOF}/{tenant}/seals/{number:016d}.sth", seal.MAX_SIZE),
        )

    def _height(self, tenant: str) -> int:
        if tenant not in self._heights:
            try:
                names = self._folder.names(f"{layout.PROOF}/{tenant}/massifs")
            except (AttachfsError, OSError) as error:
                raise ProofError(State.NO_LOG, str(error)) from error
            logs = [name for name, is_directory in names if not is_directory and name.endswith(".log")]
            if not logs:
                raise ProofError(State.NO_LOG, f"the bag has nothing of the log of tenant {tenant}")
            raw = self._read(f"{layout.PROOF}/{tenant}/massifs/{logs[0]}", massif.MAX_SIZE)
            self._heights[tenant] = massif.height_of(raw)
        return self._heights[tenant]

    def _read(self, path: str, limit: int) -> bytes:
        try:
            return self._folder.read(path, limit)
        except (AttachfsError, OSError) as error:
            raise ProofError(State.NO_LOG, str(error)) from error
