"""A seal: a COSE_Sign1 message (ES384) in which the log's keeper signs its size and its peaks.

As published, root and peaks are taken out of the payload, and the signature is over the payload with them:
they have to be put back from the massif. So a good signature says that exactly these peaks were signed. The
unprotected header is not signed, and nothing in it is looked at. The key in the protected header says which
key to look for; it proves nothing.
"""

import re
from typing import NamedTuple

from attachfs.proof import cbor, mmr
from attachfs.proof.cbor import Value
from attachfs.proof.errors import ProofError, State
from attachfs.proof.keys import Key, make_key

MAX_SIZE = cbor.MAX_SIZE
_SIGN1 = 18  # the tag
_ES384 = -35
_ALGORITHM, _CLAIMS = 1, 13  # protected header
_SUBJECT, _CONFIRMATION = 2, 8  # claims
_SIZE, _ROOT, _TIME, _IDTIMESTAMP, _EPOCH, _VERSION, _PEAKS = 1, 2, 3, 4, 6, 7, 8  # payload
_KTY, _KID, _CRV, _X, _Y = 1, 2, -1, -2, -3  # COSE key
_SUBJECT_RE = re.compile("(?:.*/)?tenant/([0-9a-f-]{36})/.*?([0-9]{1,16})\\.[a-z]{2,5}")
VERSIONS = (0, 1)


class Subject(NamedTuple):
    """Which massif a seal says it is for."""

    tenant: str
    massif: int


class Seal(NamedTuple):
    """A seal, parsed, its signature not checked yet."""

    protected: bytes
    payload: dict[Value, Value]
    signature: bytes
    size: int
    version: int
    time_ms: int
    subject: Subject | None
    key: Key | None

    def signed_by(self, peaks: list[bytes], key: Key) -> bool:
        """Whether a key signed this seal over these peaks (left to right)."""
        attached: Value = mmr.bag(peaks) if self.version == 0 else list[Value](peaks)
        place = _ROOT if self.version == 0 else _PEAKS
        if self.payload.get(place, attached) != attached:
            return False
        payload = cbor.encode({**self.payload, place: attached})
        return key.verifies(self.signature, cbor.encode(["Signature1", self.protected, b"", payload]))


def parse_seal(data: bytes) -> Seal:
    """Return a seal.

    Raises:
        ProofError: it is damaged, or of a kind that is not known.
    """
    try:
        return _parse(data)
    except ValueError as error:
        raise ProofError(State.UNREADABLE, f"the seal cannot be used: {error}") from error


def _parse(data: bytes) -> Seal:
    message = cbor.decode(data)
    parts = message.value if isinstance(message, cbor.Tag) and message.number == _SIGN1 else None
    if not isinstance(parts, list) or len(parts) != 4:
        raise ValueError("it is not a COSE_Sign1 message")
    protected, unprotected, payload, signature = parts
    if not (
        isinstance(protected, bytes)
        and isinstance(unprotected, dict)
        and isinstance(payload, bytes)
        and isinstance(signature, bytes)
    ):
        raise ValueError("its parts are of the wrong kind")  # noqa: TRY004 - the seal's fault
    header, body = _map(cbor.decode(protected), "header"), _map(cbor.decode(payload), "payload")
    if header.get(_ALGORITHM) != _ES384:
        raise ValueError("it is not signed with ES384")
    version = body.get(_VERSION, 0)
    if version not in VERSIONS:
        raise ValueError(f"its version {str(version)[:20]} is not known")
    size, time_ms = body.get(_SIZE), body.get(_TIME, 0)
    if not isinstance(size, int) or not 0 < size < 1 << 62 or not isinstance(time_ms, int):
        raise ValueError("its size or time is missing")
    mmr.peaks(size)
    claims = header.get(_CLAIMS)
    claims = claims if isinstance(claims, dict) else {}
    return Seal(
        protected,
        body,
        signature,
        size,
        int(version),
        time_ms,
        _subject(claims.get(_SUBJECT)),
        _key(claims.get(_CONFIRMATION)),
    )


def _map(value: Value, what: str) -> dict[Value, Value]:
    if not isinstance(value, dict):
        raise ValueError(f"its {what} is not a map")  # noqa: TRY004 - the seal's fault
    return value


def _subject(value: "Value | None") -> Subject | None:
    found = _SUBJECT_RE.fullmatch(value) if isinstance(value, str) and len(value) < 500 else None
    return None if found is None else Subject(found[1], int(found[2]))


def _key(value: "Value | None") -> Key | None:
    key = value.get(1) if isinstance(value, dict) else None
    if not isinstance(key, dict) or key.get(_KTY) not in ("EC", 2) or key.get(_CRV) not in ("P-384", 2):
        return None
    x, y, kid = key.get(_X), key.get(_Y), key.get(_KID)
    if not isinstance(x, bytes) or not isinstance(y, bytes):
        return None
    try:
        return make_key(kid if isinstance(kid, str) else "", x, y)
    except ValueError:
        return None
