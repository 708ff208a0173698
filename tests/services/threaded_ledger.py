"""A ledger in threads whose every answer a test can bend: for faults and orders of events made exact."""

import hashlib
import json
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

_TIME = "2026-03-01T09:00:00Z"
Handler = BaseHTTPRequestHandler
Bend = Callable[[Handler], bool]


@dataclass(frozen=True)
class Served:
    """Where a ledger is served, and the token it accepts."""

    url: str
    token_file: Path | None


def identity(name: str) -> str:
    """Return a UUID made from a name, the same in every run."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"attachfs-test:{name}"))


class ScriptedLedger:
    """One asset with attachments. `bend[kind]` may answer a request itself and return True.

    Kinds: assets, asset, events, event, info, blob.
    """

    asset = identity("asset")

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.infos: dict[str, dict[str, Any]] = {}
        self.anchors: dict[str, str | None] = {}
        self.bend: dict[str, Bend] = {}
        self.counts: Counter[str] = Counter()
        self.token = "t0ken"
        self.changed = threading.Condition()

    def add(self, name: str, content: bytes) -> str:
        """Attach `content` to the asset; return its path below the mount."""
        one = identity(name)
        digest = hashlib.sha256(content).hexdigest()
        self.blobs[one] = content
        self.anchors[one] = digest
        self.infos[one] = {
            "identity": f"blobs/{one}",
            "hash": {"alg": "SHA256", "value": digest},
            "size": len(content),
            "mime_type": "application/octet-stream",
            "timestamp_accepted": "2026-03-01T09:30:00Z",
            "scanned_status": "SCANNED_OK",
            "scanned_bad_reason": "",
        }
        return f"assets/{self.asset}/{one}"

    def wait_for(self, condition: Callable[[], bool], seconds: float = 30) -> None:
        """Wait until `condition` holds; it is looked at after every request."""
        with self.changed:
            assert self.changed.wait_for(condition, seconds)

    def record(self) -> dict[str, Any]:
        """Return the asset's record."""
        attributes: dict[str, Any] = {"arc_display_name": "Scripted"}
        for one, anchor in self.anchors.items():
            attributes[one] = {"arc_attribute_type": "arc_attachment", "arc_blob_identity": f"blobs/{one}"}
            if anchor is not None:
                attributes[one] |= {"arc_blob_hash_alg": "SHA256", "arc_blob_hash_value": anchor}
        return {
            "identity": f"assets/{self.asset}",
            "attributes": attributes,
            "at_time": _TIME,
        }

    def answer(self, request: Handler) -> None:
        """Answer a request as the real service would, unless the test has bent this kind."""
        path = request.path.partition("?")[0].removeprefix("/archivist/v2/")
        parts = path.split("/")
        kind = self._kind(parts)
        with self.changed:
            self.counts[kind] += 1
            self.changed.notify_all()
        if kind in self.bend and self.bend[kind](request):
            return
        if request.headers.get("Authorization") != f"Bearer {self.token}":
            send(request, 401, b'{"code":16,"message":"unauthenticated"}')
        elif kind == "assets":
            send_json(request, {"assets": [self.record()], "next_page_token": ""})
        elif kind == "asset" and parts[1] == self.asset:
            send_json(request, self.record())
        elif kind == "events" and parts[1] == self.asset:
            send_json(request, {"events": [], "next_page_token": ""})
        elif kind == "info" and parts[-2] in self.infos:
            send_json(request, self.infos[parts[-2]])
        elif kind == "blob" and parts[-1] in self.blobs:
            send(request, 200, self.blobs[parts[-1]], "application/octet-stream")
        else:
            send(request, 404, b'{"code":5,"message":"not found"}')

    @staticmethod
    def _kind(parts: list[str]) -> str:
        if parts[0] == "attachments":
            return "info" if parts[-1] == "info" else "blob"
        return ("assets", "asset", "events", "event")[min(len(parts), 4) - 1]


def send(request: Handler, status: int, body: bytes, kind: str = "application/json") -> None:
    """Send a whole answer."""
    request.send_response(status)
    request.send_header("Content-Type", kind)
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body)


def send_json(request: Handler, value: object) -> None:
    """Send a JSON answer."""
    send(request, 200, json.dumps(value).encode())


@contextmanager
def serve(ledger: ScriptedLedger, token_file: Path) -> Iterator[Served]:
    """Serve a ledger on a port of its own."""

    class Answers(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            try:
                ledger.answer(self)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 512

        def handle_error(self, *_: object) -> None:
            """Clients that go away are part of the tests."""

    token_file.write_text(f"Authorization: Bearer {ledger.token}\n")
    token_file.chmod(0o600)
    server = Server(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield Served(f"http://127.0.0.1:{server.server_port}", token_file)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
