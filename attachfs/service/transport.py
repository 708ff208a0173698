"""One request to the service, and everything that can happen to it: service/client.py's lower half.

Lives here and only here: what is repeated, how long it is waited for, and which error it ends with.

    slot (concurrency.py) → gate (rate_limit.py) → circuit → credentials (auth.py) → redirects → status → body

A request for metadata is repeated as a whole, its body included; one for a blob until its body begins.
"""

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, TypeVar
from urllib.parse import urlsplit

import httpx
import stamina
import trio

from attachfs.errors import (
    AccessDenied,
    AttachfsError,
    BadAnswer,
    NotFound,
    TimedOut,
    Unreachable,
    UsageError,
)
from attachfs.service import connections, http_body
from attachfs.service.auth import Auth
from attachfs.service.circuit_breaker import CallPermit, CircuitBreaker
from attachfs.service.concurrency import Limiter, Slot
from attachfs.service.http_body import RawBody
from attachfs.service.messages import Request, Response, Stats, origin, redirect_target
from attachfs.service.rate_limit import RateLimitGate, asked_wait

log = logging.getLogger("attachfs.api")

_ATTEMPTS = 4  # for what may pass by itself; with the waits between them some four seconds
_REDIRECTS = 3
_REDIRECT_STATUSES = frozenset({301, 302, 303, 307, 308})
_PASSING_STATUSES = frozenset({408, 500, 502, 503, 504})
# A 500 and a 408 are about the request; these say that there is nothing behind the gateway.
_OUTAGE_STATUSES = frozenset({502, 503, 504})
_LONGEST_URL = 16 * 1024  # characters; servers refuse longer ones, and no page token needs them

T = TypeVar("T")


class _RetryError(Exception):
    """An attempt failed in a way that may pass. `__cause__` is the library's exception, if any."""

    def __init__(self, error: AttachfsError, *, wait: float = 0.0, dropped: bool = False) -> None:
        super().__init__(error.reason)
        self.error = error
        self.wait = wait  # seconds the service asked for
        self.dropped = dropped  # a connection that may have been closed while it was idle


class _RateLimitedError(Exception):
    """429: the gate is shut now."""


class _RequestState:
    """What happened to one request so far."""

    def __init__(self, ask: Request, what: str, patience: float) -> None:
        self.ask = ask
        self.what = what
        self.scope = trio.CancelScope(deadline=trio.current_time() + patience)
        self.sent = 0
        self.last: AttachfsError | None = None
        self.wait = 0.0
        self.reconnected = False
        self.renewed = False
        self.header: str | None = None  # what the last request was authorized with
        self.strayed = False  # it was redirected to another origin


