"""Keys that sign logs. Trusted are those that the user names, by file or as `datatrails`, and no others.

The two published keys are those of the service's logs, as its vendor handed them out with its tools (a JWKS
of two keys, merkle-log-signing/14346aaf… and …/16e61f87…) in 2024 and 2025. They are offered by name so that
nobody has to copy them, and used only when that name is given.
"""

import base64
import hashlib
import json
from collections.abc import Iterable
from typing import Any, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils

from attachfs.errors import UsageError

PUBLISHED = "datatrails"
MAX_SIZE = 1 << 20  # bytes of a key file
_COORDINATE = 48  # bytes, P-384
_KEYS_IN_A_FILE = 100

# kid, and the point's coordinates
_DATATRAILS = (
    (
        "merkle-log-signing/14346aafe4f04fa3b3c9388102f402cb",
        "A861WiJFuwOruvgCHmoGCEoNy4rxQU-TMV0TIIFE84sA5106vKerlKVHiYEE04wh",
        "nDwgJoczIAMusJAym7l0_4WMetVqldGsZ-WDlwOgTBrz4CFAjQABe5P6dzawS2By",
    ),
    (
        "merkle-log-signing/16e61f876efd4c0cbab950422c445c07",
        "oXb_EZGhA7yQcXL40MowMkSUka_DB9oL14A0MAsEOxqcM2SPnPuAl1UGmHoDWJhw",
        "of7_fp_tNmxiEQPFuYNAAbYIO42LtJ07uXsXHZDSs2MhfnpesAiBR13GOWve4mZR",
    ),
)


class Key(NamedTuple):
    """A public key on P-384: the name that was given with it (maybe ""), and its point."""

    name: str
    x: int
    y: int

    @property
    def point(self) -> tuple[int, int]:
        """What makes two keys the same."""
        return self.x, self.y

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the key's DER form (SubjectPublicKeyInfo), for people to compare."""
        der = self._public().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return f"SHA256:{hashlib.sha256(der).hexdigest()}"

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """Whether this key made an ES384 signature (r and s, 48 bytes each) over a message."""
        if len(signature) != 2 * _COORDINATE:
            return False
        r, s = (int.from_bytes(half, "big") for half in (signature[:_COORDINATE], signature[_COORDINATE:]))
        try:
            self._public().verify(utils.encode_dss_signature(r, s), message, ec.ECDSA(hashes.SHA384()))
        except InvalidSignature:
            return False
        return True

    def _public(self) -> ec.EllipticCurvePublicKey:
        return ec.EllipticCurvePublicNumbers(self.x, self.y, ec.SECP384R1()).public_key()


def make_key(name: str, x: bytes, y: bytes) -> Key:
    """Return the key with these coordinates.

    Raises:
        ValueError: there is no such point on P-384.
    """
    if len(x) != _COORDINATE or len(y) != _COORDINATE:
        raise ValueError(f"a coordinate has not {_COORDINATE} bytes")
    key = Key(name, int.from_bytes(x, "big"), int.from_bytes(y, "big"))
    key._public()  # noqa: SLF001 - checks the point
    return key


def published() -> list[Key]:
    """Return the two keys that the service's vendor published."""
    return [make_key(name, _unbase64(x), _unbase64(y)) for name, x, y in _DATATRAILS]


def parse_keys(raw: bytes, where: str) -> list[Key]:
    """Return the keys of a file: PEM (one or several public keys), a JWK, or a JWKS.

    Raises:
        UsageError: it holds none, or one that cannot be used; a private key is refused.
    """
    if b"PRIVATE KEY" in raw:
        raise UsageError(f"{where} holds a private key; give the public one (openssl pkey -pubout)")
    try:
        keys = list(_pem(raw, where) if b"-----BEGIN" in raw else _jwks(raw))
    except (ValueError, RecursionError, TypeError) as error:
        raise UsageError(f"{where} is not a P-384 public key in PEM or JWKS form ({error})") from error
    if not keys:
        raise UsageError(f"{where} holds no key")
    return keys


def _pem(raw: bytes, where: str) -> Iterable[Key]:
    end = b"-----END PUBLIC KEY-----"
    blocks = [block[block.index(b"-----BEGIN") :] + end for block in raw.split(end) if b"-----BEGIN" in block]
    for block in blocks[:_KEYS_IN_A_FILE]:
        key = serialization.load_pem_public_key(block)
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
            raise ValueError("it is of another kind")  # noqa: TRY004 - the file's fault
        numbers = key.public_numbers()
        yield Key(where.rsplit("/", 1)[-1], numbers.x, numbers.y)


def _jwks(raw: bytes) -> Iterable[Key]:
    body = json.loads(raw)
    found = body.get("keys", [body]) if isinstance(body, dict) else None
    if not isinstance(found, list):
        raise ValueError("there is no list of keys")  # noqa: TRY004 - the file's fault
    for jwk in found[:_KEYS_IN_A_FILE]:
        yield _jwk(jwk)


def _jwk(jwk: Any) -> Key:
    if not isinstance(jwk, dict) or jwk.get("kty") != "EC" or jwk.get("crv") != "P-384":
        raise ValueError("a key is of another kind")
    if "d" in jwk:
        raise ValueError("a key is private")
    x, y = jwk.get("x"), jwk.get("y")
    if not isinstance(x, str) or not isinstance(y, str):
        raise ValueError("a coordinate is missing")  # noqa: TRY004 - the file's fault
    kid = jwk.get("kid")
    return make_key(kid if isinstance(kid, str) else "", _unbase64(x), _unbase64(y))


def _unbase64(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
