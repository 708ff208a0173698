"""The filters of listings and the page tokens: parsed from query strings, applied to records. No HTTP."""

import base64
import binascii
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec

# Dictionaries of a record: whatever follows the first dot is a key in them, dots and all.
_ATTRIBUTES = {"attributes", "event_attributes", "asset_attributes"}
_FIELDS = {
    "confirmation_status",
    "proof_mechanism",
    "operation",
    "behaviour",
    "transaction_id",
}
_PRINCIPALS = ("principal_declared.", "principal_accepted.")
_TIMES = ("timestamp_accepted", "timestamp_committed", "timestamp_declared")
_TRACKED = {"TRACKED", "NOT_TRACKED", "ANY"}


class BadQuery(ValueError):
    """A query string that the service would refuse. The text says why."""


class Condition(NamedTuple):
    """One filter: the value at `path` in a record, compared with `value`.

    `op` is `=` (with value `*`: present), `!=` (with value `*`: absent), `>=` or `<` (times).
    """

    path: tuple[str, ...]
    op: str
    value: str

    def holds(self, record: dict[str, Any]) -> bool:
        """Whether a record passes."""
        found: Any = record
        for key in self.path:
            found = found.get(key) if isinstance(found, dict) else None
        if self.op == "=":
            return found is not None if self.value == "*" else found == self.value
        if self.op == "!=":
            return found is None if self.value == "*" else found != self.value
        if not isinstance(found, str):
            return False
        moment, bound = parse_time(found), parse_time(self.value)
        return moment >= bound if self.op == ">=" else moment < bound


class Query(NamedTuple):
    """The filters of a listing. `tracked` concerns assets only."""

    conditions: tuple[Condition, ...] = ()
    tracked: str = "TRACKED"

    def matches(self, record: dict[str, Any]) -> bool:
        """Whether a record passes every filter (but `tracked`)."""
        return all(condition.holds(record) for condition in self.conditions)

    def admits_tracked(self, tracked: str) -> bool:
        """Whether an asset of that tracked status is listed."""
        return self.tracked in ("ANY", tracked)


def parse_time(text: str) -> datetime:
    """Return an RFC 3339 time.

    Raises:
        BadQuery: it is none.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise BadQuery(f"{text!r} is not an RFC 3339 time") from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def parse_query(items: Iterable[tuple[str, str]]) -> Query:
    """Return the filters in a query string. Keys that are no filters (`order_by`, …) are left out.

    Raises:
        BadQuery: a value is not possible.
    """
    conditions = []
    tracked = "TRACKED"
    for key, value in items:
        if key == "tracked":
            if value not in _TRACKED:
                raise BadQuery(f"tracked: {value!r} is not one of {', '.join(sorted(_TRACKED))}")
            tracked = value
            continue
        condition = _condition(key, value)
        if condition is not None:
            conditions.append(condition)
    return Query(tuple(conditions), tracked)


def _condition(key: str, value: str) -> Condition | None:
    bare = key.removesuffix("!")
    op = "=" if bare == key else "!="
    group, dot, name = bare.partition(".")
    if dot and group in _ATTRIBUTES:
        return Condition((group, name), op, value)
    if bare in _FIELDS:
        return Condition((bare,), op, value)
    if bare.startswith(_PRINCIPALS):
        return Condition(tuple(bare.split(".", 1)), op, value)
    for time in _TIMES:
        if key in (f"{time}_since", f"{time}_before"):
            parse_time(value)
            return Condition((time,), ">=" if key.endswith("_since") else "<", value)
    return None


class _Token(msgspec.Struct, array_like=True):
    listing: str
    offset: int
    items: list[tuple[str, str]]


def write_token(listing: str, offset: int, items: list[tuple[str, str]]) -> str:
    """Return an opaque page token. It carries the filters, for clients that do not repeat them."""
    raw = msgspec.json.encode(_Token(listing, offset, items))
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def read_token(token: str, listing: str) -> tuple[int, list[tuple[str, str]]]:
    """Return the offset and the filters of a page token.

    Raises:
        BadQuery: it is no token, or one of another listing.
    """
    try:
        raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        found = msgspec.json.decode(raw, type=_Token)
    except (binascii.Error, ValueError, msgspec.DecodeError) as error:
        raise BadQuery("page_token is not valid") from error
    if found.listing != listing or found.offset < 0:
        raise BadQuery("page_token belongs to another listing")
    return found.offset, found.items
