"""Where objects live in a store, and with which credentials it is asked."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from attachfs.errors import UsageError
from attachfs.model import Digest
from attachfs.mount.credentials import is_in_clear
from attachfs.shared_cache.aws_credentials import AwsEnvironment
from attachfs.shared_cache.connect import open_store
from attachfs.shared_cache.http_address import HttpAddress, authorization_of
from attachfs.shared_cache.objects import EMPTY_SHA256, Listed, StoreError
from attachfs.shared_cache.s3_address import S3Address
from attachfs.shared_cache.sigv4 import AwsKeys
from tests.services.manual_clock import ManualClock

DIGEST = Digest("sha256", "ab" * 32)
KEYS = {"AWS_ACCESS_KEY_ID": "AKID", "AWS_SECRET_ACCESS_KEY": "secret"}
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def test_an_http_store_has_bazels_layout() -> None:
    assert HttpAddress("https://host/cas").url(DIGEST) == f"https://host/cas/{DIGEST.hex}"
    assert HttpAddress("https://host/a/cas/").url(DIGEST) == f"https://host/a/cas/{DIGEST.hex}"


@pytest.mark.parametrize(
    ("text", "header"),
    [
        ("t0ken", "Bearer t0ken"),
        ("fleet:pass word", "Basic ZmxlZXQ6cGFzcyB3b3Jk"),
        ("Authorization: Custom x", "Custom x"),
        ("authorization:Bearer y", "Bearer y"),
    ],
)
def test_a_credentials_file_holds_a_token_or_a_password_or_a_header(text: str, header: str) -> None:
    assert authorization_of(text, Path("f")) == header


def test_a_credentials_file_with_something_else_is_told_what_to_hold() -> None:
    with pytest.raises(UsageError, match="user:password") as raised:
        authorization_of("two words", Path("f"))
    assert "two words" not in raised.value.reason


@pytest.mark.parametrize(
    ("environ", "bucket", "style", "base"),
    [
        ({"AWS_REGION": "eu-west-1"}, "fleet", None, "https://fleet.s3.eu-west-1.amazonaws.com/"),
        ({"AWS_REGION": "eu-west-1"}, "my.fleet", None, "https://s3.eu-west-1.amazonaws.com/my.fleet/"),
        ({"AWS_REGION": "eu-west-1"}, "fleet", "path", "https://s3.eu-west-1.amazonaws.com/fleet/"),
        ({"AWS_ENDPOINT_URL_S3": "https://minio:9000"}, "fleet", None, "https://minio:9000/fleet/"),
        ({"AWS_ENDPOINT_URL": "https://minio:9000/"}, "fleet", "virtual", "https://fleet.minio:9000/"),
        ({}, "fleet", None, "https://fleet.s3.us-east-1.amazonaws.com/"),
    ],
)
def test_a_bucket_is_addressed_by_host_or_by_path(
    tmp_path: Path, environ: dict[str, str], bucket: str, style: str | None, base: str
) -> None:
    chosen = "path" if style == "path" else "virtual" if style == "virtual" else None
    address = S3Address(bucket, "/evidence/", AwsEnvironment(environ, tmp_path), chosen)  # type: ignore[arg-type]
    assert address.url(DIGEST) == f"{base}evidence/cas/{DIGEST.hex}"
    assert address.name == f"s3://{bucket}/evidence"


async def test_an_s3_request_is_signed_and_an_upload_neither_overwrites_nor_lies(tmp_path: Path) -> None:
    address = S3Address("fleet", "", AwsEnvironment(KEYS, tmp_path), clock=lambda: NOON)
    more = address.put_headers(DIGEST, overwrite=False)
    assert more == {"If-None-Match": "*"}
    assert address.put_headers(DIGEST, overwrite=True) == {}
    headers = await address.headers("PUT", address.url(DIGEST), DIGEST.hex, more)
    assert headers["x-amz-content-sha256"] == DIGEST.hex
    assert headers["Authorization"].startswith("AWS4-HMAC-SHA256 Credential=AKID/20260301/us-east-1/s3/")
    assert "if-none-match" in headers["Authorization"]
    assert "secret" not in str(headers)
    headers = await address.headers("GET", address.url(DIGEST), EMPTY_SHA256, {})
    assert headers["x-amz-date"] == "20260301T120000Z"


def test_a_listing_is_read_page_by_page_and_other_objects_are_left_out(tmp_path: Path) -> None:
    address = S3Address("fleet", "evidence", AwsEnvironment({}, tmp_path))
    assert address.listing_url("a/b+").endswith(
        "?continuation-token=a%2Fb%2B&list-type=2&max-keys=1000&prefix=evidence%2Fcas%2F"
    )
    entry = "<Contents><Key>evidence/cas/{}</Key><Size>{}</Size></Contents>"
    body = (
        '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        "<IsTruncated>true</IsTruncated><NextContinuationToken>t&amp;2</NextContinuationToken>"
        + entry.format(DIGEST.hex, 5)
        + entry.format("README", 7)
        + "</ListBucketResult>"
    )
    assert address.parse_listing(body.encode()) == ([Listed(DIGEST, 5)], "t&2")
    assert address.parse_listing(body.replace("true", "false").encode()) == ([Listed(DIGEST, 5)], "")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<a>",
        b"not xml",
        b'<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;&b;&b;">]><a>&c;</a>',
        b"<r><Contents><Key>k</Key></Contents></r>",
        b"\xff\xfe",
    ],
)
def test_what_is_no_listing_is_an_error(tmp_path: Path, body: bytes) -> None:
    with pytest.raises(ValueError, match=r"XML|entities|zip"):
        S3Address("fleet", "", AwsEnvironment({}, tmp_path)).parse_listing(body)


# -- credentials ---------------------------------------------------------------------------------------


def profile(home: Path, credentials: str = "", config: str = "") -> Path:
    (home / ".aws").mkdir()
    (home / ".aws/credentials").write_text(credentials)
    (home / ".aws/config").write_text(config)
    return home


async def test_variables_win_over_files(tmp_path: Path) -> None:
    home = profile(
        tmp_path, "[default]\naws_access_key_id=F\naws_secret_access_key=S\n", "[default]\nregion=r1\n"
    )
    assert await AwsEnvironment(KEYS, home).keys() == AwsKeys("AKID", "secret")
    assert await AwsEnvironment({}, home).keys() == AwsKeys("F", "S")
    token = AwsEnvironment({**KEYS, "AWS_SESSION_TOKEN": "T"}, home)
    assert (await token.keys()).token == "T"
    assert AwsEnvironment({}, home).region == "r1"
    assert AwsEnvironment({"AWS_DEFAULT_REGION": "r2"}, home).region == "r2"


async def test_a_profile_is_chosen_and_the_credentials_file_wins(tmp_path: Path) -> None:
    home = profile(
        tmp_path,
        "[fleet]\naws_access_key_id=F\naws_secret_access_key=S\naws_session_token=T\n",
        "[profile fleet]\nregion=r1\nendpoint_url=https://minio\naws_access_key_id=no\n",
    )
    fleet = AwsEnvironment({"AWS_PROFILE": "fleet"}, home)
    assert await fleet.keys() == AwsKeys("F", "S", "T")
    assert (fleet.region, fleet.endpoint) == ("r1", "https://minio")


async def test_files_are_read_again_after_a_while(tmp_path: Path) -> None:
    home = profile(tmp_path, "[default]\naws_access_key_id=A\naws_secret_access_key=1\n")
    clock = ManualClock(1_000_000.0)
    found = AwsEnvironment({}, home, clock)
    assert (await found.keys()).access_key == "A"
    (home / ".aws/credentials").write_text("[default]\naws_access_key_id=B\naws_secret_access_key=2\n")
    assert (await found.keys()).access_key == "A"
    clock.now += 61
    assert (await found.keys()).access_key == "B"


async def test_a_process_gives_credentials_until_shortly_before_their_end(tmp_path: Path) -> None:
    clock = ManualClock(1_000_000.0)
    end = datetime.fromtimestamp(clock.now + 3600, UTC).isoformat()
    answer = tmp_path / "answer"
    said = {"Version": 1, "AccessKeyId": "P", "SecretAccessKey": "S", "SessionToken": "T", "Expiration": end}
    answer.write_text(json.dumps(said))
    home = profile(tmp_path, "", f"[default]\ncredential_process = cat {answer}\n")
    found = AwsEnvironment({}, home, clock)
    assert await found.keys() == AwsKeys("P", "S", "T")
    answer.write_text(json.dumps(said | {"AccessKeyId": "Q"}))
    clock.now += 3200
    assert (await found.keys()).access_key == "P"
    clock.now += 200
    assert (await found.keys()).access_key == "Q"


@pytest.mark.parametrize("command", ["false", "echo nothing", "/nonexistent/program", "echo {}"])
async def test_a_process_that_fails_is_told_without_what_it_printed(tmp_path: Path, command: str) -> None:
    home = profile(tmp_path, "", f"[default]\ncredential_process = {command}\n")
    with pytest.raises(StoreError, match="credential_process failed") as raised:
        await AwsEnvironment({}, home).keys()
    assert "nothing" not in raised.value.reason


async def test_without_credentials_it_says_where_they_are_looked_for(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="set AWS_ACCESS_KEY_ID"):
        await AwsEnvironment({}, tmp_path).keys()


# -- settings ------------------------------------------------------------------------------------------


async def opened(url: str, *, insecure: bool = False, credentials: str | None = None, **environ: str) -> str:
    given = None if credentials is None else (credentials, Path("f"))
    store, http = open_store(
        url, given, ca_file=None, in_clear=lambda base: not insecure and is_in_clear(base), environ=environ
    )
    await http.aclose()
    return store.address.url(DIGEST)


async def test_plain_http_goes_to_this_machine_only_unless_one_insists() -> None:
    for host in ("127.0.0.1:8080", "[::1]", "localhost"):
        assert (await opened(f"http://{host}/cas/")).startswith(f"http://{host}/cas/")
    with pytest.raises(UsageError, match="--shared-cache-insecure"):
        await opened("http://cache.example/cas/")
    with pytest.raises(UsageError, match="--shared-cache-insecure"):
        await opened("s3://fleet/x", AWS_ENDPOINT_URL_S3="http://minio:9000")
    assert await opened("http://cache.example/cas/", insecure=True)


async def test_an_s3_store_takes_no_credentials_file() -> None:
    with pytest.raises(UsageError, match="AWS_ACCESS_KEY_ID"):
        await opened("s3://fleet/x", credentials="Bearer t")


async def test_a_bucket_s_style_can_be_said() -> None:
    assert (await opened("s3://fleet/x?style=path")).startswith(
        "https://s3.us-east-1.amazonaws.com/fleet/x/cas/"
    )


async def test_authorities_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    with pytest.raises(UsageError, match="--shared-cache-ca-file"):
        open_store("https://h/cas/", None, ca_file=tmp_path / "ca.pem", in_clear=is_in_clear, environ={})
