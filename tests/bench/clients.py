"""Clients without a filesystem: `python -m tests.bench.clients replay|sequential …`.

    replay PORT CONNECTIONS <paths.json     asks for these paths over so many connections: the network's limit
    sequential PORT SET copy|list|find|first   one request after another, on one connection, as the vendor's
                                               SDK does (requests' session), and no local work at all

Prints the seconds it took, and those of the processor, without starting Python.
"""

import asyncio
import http.client
import json
import sys
import time
from collections.abc import Sequence

from tests.bench.endings import say

_V2 = "archivist/v2"


async def _fetch_all(port: int, todo: list[str]) -> None:
    """Take paths from `todo` until none is left."""
    if not todo:
        return
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
    while todo:
        path = todo.pop()
        writer.write(f"GET {path} HTTP/1.1\r\nHost: origin\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
        await reader.readexactly(length)
    writer.close()


async def _replay(port: int, connections: int, paths: list[str]) -> None:
    todo = paths[::-1]
    await asyncio.gather(*(_fetch_all(port, todo) for _ in range(connections)))


class _Sequential:
    def __init__(self, port: int, ledger: str) -> None:
        self._base = f"/{ledger}/{_V2}"
        self._connection = http.client.HTTPConnection("127.0.0.1", port)

    def ask(self, path: str) -> bytes:
        self._connection.request("GET", f"{self._base}/{path}")
        return self._connection.getresponse().read()

    def records(self, path: str) -> list[str]:
        """Return the identities in a listing, all pages of it."""
        found: list[str] = []
        token = ""
        while True:
            page = json.loads(self.ask(f"{path}?page_size=500&page_token={token}"))
            key = "assets" if "assets" in page else "events"
            found += [record["identity"] for record in page[key]]
            token = page["next_page_token"]
            if not token:
                return found

    def attachments(self) -> list[str]:
        """Return the paths of the first event's attachments."""
        event = self.records("assets/-/events")[0]
        record = json.loads(self.ask(event))
        values = record["event_attributes"].values()
        blobs = [value["arc_blob_identity"] for value in values if isinstance(value, dict)]
        return [f"attachments/{event}/{blob.removeprefix('blobs/')}" for blob in blobs]

    def run(self, work: str) -> None:
        if work == "find":
            for asset in self.records("assets"):
                self.records(f"{asset}/events")
            return
        if work == "first":
            blob = self.attachments()[0]
            self._connection.close()
            self._connection.request("GET", f"{self._base}/{blob}")
            self._connection.getresponse().read(1)
            return
        suffix = "/info" if work == "list" else ""
        for path in self.attachments():
            self.ask(path + suffix)


def main(argv: Sequence[str]) -> None:
    """Run the process."""
    kind, port, third, *rest = argv
    paths = json.load(sys.stdin) if kind == "replay" else []
    began, used = time.perf_counter(), time.process_time()
    if kind == "replay":
        asyncio.run(_replay(int(port), int(third), paths))
    else:
        _Sequential(int(port), third).run(*rest)
    say([time.perf_counter() - began, time.process_time() - used])


if __name__ == "__main__":
    main(sys.argv[1:])
