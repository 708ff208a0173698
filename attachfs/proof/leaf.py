"""An event's leaf in the log, and where its record says that it stands.

    leaf = SHA-256( 0x00 || idtimestamp (8 bytes) || bencode of the eleven fields below )

as the service's own tools compute it (log version 0, schema V3). Times are hashed as the strings that the
service returns. A JSON number has no encoding there, so that an event with one cannot have a leaf.
"""

import hashlib
import re
from typing import Any, NamedTuple

from attachfs.model import is_uuid
from attachfs.proof.errors import ProofError, State

PUBLIC_TENANT = "6ea5cd00-c711-3649-6914-7b125928bbb4"  # whose log public assets' events are in

_TEXTS = (
    *("identity", "operation", "behaviour", "tenant_identity"),
    *("timestamp_declared", "timestamp_accepted", "timestamp_committed"),
)
_MAPS = ("event_attributes", "asset_attributes", "principal_declared", "principal_accepted")
_MAX_DEPTH = 200
_IDTIMESTAMP_RE = re.compile("(?:0x)?([0-9a-f]{2})([0-9a-f]{16})", re.IGNORECASE)
_TENANT_RE = re.compile("tenant/(.{36})")
_MAX_INDEX = 1 << 62


class Commitment(NamedTuple):
    """Where an event's record says that the event stands.

    `tenant` is the UUID of the log's owner; `own` whether the event is that tenant's, or the log the public
    one; `log_is_named` whether it was said whose log it is, and not only taken for the event's owner's.
    """

    tenant: str
    mmr_index: int
    idtimestamp: bytes
    own: bool
    log_is_named: bool


def commitment(event: dict[str, Any], tenant: str | None = None) -> Commitment:
    """Return where an event is committed.

    Args:
        event: its record.
        tenant: the UUID of the tenant to whom the record was served, where that is known.

    Raises:
        ProofError: it is not committed to a log, or does not say where.
    """
    entry = event.get("merklelog_entry")
    commit = entry.get("commit") if isinstance(entry, dict) else None
    if not isinstance(commit, dict) or commit.get("index") in (None, ""):
        raise ProofError(State.NOT_COMMITTED, "the record names no place in a transparency log")
    index = commit["index"]
    if isinstance(index, str) and re.fullmatch("[0-9]{1,19}", index):
        index = int(index)
    stamp = commit.get("idtimestamp")
    found = _IDTIMESTAMP_RE.fullmatch(stamp) if isinstance(stamp, str) else None
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < _MAX_INDEX or found is None:
        raise ProofError(State.NOT_COMMITTED, "the record's place in the log is malformed")
    whose = _TENANT_RE.fullmatch(str(event.get("tenant_identity", "")))
    owner = whose[1] if whose is not None and is_uuid(whose[1]) else None
    if str(event.get("identity", "")).startswith("publicassets/"):
        return Commitment(PUBLIC_TENANT, index, bytes.fromhex(found[2]), own=True, log_is_named=True)
    log = tenant or owner
    if log is None:
        raise ProofError(State.NOT_COMMITTED, "the record does not say whose event it is")
    return Commitment(log, index, bytes.fromhex(found[2]), own=log == owner, log_is_named=tenant is not None)


def leaf_hash(event: dict[str, Any], idtimestamp: bytes) -> bytes:
    """Return an event's leaf.

    Raises:
        ProofError: the record cannot be encoded.
    """
    fields: dict[str, Any] = {}
    for name in _TEXTS:
        value = event.get(name)
        if value is not None and not isinstance(value, str):
            raise _not_encodable(f"{name} is not text")
        fields[name] = value or ""
    for name in _MAPS:
        value = event.get(name)
        if value is not None and not isinstance(value, dict):
            raise _not_encodable(f"{name} is not an object")
        fields[name] = value
    fields["identity"] = re.sub("^publicassets/", "assets/", fields["identity"])
    return hashlib.sha256(b"\0" + idtimestamp + b"".join(_bencode(fields, 0))).digest()


def trie_keys(event: dict[str, Any], tenant: str) -> frozenset[bytes]:
    """Return the keys under which the log of `tenant` may name this event."""
    identity = re.sub("^public", "", str(event.get("identity", "")))
    names = (identity, f"public{identity}")
    return frozenset(
        hashlib.sha256(b"\0" + f"tenant/{tenant}{name}".encode("utf-8", "replace")).digest() for name in names
    )


def _bencode(value: Any, depth: int) -> list[bytes]:
    """Return the pieces of a value's encoding; none for null."""
    if depth > _MAX_DEPTH:
        raise _not_encodable("it is nested too deep")
    if value is None:
        return []
    if isinstance(value, bool):
        return [b"i1e" if value else b"i0e"]
    if isinstance(value, str):
        return [_text(value)]
    if isinstance(value, list):
        return [b"l", *(piece for one in value for piece in _bencode(one, depth + 1)), b"e"]
    if isinstance(value, dict):
        pairs = sorted((key.encode("utf-8", "surrogatepass"), key, one) for key, one in value.items())
        pieces = [b"d"]
        for _, key, one in pairs:
            if one is not None:
                pieces += [_text(key), *_bencode(one, depth + 1)]
        return [*pieces, b"e"]
    raise _not_encodable("it holds a number")


def _text(value: str) -> bytes:
    try:
        raw = value.encode()
    except UnicodeEncodeError as error:
        raise _not_encodable("a text is not Unicode") from error
    return b"%d:%b" % (len(raw), raw)


def _not_encodable(why: str) -> ProofError:
    return ProofError(State.NOT_REPRODUCIBLE, f"the record cannot be encoded as the log does: {why}")
