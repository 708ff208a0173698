"""Our signatures are botocore's."""

import hashlib
from datetime import UTC, datetime
from urllib.parse import quote, urlsplit

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from attachfs.shared_cache.sigv4 import AwsKeys, signed_headers

NOW = datetime(2026, 3, 1, 9, 30, tzinfo=UTC)
PLAIN = st.text("abcXYZ019-._~ +%/é", min_size=1, max_size=12)


def by_botocore(
    method: str, url: str, headers: dict[str, str], payload: str, keys: AwsKeys, patch: pytest.MonkeyPatch
) -> str:
    """Return the Authorization header that botocore makes of the same request."""
    patch.setattr("botocore.auth.get_current_datetime", lambda: NOW.replace(tzinfo=None), raising=False)
    request = AWSRequest(method=method, url=url, headers=headers)
    request.context["payload_signing_enabled"] = True
    signer = S3SigV4Auth(Credentials(keys.access_key, keys.secret_key, keys.token), "s3", "eu-west-1")
    signer.payload = lambda _: payload
    signer.add_auth(request)
    return str(request.headers["Authorization"])


@pytest.mark.parametrize("token", [None, "session/token+=="])
@pytest.mark.parametrize(
    "url",
    [
        "https://bucket.s3.eu-west-1.amazonaws.com/pre/cas/" + "a" * 64,
        "http://127.0.0.1:9000/bucket/a%20folder/cas/" + "b" * 64,
        "https://s3.example/bucket/?list-type=2&max-keys=1000&prefix=a%2Fcas%2F",
        "https://s3.example:443/bucket/cas/" + "c" * 64,
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT"])
def test_a_signature_is_the_same_as_botocores(
    method: str, url: str, token: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = AwsKeys("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", token)
    payload = hashlib.sha256(b"content").hexdigest()
    headers = {"If-None-Match": "*", "Content-Length": "7", "Content-Type": "application/octet-stream"}
    ours = signed_headers(method, url, headers, payload, keys=keys, region="eu-west-1", now=NOW)
    theirs = by_botocore(method, url, dict(headers), payload, keys, monkeypatch)
    # botocore signs the content's length too; what proxies may change is left out here.
    fields = dict(part.split("=", 1) for part in ours["Authorization"].partition(" ")[2].split(", "))
    assert theirs.startswith(f"AWS4-HMAC-SHA256 Credential={fields['Credential']}")
    assert set(fields["SignedHeaders"].split(";")) >= {"host", "x-amz-content-sha256", "x-amz-date"}
    del headers["Content-Length"]
    ours = signed_headers(method, url, headers, payload, keys=keys, region="eu-west-1", now=NOW)
    assert ours["Authorization"] == by_botocore(method, url, dict(headers), payload, keys, monkeypatch)


@given(st.lists(PLAIN, min_size=1, max_size=4), st.dictionaries(PLAIN, PLAIN, max_size=3))
def test_any_path_and_query_is_signed_like_botocore(parts: list[str], query: dict[str, str]) -> None:
    url = "https://s3.example/" + "/".join(quote(part, safe="") for part in parts)
    if query:
        url += "?" + "&".join(f"{quote(k, safe='')}={quote(v, safe='')}" for k, v in query.items())
    keys = AwsKeys("AKID", "secret")
    payload = hashlib.sha256(b"").hexdigest()
    ours = signed_headers("GET", url, {}, payload, keys=keys, region="eu-west-1", now=NOW)
    with pytest.MonkeyPatch.context() as patch:
        assert ours["Authorization"] == by_botocore("GET", url, {}, payload, keys, patch)
    assert urlsplit(url).hostname == "s3.example"


def test_keys_do_not_show_themselves() -> None:
    keys = AwsKeys("AKID", "secret", "token")
    assert "secret" not in repr(keys)
    assert "token" not in f"{keys!r}"
