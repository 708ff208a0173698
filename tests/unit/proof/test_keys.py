"""Keys: PEM and JWKS are read, everything else is refused with a reason."""

import base64
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from attachfs.demo.transparency_log import SigningKey
from attachfs.errors import UsageError
from attachfs.proof.keys import parse_keys, published


def jwk(**changes: Any) -> dict[str, Any]:
    key = parse_keys(SigningKey().pem(), "x")[0]
    x, y = (base64.urlsafe_b64encode(one.to_bytes(48, "big")).decode() for one in key.point)
    return {"kty": "EC", "crv": "P-384", "x": x, "y": y, "kid": "one", **changes}


def pem(key: Any) -> bytes:
    raw: bytes = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return raw


def test_several_keys_in_one_pem_file() -> None:
    raw = SigningKey().pem() + b"\n" + SigningKey().pem()
    found = parse_keys(raw, "/somewhere/keys.pem")
    assert len({key.point for key in found}) == 2
    assert found[0].name == "keys.pem"


def test_a_jwk_and_a_jwks() -> None:
    one, two = jwk(), jwk(kid="two")
    assert [key.name for key in parse_keys(json.dumps(one).encode(), "f")] == ["one"]
    assert [key.name for key in parse_keys(json.dumps({"keys": [one, two]}).encode(), "f")] == ["one", "two"]


def test_the_published_keys_are_two_and_named() -> None:
    assert [key.name[-4:] for key in published()] == ["02cb", "5c07"]
    assert all(key.fingerprint.startswith("SHA256:") for key in published())


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{}",
        b"[]",
        b"[" * 100_000,
        b'{"keys": []}',
        b'{"keys": 1}',
        b'{"keys": [1]}',
        b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
        b"-----BEGIN CERTIFICATE-----",
        json.dumps(jwk(crv="P-256")).encode(),
        json.dumps(jwk(x="AAAA")).encode(),
        json.dumps(jwk(x=None)).encode(),
        json.dumps(jwk(y=jwk()["y"])).encode(),  # not on the curve
        json.dumps(jwk(d="AAAA")).encode(),
        pem(ec.generate_private_key(ec.SECP256R1())),
        pem(ed25519.Ed25519PrivateKey.generate()),
    ],
)
def test_what_is_no_key_is_refused(raw: bytes) -> None:
    with pytest.raises(UsageError, match="/there/key"):
        parse_keys(raw, "/there/key")


def test_a_private_key_is_refused_with_a_hint() -> None:
    raw = b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"
    with pytest.raises(UsageError, match="openssl pkey -pubout"):
        parse_keys(raw, "key.pem")
