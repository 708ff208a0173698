"""Parses pages of listings: bounded before anything is built of them."""

from typing import Any

import msgspec

from attachfs.errors import BadAnswer
from attachfs.model import decode
from attachfs.text import excerpt

_MOST_VALUES = 1_000_000  # values on one page of a listing
_MOST_RECORDS = 5_000  # records on one page; 500 are asked for


def parse_page(raw: bytes, key: str, what: str) -> tuple[list[dict[str, Any]], str]:
    """Return the records of one page of a listing and the next page's token ("" at the end).

    May take a while for a large page, and is then to be called in a thread: nothing in it holds the
    interpreter for long.

    Raises:
        BadAnswer: the page is unreadable or too large, or `key` is not a list of objects.
    """
    # Counted before anything is built: a page of 30 MiB may hold ten million records, each a Python object.
    if raw.count(b",") > _MOST_VALUES or raw.count(b"{") + raw.count(b"[") > _MOST_VALUES:
        raise BadAnswer(f"{what}: there are more than {_MOST_VALUES:,} values on a page of the listing")
    try:
        body = _shallow(raw, dict[str, msgspec.Raw], what)
    except msgspec.ValidationError as error:
        raise BadAnswer(f"{what}: the answer is not a JSON object") from error
    records = _records(body[key], what, key) if key in body else None
    token = _shallow(body["next_page_token"], Any, what) if "next_page_token" in body else None
    if records is None and not token:
        # An empty listing may leave the key out; `{}` alone says nothing and is not "nothing there".
        if key not in body and not body.keys() & {"next_page_token"}:
            raise BadAnswer(f"{what}: the answer has no {key!r}")
        records = []
    if records is None:
        raise BadAnswer(f"{what}: {key!r} is not a list of objects")
    if token is not None and not isinstance(token, str):
        raise BadAnswer(f"{what}: next_page_token is not text")
    return records, token or ""


def _records(raw: msgspec.Raw, what: str, key: str) -> list[dict[str, Any]] | None:
    """Return the records in a page's list, None for null."""
    try:
        found = _shallow(raw, list[msgspec.Raw] | None, what)
    except msgspec.ValidationError as error:
        raise BadAnswer(f"{what}: {key!r} is not a list of objects") from error
    if any(not bytes(record).startswith(b"{") for record in found or ()):
        raise BadAnswer(f"{what}: {key!r} is not a list of objects")
    if found is not None and len(found) > _MOST_RECORDS:
        raise BadAnswer(f"{what}: {len(found):,} records on a page of the listing, {_MOST_RECORDS:,} at most")
    return None if found is None else [decode(bytes(record), what) for record in found]


def _shallow(raw: Any, kind: Any, what: str) -> Any:
    """Decode the outermost level of JSON only.

    Raises:
        msgspec.ValidationError: it is JSON of another kind.
        BadAnswer: it is no JSON.
    """
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.ValidationError:
        raise
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError, ValueError) as error:
        raise BadAnswer(f"{what}: the answer is not readable JSON ({excerpt(error)})") from error
