"""The benchmark's origin: computed ledgers over HTTP, fast enough to be nobody's bottleneck.

    python -m tests.bench.origin NAME=ASSETS,EVENTS,ATTACHMENTS,SIZE …

Each ledger is there twice, as the service answers (`/NAME/archivist/v2/…`) and as a tree of index pages and
files, which is what rclone's http backend reads (`/NAME/files/…`): the same bytes. Large ones go out by
sendfile. Prints a line of JSON once it listens; ends with its standard input.
"""

import asyncio
import collections
import functools
import json
import os
import re
import socket
import sys
from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple
from urllib.parse import parse_qsl

from attachfs.demo.bulk import BulkLedger
from attachfs.demo.query import parse_query, read_token, write_token
from attachfs.demo.records import Blob
from tests.bench.endings import end_with_stdin, say

_PAGE_LIMIT = 500
_AT_ONCE = 256 * 1024  # bodies up to this size are sent from memory
_REPEAT = 16 * 2**20  # bytes of a large blob that are kept; the rest repeats them
_LOGGED = 50_000
_DATE = b"Thu, 01 Jan 2026 00:00:00 GMT"
_RANGE = re.compile(rb"(?i)\nrange:[ \t]*bytes=(\d+)-(\d*)[ \t]*\r")


class Shape(NamedTuple):
    """A ledger's measures: so many assets, events of each, attachments of each event, bytes of each."""

    assets: int
    events: int
    attachments: int
    size: int


class Response(NamedTuple):
    """A response: a body, or a blob, and what kind of request it answers."""

    kind: str
    body: bytes = b""
    blob: Blob | None = None
    status: bytes = b"200 OK"
    mime: bytes = b"application/json"


_ABSENT = Response("absent", b'{"code":5,"message":"not found"}', status=b"404 Not Found")


