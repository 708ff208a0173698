"""One request to the service, and everything that can happen to it: service/client.py's lower half.

Owns: what is asked again, how long it is waited for, and which error it ends with. All of that is one loop,
`Transport.perform`; what one attempt comes to is its outcome:

    gate (rate_limit.py) → slot (concurrency.py) → circuit → credentials (auth.py) → redirects → answer
        → Done: returned.  Again: after a pause, or at once, perhaps on a new connection.  Raised: an error.

A request for metadata is repeated as a whole, its body included; one for a blob until its body begins.
"""

import logging
import math
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx
import trio

from attachfs.errors import AttachfsError, BadAnswer, TimedOut, TooManyFiles, Unreachable, UsageError
from attachfs.service import connections, http_body
from attachfs.service.attempt import STALL, Again, Done, Finish, RequestState
from attachfs.service.auth import Auth
from attachfs.service.circuit_breaker import CircuitBreaker
from attachfs.service.concurrency import Limiter, Slot
from attachfs.service.http1 import UnsolicitedError
from attachfs.service.http_body import RawBody
from attachfs.service.messages import Request, Response, Stats, origin, redirect_target
from attachfs.service.outgoing import Outgoing
from attachfs.service.pool import lacks_descriptors
from attachfs.service.rate_limit import RateLimitGate, requested_wait
from attachfs.service.refusals import Refusal, error_of, is_stranger_page, read_refusal

log = logging.getLogger("attachfs.api")

_ATTEMPTS = 4  # for what may pass by itself; with the waits between them some four seconds
_LONGEST_PAUSE = 5.0  # seconds between attempts
_REDIRECTS = 3
_REDIRECT_STATUSES = frozenset({301, 302, 303, 307, 308})
_PASSING_STATUSES = frozenset({408, 500, 502, 503, 504})
_DENIALS = frozenset({401, 403, 404})
# A 500 and a 408 are about the request; these say that there is nothing behind the gateway.
OUTAGE_STATUSES = frozenset({502, 503, 504})
# Seconds without a first byte after which a connection that has been idle is given up, and a service counts
# as silent; more if it has lately been slower than that, within limits.
_SILENCE = 2.0
_LONGEST_SILENCE = 10.0
_HELD_UP = 1.0  # seconds by which a time limit is noticed late only if the event loop was held up

T = TypeVar("T")


