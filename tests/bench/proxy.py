"""A proxy that puts a service far away: `python -m tests.bench.proxy PORT ROUND_TRIP_MS`.

What arrives is passed on half a round trip later, in each direction; a new connection's first bytes wait for
one round trip more, as they would for its handshake. Bandwidth stays what it is, and there is no slow start.
Prints a line of JSON once it listens; ends with its standard input.
"""

import asyncio
import collections
import sys
from collections.abc import Sequence
from typing import cast

from tests.bench.endings import end_with_stdin, say

_UNDER_WAY = 64 * 2**20  # bytes in each direction of a connection, at most


class _End(asyncio.Protocol):
    """One end of a connection through the proxy."""

    def __init__(self, delay: float, earliest: float) -> None:
        self._delay = delay
        self._earliest = earliest  # nothing that arrives here counts as arrived before
        self._loop = asyncio.get_running_loop()
        self._line: collections.deque[bytes] = collections.deque()
        self._under_way = 0
        self.other: _End | None = None
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._line.append(data)
        self._under_way += len(data)
        if self._under_way > _UNDER_WAY and self.transport is not None:
            self.transport.pause_reading()
        self._loop.call_at(max(self._loop.time(), self._earliest) + self._delay, self._pass_on)

    def _pass_on(self) -> None:
        data = self._line.popleft()
        if self._under_way > _UNDER_WAY >= self._under_way - len(data) and self.transport is not None:
            self.transport.resume_reading()
        self._under_way -= len(data)
        other = self.other.transport if self.other is not None else None
        if other is not None and not other.is_closing():
            other.write(data)

    def pause_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        if self.other is not None and self.other.transport is not None:
            when = max(self._loop.time(), self._earliest) + self._delay
            self._loop.call_at(when, self.other.transport.close)


class _Near(_End):
    """The client's end, which makes the other."""

    def __init__(self, port: int, round_trip: float) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(round_trip / 2, loop.time() + round_trip)
        self._port = port
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._task = asyncio.create_task(self._connect())

    async def _connect(self) -> None:
        far = _End(self._delay, 0)
        far.other = self
        try:
            await self._loop.create_connection(lambda: far, "127.0.0.1", self._port)
        except OSError:
            if self.transport is not None:
                self.transport.abort()
            return
        self.other = far
        if far.transport is not None and (self.transport is None or self.transport.is_closing()):
            far.transport.close()


async def _serve(port: int, round_trip: float) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Near(port, round_trip), "127.0.0.1", 0, backlog=1024)
    say({"port": server.sockets[0].getsockname()[1]})
    await server.serve_forever()


def main(argv: Sequence[str]) -> None:
    """Run the process."""
    end_with_stdin()
    asyncio.run(_serve(int(argv[0]), float(argv[1]) / 1000))


if __name__ == "__main__":
    main(sys.argv[1:])
