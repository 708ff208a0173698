"""Looks up hosts' names in threads of its own.

Owns: how many lookups go on at once. One that nobody answers cannot be stopped: its thread, and its place
among those that may run, are gone until the resolver gives up. In the limit that all threads of a program
share, a few dozen of them would hold up everything else.
"""

import socket
from collections.abc import Callable
from typing import Any

import trio

_THREADS = 8


class Resolver(trio.abc.HostnameResolver):
    """Asks the system, side by side with whatever else takes a thread.

    Args:
        lookup: as socket.getaddrinfo.
        reverse: as socket.getnameinfo.
    """

    def __init__(
        self,
        lookup: Callable[..., Any] | None = None,
        reverse: Callable[..., Any] | None = None,
    ) -> None:
        self._lookup = lookup or socket.getaddrinfo
        self._reverse = reverse or socket.getnameinfo
        self._limiter = trio.CapacityLimiter(_THREADS)

    async def getaddrinfo(self, *args: Any) -> Any:
        """Return a host's addresses."""
        return await self._run(self._lookup, *args)

    async def getnameinfo(self, *args: Any) -> Any:
        """Return an address's name."""
        return await self._run(self._reverse, *args)

    async def _run(self, work: Callable[..., Any], *args: Any) -> Any:
        return await trio.to_thread.run_sync(work, *args, limiter=self._limiter, abandon_on_cancel=True)


def install() -> None:
    """Have all connections that this run of trio makes look up names so."""
    trio.socket.set_custom_hostname_resolver(Resolver())
