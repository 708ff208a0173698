"""What the ledger holds, found out by plain HTTP and with none of the program's own code."""

import hashlib
import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

from attachfs.demo.spawn import DemoServer


@dataclass(frozen=True)
class Recorded:
    """One attachment: its record, and the hash of the bytes that the ledger really sends (None: refused)."""

    info: dict[str, Any]
    sent_sha256: str | None

    @property
    def good(self) -> bool:
        """Whether the program should let a reader have it."""
        return bool(
            self.sent_sha256 == self.info["hash"]["value"].lower()
            and self.info["scanned_status"] != "SCANNED_BAD"
        )


def _get(server: DemoServer, path: str) -> bytes:
    assert server.token_file is not None
    token = server.token_file.read_text().strip().split(": ", 1)[1]
    request = urllib.request.Request(f"{server.url}/archivist{path}", headers={"Authorization": token})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
        body: bytes = answer.read()
    return body


def _pages(server: DemoServer, path: str, key: str) -> list[dict[str, Any]]:
    records, token = [], ""
    while True:
        page = json.loads(_get(server, f"{path}?page_size=100" + (f"&page_token={token}" if token else "")))
        records += page[key]
        token = page.get("next_page_token") or ""
        if not token:
            return records


def _ids(attributes: dict[str, Any]) -> list[str]:
    found = []
    for key, value in attributes.items():
        for entry in value if isinstance(value, list) else [value]:
            if isinstance(entry, dict) and (
                entry.get("arc_attribute_type") == "arc_attachment" or key == "arc_attachments"
            ):
                identity: str = entry.get("arc_blob_identity") or entry["arc_attachment_identity"]
                found.append(identity.rpartition("/")[2])
    return found


def directories_and_files(server: DemoServer) -> tuple[set[str], dict[str, Recorded]]:
    """Return the paths of all directories and, for every attachment's path, what is recorded of it."""
    directories, files = {"assets"}, {}
    for asset in _pages(server, "/v2/assets", "assets"):
        directories |= {asset["identity"], f"{asset['identity']}/events"}
        owners = [(asset["identity"], asset["attributes"])]
        for event in _pages(server, f"/v2/{asset['identity']}/events", "events"):
            directories.add(event["identity"])
            owners.append((event["identity"], event["event_attributes"]))
            owners.append((event["identity"], event["asset_attributes"]))
        for owner, attributes in owners:
            for one in _ids(attributes):
                files[f"{owner}/{one}"] = one
    recorded = {}
    for path in files:
        try:
            info = json.loads(_get(server, f"/v2/attachments/{path}/info"))
        except urllib.error.HTTPError:
            continue
        try:
            sent = hashlib.sha256(_get(server, f"/v2/attachments/{path}")).hexdigest()
        except urllib.error.HTTPError:
            sent = None
        recorded[path] = Recorded(info, sent)
    return directories, recorded
