"""The response that streams a blob, whole or one range of it. Nothing else knows byte ranges."""

import re
from typing import BinaryIO

import trio
from starlette.types import Receive, Scope, Send

from attachfs.demo.records import Blob

_PIECE = 512 * 1024
_AT_ONCE = 128 * 1024  # bodies up to this size are read without a thread
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


class BlobResponse:
    """An ASGI response: 200 and the bytes, 206 for a single satisfiable range, 416 for one beyond the end.

    Ranges in any other form are ignored, as the standard allows.
    """

    def __init__(self, blob: Blob, wanted: str | None = None) -> None:
        self._blob = blob
        size = blob.source.size
        self._status, self._start, self._stop = 200, 0, size
        match = _RANGE.fullmatch(wanted.strip()) if wanted else None
        if match is None or match.groups() == ("", ""):
            return
        first, last = match.groups()
        if first:
            start, stop = int(first), min(int(last) + 1, size) if last else size
            if last and int(last) < int(first):
                return
        else:
            start, stop = max(0, size - int(last)), size
        if start >= size:
            self._status, self._start, self._stop = 416, 0, 0
        else:
            self._status, self._start, self._stop = 206, start, stop

    async def __call__(self, scope: Scope, _receive: Receive, send: Send) -> None:
        """Send the response."""
        size, length = self._blob.source.size, self._stop - self._start
        headers = [
            (b"content-type", self._blob.mime_type.encode("latin-1", "replace")),
            (b"content-length", str(length).encode()),
            (b"accept-ranges", b"bytes"),
        ]
        if self._status == 206:
            headers.append((b"content-range", f"bytes {self._start}-{self._stop - 1}/{size}".encode()))
        elif self._status == 416:
            headers.append((b"content-range", f"bytes */{size}".encode()))
        await send({"type": "http.response.start", "status": self._status, "headers": headers})
        if length and scope["method"] != "HEAD":
            with self._blob.source.open() as file:
                file.seek(self._start)
                await _send_pieces(file, length, send)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _send_pieces(file: BinaryIO, length: int, send: Send) -> None:
    remaining = length
    while remaining:
        if length <= _AT_ONCE:
            piece = file.read(remaining)
        else:
            piece = await trio.to_thread.run_sync(file.read, min(_PIECE, remaining))
        if not piece:
            raise EOFError("the demo ledger's blob is shorter than it was")
        remaining -= len(piece)
        await send({"type": "http.response.body", "body": piece, "more_body": True})
