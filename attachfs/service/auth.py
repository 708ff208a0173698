"""Credentials: where the Authorization header comes from, and how it is renewed.

Owns: tokens' lives. They sit in objects that do not show them, and no message quotes
them.
"""

import base64
import binascii
import logging
import math
import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

import httpx
import msgspec
import trio

from attachfs.errors import (
    AccessDenied,
    AttachfsError,
    BadAnswer,
    RateLimited,
    TimedOut,
    Unreachable,
    UsageError,
)
from attachfs.service import connections, http_body
from attachfs.service.refusals import read_refusal
from attachfs.service.secret_file import Secret, Version, read_private, version_of

__all__ = ["Auth", "ClientCredentials", "NoAuth", "Secret", "TokenFile"]

log = logging.getLogger("attachfs.auth")

_ANSWER_LIMIT = 64 * 1024  # bytes of the token endpoint's answer
_LOOK_AGAIN = 1.0  # seconds between looks at the token file
_REWRITE = 0.05  # seconds that writing a token may take
_MARGIN = 60.0  # seconds before its end that a token is renewed, or a tenth of its life if that is less
_TOKEN_TIMEOUT = 30.0  # seconds for the token endpoint, retries included
_TOKEN_ATTEMPTS = 3
_FAILURE_KEPT = 2.0  # seconds for which a failed renewal answers everybody
_RENEWALS_APART = 1.0  # seconds between renewals that a 401 asks for: a fresh token that is refused too
_TOKEN_PATH = "/archivist/iam/v1/appidp/token"  # noqa: S105 - a path

# RFC 6750's b64token, after an optional header name and scheme.
_LINE = re.compile(
    r"(?:authorization[ \t]*:[ \t]*)?(?:bearer[ \t]+)?([A-Za-z0-9._~+/-]+=*)",
    re.IGNORECASE | re.ASCII,
)


class Auth(Protocol):
    """Where the Authorization header comes from."""

    async def header(self) -> str | None:
        """Return the header's value, None to send none.

        Raises:
            UsageError: the credentials cannot be used, and never could.
            AccessDenied: they cannot be used any more, or are wrong.
            Unreachable: they cannot be had now. Also TimedOut, RateLimited, BadAnswer.
        """
        ...

    async def renew(self, stale: str | None) -> bool:
        """After a 401 to `stale`: return whether there is another header now. One renewal serves all."""
        ...


class NoAuth:
    """No credentials: public assets only."""

    async def header(self) -> str | None:
        """Return None."""
        return None

    async def renew(self, stale: str | None) -> bool:  # noqa: ARG002 - the protocol's signature
        """Return False: there is nothing to renew."""
        return False


# -- a file --------------------------------------------------------------------------------------------


