"""Connections that may be used again, and GET and HEAD over them.

Owns: when a connection may be used again. It has to have been quiet for a moment since its last answer, and
nothing may have arrived on it meanwhile: what a peer sends late, behind an answer, must not become the answer
to the next request.
"""

import errno
import logging
import ssl
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import httpx
import trio

from attachfs.errors import causes_of
from attachfs.service import wire
from attachfs.service.http1 import (
    NETWORK_ERRORS,
    Body,
    Connection,
    Http1Answer,
    UnsolicitedError,
    request_bytes,
)

log = logging.getLogger("attachfs.api")

# An idle connection is kept this long (seconds): a person's next `ls` finds it open, and most load
# balancers keep theirs for a minute.
_KEEPALIVE = 30.0
# Seconds for which nothing may have arrived since the last answer. It costs as many connections again as are
# in use at a time, and no time: another one is taken meanwhile.
QUIET = 0.05
_LOOK = 1.0  # seconds after which an idle connection is looked at, whether it has ended
# Seconds for which a host that sent what nobody asked for gets a connection for each request.
_DISTRUST = 600.0
_HOSTS = 64  # of which that is remembered
_JUMP = 2.0  # seconds by which one clock may leave another before the machine must have slept in between
# Connecting takes a few round trips; a host that has not answered by then (seconds) is not there, and
# waiting longer would leave no time for other attempts.
CONNECT = 10.0

Origin = tuple[str, str, int]


class ClockJumps:
    """Notices that the machine has slept, or was stopped and started again: its clocks disagree then.

    Args:
        clocks: CLOCK_MONOTONIC stands still in a suspend, CLOCK_BOOTTIME does not, and the time of day may
            jump alone.
    """

    def __init__(
        self,
        *clocks: Callable[[], float],
    ) -> None:
        self._clocks = clocks or (
            time.monotonic,
            lambda: time.clock_gettime(time.CLOCK_BOOTTIME),
            time.time,
        )
        self._seen = [clock() for clock in self._clocks]

    def happened(self) -> bool:
        """Return whether the clocks have moved apart since the last call."""
        seen, self._seen = self._seen, [clock() for clock in self._clocks]
        steps = [now - before for now, before in zip(self._seen, seen, strict=True)]
        return max(steps) - min(steps) > _JUMP


