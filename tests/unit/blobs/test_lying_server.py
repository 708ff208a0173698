"""A server that lies around its honest answers, from its sockets to the bytes that are served and pinned."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from attachfs.blobs.pins import Pins
from attachfs.blobs.store import BlobStore
from attachfs.cache.disk_cache import DiskCache
from attachfs.errors import BadAnswer, TimedOut, Unreachable
from attachfs.ledger.view import Ledger
from attachfs.model import AssetRef, AttachmentRef
from attachfs.service.auth import NoAuth
from attachfs.service.client import Client, open_http
from attachfs.units import MinFree
from tests.services.http_in_process import raw_server
from tests.services.memory_source import as_json, asset_record, attribute, file_ref, info_body
from tests.unit.blobs.world import digest_of

SCHEDULES = 1_000
SEEDS = 4
READERS = 2
FILES = 2  # for each reader
EVIL = b"forged evidence"
SOON = (0.0, 0.001, 0.03, 0.045)  # seconds; a connection rests for 50 ms before it is used again


# Mostly it is honest: a connection is only used again while nothing was wrong with any.
KINDS = ("honest",) * 8 + ("behind", "later", "later", "into", "short", "stranger", "before")


def reply(body: bytes, status: str = "200 OK", kind: str = "application/json") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


NOT_THERE = reply(b'{"code":5,"error":"not found"}', "404 Not Found")


@dataclass
class Liar:
    """The ledger's honest answers, and what the dice put before, into and behind them."""

    dice: random.Random
    contents: dict[AttachmentRef, bytes] = field(default_factory=dict)
    sent: set[str] = field(default_factory=set)

    def honest(self, target: str) -> bytes:
        for ref, data in self.contents.items():
            if target == f"/archivist/v2/attachments/{ref.path}/info":
                return reply(info_body(ref, data))
            if target == f"/archivist/v2/attachments/{ref.path}":
                return reply(data, kind="application/octet-stream")
            if target == f"/archivist/v2/assets/{ref.asset}":
                return reply(self.record(ref, data))
        return NOT_THERE

    def record(self, ref: AttachmentRef, data: bytes) -> bytes:
        value = attribute(int(ref.attachment[:8], 16), digest_of(data).hex)
        return as_json(asset_record(AssetRef(ref.realm, ref.asset), {"x": value}))

    def forged(self) -> bytes:
        """Return some answers about a file that somebody may be about to ask for."""
        ref = self.dice.choice(list(self.contents))
        made: list[Callable[[], bytes]] = [
            lambda: reply(self.record(ref, EVIL)),
            lambda: reply(info_body(ref, EVIL)),
            lambda: reply(EVIL, kind="application/octet-stream"),
            lambda: NOT_THERE,
            lambda: reply(b'{"code":7,"error":"not allowed"}', "403 Forbidden"),
        ]
        return b"".join(one() for one in self.dice.choices(made, k=self.dice.randrange(1, 4)))

    async def answer(self, stream: trio.SocketStream, head: bytes) -> None:
        what = self.dice.choice(KINDS)
        self.sent.add(what)
        honest = self.honest(head.split(b" ", 2)[1].decode())
        pause = self.dice.choice(SOON)
        match what:
            case "honest":
                await stream.send_all(honest)
            case "behind":
                await stream.send_all(honest + self.forged())
            case "later":
                await stream.send_all(honest)
                await trio.sleep(pause)
                await stream.send_all(self.forged())
            case "into":
                cut = self.dice.randrange(len(honest))
                await stream.send_all(honest[:cut])
                await trio.sleep(pause)
                await stream.send_all(honest[cut:] + self.forged())
            case "short":
                await stream.send_all(honest[: self.dice.randrange(len(honest))])
                await stream.aclose()
            case "stranger":
                page = b"<html>log in" if self.dice.random() < 0.5 else b'{"message":"no route"}'
                status = self.dice.choice(("404 Not Found", "403 Forbidden", "401 Unauthorized"))
                await stream.send_all(reply(page, status, "text/html" if page[:1] == b"<" else "text/json"))
            case "before":  # an interim answer is none
                await stream.send_all(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + honest)


class Readers:
    """Programs that read files, and what came of it. Only a failure that blames the service is allowed."""

    def __init__(self, liar: Liar) -> None:
        self._liar = liar
        self.right = self.failed = 0
        self.digests: dict[str, str] = {}  # by pin key

    async def schedule(self, blobs: BlobStore, first: int) -> None:
        """Read files that nobody has read, which are numbered from `first` on."""
        dice = self._liar.dice
        self._liar.contents = {
            file_ref(number, asset=number): dice.randbytes(dice.randrange(1, 3_000))
            for number in range(first, first + READERS * FILES)
        }
        files = list(self._liar.contents.items())
        async with trio.open_nursery() as nursery:
            for number in range(READERS):
                nursery.start_soon(self._read_all, blobs, files[number::READERS])

    async def _read_all(self, blobs: BlobStore, files: list[tuple[AttachmentRef, bytes]]) -> None:
        for ref, data in files:
            self.digests[f"ledger.example/{ref.attachment}"] = digest_of(data).hex
            await trio.sleep(self._liar.dice.choice((0.0, 0.02, 0.06, 0.1)))
            try:
                blob = await blobs.open(ref)
                try:
                    assert await blob.read(0, len(data) + 1) == data
                finally:
                    blob.close()
                self.right += 1
            except (BadAnswer, TimedOut, Unreachable):
                self.failed += 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(SEEDS))
def test_no_schedule_of_a_lying_server_changes_a_byte_a_name_or_a_pin(seed: int, tmp_path: Path) -> None:
    """A thousand schedules in all; a clock that jumps makes each order of events exact."""
    liar = Liar(random.Random(seed))
    readers = Readers(liar)
    pins = Pins(tmp_path / "pins.sqlite")

    async def main() -> None:
        cache = DiskCache(tmp_path / "cache", 2**26, MinFree())
        cache.start("test")
        cache.index()
        async with raw_server(liar.answer) as url, open_http() as http, trio.open_nursery() as nursery:
            client = Client(http, url, NoAuth(), timeout=20)
            ledger = Ledger(client, nursery)
            blobs = BlobStore(ledger, client, cache, pins, nursery, namespace="ledger.example")
            for number in range(SCHEDULES // SEEDS):
                # Else a client that was lied to once would use no connection twice.
                http.router.pool._distrusted.clear()
                await readers.schedule(blobs, 10 + number * READERS * FILES)
            assert http.router.pool.unsolicited > SCHEDULES / SEEDS / 2
            nursery.cancel_scope.cancel()
        cache.close()

    # What is raised here was believed: that a name is not there, or not allowed, or that bytes do not match.
    trio.run(main, clock=MockClock(autojump_threshold=0.003))
    pinned = {pin.key: pin.digest.hex for pin in pins.find()}
    assert len(pinned) >= readers.right > readers.failed > 0
    assert pinned.items() <= readers.digests.items()
    assert pins.conflicts() == []
    assert liar.sent == set(KINDS)
    pins.close()