class Origin:
    """Answers requests, and counts them by kind."""

    def __init__(self, shapes: dict[str, Shape]) -> None:
        self._shapes = shapes
        self._ledgers = {name: BulkLedger(*shape) for name, shape in shapes.items()}
        self.counts: collections.Counter[str] = collections.Counter()
        self.paths: list[str] = []
        # What has been computed once costs nothing the second time: the origin is not what is measured.
        self.answer = functools.lru_cache(20_000)(self._answer)

    def count(self, kind: str, target: str) -> None:
        """Note a request."""
        self.counts[kind] += 1
        if len(self.paths) < _LOGGED:
            self.paths.append(target)

    def warm(self, name: str) -> None:
        """Compute the digests of a ledger with one asset and one event, and what is kept of the contents."""
        ledger, shape = self._ledgers[name], self._shapes[name]
        for number in range(shape.attachments):
            blob = ledger.blob(ledger.blob_id(0, 0, number))
            assert blob is not None
            if blob.size <= _AT_ONCE:
                _content(blob.id, blob)
            else:
                _kept(blob.id, blob)

    def _answer(self, target: str) -> Response:
        path, _, query = target.partition("?")
        name, *rest = path.strip("/").split("/")
        ledger = self._ledgers.get(name)
        if ledger is None:
            return _ABSENT
        if rest[:1] == ["files"]:
            return self._file(ledger, self._shapes[name], rest[1:])
        if rest[:3] == ["archivist", "v2", "attachments"] and rest[3:4] == ["assets"]:
            info = rest[-1] == "info"
            found = self._find(ledger, rest[4 : -1 if info else None])
            if found is None:
                return _ABSENT
            return Response("info", found.info()) if info else Response("blob", blob=found)
        if rest[:3] == ["archivist", "v2", "assets"]:
            return self._record(ledger, rest[3:], query)
        return _ABSENT

    def _find(self, ledger: BulkLedger, ids: list[str]) -> Blob | None:
        """Return the blob at asset/blob or asset/events/event/blob."""
        if len(ids) == 2:
            return ledger.find_attachment(ids[0], None, ids[1])
        if len(ids) == 4 and ids[1] == "events":
            return ledger.find_attachment(ids[0], ids[2], ids[3])
        return None

    def _record(self, ledger: BulkLedger, ids: list[str], query: str) -> Response:
        match ids:
            case []:
                return self._listing(ledger, "assets", None, query)
            case [asset]:
                record = ledger.asset(asset)
                return Response("asset", record) if record is not None else _ABSENT
            case [asset, "events"]:
                return self._listing(ledger, "events", asset, query)
            case [asset, "events", event]:
                record = ledger.event(asset, event)
                return Response("event", record) if record is not None else _ABSENT
        return _ABSENT

    def _listing(self, ledger: BulkLedger, key: str, asset: str | None, query: str) -> Response:
        asked = dict(parse_qsl(query))
        items = [(k, v) for k, v in parse_qsl(query) if k not in ("page_size", "page_token")]
        listing, offset = f"{key} of {asset}", 0
        if asked.get("page_token"):
            offset, items = read_token(asked["page_token"], listing)
        limit = min(_PAGE_LIMIT, int(asked.get("page_size", _PAGE_LIMIT)))
        filters = parse_query(items)
        if key == "assets":
            page = ledger.list_assets(filters, offset, limit)
        else:
            found = ledger.list_events(None if asset == "-" else asset, filters, offset, limit)
            if found is None:
                return _ABSENT
            page = found
        token = write_token(listing, offset + limit, items) if page.more else ""
        following = json.dumps(token).encode()
        body = b'{"%b":[%b],"next_page_token":%b}' % (key.encode(), b",".join(page.records), following)
        return Response(key, body)

    def _file(self, ledger: BulkLedger, shape: Shape, ids: list[str]) -> Response:
        """Answer as a web server over the same tree would."""
        found = self._find(ledger, ids[1:]) if ids[:1] == ["assets"] else None
        if found is not None:
            return Response("file", blob=found, mime=b"application/octet-stream")
        names: Iterator[str] | list[str]
        match ids:
            case []:
                names = ["assets/"]
            case ["assets"]:
                names = (f"{ledger.asset_id(n)}/" for n in range(shape.assets))
            case ["assets", asset] if ledger.asset(asset) is not None:
                number = int(asset[-12:], 16)
                blobs = [ledger.blob_id(number, 0, n) for n in range(shape.attachments)]
                names = ["events/", *blobs]
            case ["assets", asset, "events"] if ledger.asset(asset) is not None:
                names = (f"{ledger.event_id(int(asset[-12:], 16), n)}/" for n in range(shape.events))
            case ["assets", asset, "events", event] if ledger.event(asset, event) is not None:
                number, its = int(asset[-12:], 16), int(event[20:23], 16)
                names = (ledger.blob_id(number, its, n) for n in range(shape.attachments))
            case _:
                return _ABSENT
        page = "".join(f'<a href="{name}">{name}</a>\n' for name in names)
        return Response("index", f"<html><body>\n{page}</body></html>\n".encode(), mime=b"text/html")


