"""Names are looked up in threads of their own."""

import socket
import threading
from typing import Any

import pytest
import trio

from attachfs.service import resolver, wire
from attachfs.service.resolver import Resolver


async def test_lookups_that_nobody_answers_leave_threads_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """More of them than there are threads in the common limit, all given up by those who asked."""
    gate = threading.Event()

    def silent(*_: Any) -> list[Any]:
        gate.wait()
        return []

    monkeypatch.setattr(socket, "getaddrinfo", _numeric_only(silent))
    resolver.install()
    common = trio.to_thread.current_default_thread_limiter()
    try:
        with trio.move_on_after(0.2):
            async with trio.open_nursery() as nursery:
                for _ in range(60):
                    nursery.start_soon(wire.connect, "ledger.example", 443, None)
        assert common.borrowed_tokens == 0
        with trio.fail_after(5):
            assert await trio.to_thread.run_sync(lambda: 1) == 1
    finally:
        gate.set()


def _numeric_only(silent: Any) -> Any:
    """Return a lookup that knows addresses at once, as trio asks first, and hangs for names."""
    real = socket.getaddrinfo

    def lookup(host: Any, *args: Any) -> Any:
        flags = args[-1]
        return real(host, *args) if flags & socket.AI_NUMERICHOST else silent()

    return lookup


async def test_what_the_system_finds_is_passed_on() -> None:
    found = Resolver(lookup=lambda *args: ["found", *args], reverse=lambda *args: ["name", *args])
    assert await found.getaddrinfo(b"host", 1, 2, 3, 4, 5) == ["found", b"host", 1, 2, 3, 4, 5]
    assert await found.getnameinfo(("127.0.0.1", 1), 0) == ["name", ("127.0.0.1", 1), 0]
