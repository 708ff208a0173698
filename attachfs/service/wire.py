"""Bytes to and from one peer: a TCP connection, plain or with TLS.

Owns: sockets. Plain sockets are used with trio's readiness calls, and TLS with the standard library's memory
buffers: trio's streams cannot say whether anything is left over in them, which is what `unread` is for.
"""

import contextlib
import socket
import ssl
from typing import Any, Protocol, cast

import trio

_PIECE = 2**20  # bytes asked of the kernel at a time
_RECORD_HEADER = 5  # bytes: type, version, and the payload's length in two
_RECORD = 2**16  # bytes of TLS records taken in at a time


class Wire(Protocol):
    """A connection. A receive without bytes means that the peer has ended it."""

    async def send(self, data: bytes) -> None:
        """Send all of `data`. Raises OSError."""
        ...

    async def receive_into(self, buffer: memoryview) -> int:
        """Wait for bytes, put them into `buffer`, and return how many. Raises OSError, ssl.SSLError."""
        ...

    async def receive(self, limit: int) -> bytes:
        """Return at most `limit` bytes. Raises OSError, ssl.SSLError."""
        ...

    def unread(self) -> bytes | None:
        """Return a byte that has arrived and was not received, b"" if the connection has ended, else None.

        Never waits. The byte is taken: a connection that has one is of no use any more.
        """
        ...

    def close(self) -> None:
        """Close it; a second call does nothing."""
        ...


class PlainWire:
    """TCP without TLS.

    Args:
        sock: connected and non-blocking.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._drained = False  # the last receive has just taken all that had arrived

    async def send(self, data: bytes) -> None:
        """Send all of `data`."""
        try:
            sent = self._sock.send(data)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            await _send_rest(self._sock, memoryview(data)[sent:])

    async def receive_into(self, buffer: memoryview) -> int:
        """Wait for bytes, then take what is there: asking first would find nothing, for a system call."""
        while True:
            await trio.lowlevel.wait_readable(self._sock)
            try:
                count = self._sock.recv_into(buffer)
            except BlockingIOError:
                continue
            self._drained = 0 < count < len(buffer)
            return count

    async def receive(self, limit: int) -> bytes:
        """Take what is there, or wait for it."""
        await trio.lowlevel.checkpoint()  # a fast peer must not keep the others waiting
        while True:
            try:
                data = self._sock.recv(min(limit, _PIECE))
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._sock)
                continue
            self._drained = False
            return data

    def unread(self) -> bytes | None:
        """Look at the socket, unless it was found empty by the receive right before."""
        if self._drained:
            self._drained = False
            return None
        try:
            return self._sock.recv(1)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def close(self) -> None:
        """Close the socket, and wake whoever waits for it."""
        if self._sock.fileno() >= 0:
            trio.lowlevel.notify_closing(self._sock)
            self._sock.close()


class TlsWire:
    """TLS over TCP. Closing it sends no farewell, as is usual for HTTPS.

    Args:
        sock: connected and non-blocking.
        context: what is trusted.
        host: the name or address that the certificate must be for.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, host: str) -> None:
        self._sock = sock
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._records = _RecordBoundary()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)

    async def handshake(self) -> None:
        """Agree on keys. Raises OSError, ssl.SSLError."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                await self._take_in()
            except ssl.SSLError:
                with contextlib.suppress(OSError):
                    await self._flush()  # the alert, which tells the peer why
                raise
            else:
                return await self._flush()

    async def send(self, data: bytes) -> None:
        """Send all of `data`."""
        self._tls.write(data)  # into a buffer in memory, which takes it all
        await self._flush()

    async def receive_into(self, buffer: memoryview) -> int:
        """Take what is decrypted, or wait for more."""
        await trio.lowlevel.checkpoint()
        while True:
            try:
                return self._read(buffer)
            except ssl.SSLWantReadError:
                await self._flush()  # an answer to a request for new keys, if there was one
                await self._take_in()
            except ssl.SSLZeroReturnError:
                return 0

    async def receive(self, limit: int) -> bytes:
        """Take all that is decrypted, record by record, or wait for more."""
        buffer = bytearray(min(limit, 2**18))
        view = memoryview(buffer)
        count = await self.receive_into(view)
        while 0 < count < len(buffer):
            try:
                more = self._read(view[count:])
            except ssl.SSLError:  # no whole record is left; or what is wrong shows at the next call
                break
            if not more:
                break
            count += more
        return bytes(view[:count])

    def unread(self) -> bytes | None:
        """Decrypt what has arrived: session tickets come unasked, and are not a peer's word to anybody."""
        ended = False
        with contextlib.suppress(BlockingIOError):
            while not ended:
                ended = not self._fill()
        try:
            return self._tls.read(1)
        except ssl.SSLWantReadError:
            # What has begun to come, and cannot be read before its end, is left over as well.
            return b"" if ended or self._records.inside else None
        except ssl.SSLError:
            return b""

    def close(self) -> None:
        """Close the socket, and wake whoever waits for it."""
        if self._sock.fileno() >= 0:
            trio.lowlevel.notify_closing(self._sock)
            self._sock.close()

    def _read(self, buffer: memoryview) -> int:
        count: Any = self._tls.read(len(buffer), cast("bytearray", buffer))  # any writable buffer will do
        assert isinstance(count, int)  # with a buffer, it tells how many
        return count

    def _fill(self) -> bool:
        """Take in what the socket has; return whether the peer has not ended it. Raises BlockingIOError."""
        try:
            data = self._sock.recv(_RECORD)
        except BlockingIOError:
            raise
        except OSError:
            data = b""
        if data:
            self._take(data)
        else:
            self._incoming.write_eof()
        return bool(data)

    async def _take_in(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._sock)
            with contextlib.suppress(BlockingIOError):
                data = self._sock.recv(_RECORD)
                if data:
                    self._take(data)
                else:
                    self._incoming.write_eof()
                return

    def _take(self, data: bytes) -> None:
        self._incoming.write(data)
        self._records.pass_over(data)

    async def _flush(self) -> None:
        if self._outgoing.pending:
            await _send_rest(self._sock, memoryview(self._outgoing.read()))


