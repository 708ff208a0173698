"""Bytes to and from one peer: what is left over on a connection."""

import socket
import ssl
from contextlib import closing

import pytest
import trio
import trustme

from attachfs.service.wire import TlsWire

FORGED = b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n"


class TlsPeer:
    """The other end, which sends its records in such pieces as a test likes."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        self.sock = trio.socket.from_stdlib_socket(sock)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side=True)

    async def handshake(self) -> None:
        while True:
            try:
                self.tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                await self.send(self.outgoing.read())
                self.incoming.write(await self.sock.recv(2**16))
        await self.send(self.outgoing.read())

    def record(self, data: bytes) -> bytes:
        self.tls.write(data)
        return self.outgoing.read()

    async def send(self, data: bytes) -> None:
        while data:
            data = data[await self.sock.send(data) :]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("cut", [1, 4, 5, 6, 30, -1])
async def test_a_record_that_has_begun_to_come_is_left_over(cut: int, version: ssl.TLSVersion) -> None:
    """Its rest would come behind the next request, and the whole of it would be taken for the answer."""
    ca = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    server.maximum_version = version
    ca.issue_cert("ledger.test").configure_cert(server)
    ca.configure_trust(client)
    here, there = socket.socketpair()
    here.setblocking(False)
    peer, wire = TlsPeer(there, server), TlsWire(here, client, "ledger.test")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.handshake)
        nursery.start_soon(wire.handshake)
    with peer.sock, closing(wire):
        for size in (1, 2**14, 50_000):
            await peer.send(peer.record(b"x" * size))
            rest = size
            while rest:
                rest -= len(await wire.receive(rest))
            assert wire.unread() is None
        await peer.send(peer.record(FORGED)[:cut])
        assert wire.unread() is not None
