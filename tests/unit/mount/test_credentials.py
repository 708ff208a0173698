"""Which credentials a mount uses."""

from pathlib import Path

import pytest

from attachfs.config import settings
from attachfs.errors import UsageError
from attachfs.mount import credentials
from attachfs.service.auth import Auth, NoAuth, Secret, TokenFile
from attachfs.service.secret_file import read_private


class LoggedIn(NoAuth):
    def __init__(self, client_id: str, secret: Path | Secret) -> None:
        self.client_id = client_id
        self.secret = secret


def choose(given: dict[str, str], environ: dict[str, str] | None = None) -> Auth:
    environ = environ or {}
    return credentials.choose(settings.load(given, environ=environ), LoggedIn, environ)


def test_the_token_file_is_the_default() -> None:
    assert isinstance(choose({}), TokenFile)


def test_no_auth_wins_over_everything() -> None:
    chosen = choose({"no_auth": "yes", "client_id": "me", "client_secret_file": "/s"})
    assert type(chosen) is NoAuth


def test_a_client_id_takes_its_secret_from_the_file_before_the_environment() -> None:
    environ = {"DATATRAILS_CLIENT_ID": "me", "DATATRAILS_CLIENT_SECRET": "hush"}
    chosen = choose({}, environ)
    assert isinstance(chosen, LoggedIn)
    assert chosen.client_id == "me"
    assert chosen.secret == Secret("hush")
    chosen = choose({"client_secret_file": "/some/file"}, environ)
    assert isinstance(chosen, LoggedIn)
    assert chosen.secret == Path("/some/file")


@pytest.mark.parametrize("given", [{"client_id": "me"}, {"client_secret_file": "/some/file"}])
def test_half_a_login_is_refused_with_what_is_missing(given: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="needs --client"):
        choose(given)


def test_what_systemd_hands_over_comes_before_the_default_token_file(tmp_path: Path) -> None:
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert isinstance(choose({}, environ), TokenFile)
    (tmp_path / "client-id").write_text("me\n")
    (tmp_path / "client-secret").write_text("hush")
    chosen = choose({}, environ)
    assert isinstance(chosen, LoggedIn)
    assert (chosen.client_id, chosen.secret) == ("me", tmp_path / "client-secret")
    assert isinstance(choose({"token_file": "/mine"}, environ), TokenFile)
    (tmp_path / "bearer-token").write_text("t")
    assert isinstance(choose({}, environ), TokenFile)


@pytest.mark.parametrize(
    "host",
    ["ledger.example", "192.0.2.7:8000", "[2001:db8::1]", "0.0.0.0", "localhost.example", "127.1.example"],
)
def test_credentials_go_in_clear_to_other_hosts_only_if_that_is_wanted(host: str) -> None:
    with pytest.raises(UsageError, match=r"in clear: use https://, --no-auth .* or --insecure-http"):
        choose({"url": f"http://{host}"})
    assert isinstance(choose({"url": f"http://{host}", "insecure_http": "yes"}), TokenFile)
    assert isinstance(choose({"url": f"http://{host}", "no_auth": "yes"}), NoAuth)
    assert isinstance(choose({"url": f"https://{host}"}), TokenFile)


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:80", "x.localhost", "127.0.0.1:8", "127.9.9.9", "[::1]:8"]
)
def test_this_machine_is_no_other_host(host: str) -> None:
    assert isinstance(choose({"url": f"http://{host}"}), TokenFile)


def test_secrets_saved_by_other_systems(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.touch(0o600)
    file.write_bytes(b"\xef\xbb\xbftoken\r\n")
    assert read_private(file, "the token file")[0] == "token"
    file.write_bytes("token\r\n".encode("utf-16"))
    with pytest.raises(UsageError, match="UTF-16: save it as plain text"):
        read_private(file, "the token file")