class _RecordBoundary:
    """Knows where the records end in the bytes of a TLS connection (RFC 8446, 5.1)."""

    def __init__(self) -> None:
        self._header = b""  # of a record that has begun, as far as it has come
        self._rest = 0  # bytes of its payload that are still to come

    @property
    def inside(self) -> bool:
        """Whether a record has begun to come and not come to its end."""
        return bool(self._header or self._rest)

    def pass_over(self, data: bytes) -> None:
        """Take note of what came."""
        position = 0
        while position < len(data):
            if self._rest:
                step = min(self._rest, len(data) - position)
                self._rest -= step
                position += step
                continue
            step = _RECORD_HEADER - len(self._header)
            self._header += data[position : position + step]
            position += step
            if len(self._header) == _RECORD_HEADER:
                self._rest, self._header = int.from_bytes(self._header[3:]), b""


async def connect(host: str, port: int, context: ssl.SSLContext | None) -> Wire:
    """Return a connection to `host`, with TLS if there is a `context`.

    Raises:
        OSError, ssl.SSLError: there is none.
    """
    stream = await trio.open_tcp_stream(host, port)
    sock = socket.socket(fileno=stream.socket.detach())
    sock.setblocking(False)
    if context is None:
        return PlainWire(sock)
    wire = TlsWire(sock, context, host)
    try:
        await wire.handshake()
    except BaseException:
        wire.close()
        raise
    return wire


async def _send_rest(sock: socket.socket, rest: memoryview) -> None:
    while rest:
        try:
            rest = rest[sock.send(rest) :]
        except BlockingIOError:
            await trio.lowlevel.wait_writable(sock)
