"""What an answer that was not hoped for means: whose it is, and the error it becomes.

Owns: which answers are the service's own. Its errors are JSON objects with a `code` or an `error`, or have
no body. What a gateway, a captive portal or a proxy sends in its place, be it JSON of its own, says nothing
about what the ledger has or allows.
"""

from contextlib import suppress
from typing import NamedTuple

import msgspec
import trio

from attachfs.errors import AccessDenied, AttachfsError, BadAnswer, NotFound, Unreachable
from attachfs.service.http_body import RawBody, quote

_BODY_LIMIT = 8 * 1024  # bytes of an error's body that are read, so that its connection can be used again
_BODY_TIME = 1  # seconds spent on it
_OWN_KEYS = frozenset({"code", "error"})  # one of which each of the service's errors has


class Refusal(NamedTuple):
    """An answer that is none of those hoped for. `said`: ': ' and its words for a person, or ''."""

    status: int
    said: str
    is_own: bool  # the service's, and nobody else's


async def read_refusal(status: int, body: RawBody, content_type: str, secret: str | None) -> Refusal:
    """Return what an answer says of an error. Reads a short body to its end.

    What breaks off is nobody's word, as it may have been another's answer: see `RawBody.broken`.

    Args:
        status: the answer's.
        body: not read yet.
        content_type: the answer's, "" for none.
        secret: what must not be quoted.
    """
    raw, ended = b"", False
    with trio.move_on_after(_BODY_TIME):
        try:
            while len(raw) < _BODY_LIMIT and not ended:
                piece = await body.next()
                raw += piece
                ended = not piece
        except AttachfsError:
            pass  # the status tells enough
    value: object = None
    with suppress(msgspec.DecodeError, RecursionError, ValueError):
        value = msgspec.json.decode(raw)
    kind = content_type.partition(";")[0].strip().lower()
    own = not body.broken and _is_own(raw, value, kind, ended=ended)
    if body.encoded:
        return Refusal(status, "", own)
    return Refusal(status, _words(raw, value, secret, ended=ended), own)


def _is_own(raw: bytes, value: object, kind: str, *, ended: bool) -> bool:
    if isinstance(value, dict):
        return not value or not _OWN_KEYS.isdisjoint(value) or kind == "application/problem+json"
    if not raw:
        return ended
    # Longer than what was read of it, or damaged.
    return raw.startswith(b"{") and (kind == "application/json" or kind.endswith("+json"))


def _words(raw: bytes, value: object, secret: str | None, *, ended: bool) -> str:
    text = raw.decode("utf-8", "replace").strip()
    if secret and not ended:
        text = text[: -3 * len(secret)]  # the end may be half a secret, which is not known for one
    if text.startswith("<"):
        return ""
    if isinstance(value, dict):
        said = [value.get(key) for key in ("error", "message", "description", "error_description")]
        text = " ".join(word for word in said if isinstance(word, str) and word)
    return f": {quote(text, secret)}" if text else ""


def error_of(refusal: Refusal, what: str, *, authorized: bool, strayed: bool) -> AttachfsError:
    """Return the error that a refusal becomes, for statuses that do not pass by themselves.

    Args:
        refusal: the answer.
        what: what was asked for, for messages.
        authorized: credentials were sent.
        strayed: the request was redirected to another host.
    """
    status, said, is_own = refusal
    if status in (401, 403, 404) and not is_own:
        return Unreachable(
            f"{what}: something that is not the ledger answers in its place ({status}): a gateway, a proxy "
            f"or a network's login page"
        )
    if status == 401:
        if strayed:
            reason = "redirected to another host, which wants credentials that are not for it"
        elif not authorized:
            reason = "the service wants credentials, and none are sent"
        else:
            reason = "the ledger refuses the credentials"
        return AccessDenied(f"{what}: {reason} (401){said}")
    if status == 403:
        return AccessDenied(f"{what}: the access policy does not allow it (403){said}")
    if status == 404 and not strayed:  # elsewhere, it does not mean that the ledger has nothing
        return NotFound(f"{what}: the ledger does not have it (404){said}")
    return BadAnswer(f"{what}: the service answered {status}{said}")


def is_stranger_page(content_type: str) -> bool:
    """Return whether an answer that should hold JSON is a page for people instead."""
    return content_type.partition(";")[0].strip().lower() in ("text/html", "application/xhtml+xml")
