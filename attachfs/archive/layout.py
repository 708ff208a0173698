"""What stands where in an exported bag. No I/O.

    bagit.txt  bag-info.txt  manifest-sha256.txt  tagmanifest-sha256.txt
    data/assets/<asset>/<attachment>                       the bytes, under the paths of the mount
    data/assets/<asset>/events/<event>/<attachment>
    records/assets/<asset>.json                            the records as received
    records/assets/<asset>/events/<event>.json
    records/…/<attachment>.info.json
    proof/<tenant>/massifs/…  proof/<tenant>/seals/…
    report.json  report.html

and the same below `publicassets`.
"""

import re
from typing import NamedTuple

from attachfs.model import AssetRef, AttachmentRef, EventRef, Realm

PAYLOAD = "data"
RECORDS = "records"
PROOF = "proof"
DECLARATION = "bagit.txt"
INFO = "bag-info.txt"
MANIFEST = "manifest-sha256.txt"
TAG_MANIFEST = "tagmanifest-sha256.txt"
REPORT = "report.json"
REPORT_HTML = "report.html"
WORK = ".attachfs-export"  # an export under way: its journal and what is being written

_UUID = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_PLACE = re.compile(
    rf"(?P<realm>assets|publicassets)(?:/(?P<asset>{_UUID})"
    rf"(?:(?P<events>/events)(?:/(?P<event>{_UUID}))?)?(?:/(?P<attachment>{_UUID}))?)?"
)


class Events(NamedTuple):
    """All events of an asset."""

    realm: Realm
    asset: str

    @property
    def path(self) -> str:
        """The path below the mount, without a leading slash."""
        return f"{self.realm}/{self.asset}/events"


class Everything(NamedTuple):
    """All assets: the mount's root, or `assets`."""

    @property
    def path(self) -> str:
        """The path below the mount, without a leading slash."""
        return "assets"


Place = Everything | AssetRef | Events | EventRef | AttachmentRef


def parse_place(path: str) -> Place | None:
    """Return what a path below a mount stands for; None if it is none that can be exported."""
    if path in ("", "assets"):
        return Everything()
    found = _PLACE.fullmatch(path)
    if found is None or found["asset"] is None:
        return None
    realm: Realm = "assets" if found["realm"] == "assets" else "publicassets"
    asset, event, attachment = found["asset"], found["event"], found["attachment"]
    if found["events"] and event is None:
        return None if attachment else Events(realm, asset)
    if attachment is not None:
        return AttachmentRef(realm, asset, event, attachment)
    return AssetRef(realm, asset) if event is None else EventRef(realm, asset, event)


def covers(place: Place, path: str) -> bool:
    """Whether exporting `place` brings all that is at and below `path`."""
    return path == place.path or path.startswith(f"{place.path}/")


def payload_path(ref: AttachmentRef) -> str:
    """Return where an attachment's bytes stand."""
    return f"{PAYLOAD}/{ref.path}"


def record_path(ref: AssetRef | EventRef | AttachmentRef) -> str:
    """Return where a record stands."""
    return f"{RECORDS}/{ref.path}.{'info.json' if isinstance(ref, AttachmentRef) else 'json'}"


def encode_name(path: str) -> str:
    """Return a path as it stands in a manifest: a line's end and the percent sign escaped."""
    return path.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def decode_name(text: str) -> str:
    """Return the path that a manifest's line names."""
    escapes = {"25": "%", "0d": "\r", "0a": "\n"}
    return re.sub("%(25|0[DdAa])", lambda found: escapes[found[1].lower()], text)


def is_inside(path: str) -> bool:
    """Whether a relative path can lead nowhere but into the bag, provided that no component is a link."""
    parts = path.split("/")
    return "\0" not in path and not any(part in ("", ".", "..") for part in parts)