class Transport:
    """Sends requests.

    Args:
        http: the connection pool; whoever made it closes it.
        base_url: the ledger's address, possibly with a path.
        auth: the credentials for everything that is not public.
        timeout: seconds without progress after which a request ends.
        max_connections: requests in flight at once.
        clock: seconds, the event loop's.
        wall: seconds since 1970.

    Raises:
        UsageError: `base_url` is not an http or https address.
    """

    def __init__(
        self,
        http: httpx.AsyncClient,
        base_url: str,
        auth: Auth,
        *,
        timeout: float,
        max_connections: int,
        clock: Callable[[], float] = trio.current_time,
        wall: Callable[[], float] = time.time,
    ) -> None:
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
            raise UsageError("the ledger's address must be like https://host, without credentials")
        self._http = http
        self._base = base_url.rstrip("/")
        self._base_path = parts.path.rstrip("/")
        self._origin = origin(httpx.URL(self._base))
        self._auth = auth
        self.timeout = timeout
        self._clock = clock
        self._wall = wall
        self.limiter = Limiter(max_connections)
        self.gate = RateLimitGate(clock)
        self.circuit = CircuitBreaker(clock, wall)
        self.stats = Stats()

    def authenticate(self, auth: Auth) -> None:
        """Use other credentials from now on."""
        self._auth = auth

    @property
    def unsolicited(self) -> int:
        """Connections closed because of bytes that belonged to no answer."""
        return self._http.router.pool.unsolicited if isinstance(self._http, connections.Http) else 0

    async def fetch(self, ask: Request, limit: int) -> bytes:
        """Return a whole body of at most `limit` bytes, within the timeout.

        Raises:
            AttachfsError: as the module's table of errors says.
        """

        async def finish(answer: Response) -> bytes:
            try:
                return await answer.body.read(limit)
            except BadAnswer as error:
                # Broken off: nothing of it was used, so it is asked again. Too long: it would be again.
                raise (_RetryError(error) if answer.body.broken else error) from error.__cause__
            finally:
                await answer.aclose()

        return await self._persist(ask, finish, self.timeout)

    async def open(self, ask: Request, patience: float | None = None) -> Response:
        """Return an answer whose body has not begun; the caller closes it.

        Args:
            ask: the request.
            patience: seconds for all attempts together, the timeout if None. Waiting for a slot is not
                counted where `ask.bulk`: the transfers that hold the slots each have to make progress, so
                that the queue moves.

        Raises:
            AttachfsError: as the module's table of errors says.
        """

        async def finish(answer: Response) -> Response:
            return answer

        return await self._persist(ask, finish, self.timeout if patience is None else patience)

    # -- attempts ---------------------------------------------------------------------------------------

    async def _persist(self, ask: Request, finish: Callable[[Response], Awaitable[T]], patience: float) -> T:
        trail = _RequestState(ask, self._base_path + ask.path, patience)
        counters = self.stats.of(ask.kind)
        try:
            with trail.scope:
                try:
                    return await self._attempt(trail, finish)
                except _RetryError as error:
                    failed: _RetryError | None = error
                try:
                    # The first attempt has been made: most requests need no second, nor what it takes.
                    async for attempt in stamina.retry_context(
                        on=_RetryError,
                        attempts=_ATTEMPTS,
                        timeout=None,  # the scope's deadline is the timeout
                        wait_initial=min(0.1, patience / 50),
                        wait_jitter=min(1.0, patience / 20),
                        wait_max=5.0,
                    ):
                        with attempt:
                            if failed is not None:
                                first, failed = failed, None
                                raise first
                            return await self._attempt(trail, finish)
                except _RetryError as again:
                    raise again.error from again.__cause__
            # The deadline passed. What failed before says more than that.
            raise trail.last or TimedOut(f"{trail.what}: no answer within {patience:g} s")
        except AttachfsError:
            counters.errors += 1
            raise

    async def _attempt(self, trail: _RequestState, finish: Callable[[Response], Awaitable[T]]) -> T:
        """Make one attempt; one that a shut gate or an idle connection's end prevented does not count."""
        while True:
            try:
                if trail.wait:
                    wait, trail.wait = trail.wait, 0.0
                    await trio.sleep(wait)
                return await self._try(trail, finish)
            except _RateLimitedError:
                continue
            except _RetryError as again:
                trail.last = again.error
                trail.wait = again.wait
                if self._clock() + again.wait >= trail.scope.deadline:
                    raise again.error from again.__cause__
                if again.dropped and not trail.reconnected:
                    trail.reconnected = True
                    continue
                raise

    async def _try(self, trail: _RequestState, finish: Callable[[Response], Awaitable[T]]) -> T:
        slot = await self._slot(trail)
        counters = self.stats.of(trail.ask.kind)
        counters.in_flight += 1
        try:
            permit = self.circuit.admit(trail.what)
            try:
                return await finish(await self._exchange(trail, slot, permit))
            except trio.Cancelled:
                if self._clock() >= trail.scope.deadline:
                    permit.failed("no answer in time", timeout=True)
                raise
            finally:
                permit.release()
        except BaseException:
            if slot.release():
                counters.in_flight -= 1
            raise

    async def _slot(self, trail: _RequestState) -> Slot:
        """Wait at the gate and for a slot."""
        self.circuit.check(trail.what)
        while True:
            await self.gate.passed(trail.what, trail.scope.deadline)
            deadline, began = trail.scope.deadline, self._clock()
            if trail.ask.bulk:
                trail.scope.deadline = float("inf")
            try:
                slot = await self.limiter.acquire(bulk=trail.ask.bulk)
            finally:
                if trail.ask.bulk:
                    trail.scope.deadline = deadline + self._clock() - began
            if not self.gate.remaining:
                return slot
            slot.release()

    # -- one exchange -----------------------------------------------------------------------------------

    async def _exchange(self, trail: _RequestState, slot: Slot, permit: CallPermit) -> Response:
        while True:
            response = await self._send(trail, permit)
            body = RawBody(response, trail.what)
            accepted = False
            try:
                status = response.status_code
                if status in trail.ask.accept:
                    if body.encoded:
                        raise BadAnswer(
                            f"{trail.what}: the answer is encoded ({http_body.quote(body.encoded)}), unasked"
                        )
                    self._served(permit)
                    trail.last = None
                    accepted = True
                    return Response(response, body, slot, self.stats.of(trail.ask.kind))
                if status not in _OUTAGE_STATUSES:
                    permit.succeeded()  # a refusal too shows that the service is there
                said = await http_body.excerpt(body, trail.header)
                if status == 401 and trail.header is not None and not trail.renewed:
                    trail.renewed = True
                    if await self._auth.renew(trail.header):
                        continue
                self._refuse(trail, permit, response, said)
            finally:
                if not accepted:
                    await body.aclose()

    def _served(self, permit: CallPermit) -> None:
        permit.succeeded()
        self.gate.succeeded(permit.began)
        self.limiter.succeeded()

    def _refuse(
        self, trail: _RequestState, permit: CallPermit, response: httpx.Response, said: str
    ) -> NoReturn:
        status, what = response.status_code, trail.what
        if status == 401:
            if trail.strayed:
                reason = "redirected to another host, which wants credentials that are not for it"
            elif trail.header is None:
                reason = "the service wants credentials, and none are sent"
            else:
                reason = "the credentials are refused; renew them"
            raise AccessDenied(f"{what}: {reason} (401){said}")
        if status == 403:
            raise AccessDenied(f"{what}: the access policy does not allow it (403){said}")
        if status == 404 and not trail.strayed:  # elsewhere, it does not mean that the ledger has nothing
            raise NotFound(f"{what}: the ledger does not have it (404){said}")
        if status == 429:
            asked = asked_wait(response.headers, self._wall())
            if self.gate.shut(asked, permit.began):
                self.limiter.halve()
                log.warning(
                    "%s: the service limits the rate; nothing is asked for %.1f s, then by %d at a time",
                    what,
                    self.gate.remaining,
                    self.limiter.limit,
                )
            raise _RateLimitedError
        error = BadAnswer(f"{what}: the service answered {status}{said}")
        if status not in _PASSING_STATUSES:
            raise error
        if status in _OUTAGE_STATUSES:
            permit.failed(f"status {status}")
        raise _RetryError(error, wait=asked_wait(response.headers, self._wall()) or 0.0)

    async def _send(self, trail: _RequestState, permit: CallPermit) -> httpx.Response:
        """Send, follow redirects, and return the response."""
        url = httpx.URL(self._url(trail))
        trail.header, trail.strayed = None, False
        if trail.ask.credentials:
            try:
                trail.header = await self._auth.header()
            except (Unreachable, TimedOut) as error:
                permit.failed(error.reason, connecting=True)
                raise
        for _ in range(_REDIRECTS + 1):
            response = await self._send_one(trail, permit, url)
            if response.status_code not in _REDIRECT_STATUSES:
                return response
            try:
                location = response.headers.get("location", "")
                target = redirect_target(url, location, trail.what)
            finally:
                await RawBody(response, trail.what).aclose()
            if origin(target) != self._origin:
                trail.strayed = True
                trail.header = None  # nor does it come back should a further redirect return here
            url = target
        raise BadAnswer(f"{trail.what}: more than {_REDIRECTS} redirects")

    async def _send_one(self, trail: _RequestState, permit: CallPermit, url: httpx.URL) -> httpx.Response:
        headers = {
            "Accept": "*/*" if trail.ask.bulk else "application/json",
            "Accept-Encoding": "identity",
            "User-Agent": connections.USER_AGENT,
            "DataTrails-User-Agent": connections.USER_AGENT,
            **dict(trail.ask.headers),
        }
        if trail.header is not None:
            headers["Authorization"] = trail.header
        counters = self.stats.of(trail.ask.kind)
        counters.requests += 1
        counters.retries += trail.sent > 0
        trail.sent += 1
        began = self._clock()
        try:
            timeouts = connections.timeouts(self.timeout)
            outgoing = httpx.Request("GET", url, headers=headers, extensions={"timeout": timeouts.as_dict()})
            response = await connections.exchange(self._http, outgoing)
        except http_body.LIBRARY_ERRORS as failure:
            raise self._failed(trail, permit, failure) from _harmless(failure)
        took = self._clock() - began
        counters.answered(response.status_code, took)
        log.debug("%s: %d after %.3f s", trail.what, response.status_code, took)
        return response

    def _failed(self, trail: _RequestState, permit: CallPermit, failure: Exception) -> Exception:
        """Return what an exchange that brought no response is to end with."""
        error = http_body.translate(failure, trail.what)
        connecting = isinstance(error, Unreachable)
        reason = error.reason.removeprefix(f"{trail.what}: ")
        permit.failed(reason, connecting=connecting, timeout=isinstance(error, TimedOut))
        if isinstance(error, TimedOut) or http_body.is_certificate_trouble(failure):
            return error
        if isinstance(failure, httpx.NetworkError | httpx.RemoteProtocolError | httpx.TimeoutException):
            return _RetryError(error, dropped=not connecting)
        return _RetryError(error) if connecting else error

    def _url(self, trail: _RequestState) -> str:
        url = self._base + trail.ask.path + (f"?{trail.ask.query}" if trail.ask.query else "")
        if len(url) > _LONGEST_URL:
            raise BadAnswer(f"{trail.what}: the next page's token is absurdly long")
        return url


def _harmless(failure: Exception) -> Exception | None:
    """Return the exception if its text cannot hold a header: a traceback may be logged."""
    return None if isinstance(failure, httpx.LocalProtocolError) else failure


def figures(transport: Transport) -> dict[str, Any]:
    """Return the transport's state, ready for JSON."""
    circuit = transport.circuit
    return {
        "requests": transport.stats.figures(),
        "max_connections": transport.limiter.maximum,
        "connections_allowed": transport.limiter.limit,
        "in_flight": transport.limiter.in_flight,
        "waiting": transport.limiter.waiting,
        "rate_limited_for_s": round(transport.gate.remaining, 1),
        "unsolicited": transport.unsolicited,
        "unreachable_since": circuit.open_since,
        "unreachable_reason": circuit.reason if circuit.open_since is not None else "",
    }