class TokenFile:
    """A bearer token in a file, read again when the file changes and after a 401.

    Args:
        path: the file, holding the token or a whole `Authorization: Bearer …` line; mode 0600.
        clock: seconds, the event loop's.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = trio.current_time) -> None:
        self._path = path
        self._clock = clock
        self._header: Secret | None = None
        self._version: Version | None = None
        self._looked = -math.inf
        self._problem = ""  # what the last look found wrong
        self._lock = trio.Lock()

    def __repr__(self) -> str:
        return f"TokenFile({str(self._path)!r})"

    async def header(self) -> str:
        """Return the header; look at the file first, unless that was done within the last second.

        Raises:
            UsageError: the file cannot be used. AccessDenied instead once it could be.
        """
        if self._clock() - self._looked >= _LOOK_AGAIN:
            async with self._lock:
                # Whoever held the lock may have looked.
                if self._clock() - self._looked >= _LOOK_AGAIN:
                    await self._read_secret(anew=False)
        if self._problem:
            raise AccessDenied(self._problem)
        assert self._header is not None
        return self._header.reveal()

    async def renew(self, stale: str | None) -> bool:
        """Read the file again, and return whether it holds another token than `stale`."""
        async with self._lock:
            if not self._problem and self._header is not None and self._header.reveal() != stale:
                return True  # somebody else read it meanwhile
            await self._read_secret(anew=True)
            return not self._problem and self._header is not None and self._header.reveal() != stale

    async def _read_secret(self, *, anew: bool) -> None:
        try:
            if anew or self._problem or await trio.to_thread.run_sync(self._changed):
                await self._read()
            self._problem = ""
        except UsageError as error:
            if self._header is None:
                raise
            # A mount that works is not to fail because of the moment in which the file is being rewritten.
            await trio.sleep(_REWRITE)
            try:
                await self._read()
                self._problem = ""
            except UsageError:
                # Known to all until the next look: nobody else needs to try.
                self._problem = f"{error.reason}; the mount goes on once that is done"
        self._looked = self._clock()

    def _changed(self) -> bool:
        try:
            return version_of(self._path) != self._version
        except OSError:
            return True  # reading it will tell what is wrong

    async def _read(self) -> None:
        what = "the token file"
        text, version = await trio.to_thread.run_sync(read_private, self._path, what)
        found = _LINE.fullmatch(text)
        if found is None:
            raise UsageError(
                f"{what} {self._path} holds no bearer token: it must hold the token alone, "
                f"or a line 'Authorization: Bearer TOKEN'"
            )
        self._header, self._version = Secret(f"Bearer {found[1]}"), version


# -- client credentials --------------------------------------------------------------------------------


class _Token(NamedTuple):
    header: Secret
    renew_at: float  # on the event loop's clock; inf where its life is not known
    ends_at: float


class ClientCredentials:
    """Tokens fetched with a client id and secret, renewed before they expire.

    Args:
        client_id: the application's id.
        secret_source: the file that holds the secret, or the secret itself.
        base_url: the ledger's address.
        http: the connection pool.
        clock: seconds, the event loop's.
        wall: seconds since 1970, to read a token's own expiry.
        timeout: seconds for all attempts to get a token, half a minute at most.
    """

    def __init__(
        self,
        client_id: str,
        secret_source: Path | Secret | str,
        base_url: str,
        http: httpx.AsyncClient,
        clock: Callable[[], float] = trio.current_time,
        *,
        wall: Callable[[], float] = time.time,
        timeout: float = _TOKEN_TIMEOUT,
    ) -> None:
        if not client_id or not client_id.isascii() or not client_id.isprintable():
            raise UsageError("--client-id must be printable ASCII text")
        self._id = client_id
        self._source = Secret(secret_source) if isinstance(secret_source, str) else secret_source
        self._url = base_url.rstrip("/") + _TOKEN_PATH
        self._http = http
        self._timeout = min(timeout, _TOKEN_TIMEOUT)
        self._clock = clock
        self._wall = wall
        self._token: _Token | None = None
        self._lock = trio.Lock()
        self._failure: tuple[float, AttachfsError] | None = None  # until when it answers, and the error
        self._renewed = -math.inf

    def __repr__(self) -> str:
        return f"ClientCredentials({self._id!r})"

    async def header(self) -> str:
        """Return the header; fetch a token first if there is none, or the one at hand is about to end."""
        token = self._token
        if token is None or self._clock() >= token.renew_at:
            async with self._lock:
                token = self._token
                if token is None or self._clock() >= token.renew_at:
                    token = await self._next(token)
        return token.header.reveal()

    async def renew(self, stale: str | None) -> bool:
        """Fetch another token, unless there is one already."""
        async with self._lock:
            token = self._token
            if token is not None and token.header.reveal() != stale:
                return True
            if self._clock() - self._renewed < _RENEWALS_APART:
                if self._failure is not None and self._clock() < self._failure[0]:
                    # Not that these credentials are refused: no others could be had.
                    raise self._failure[1].with_traceback(None)
                return False
            try:
                header = (await self._next(None)).header
            except AttachfsError:
                self._renewed = self._clock()
                raise
            # Only now: a renewal cancelled half-way has found out nothing, and the next caller makes it.
            self._renewed = self._clock()
            return header.reveal() != stale

    async def _next(self, old: _Token | None) -> _Token:
        """Fetch a token, or return `old` if that is still good and no other can be had. Holds the lock."""
        if self._failure is not None and self._clock() < self._failure[0]:
            error = self._failure[1]
        else:
            try:
                self._token = await self._fetch()
            except AttachfsError as failure:
                self._failure = (self._clock() + _FAILURE_KEPT, failure)
                error = failure
            else:
                self._failure = None
                return self._token
        if old is not None and self._clock() < old.ends_at:
            log.debug("the present token stays in use, because no new one could be fetched: %s", error.reason)
            return old
        raise error.with_traceback(None)

    async def _fetch(self) -> _Token:
        what = "the token endpoint"
        secret = self._source
        if isinstance(secret, Path):
            text, _ = await trio.to_thread.run_sync(read_private, secret, "the client secret file")
            secret = Secret(text)
        last: AttachfsError | None = None
        with trio.move_on_after(self._timeout):
            for attempt in range(_TOKEN_ATTEMPTS):
                if last is not None:
                    await trio.sleep(random.uniform(0.1, 1) * 2 ** (attempt - 1))  # noqa: S311 - spread
                try:
                    return self._parse(await self._post(secret, what), what)
                except (Unreachable, _PassingError) as error:
                    last = BadAnswer(error.reason) if isinstance(error, _PassingError) else error
        if last is None:
            raise TimedOut(f"{what}: no answer within {self._timeout:g} s")
        raise last.with_traceback(None)

    async def _post(self, secret: Secret, what: str) -> bytes:
        form = {
            "grant_type": "client_credentials",
            "client_id": self._id,
            "client_secret": secret.reveal(),
        }
        headers = {
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "User-Agent": connections.USER_AGENT,
            "DataTrails-User-Agent": connections.USER_AGENT,
        }
        try:
            request = self._http.build_request(
                "POST", self._url, data=form, headers=headers, timeout=connections.timeouts(self._timeout)
            )
            response = await self._http.send(request, stream=True, auth=None, follow_redirects=False)
        except http_body.LIBRARY_ERRORS as failure:
            error = http_body.translate(failure, what)
            raise (_PassingError(error.reason) if type(error) is BadAnswer else error) from None
        body = http_body.RawBody(response, what)
        try:
            if response.status_code == 200:
                if body.encoded:
                    raise BadAnswer(f"{what}: the answer is encoded, unasked")
                return await body.read(_ANSWER_LIMIT)
            kind = response.headers.get("content-type", "")
            refusal = await read_refusal(response.status_code, body, kind, secret.reveal())
            if refusal.status in (400, 401, 403) and not refusal.is_own:
                raise Unreachable(f"{what}: something else answers in its place ({refusal.status})")
            raise _error_of(refusal.status, what, refusal.said)
        finally:
            await body.aclose()

    def _parse(self, raw: bytes, what: str) -> _Token:
        try:
            answer = msgspec.json.decode(raw)
        except (msgspec.DecodeError, RecursionError, ValueError):
            answer = None  # without the cause: its text may quote the token
        token = answer.get("access_token") if isinstance(answer, dict) else None
        if not isinstance(token, str) or re.fullmatch(r"[A-Za-z0-9._~+/-]+=*", token, re.ASCII) is None:
            raise BadAnswer(f"{what}: the answer holds no usable token")
        kind = answer.get("token_type")
        if isinstance(kind, str) and kind.lower() not in ("", "bearer"):
            raise BadAnswer(f"{what}: the token is not a bearer token")
        now = self._clock()
        life = _life(answer.get("expires_in"))
        if life is None and (expiry := jwt_expiry(token)) is not None:
            life = max(0.0, expiry - self._wall())
        if life is None:
            return _Token(Secret(f"Bearer {token}"), math.inf, math.inf)
        return _Token(Secret(f"Bearer {token}"), now + life - min(_MARGIN, life / 10), now + life)


class _PassingError(BadAnswer):
    """The token endpoint failed in a way that may pass."""


def _error_of(status: int, what: str, said: str) -> AttachfsError:
    if status in (400, 401):
        return AccessDenied(f"{what}: the client ID or secret is wrong ({status}){said}")
    if status == 403:
        return AccessDenied(f"{what}: this client is not allowed in (403){said}")
    if status == 404:
        return BadAnswer(f"{what}: there is none (404){said}; check --url")
    if status == 429:
        return RateLimited(f"{what}: the service limits the rate (429){said}")
    error = _PassingError if status in (408, 500, 502, 503, 504) else BadAnswer
    return error(f"{what}: the service answered {status}{said}")


def _life(value: object) -> float | None:
    """Return `expires_in` as seconds, None if it is not a sensible number of them."""
    if isinstance(value, str) and re.fullmatch("[0-9]{1,10}", value, re.ASCII):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
        return None
    return float(value)


def jwt_expiry(token: str) -> float | None:
    """Return the `exp` of a JWT, in seconds since 1970, None if it has none. The signature is not checked."""
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        claims = msgspec.json.decode(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (binascii.Error, msgspec.DecodeError, RecursionError, ValueError):
        return None
    expiry = claims.get("exp") if isinstance(claims, dict) else None
    if isinstance(expiry, bool) or not isinstance(expiry, int | float) or not 0 < expiry < 1e12:
        return None
    return float(expiry)
