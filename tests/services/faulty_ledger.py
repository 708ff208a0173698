"""A ledger on raw sockets, every byte of which a test can bend: for what no HTTP library would send.

`Ledger` answers as the service would. A test gives it a `Case` (an asset with a file, and an event with
another) and a script for one kind of request about it.
"""

import contextlib
import hashlib
import itertools
import json
import select
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from urllib.parse import parse_qs

from tests.services.threaded_ledger import identity

TOKEN = "t0ken-of-the-faulty-ledger"
KINDS = ("assets", "asset", "events", "event", "info", "blob")
PATIENCE = 30  # seconds, for what happens at once unless something is broken
_PREFIX = "/archivist/v2/"
_TOKEN_PATH = "/archivist/iam/v1/appidp/token"


class Reply(NamedTuple):
    """A whole answer."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()

    def head(self, *, length: int | None = -1) -> bytes:
        """Return the status line and the headers. `length` to announce; None: none; -1: the true one."""
        fields = [f"HTTP/1.1 {self.status} Scripted", *(f"{name}: {value}" for name, value in self.headers)]
        if length is not None:
            fields.append(f"Content-Length: {len(self.body) if length < 0 else length}")
        return "\r\n".join([*fields, "", ""]).encode("latin-1")


def _json(value: object, status: int = 200) -> Reply:
    return Reply(status, json.dumps(value).encode(), (("Content-Type", "application/json"),))


_NOTHING = _json({"code": 5, "message": "not found"}, 404)


class Exchange:
    """One request, and the means to answer it. A script sends what it likes."""

    def __init__(
        self, ledger: "Ledger", sock: socket.socket, target: str, headers: dict[str, str], body: bytes
    ) -> None:
        self.ledger = ledger
        self.sock = sock
        self.target = target
        self.headers = headers
        self.body = body
        self.path, _, self.query = target.partition("?")
        self.kind, self.asset = _kind(self.path)
        self.number = 0  # of its kind and asset, from 1 on
        self.ends = False  # the connection, with this answer
        self.used = False  # whether the connection has brought another answer before
        self._good: Reply | None = None

    @property
    def good(self) -> Reply:
        """What the service would answer."""
        if self._good is None:
            self._good = self.ledger.good(self)
        return self._good

    @property
    def page_token(self) -> str:
        """The page that is asked for, "" for the first."""
        return parse_qs(self.query, keep_blank_values=True).get("page_token", [""])[0]

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.sock.sendall(data)

    def reply(self, status: int, body: bytes = b"", *headers: tuple[str, str]) -> None:
        """Send a whole answer."""
        reply = Reply(status, body, headers)
        bodyless = status in (204, 304) or status < 200
        self.send(reply.head(length=None) if bodyless else reply.head() + body)

    def json(self, value: object, status: int = 200) -> None:
        """Send a value."""
        self.reply(status, json.dumps(value).encode(), ("Content-Type", "application/json"))

    def serve(self) -> None:
        """Answer as the service would."""
        self.send(self.good.head() + self.good.body)

    def stall(self) -> None:
        """Say nothing more until the client goes away."""
        self.ends = True
        with contextlib.suppress(OSError):
            self.sock.settimeout(2 * PATIENCE)
            while self.sock.recv(65536):
                pass

    def paused(self, seconds: float) -> bool:
        """Wait so long, or less if the client goes away: then False."""
        return not select.select([self.sock], [], [], seconds)[0]

    def reset(self) -> None:
        """Break the connection off: a linger time of nothing makes closing a reset."""
        self.ends = True
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def cut(self) -> None:
        """End the connection in good order, whatever was announced."""
        self.ends = True


Script = Callable[[Exchange], None]


class Case:
    """An asset with one file, and one event with another. A test changes what is recorded as it likes."""

    def __init__(self, name: str, size: int = 3000) -> None:
        self.name = name
        self.asset, self.blob = identity(f"{name}/asset"), identity(f"{name}/blob")
        self.event, self.event_blob = identity(f"{name}/event"), identity(f"{name}/event blob")
        seed = hashlib.sha256(name.encode()).digest()
        self.content = (seed * (size // len(seed) + 1))[:size]
        self.path = f"assets/{self.asset}/{self.blob}"
        self.events = f"assets/{self.asset}/events"
        self.event_path = f"{self.events}/{self.event}"
        self.info = self.info_of(self.blob)
        self.record: dict[str, Any] = {
            "identity": f"assets/{self.asset}",
            "attributes": {"arc_display_name": name, "photo": self.entry(self.blob)},
            "at_time": "2026-03-01T09:00:00Z",
        }

    @property
    def digest(self) -> str:
        """The content's SHA-256."""
        return hashlib.sha256(self.content).hexdigest()

    def entry(self, blob: str) -> dict[str, Any]:
        """Return an attachment as an asset's attributes record it."""
        return {
            "arc_attribute_type": "arc_attachment",
            "arc_blob_identity": f"blobs/{blob}",
            "arc_blob_hash_alg": "SHA256",
            "arc_blob_hash_value": self.digest,
            "arc_file_name": "photo.jpg",
        }

    def info_of(self, blob: str) -> dict[str, Any]:
        """Return an attachment's `/info`."""
        return {
            "identity": f"blobs/{blob}",
            "hash": {"alg": "SHA256", "value": self.digest},
            "size": len(self.content),
            "mime_type": "application/octet-stream",
            "timestamp_accepted": "2026-03-01T09:30:00Z",
            "scanned_status": "SCANNED_OK",
            "scanned_bad_reason": "",
        }

    def event_record(self, event: str | None = None) -> dict[str, Any]:
        """Return an event's record."""
        return {
            "identity": f"assets/{self.asset}/events/{event or self.event}",
            "asset_identity": f"assets/{self.asset}",
            "operation": "Record",
            "event_attributes": {"photo": self.entry(self.event_blob)},
            "timestamp_accepted": "2026-03-02T09:00:00Z",
        }