class Transport:
    """Sends requests.

    Args:
        http: the connections; whoever made them closes them.
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
        try:
            parts = urlsplit(base_url)
            self._origin = origin(httpx.URL(base_url.rstrip("/")))
        except (httpx.InvalidURL, ValueError) as error:
            raise UsageError("the ledger's address is malformed: it must be like https://host") from error
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
            raise UsageError("the ledger's address must be like https://host, without credentials")
        self.http = http
        self._base_path = parts.path.rstrip("/")
        self._outgoing = Outgoing(http, base_url.rstrip("/"))
        self._auth = auth
        self.set_timeout(timeout)
        self._clock = clock
        self._wall = wall
        self.limiter = Limiter(max_connections)
        self.gate = RateLimitGate(clock)
        self.circuit = CircuitBreaker(clock, wall)
        self.stats = Stats()
        self.unanswered: dict[RequestState, None] = {}  # sent and not answered, the longest waiting first
        self.busy: trio.Event | None = None  # who waits until something is asked
        self._usual = 0.0  # seconds to an answer's head, lately: the worst, slowly forgotten

    @property
    def unsolicited(self) -> int:
        """Connections closed because of bytes that belonged to no answer."""
        return self.http.router.pool.unsolicited if isinstance(self.http, connections.Http) else 0

    @property
    def silence(self) -> float:
        """Seconds without a first byte that are more than slow."""
        return min(_LONGEST_SILENCE, max(_SILENCE, 2 * self._usual))

    def set_timeout(self, timeout: float) -> None:
        """Change the timeout of what is asked from now on."""
        self.timeout = timeout
        self._timeouts = connections.timeouts(timeout).as_dict()

    def authenticate(self, auth: Auth) -> None:
        """Use other credentials from now on."""
        self._auth = auth

    async def perform(self, request: Request, finish: Finish[T], time_limit: float | None = None) -> T:
        """Ask until there is an answer, and return what `finish` makes of it.

        Args:
            request: what is asked for.
            finish: reads the answer, or passes it on.
            time_limit: seconds for all attempts together, None for the usual. Waiting for a slot counts only
                where not `request.bulk`: the transfers that hold the slots each have to make progress, so
                that the queue moves.

        Raises:
            AttachfsError: as the module's table of errors says.
        """
        timeout = self.timeout if time_limit is None else time_limit
        state = RequestState(request, self._base_path + request.path, timeout, self._clock())
        try:
            while True:
                slot = await self._admitted(state)
                with trio.CancelScope(deadline=state.deadline) as state.scope:
                    outcome = await self._attempt(state, slot, finish)
                if state.scope.cancelled_caught:
                    outcome = self._cut_short(state)
                if isinstance(outcome, Done):
                    return outcome.value
                await self._pause(state, outcome)
        except AttachfsError:
            self.stats.of(request.kind).errors += 1
            raise

    # -- before an attempt, and after one that has to be repeated ---------------------------------------

    async def _admitted(self, state: RequestState) -> Slot:
        """Wait at the gate and for a slot."""
        self.circuit.check(state.what)
        bulk = state.request.bulk
        while True:
            if self.gate.remaining:
                await self.gate.passed(state.what, state.deadline)
            slot = self.limiter.try_acquire(bulk=bulk)
            if slot is None:
                began = self._clock()
                with trio.CancelScope(deadline=math.inf if bulk else state.deadline):
                    slot = await self.limiter.acquire(bulk=bulk)
                if bulk:
                    state.deadline += self._clock() - began
            if slot is None:
                raise state.last or TimedOut(f"{state.what}: no answer within {state.timeout:g} s")
            if not self.gate.remaining:
                return slot
            slot.release()

    async def _pause(self, state: RequestState, again: Again) -> None:
        """Wait as long as is right before the next attempt, or raise the error if there is to be none."""
        state.fresh = again.fresh
        if again.error is None:
            return
        state.last = again.error
        pause = again.wait
        if again.counts:
            state.attempts += 1
            grown = min(0.1, state.timeout / 50) * 2 ** (state.attempts - 1)
            pause += min(_LONGEST_PAUSE, grown) + random.uniform(0, min(1.0, state.timeout / 20))  # noqa: S311
        if state.attempts >= _ATTEMPTS or self._clock() + pause >= state.deadline:
            raise again.error from again.cause
        if pause:
            await trio.sleep(pause)

    def _cut_short(self, state: RequestState) -> Again:
        """Return what an attempt comes to whose time has run out, or that for the next sign of life."""
        seconds = self._clock() - state.sent_at
        if self._clock() < state.deadline:
            if state.answered:
                error = BadAnswer(f"{state.what}: the answer stood still for {STALL:g} s")
                return Again(error, fresh=True)
            # The connection was idle. It may have died meanwhile without either end having noticed; unless
            # the time limit was noticed late, because this process itself stood still.
            if seconds < self.silence + _HELD_UP:
                self.circuit.note_failure(state.what, "an idle connection brings no answer", state.sent_at)
            return Again(TimedOut(f"{state.what}: no answer"), counts=False, fresh=True)
        if not state.answered:
            self.circuit.note_failure(state.what, f"no answer within {seconds:.0f} s", state.sent_at)
        # What failed before says more than that time is up.
        raise state.last or TimedOut(f"{state.what}: no answer within {state.timeout:g} s")

    # -- one attempt ------------------------------------------------------------------------------------

    async def _attempt(self, state: RequestState, slot: Slot, finish: Finish[T]) -> Done[T] | Again:
        counters = self.stats.of(state.request.kind)
        counters.in_flight += 1
        outcome: Done[T] | Again | None = None
        try:
            self.circuit.check(state.what)
            await self.authorize(state)
            url: httpx.URL | None = None
            for _ in range(_REDIRECTS + 1):
                try:
                    self.unanswered[state] = None
                    if self.busy is not None:
                        self.busy.set()
                    response = await self.send(state, url)
                except http_body.LIBRARY_ERRORS as failure:
                    return self._without_answer(state, failure)
                except (
                    ValueError,
                    RuntimeError,
                ) as failure:  # a library's, about an address or a proxy of no use
                    raise BadAnswer(
                        f"{state.what}: the request cannot be sent ({type(failure).__name__})"
                    ) from None
                finally:
                    self.unanswered.pop(state, None)
                self._note_head(state, response.status_code)
                if response.status_code not in _REDIRECT_STATUSES:
                    outcome = await self._judge(state, response, slot, finish)
                    return outcome
                url = await self._redirected(state, response, url)
            raise BadAnswer(f"{state.what}: more than {_REDIRECTS} redirects")
        finally:
            # With what was asked for the slot is the answer's, which may not be read to its end yet.
            if not isinstance(outcome, Done) and slot.release():
                counters.in_flight -= 1

    async def authorize(self, state: RequestState) -> None:
        """Get the credentials for an attempt. Raises AttachfsError: there are none."""
        state.header, state.strayed, state.answered, state.sent_at = None, False, False, self._clock()
        if state.request.credentials:
            try:
                state.header = await self._auth.header()
            except (Unreachable, TimedOut) as error:
                self.circuit.note_failure("the token endpoint", error.reason, state.sent_at)
                self.circuit.note_failure(state.what, error.reason, state.sent_at)
                raise

    def send(self, state: RequestState, url: httpx.URL | None = None) -> Awaitable[connections.Answer]:
        """Send a request, and count it; return what waits for the answer. `url`: where a redirect led.

        Raises:
            http_body.LIBRARY_ERRORS, ValueError, RuntimeError: it cannot be sent.
            BadAnswer: the address is beyond reason.
        """
        return self._outgoing.send(state, url, self._note_sending(state))

    def _note_sending(self, state: RequestState) -> dict[str, Any]:
        """Count what is about to be sent; return what the transport has to know of it."""
        counters = self.stats.of(state.request.kind)
        counters.requests += 1
        counters.retries += state.sent > 0
        state.sent += 1
        state.sent_at = self._clock()
        state.reused = state.answered = state.silent = False

        def sending(reused: bool) -> None:  # noqa: FBT001
            state.reused, state.sent_at = reused, self._clock()
            if reused:
                state.within(self.silence)

        extensions: dict[str, Any] = {"timeout": self._timeouts, "sending": sending}
        if state.fresh:
            extensions["fresh"] = True
        return extensions

    def _note_head(self, state: RequestState, status: int) -> None:
        now = self._clock()
        duration = now - state.sent_at
        state.answered = True
        state.scope.deadline = state.deadline if state.request.bulk else min(state.deadline, now + STALL)
        self._usual = max(duration, 0.9 * self._usual)
        self.stats.of(state.request.kind).answered(status, duration)
        log.debug("%s: %d after %.3f s", state.what, status, duration)

    def _without_answer(self, state: RequestState, failure: Exception) -> Again:
        """Return what an exchange that brought no response comes to."""
        error = http_body.translate(failure, state.what)
        cause = http_body.without_header(failure)
        if lacks_descriptors(failure):  # not the service's fault
            raise TooManyFiles(
                f"{state.what}: no file descriptor is left for a connection; raise the limit (ulimit -n)"
            ) from cause
        self.circuit.note_failure(state.what, error.reason.removeprefix(f"{state.what}: "), state.sent_at)
        broken = isinstance(failure, httpx.NetworkError | httpx.RemoteProtocolError)
        if broken and (state.reused or isinstance(failure, UnsolicitedError)) and not state.reconnected:
            state.reconnected = True  # it may have ended while it was idle
            return Again(error, cause, counts=False, fresh=True)
        passing = broken or isinstance(failure, httpx.ConnectTimeout)
        if http_body.is_certificate_error(failure) or not (passing or isinstance(error, Unreachable)):
            raise error from cause
        return Again(error, cause)

    async def _redirected(
        self, state: RequestState, response: connections.Answer, url: httpx.URL | None
    ) -> httpx.URL:
        """Return where an answer leads, and take the credentials off a request that leaves the origin."""
        try:
            url = url or self._outgoing.url_of(state.request)
            target = redirect_target(url, response.headers.get("location", ""), state.what)
        finally:
            await RawBody(response, state.what).aclose()
        if origin(target) != self._origin:
            state.strayed = True
            state.header = None  # nor does it come back should a further redirect return here
        return target

    # -- the answer -------------------------------------------------------------------------------------

    async def _judge(
        self, state: RequestState, response: connections.Answer, slot: Slot, finish: Finish[T]
    ) -> Done[T] | Again:
        status = response.status_code
        body = RawBody(response, state.what)
        accepted = False
        try:
            kind = response.headers.get("content-type", "")
            if status not in state.request.accept:
                refusal = await read_refusal(status, body, kind, state.header)
                if body.broken and status in _DENIALS:  # not whole: nothing of it is believed
                    return Again(BadAnswer(f"{state.what}: the answer broke off ({status})"), fresh=True)
                return await self._refused(state, response, refusal)
            if body.encoded:
                coding = http_body.quote(body.encoded)
                raise BadAnswer(f"{state.what}: the answer is encoded ({coding}), unasked")
            if not state.request.bulk and is_stranger_page(kind):
                raise Unreachable(f"{state.what}: a page for people came in place of the ledger's answer")
            self.circuit.note_answer()
            self.gate.succeeded(state.sent_at)
            self.limiter.succeeded()
            state.last = None
            accepted = True
            answer = Response(response, body, slot, self.stats.of(state.request.kind))
            return await self._finished(state, answer, finish)
        finally:
            if not accepted:
                await body.aclose()

    async def _finished(self, state: RequestState, answer: Response, finish: Finish[T]) -> Done[T] | Again:
        try:
            value = await finish(answer, state)
        except BadAnswer as error:
            await answer.aclose()
            if not answer.body.broken:
                raise
            # Broken off: nothing of it was used, so it is asked again. Too long: it would be again.
            return Again(error, error.__cause__)
        except BaseException:
            await answer.aclose()
            raise
        return Done(value)

    async def _refused(self, state: RequestState, response: connections.Answer, refusal: Refusal) -> Again:
        status = refusal.status
        if state.request.of_store:
            refusal = refusal._replace(is_own=not is_stranger_page(response.headers.get("content-type", "")))
        if status not in OUTAGE_STATUSES and refusal.is_own:
            self.circuit.note_answer()  # a refusal too shows that the service is there
        if status == 401 and state.header is not None and not state.renewed:
            state.renewed = True
            if await self._auth.renew(state.header):
                return Again(counts=False)
        if status == 429:
            requested = requested_wait(response.headers, self._wall())
            if self.gate.shut(requested, state.sent_at):
                self.limiter.halve()
                log.warning(
                    "%s: the service limits the rate; no requests for %.1f s, then %d at a time",
                    state.what,
                    self.gate.remaining,
                    self.limiter.limit,
                )
            return Again(counts=False)
        error = error_of(refusal, state.what, authorized=state.header is not None, strayed=state.strayed)
        if status not in _PASSING_STATUSES:
            raise error
        if status in OUTAGE_STATUSES:
            self.circuit.note_failure(state.what, f"status {status}", state.sent_at)
        return Again(error, wait=requested_wait(response.headers, self._wall()) or 0.0)
