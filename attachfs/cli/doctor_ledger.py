"""What the ledger answers to one small request with the credentials of a mount, and what to do about it."""

import os
import re
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from attachfs.cli import output
from attachfs.cli.findings import Finding, State, usage_finding
from attachfs.config.settings import Config
from attachfs.errors import (
    AccessDenied,
    AttachfsError,
    BadAnswer,
    NotFound,
    RateLimited,
    Unreachable,
    UsageError,
    causes_of,
    first_of,
)
from attachfs.mount import credentials
from attachfs.service.auth import Auth, ClientCredentials, NoAuth, jwt_expiry
from attachfs.service.client import Client, open_http
from attachfs.service.proxies import Proxies

_PATIENCE = 10.0  # seconds for the request to the ledger, retries included, and no more than --timeout
_LOG_IN = "store new ones with: attachfs login"
_SEE_LEDGER = "see the line about the ledger"
_SOON = 600  # seconds; a token that expires within them is worth a word


async def check(config: Config) -> list[Finding]:
    """Check the credentials as such, then ask the ledger with them for one asset."""
    if config.offline:
        return [Finding("ledger", State.NOTE, "not contacted (--offline)")]
    try:
        http = open_http(url=config.url, ca_file=config.ca_file, max_connections=1)
    except UsageError as error:
        return [usage_finding("ledger", error, "check --ca-file, and the proxy variables in the environment")]
    async with http:
        auth, problem = await _credentials(
            config, lambda client_id, secret: ClientCredentials(client_id, secret, config.url, http)
        )
        limit = min(config.timeout, _PATIENCE)
        client = Client(http, config.url, auth, timeout=limit, max_connections=1, page_size=1)
        answer: BaseException | None = None
        try:
            await client.assets_page()
        except (AttachfsError, BaseExceptionGroup) as failure:
            answer = first_of(failure)
    there, accepted = explain(answer, config.url, anonymous=config.no_auth)
    if problem is not None:
        return [there, problem]
    return [there, accepted]


async def _credentials(
    config: Config, log_in: Callable[..., ClientCredentials]
) -> tuple[Auth, Finding | None]:
    """Return the credentials, or none of any use and what is wrong with them."""
    try:
        auth = credentials.choose(config, log_in)
        header = await auth.header()
    except UsageError as error:
        return NoAuth(), usage_finding("credentials", error, _LOG_IN)
    except AccessDenied as error:
        wrong = Finding(
            "credentials",
            State.WRONG,
            error.reason,
            f"check --client-id; {_LOG_IN}",
        )
        return NoAuth(), wrong
    except AttachfsError as error:
        return NoAuth(), Finding("credentials", State.UNKNOWN, error.reason, _SEE_LEDGER)
    expiry = jwt_expiry(header.rpartition(" ")[2]) if header is not None else None
    if expiry is not None and expiry <= time.time() and not isinstance(auth, ClientCredentials):
        detail = f"the token expired at {output.moment(expiry)}"
        return auth, Finding("credentials", State.WRONG, detail, _LOG_IN)
    if expiry is not None and expiry - time.time() < _SOON and not isinstance(auth, ClientCredentials):
        detail = f"the token expires at {output.moment(expiry)}"
        return auth, Finding("credentials", State.NOTE, detail, _LOG_IN)
    return auth, None


def explain(error: BaseException | None, url: str, *, anonymous: bool = False) -> tuple[Finding, Finding]:
    """Return what the answer to the one request says of the ledger, and of the credentials."""
    if error is None:
        accepted = "accepted" if not anonymous else "none are sent, and none are needed"
        return Finding("ledger", State.OK, f"{url} answers"), Finding("credentials", State.OK, accepted)
    if isinstance(error, AccessDenied):
        return Finding("ledger", State.OK, f"{url} answers"), _denied(error, anonymous=anonymous)
    state, remedy = _diagnose(error, url)
    reason = error.reason if isinstance(error, AttachfsError) else f"{type(error).__name__}: {error}"
    unasked = Finding("credentials", State.UNKNOWN, "could not be tried", _SEE_LEDGER)
    if anonymous:
        unasked = Finding("credentials", State.OK, "none are sent (--no-auth)")
    return Finding("ledger", state, f"{url}: {reason}", remedy), unasked


def _denied(error: AccessDenied, *, anonymous: bool) -> Finding:
    if anonymous:
        return Finding("credentials", State.OK, "none are sent (--no-auth): only public assets can be read")
    if "(403)" in error.reason:
        remedy = "ask the ledger's administrator for an access policy that lets you read assets"
    else:
        remedy = f"check --url; {_LOG_IN}"
    return Finding("credentials", State.WRONG, error.reason, remedy)


def _diagnose(error: BaseException, url: str) -> tuple[State, str]:
    """Return how bad it is that the ledger did not answer as it should, and the remedy."""
    proxy = Proxies(os.environ).variable_for(url)
    through = f"requests go through the proxy in {proxy}: check that, or name the ledger's host in NO_PROXY"
    if proxy and any(
        isinstance(cause, ConnectionRefusedError | socket.gaierror) for cause in causes_of(error)
    ):
        return State.WRONG, through
    remedy = next(filter(None, map(_connection_remedy, causes_of(error))), "")
    if remedy:
        return State.WRONG, remedy
    if isinstance(error, RateLimited):
        return State.UNKNOWN, "wait a minute; if it recurs, ask the ledger's operator for a higher limit"
    if isinstance(error, BadAnswer) and re.search("answered 5[0-9][0-9]", error.reason):
        return State.UNKNOWN, "the service is unwell: try again later, or ask its operator"
    remedy = through if proxy else "check the host and port in --url, the network and its firewalls"
    stranger = isinstance(error, Unreachable) and re.search("in (its )?place", error.reason) is not None
    if stranger or isinstance(error, NotFound | BadAnswer):
        remedy = "something other than a ledger answers there: check --url"
        remedy += "; is it https:// ?" if url.startswith("http:") else ""
    return State.WRONG, remedy


# By OpenSSL's reason to refuse it (x509_vfy.h).
_CERTIFICATE = {
    **dict.fromkeys((62, 64), "the certificate is another host's: check --url"),
    10: "the certificate has expired: its operator must renew it, unless this machine's clock is wrong",
    9: "the certificate is not valid yet: check this machine's clock (date)",
    **dict.fromkeys(
        (18, 19, 20, 21),
        "nobody this machine trusts has signed it: if the ledger is yours, give its CA with --ca-file",
    ),
}


def _missing_authorities(environ: Mapping[str, str] = os.environ) -> str:
    """Return what to say of variables that have OpenSSL look for authorities where there are none."""
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        if environ.get(name) and not Path(environ[name]).exists():
            return f"; {name} in the environment names {environ[name]}, which is not there: unset it"
    return ""


def _connection_remedy(cause: BaseException) -> str:
    match cause:
        case ssl.SSLCertVerificationError():
            message = "the certificate is refused: check --url and --ca-file"
            return _CERTIFICATE.get(cause.verify_code, message) + _missing_authorities()
        case ssl.SSLError():
            return "the port does not speak TLS: check the port in --url; is it http:// ?"
        case socket.gaierror():
            return "check the host in --url, and that this machine can look up names (DNS)"
        case ConnectionRefusedError():
            return "nothing listens there: check the host and port in --url, and that the service runs"
    return ""
