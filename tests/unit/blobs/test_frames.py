"""How long the way is from opening a small file that is not cached to the socket, in functions of ours."""

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import trio

import attachfs
from attachfs.blobs.downloads import Downloads
from attachfs.blobs.pins import Pins
from attachfs.blobs.store import BlobStore
from attachfs.cache.disk_cache import DiskCache
from attachfs.ledger.answer_store import AnswerStore
from attachfs.ledger.offline import RecordingSource, StoredAnswers
from attachfs.ledger.view import Ledger
from attachfs.service import wire
from attachfs.units import MinFree
from tests.services.http_in_process import raw_server, real_client
from tests.services.memory_source import (
    FakeSource,
    as_json,
    asset_record,
    asset_ref,
    attribute,
    file_ref,
    info_body,
)

HANDLER = 2  # of the FUSE layer, which pyfuse3 calls
AT_MOST = 12
OURS = str(Path(attachfs.__file__).parent)
DATA = b"evidence" * 1000


def ours() -> list[str]:
    """Return the functions of ours that the caller was called through, innermost first."""
    frame: FrameType | None = sys._getframe(2)
    found = []
    while frame is not None:
        if frame.f_code.co_filename.startswith(OURS):
            found.append(f"{Path(frame.f_code.co_filename).relative_to(OURS)}:{frame.f_code.co_name}")
        frame = frame.f_back
    return found


def awaiting(work: Any) -> list[str]:
    """Return the functions of ours in which a coroutine waits, the outermost first."""
    found, inner = [], getattr(work, "cr_await", None)
    if work.cr_code.co_filename.startswith(OURS):
        found.append(work.cr_code.co_name)
    return found + (awaiting(inner) if hasattr(inner, "cr_code") else [])


async def test_from_a_record_to_the_socket_are_eight_frames_at_most(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those in which the caller waits for one `/info`, and those of the task that asks the service."""
    ref = file_ref(3)
    body = info_body(ref, DATA)
    sending: list[str] = []
    waiting: list[str] = []
    send = wire.PlainWire.send

    async def answer(stream: trio.SocketStream, _head: bytes) -> None:
        waiting.extend(awaiting(caller))
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n"
        await stream.send_all(head.encode() + body)

    async def noted_send(self: wire.PlainWire, data: bytes) -> None:
        sending.extend(["service/wire.py:send", *ours()])
        await send(self, data)

    monkeypatch.setattr(wire.PlainWire, "send", noted_send)
    store = AnswerStore(tmp_path / "answers.sqlite")
    async with raw_server(answer) as url, real_client(url) as client:
        ledger = Ledger(RecordingSource(client, store), nursery, stored=StoredAnswers(store))
        caller = ledger.info(ref)
        assert (await caller).size == len(DATA)
    assert waiting
    assert sending
    assert len(waiting) + len(sending) <= 8, [*sending, *waiting]


async def test_from_open_to_the_socket_are_twelve_frames_at_most(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the opener where it starts the download's task, and those of that task."""
    ref = file_ref(3)
    records = FakeSource()
    records.infos[ref] = info_body(ref, DATA)
    records.records[asset_ref()] = as_json(asset_record(asset_ref(), {"x": attribute(3, "")}))
    cache = DiskCache(tmp_path / "cache", 2**20, MinFree())
    cache.start("test")
    cache.index()
    pins = Pins(tmp_path / "pins.sqlite")

    async def answer(stream: trio.SocketStream, _head: bytes) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(DATA)}\r\n\r\n"
        await stream.send_all(head.encode() + DATA)

    opening: list[str] = []
    sending: list[str] = []
    start = Downloads.start
    send = wire.PlainWire.send
    async with raw_server(answer) as url, real_client(url) as client:
        blobs = BlobStore(Ledger(records, nursery), client, cache, pins, nursery, namespace="ledger.example")

        def noted_start(*args: object, **kwargs: object) -> object:
            opening.extend(ours())
            return start(*args, **kwargs)  # type: ignore[arg-type]

        async def noted_send(self: wire.PlainWire, data: bytes) -> None:
            if not sending:
                sending.extend(["service/wire.py:send", *ours()])
            await send(self, data)

        monkeypatch.setattr(Downloads, "start", noted_start)
        monkeypatch.setattr(wire.PlainWire, "send", noted_send)
        blob = await blobs.open(ref)
        assert await blob.read(0, len(DATA)) == DATA
        blob.close()
    pins.close()
    cache.close()
    way = [*sending, *opening]
    assert opening
    assert sending
    assert HANDLER + len(opening) + len(sending) <= AT_MOST, way
