"""AWS Signature Version 4 for single requests with a known payload digest. Pure.

Source: "Signature Version 4 signing process" of the S3 API reference. Tests compare it with botocore's.
"""

import hashlib
import hmac
from collections.abc import Mapping
from datetime import datetime
from typing import NamedTuple
from urllib.parse import urlsplit

_ALGORITHM = "AWS4-HMAC-SHA256"
_UNSIGNED = {"content-length", "accept-encoding", "user-agent", "connection"}  # what proxies may change


class AwsKeys(NamedTuple):
    """Credentials; `token` goes with temporary ones. Does not show itself."""

    access_key: str
    secret_key: str
    token: str | None = None

    def __repr__(self) -> str:
        return f"AwsKeys({self.access_key}, …)"


def signed_headers(
    method: str,
    url: str,
    headers: Mapping[str, str],
    payload_sha256: str,
    *,
    keys: AwsKeys,
    region: str,
    now: datetime,
    service: str = "s3",
) -> dict[str, str]:
    """Return `headers` with what signs the request.

    Args:
        method: of the request.
        url: whole, percent-encoded as it is sent.
        headers: that are sent besides; all but a few are signed.
        payload_sha256: lower-case hex of the body's SHA-256.
        keys: whose signature.
        region: of the bucket.
        now: in UTC.
        service: "s3".
    """
    parts = urlsplit(url)
    stamp = now.strftime("%Y%m%dT%H%M%SZ")
    found = dict(headers)
    found["x-amz-date"] = stamp
    found["x-amz-content-sha256"] = payload_sha256
    if keys.token is not None:
        found["x-amz-security-token"] = keys.token
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    if parts.port not in (None, {"http": 80, "https": 443}.get(parts.scheme)):
        host = f"{host}:{parts.port}"
    signed = {name.lower(): " ".join(value.split()) for name, value in found.items()}
    signed = {name: value for name, value in signed.items() if name not in _UNSIGNED} | {"host": host}
    names = ";".join(sorted(signed))
    canonical = "\n".join(
        (
            method,
            parts.path or "/",  # S3 signs the path as it is sent, unlike other services
            _canonical_query(parts.query),
            "".join(f"{name}:{signed[name]}\n" for name in sorted(signed)),
            names,
            payload_sha256,
        )
    )
    scope = f"{stamp[:8]}/{region}/{service}/aws4_request"
    to_sign = "\n".join((_ALGORITHM, stamp, scope, hashlib.sha256(canonical.encode()).hexdigest()))
    key = ("AWS4" + keys.secret_key).encode()
    for part in (stamp[:8], region, service, "aws4_request"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    signature = hmac.new(key, to_sign.encode(), hashlib.sha256).hexdigest()
    found["Authorization"] = (
        f"{_ALGORITHM} Credential={keys.access_key}/{scope}, SignedHeaders={names}, Signature={signature}"
    )
    return found


def _canonical_query(query: str) -> str:
    pairs = [pair.partition("=") for pair in query.split("&")] if query else []
    return "&".join(f"{name}={value}" for name, _, value in sorted(pairs))
