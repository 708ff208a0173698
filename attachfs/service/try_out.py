"""The first question of a mount: whether the ledger is there and takes the credentials."""

import os
from http import HTTPStatus

import httpx
import trio

from attachfs.errors import AccessDenied, AttachfsError, BadAnswer, TimedOut, Unreachable
from attachfs.service.connections import timeouts
from attachfs.service.http_body import LIBRARY_ERRORS, translate
from attachfs.service.proxies import Proxies

_QUESTION = "/archivist/v2/assets?page_size=1"
_WITHIN = 10.0  # seconds
_REFUSED = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)


async def try_out(http: httpx.AsyncClient, url: str, authorization: str | None) -> AttachfsError | None:
    """Ask the ledger for one record, once; the connection is then there for the first request that comes.

    Args:
        http: asks.
        url: the ledger's address.
        authorization: the header; None: nothing is said of credentials.

    Returns:
        What is wrong, and what to do; None if all is well.
    """
    headers = {} if authorization is None else {"Authorization": authorization}
    try:
        with trio.fail_after(_WITHIN):
            async with http.stream(
                "GET", url + _QUESTION, headers=headers, timeout=timeouts(_WITHIN)
            ) as answer:
                status = answer.status_code
                if status == HTTPStatus.OK:
                    async for _ in answer.aiter_raw():  # else the connection could not be used again
                        pass
    except trio.TooSlowError:
        return TimedOut(f"{url} does not answer: is the address right, and does a firewall drop packets?")
    except UnicodeError:
        return Unreachable(f"{url}: no host can have this name")
    except LIBRARY_ERRORS as error:
        return _with_remedy(translate(error, url), url)
    return None if authorization is None or status == HTTPStatus.OK else _of_status(status, url)


def _of_status(status: int, url: str) -> AttachfsError:
    if status in _REFUSED:
        return AccessDenied(
            f"{url} refuses the credentials ({status}): has the token expired, or is it for another ledger?"
        )
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status == HTTPStatus.TOO_MANY_REQUESTS:
        return BadAnswer(f"{url} answers {status}: it may come right by itself")
    return BadAnswer(f"{url} answers {status}: is this the address of a ledger?")


def _with_remedy(error: AttachfsError, url: str) -> AttachfsError:
    if "WRONG_VERSION_NUMBER" in error.reason or "RECORD_LAYER_FAILURE" in error.reason:
        return type(error)(f"{error.reason}: something that does not speak TLS answers there; is it http://?")
    if isinstance(error, BadAnswer) and url.startswith("http:"):
        return type(error)(f"{error.reason}: does it speak https://?")
    if "certificate" in error.reason:
        return type(error)(f"{error.reason}: --ca-file names an authority of your own")
    if isinstance(error, Unreachable):
        proxy = Proxies(os.environ).variable_for(url)
        hint = (
            f"is the proxy in {proxy} right?"
            if proxy
            else "is the address right, and are you on its network?"
        )
        return type(error)(f"{error.reason}: {hint}")
    return error
