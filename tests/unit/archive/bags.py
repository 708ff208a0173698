"""Small bags, made with the program's own writer."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from attachfs.archive import layout
from attachfs.archive.entries import Exported
from attachfs.archive.journal import Journal
from attachfs.archive.writer import finish, write_file
from attachfs.model import AssetRef, AttachmentRef, EventRef
from tests.services.memory_source import (
    as_json,
    asset_record,
    attribute,
    event_record,
    file_ref,
    info_body,
    uuid,
)

URL = "https://ledger.example"
ASSET = AssetRef("assets", uuid(1))
EVENT = EventRef("assets", uuid(1), uuid(2))
PHOTO = file_ref(3)
PAPER = file_ref(4, event=2)
BAD = file_ref(5)
CONTENTS = {PHOTO: b"a photo" * 100, PAPER: b"a paper"}


def about(paths: Iterable[str] = ("assets",)) -> dict[str, Any]:
    return {"url": URL, "paths": list(paths), "by": "ann at desk", "began": "2026-01-01T00:00:00Z"}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def entry_of(ref: AttachmentRef, data: bytes, **more: Any) -> Exported:
    fields: dict[str, Any] = {
        "path": ref.path,
        "size": len(data),
        "alg": "sha256",
        "hex": sha256(data),
        "sha256": sha256(data),
        "name": f"file {ref.attachment[:8]}.txt",
        "asset": "Box",
        "mime_type": "text/plain",
        "accepted": "2026-01-01T00:00:00Z",
        "scan": "SCANNED_OK",
        "attested": "match",
        "exported": "2026-01-02T00:00:00Z",
    }
    return Exported(**(fields | more))


def records() -> dict[str, bytes]:
    """Return the records of one asset with a photo and a refused file, and an event with a paper."""
    attributes = {
        "arc_display_name": "Box",
        "photo": attribute(3, sha256(CONTENTS[PHOTO])),
        "bad": attribute(5, sha256(b"never seen")),
    }
    event_attributes = {"paper": attribute(4, sha256(CONTENTS[PAPER]))}
    event = event_record(EVENT, event_attributes, timestamp_accepted="2026-01-01T10:00:30Z")
    return {
        layout.record_path(ASSET): as_json(asset_record(ASSET, attributes)),
        layout.record_path(EVENT): as_json(event),
        layout.record_path(PHOTO): info_body(PHOTO, CONTENTS[PHOTO]),
        layout.record_path(PAPER): info_body(PAPER, CONTENTS[PAPER]),
        layout.record_path(BAD): info_body(BAD, b"never seen"),
    }


def make_bag(bag: Path, paths: Iterable[str] = ("assets",)) -> Path:
    """Make a bag of two files, with a third that was refused."""
    bag.mkdir()
    with Journal(bag) as journal:
        for path, data in records().items():
            journal.add_tags([(path, write_file(bag, path, data, journal.work))])
        for ref, data in CONTENTS.items():
            write_file(bag, layout.payload_path(ref), data, journal.work)
            journal.finish(entry_of(ref, data), "stamp")
        refused = entry_of(BAD, b"never seen", sha256="", errno="EBADMSG", reason="its bytes differ")
        journal.finish(refused)
        finish(bag, journal, about(paths))
        journal.remove()
    return bag
