"""The transport's background: notices that the service is silent, and finds out when it answers again."""

import logging
from contextlib import suppress

import trio

from attachfs.errors import AccessDenied, AttachfsError, BadAnswer, RateLimited, UsageError
from attachfs.service import http_body
from attachfs.service.attempt import RequestState
from attachfs.service.http_body import RawBody
from attachfs.service.messages import Request
from attachfs.service.refusals import is_stranger_page
from attachfs.service.transport import OUTAGE_STATUSES, Transport

log = logging.getLogger("attachfs.api")

_TICK = 0.5  # seconds between looks at who is waiting


async def watch(transport: Transport, probe: Request) -> None:
    """Tell the circuit of silence, and of its end, for as long as it runs.

    Args:
        transport: whose requests and whose circuit.
        probe: what is asked to find out whether the service is there.
    """
    circuit = transport.circuit
    circuit.watched = True
    try:
        while True:
            if not transport.unanswered and circuit.failing_since is None:
                transport.busy = trio.Event()
                await transport.busy.wait()
                transport.busy = None
            fell_asleep = trio.current_time()
            await trio.sleep(_TICK)
            # Later than that, it was this process that stood still: the answers may be there, unread.
            if trio.current_time() - fell_asleep < 2 * _TICK:
                _note_silence(transport)
            if circuit.probe_is_due:
                await _probe(transport, probe)
    finally:
        circuit.watched = False


def _note_silence(transport: Transport) -> None:
    now = trio.current_time()
    for state in transport.unanswered:
        seconds = now - state.sent_at
        if seconds >= transport.silence and not state.silent:
            state.silent = True
            transport.circuit.note_failure(state.what, f"no answer for {seconds:.0f} s", state.sent_at)


async def _probe(transport: Transport, request: Request) -> None:
    """Ask one question on a new connection, without a slot, and whatever the circuit says."""
    circuit, silence_limit, now = transport.circuit, transport.silence, trio.current_time()
    what = "a question whether the ledger is there"
    state = RequestState(request, what, silence_limit, now)
    state.fresh = True
    with trio.move_on_after(silence_limit) as state.scope:
        try:
            with suppress(AccessDenied, BadAnswer, RateLimited, UsageError):
                # Without credentials the service refuses, and that is an answer too.
                await transport.authorize(state)
            response = await transport.send(state)
            await RawBody(response, what).aclose()
            if response.status_code in OUTAGE_STATUSES:
                circuit.note_failure(what, f"status {response.status_code}", now)
            elif not is_stranger_page(response.headers.get("content-type", "")):
                circuit.note_answer()
        except http_body.LIBRARY_ERRORS as failure:
            reason = http_body.translate(failure, what).reason.removeprefix(f"{what}: ")
            circuit.note_failure(what, reason, now)
        except AttachfsError as error:
            log.debug("%s: %s", what, error.reason)
    if state.scope.cancelled_caught:
        circuit.note_failure(what, f"no answer for {silence_limit:.0f} s", now)
    circuit.probed()