class Seen(NamedTuple):
    """A request that came."""

    time: float
    kind: str
    asset: str
    target: str
    authorization: str


def _kind(path: str) -> tuple[str, str]:
    """Return a request's kind, and the asset it is about."""
    if path == _TOKEN_PATH:
        return "token", ""
    parts = path.removeprefix(_PREFIX).split("/")
    if parts[0] == "attachments":
        return ("info" if parts[-1] == "info" else "blob"), parts[2] if len(parts) > 2 else ""
    return KINDS[min(len(parts), 4) - 1], parts[1] if len(parts) > 1 else ""


class Ledger:
    """Serves cases, each request in its connection's thread.

    `context`: makes it speak TLS; taken anew for each connection. `accepted`: the tokens that are good;
    None: anybody may ask. `scripts`: what answers requests of a kind about an asset ("" for the listing of
    assets and for tokens) instead.
    """

    def __init__(self, accepted: set[str] | None) -> None:
        self.accepted = accepted
        self.cases: dict[str, Case] = {}
        self.scripts: dict[tuple[str, str], Script] = {}
        self.everything: Script | None = None  # answers all requests, if there is one
        self.counts: Counter[tuple[str, str]] = Counter()
        self.seen: list[Seen] = []
        self.changed = threading.Condition()
        self.context: ssl.SSLContext | None = None
        self.port = 0
        self.listed: list[Case] = []  # what the listing of assets shows
        self.elsewhere: Ledger | None = None  # another host, to be redirected to
        self._listener: socket.socket | None = None
        self._threads: set[threading.Thread] = set()
        self._open: set[socket.socket] = set()

    # -- what it holds -----------------------------------------------------------------------------

    def add(self, case: Case, **scripts: Script) -> Case:
        """Take a case, with scripts by kind of request."""
        with self.changed:
            self.cases[case.asset] = case
            for kind, script in scripts.items():
                self.scripts[kind, case.asset] = script
        return case

    def count(self, kind: str, case: Case | None = None) -> int:
        """Return how many requests of a kind came."""
        with self.changed:
            return self.counts[kind, case.asset if case else ""]

    def wait_for(self, condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
        """Wait until `condition` holds; it is looked at after every request, and at `poke`."""
        with self.changed:
            assert self.changed.wait_for(condition, seconds)

    def poke(self) -> None:
        """Have those who wait look again."""
        with self.changed:
            self.changed.notify_all()

    def good(self, exchange: Exchange) -> Reply:
        """Return what the service would answer."""
        parts = exchange.path.removeprefix(_PREFIX).split("/")
        case = self.cases.get(exchange.asset)
        bearer = exchange.headers.get("authorization", "")
        public = "publicassets" in parts[:2]
        if self.accepted is not None and not public and bearer.removeprefix("Bearer ") not in self.accepted:
            return _json({"code": 16, "message": "unauthenticated"}, 401)
        found = _json({"assets": [one.record for one in self.listed], "next_page_token": ""})
        if exchange.kind != "assets":
            found = _NOTHING if case is None else self._about(case, exchange, parts)
        return found

    @staticmethod
    def _about(case: Case, exchange: Exchange, parts: list[str]) -> Reply:
        if exchange.kind == "asset":
            return _json(case.record)
        if exchange.kind == "events":
            return _json({"events": [case.event_record()], "next_page_token": ""})
        if exchange.kind == "event" and parts[3] == case.event:
            return _json(case.event_record())
        if exchange.kind == "info" and parts[-2] in (case.blob, case.event_blob):
            return _json(case.info if parts[-2] == case.blob else case.info_of(parts[-2]))
        if exchange.kind == "blob" and parts[-1] in (case.blob, case.event_blob):
            return _ranged(case.content, exchange.headers.get("range", ""))
        return _NOTHING

    def answer(self, exchange: Exchange) -> None:
        """Note a request, and answer it."""
        key = exchange.kind, exchange.asset
        with self.changed:
            self.counts[key] += 1
            exchange.number = self.counts[key]
            bearer = exchange.headers.get("authorization", "")
            self.seen.append(Seen(time.monotonic(), *key, exchange.target, bearer))
            self.changed.notify_all()
            script = self.everything or self.scripts.get(key)
        if script is None:
            exchange.serve()
        else:
            script(exchange)

    # -- the sockets -------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """Where it is served."""
        return f"{'https' if self.context else 'http'}://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Listen, on the same port as before if there was one."""
        self._listener = listener = socket.create_server(("127.0.0.1", self.port), backlog=512)
        self.port = listener.getsockname()[1]
        self._spawn(self._accept, listener)

    def stop(self) -> None:
        """Close the port and every connection."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        self.drop()
        for thread in list(self._threads):
            thread.join(PATIENCE)

    def drop(self) -> None:
        """End all connections."""
        with self.changed:
            for sock in self._open:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def _spawn(self, work: Callable[[socket.socket], None], sock: socket.socket) -> None:
        def run() -> None:
            try:
                work(sock)
            finally:
                self._threads.discard(threading.current_thread())

        thread = threading.Thread(target=run, daemon=True)
        self._threads.add(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            with self.changed:
                self._open.add(sock)
            if self._listener is not listener:  # stopped meanwhile
                self.drop()
            self._spawn(self._serve, sock)

    def _serve(self, plain: socket.socket) -> None:
        sock = plain
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.context is not None:
                sock.settimeout(PATIENCE)
                sock = self.context.wrap_socket(plain, server_side=True)
                with self.changed:
                    self._open.discard(plain)
                    self._open.add(sock)
                sock.settimeout(None)
            self._talk(sock)
        except OSError:
            pass  # clients that go away are part of the tests
        finally:
            with self.changed:
                self._open.discard(plain)
                self._open.discard(sock)
            sock.close()
            plain.close()

    def _talk(self, sock: socket.socket) -> None:
        buffer = b""
        for number in itertools.count():
            while b"\r\n\r\n" not in buffer:
                piece = sock.recv(65536)
                if not piece:
                    return
                buffer += piece
            head, _, buffer = buffer.partition(b"\r\n\r\n")
            first, *lines = head.decode("latin-1").split("\r\n")
            headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
            length = int(headers.get("content-length", "0"))
            while len(buffer) < length:
                buffer += sock.recv(65536)
            body, buffer = buffer[:length], buffer[length:]
            if first.startswith("HEAD "):  # mounting connects; an answer to it has no body
                sock.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
                continue
            exchange = Exchange(self, sock, first.split(" ")[1], headers, body)
            exchange.used = number > 0
            self.answer(exchange)
            if exchange.ends:
                return


def _ranged(content: bytes, asked: str) -> Reply:
    if not asked:
        return Reply(200, content)
    first = int(asked.removeprefix("bytes=").rstrip("-"))
    if first >= len(content):
        return Reply(416, b"")
    span = f"bytes {first}-{len(content) - 1}/{len(content)}"
    return Reply(206, content[first:], (("Content-Range", span),))


@contextlib.contextmanager
def serving(accepted: set[str] | None = None, context: ssl.SSLContext | None = None) -> Iterator[Ledger]:
    """Serve a ledger; by default one that anybody may ask."""
    ledger = Ledger(accepted)
    ledger.context = context
    ledger.start()
    try:
        yield ledger
    finally:
        ledger.stop()


def status(code: int, *headers: tuple[str, str]) -> Script:
    """Answer with a status, and a body as the service would send."""
    return lambda x: x.reply(code, b'{"code":2,"message":"made up"}', *headers)


def body(data: bytes, *headers: tuple[str, str]) -> Script:
    """Answer 200 with these bytes."""
    return lambda x: x.reply(200, data, *headers)


def value(of: object) -> Script:
    """Answer 200 with this value as JSON."""
    return lambda x: x.json(of)


def at_first(script: Script, times: int = 1) -> Script:
    """Do it for the first requests only."""
    return lambda x: script(x) if x.number <= times else x.serve()


def from_second(script: Script) -> Script:
    """Do it for all but the first request."""
    return lambda x: script(x) if x.number > 1 else x.serve()


PLACES = (
    "before the headers",
    "within the headers",
    "after the headers",
    "at byte 1",
    "halfway",
    "before the last byte",
)


def at_place(where: str, then: Callable[[Exchange], None]) -> Script:
    """Send the good answer as far as one of `PLACES`, and then do something else."""

    def script(x: Exchange) -> None:
        head, data = x.good.head(), x.good.body
        upto = {
            "before the headers": 0,
            "within the headers": len(head) // 2,
            "after the headers": len(head),
            "at byte 1": len(head) + 1,
            "halfway": len(head) + len(data) // 2,
            "before the last byte": len(head) + len(data) - 1,
        }
        if upto[where]:
            x.send((head + data)[: upto[where]])
        then(x)

    return script


def chunked(data: bytes, *, end: bytes = b"0\r\n\r\n") -> bytes:
    """Return a chunked body."""
    return b"%x\r\n%s\r\n" % (len(data), data) + end


# -- forgeries --------------------------------------------------------------------------------------

_JSON_HEADER = (("Content-Type", "application/json"),)


def forged(case: Case) -> bytes:
    """Return a record, an `/info` and a blob that fit each other, for the attachment of `case`, and a 404."""
    other = Case(case.name)
    other.content = b"forged".ljust(len(case.content), b"!")
    other.record["attributes"]["photo"] = other.entry(case.blob)
    replies = [
        Reply(200, json.dumps(other.record).encode(), _JSON_HEADER),
        Reply(200, json.dumps(other.info_of(case.blob)).encode(), _JSON_HEADER),
        Reply(200, other.content),
    ]
    return b"".join(reply.head() + reply.body for reply in replies)


MISSING = Reply(404, b'{"code": 5, "message": "not found"}', _JSON_HEADER)