class _Connection:
    """One client's connection."""

    def __init__(self, origin: Origin, sock: socket.socket) -> None:
        self._origin = origin
        self._sock = sock
        self._loop = asyncio.get_running_loop()

    async def run(self) -> None:
        """Answer until the client goes."""
        waiting = b""
        try:
            while True:
                head, found, rest = waiting.partition(b"\r\n\r\n")
                if found:
                    waiting = rest
                    await self._handle(head + b"\r\n")
                    continue
                piece = await self._loop.sock_recv(self._sock, 65_536)
                if not piece:
                    return
                waiting += piece
        except OSError:
            return
        finally:
            self._sock.close()

    async def _handle(self, head: bytes) -> None:
        method, target, _ = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
        if target == "/-/counts":
            await self._send_whole(json.dumps(self._origin.counts).encode(), Response("counts"), method)
        elif target == "/-/paths":
            await self._send_whole(json.dumps(self._origin.paths).encode(), Response("paths"), method)
        elif target.startswith("/-/warm/"):
            self._origin.warm(target.removeprefix("/-/warm/"))
            await self._send_whole(b"{}", Response("warm"), method)
        elif target == "/-/reset":
            self._origin.counts.clear()
            self._origin.paths.clear()
            await self._send_whole(b"{}", Response("reset"), method)
        else:
            answer = self._origin.answer(target)
            self._origin.count("head" if method == "HEAD" else answer.kind, target)
            if answer.blob is None:
                await self._send_whole(answer.body, answer, method)
            else:
                await self._send_blob(answer, answer.blob, method, _RANGE.search(head))

    async def _send_whole(self, body: bytes, answer: Response, method: str) -> None:
        head = b"HTTP/1.1 %b\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n"
        data = head % (answer.status, answer.mime, len(body))
        await self._loop.sock_sendall(self._sock, data if method == "HEAD" else data + body)

    async def _send_blob(
        self, answer: Response, blob: Blob, method: str, wanted: re.Match[bytes] | None
    ) -> None:
        start, stop, status, extra = 0, blob.size, answer.status, b""
        if wanted is not None:
            start = int(wanted[1])
            stop = min(blob.size, int(wanted[2]) + 1) if wanted[2] else blob.size
            if start >= stop:
                await self._send_whole(b"", Response("", status=b"416 Range Not Satisfiable"), method)
                return
            status, extra = (
                b"206 Partial Content",
                b"Content-Range: bytes %d-%d/%d\r\n" % (start, stop - 1, blob.size),
            )
        head = b"HTTP/1.1 %b\r\nContent-Type: %b\r\nContent-Length: %d\r\n" % (
            status,
            answer.mime,
            stop - start,
        )
        head += extra + b"Accept-Ranges: bytes\r\nLast-Modified: " + _DATE + b"\r\n\r\n"
        if method == "HEAD":
            await self._loop.sock_sendall(self._sock, head)
        elif blob.size <= _AT_ONCE:
            await self._loop.sock_sendall(self._sock, head + _content(blob.id, blob)[start:stop])
        else:
            await self._loop.sock_sendall(self._sock, head)
            file, length = _kept(blob.id, blob)
            while start < stop:
                inside = start % length
                count = min(length - inside, stop - start)
                await self._loop.sock_sendfile(self._sock, file, inside, count)
                start += count


_CONTENTS: dict[str, bytes] = {}
_FILES: dict[str, tuple[BinaryIO, int]] = {}


def _content(name: str, blob: Blob) -> bytes:
    if name not in _CONTENTS:
        with blob.source.open() as file:
            _CONTENTS[name] = file.read()
    return _CONTENTS[name]


def _kept(name: str, blob: Blob) -> tuple[BinaryIO, int]:
    """Return a file in memory with the blob's beginning, of which the rest is a repetition."""
    if name not in _FILES:
        file = os.fdopen(os.memfd_create("blob"), "w+b", buffering=0)
        with blob.source.open() as source:
            while file.tell() < min(blob.size, _REPEAT):
                file.write(source.read(2**20))
        _FILES[name] = file, file.tell()
    return _FILES[name]


async def _serve(shapes: dict[str, Shape]) -> None:
    origin = Origin(shapes)
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        listener.setblocking(False)
        say({"port": listener.getsockname()[1]})
        tasks = set()
        while True:
            sock, _ = await loop.sock_accept(listener)
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            task = asyncio.create_task(_Connection(origin, sock).run())
            tasks.add(task)
            task.add_done_callback(tasks.discard)


def main(argv: Sequence[str]) -> None:
    """Run the process."""
    shapes = {}
    for text in argv:
        name, _, numbers = text.partition("=")
        shapes[name] = Shape(*(int(number) for number in numbers.split(",")))
    end_with_stdin()
    asyncio.run(_serve(shapes))


if __name__ == "__main__":
    main(sys.argv[1:])