class Http1Pool(httpx.AsyncBaseTransport):
    """GET and HEAD over HTTP/1.1, one request at a time on each connection.

    Nothing here bounds how many requests there are: the limiter above does. A request's extensions may hold
    `fresh` (True: all idle connections are dropped, and a new one is made) and `sending` (called with whether
    the connection was used before, right before the request is sent), beside httpx's `timeout`, of which
    "connect" is heeded.

    Args:
        context: what TLS trusts.
        max_idle: connections kept.
        quiet: seconds for which nothing may have arrived before a connection is used again.
        clock: seconds. Not the event loop's: sockets take real time.
        jumps: notices a suspend.
        connect: makes a connection.
    """

    def __init__(
        self,
        context: ssl.SSLContext,
        *,
        max_idle: int = 66,
        quiet: float = QUIET,
        clock: Callable[[], float] = time.monotonic,
        jumps: ClockJumps | None = None,
        connect: Callable[..., Any] = wire.connect,
    ) -> None:
        self._context = context
        self._max_idle = max_idle
        self._quiet = quiet
        self._clock = clock
        self._jumps = jumps or ClockJumps()
        self._connect = connect
        self._cooling: deque[Connection] = deque()  # have brought an answer just now, the first of them first
        self._idle: deque[Connection] = deque()  # can be used again, longest idle first
        self._distrusted: dict[Origin, float] = {}  # until when
        self.unsolicited = 0  # connections closed because of bytes that belong to no answer

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, as `exchange` does."""
        url = request.url
        origin = (
            url.scheme,
            url.raw_host.decode("ascii"),
            url.port or (443 if url.scheme == "https" else 80),
        )
        answer = await self.exchange(
            origin, request_bytes(request), request.extensions, head_only=request.method == "HEAD"
        )
        head = answer.head
        version = {"http_version": b"HTTP/" + head.version}
        return httpx.Response(head.status, headers=head.headers, stream=answer.stream, extensions=version)

    async def exchange(
        self, origin: Origin, payload: bytes, extensions: Mapping[str, Any], *, head_only: bool = False
    ) -> Http1Answer:
        """Send a request; its connection is free again once the whole body has arrived.

        Args:
            origin: where to.
            payload: the request, as `request_bytes` returns it.
            extensions: as those of a request.
            head_only: it is a HEAD.

        Raises:
            httpx.HTTPError: there is no answer.
        """
        if extensions.get("fresh"):
            self.drop_idle()
        connection = self._take(origin) or await self._open(origin, extensions)
        if (sending := extensions.get("sending")) is not None:
            sending(connection.used)
        try:
            await connection.wire.send(payload)
            head, first = await connection.receive_head(head_only=head_only)
            body = Body(connection, head, first, self._done)
        except NETWORK_ERRORS as error:
            connection.wire.close()
            raise httpx.ReadError("the connection broke") from error
        except BaseException:
            connection.wire.close()
            raise
        return Http1Answer(head, body)

    @property
    def idle(self) -> int:
        """Connections that nobody uses now."""
        return len(self._idle) + len(self._cooling)

    def drop_idle(self) -> bool:
        """Close all idle connections; return whether there were any."""
        dropped = [*self._idle, *self._cooling]
        self._idle.clear()
        self._cooling.clear()
        for connection in dropped:
            connection.wire.close()
        return bool(dropped)

    async def aclose(self) -> None:
        """Close the idle connections; one in use ends with its answer."""
        self.drop_idle()

    def _take(self, origin: Origin) -> Connection | None:
        """Return an idle connection that can be used, the one that was used last. None: there is none."""
        now = self._clock()
        if self._jumps.happened():
            self.drop_idle()
        while self._cooling and self._cooling[0].idle_since <= now - self._quiet:
            self._idle.append(self._cooling.popleft())
        self._close_old(now)
        for position in reversed(range(len(self._idle))):
            connection = self._idle[position]
            if connection.origin == origin:
                del self._idle[position]
                if self._is_quiet(connection):
                    return connection
                if origin in self._distrusted:
                    break  # none of its other connections is left
        return None

    def _close_old(self, now: float) -> None:
        """Close what nobody will use any more: the oldest are too old, or have ended."""
        while self._idle:
            oldest = self._idle[0]
            # In the middle of a copy each system call counts: nothing is looked at that was used just now.
            if now - oldest.idle_since < _LOOK:
                return
            self._idle.popleft()
            if now - oldest.idle_since > _KEEPALIVE:
                oldest.wire.close()
            elif self._is_quiet(oldest):
                self._idle.appendleft(oldest)
                return

    def _is_quiet(self, connection: Connection) -> bool:
        """Return whether nothing has arrived on an idle connection; close it otherwise."""
        unread = connection.wire.unread()
        if unread is None:
            return True
        connection.wire.close()
        if unread:
            self._note_unsolicited(connection.origin)
        return False

    async def _open(self, origin: Origin, extensions: Mapping[str, Any]) -> Connection:
        scheme, host, port = origin
        timeout = extensions.get("timeout", {}).get("connect")
        try:
            with trio.fail_after(CONNECT if timeout is None else timeout):
                opened = await self._connect_sparing(host, port, self._context if scheme == "https" else None)
        except trio.TooSlowError as error:
            raise httpx.ConnectTimeout("no connection in time") from error
        except (*NETWORK_ERRORS, UnicodeError) as error:
            raise httpx.ConnectError("no connection") from error
        if opened.unread():
            opened.close()
            self._note_unsolicited(origin)
            raise UnsolicitedError("an answer came before the request")
        return Connection(opened, origin)

    async def _connect_sparing(self, host: str, port: int, context: ssl.SSLContext | None) -> wire.Wire:
        """Connect; if there are no descriptors left, give up the idle connections and try once more."""
        try:
            return await self._connect(host, port, context)  # type: ignore[no-any-return]
        except OSError as error:
            if not lacks_descriptors(error) or not self.drop_idle():
                raise
        return await self._connect(host, port, context)  # type: ignore[no-any-return]

    def _done(self, connection: Connection, reusable: bool, has_unread: bool) -> None:  # noqa: FBT001
        """Take a connection back whose answer has ended, or was given up."""
        if has_unread:
            self._note_unsolicited(connection.origin)
        now = self._clock()
        if not reusable or self._distrusted.get(connection.origin, now) > now:
            connection.wire.close()
            return
        connection.idle_since = now
        self._cooling.append(connection)
        if len(self._idle) + len(self._cooling) > self._max_idle:
            (self._idle or self._cooling).popleft().wire.close()

    def _note_unsolicited(self, origin: Origin) -> None:
        self.unsolicited += 1
        distrusted = origin in self._distrusted
        if len(self._distrusted) >= _HOSTS:
            self._distrusted.clear()
        self._distrusted[origin] = self._clock() + _DISTRUST
        for group in (self._idle, self._cooling):
            for connection in [one for one in group if one.origin == origin]:
                group.remove(connection)
                connection.wire.close()
        if not distrusted:
            log.warning(
                "%s:%d sends bytes that belong to no answer; they are discarded, and each request to it gets "
                "a connection of its own",
                *origin[1:],
            )


def lacks_descriptors(error: BaseException) -> bool:
    """Return whether something failed because this process, or the system, has no file descriptors left."""
    return any(
        isinstance(one, OSError) and one.errno in (errno.EMFILE, errno.ENFILE) for one in causes_of(error)
    )
