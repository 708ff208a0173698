"""Which credentials a mount uses, from its configuration and surroundings. Nothing is read here yet.

What the user named wins: `--no-auth`, then a client id, then a token file. Where nothing was named, what
systemd hands over (`LoadCredential=` puts files `bearer-token`, `client-id` and `client-secret` into
$CREDENTIALS_DIRECTORY, see systemd.exec(5)) comes before the default token file.
"""

import ipaddress
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from attachfs.config.settings import Config
from attachfs.errors import UsageError
from attachfs.service.auth import Auth, NoAuth, Secret, TokenFile

_SECRET_VARIABLE = "DATATRAILS_CLIENT_SECRET"  # noqa: S105 - a variable's name


def choose(
    config: Config,
    log_in: Callable[[str, Path | Secret], Auth],
    environ: Mapping[str, str] = os.environ,
) -> Auth:
    """Return the credentials.

    Args:
        config: what the user named.
        log_in: makes credentials of a client id and its secret, or the file that holds it.
        environ: the environment.

    Raises:
        UsageError: a client id without a secret, or the other way round.
    """
    if config.no_auth:
        return NoAuth()
    if not config.insecure_http and is_in_clear(config.url):
        raise UsageError(
            f"{config.url}: credentials would cross the network in clear: use https://, --no-auth for public "
            f"assets, or --insecure-http if the network is yours"
        )
    directory = environ.get("CREDENTIALS_DIRECTORY")
    credentials_dir = Path(directory) if directory else None
    client_id, secret = config.client_id, _secret(config, credentials_dir, environ)
    if client_id is None and _is_default(config) and credentials_dir is not None:
        if (credentials_dir / "bearer-token").exists():
            return TokenFile(credentials_dir / "bearer-token")
        if (credentials_dir / "client-id").exists():
            client_id = (credentials_dir / "client-id").read_text(encoding="ascii", errors="replace").strip()
    if client_id is None:
        if config.client_secret_file is not None:
            raise UsageError("--client-secret-file needs --client-id (or DATATRAILS_CLIENT_ID)")
        return TokenFile(config.token_file)
    if secret is None:
        raise UsageError(f"--client-id needs --client-secret-file (or {_SECRET_VARIABLE})")
    return log_in(client_id, secret)


def is_in_clear(url: str) -> bool:
    """Whether what is sent there can be read on the way: plain http to another host."""
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".")
    if parts.scheme == "https" or host == "localhost" or host.endswith(".localhost"):
        return False
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return True


def describe(config: Config, environ: Mapping[str, str] = os.environ) -> str:
    """Return which credentials are used, in words and without secrets."""
    if config.no_auth:
        return "none"
    if config.client_id is not None:
        return f"client {config.client_id}"
    if _is_default(config) and environ.get("CREDENTIALS_DIRECTORY"):
        return "from the service manager"
    return f"token file {config.token_file}"


def _is_default(config: Config) -> bool:
    return config.origins.get("token_file") == "default"


def _secret(config: Config, credentials_dir: Path | None, environ: Mapping[str, str]) -> Path | Secret | None:
    if config.client_secret_file is not None:
        return config.client_secret_file
    if environ.get(_SECRET_VARIABLE):
        return Secret(environ[_SECRET_VARIABLE])
    if credentials_dir is not None and (credentials_dir / "client-secret").exists():
        return credentials_dir / "client-secret"
    return None
