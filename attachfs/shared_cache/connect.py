"""A shared store from its address and settings."""

import http.cookiejar
import os
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qs, urlsplit

import httpx

from attachfs import __version__
from attachfs.errors import UsageError
from attachfs.shared_cache.aws_credentials import AwsEnvironment
from attachfs.shared_cache.http_address import HttpAddress
from attachfs.shared_cache.objects import Address, ObjectStore
from attachfs.shared_cache.s3_address import S3Address


def open_store(
    url: str,
    credentials: tuple[str, Path] | None,
    *,
    ca_file: Path | None,
    in_clear: Callable[[str], bool],
    environ: Mapping[str, str] = os.environ,
) -> tuple[ObjectStore, httpx.AsyncClient]:
    """Return a store, and its connections, which the caller closes.

    Args:
        url: as the option's parser lets it pass.
        credentials: `Authorization` for an HTTP store, and the file it came from.
        ca_file: certificate authorities (PEM) to trust instead of the system's.
        in_clear: whether the network could read what goes to an address, and the user has not allowed it.
        environ: where the variables of AWS programs are looked up.

    Raises:
        UsageError: settings contradict each other, or would show blobs or credentials to the network.
    """
    address, base = _address(url, credentials, environ)
    if in_clear(base):
        raise UsageError(
            f"--shared-cache {url}: plain http to {urlsplit(base).hostname} shows blobs and credentials "
            "to the network: use https, or say --shared-cache-insecure"
        )
    try:
        context = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
    except (OSError, ssl.SSLError) as error:
        raise UsageError(
            f"--shared-cache-ca-file {ca_file}: cannot be read as PEM certificates; "
            "give a file with 'BEGIN CERTIFICATE' blocks"
        ) from error
    client = httpx.AsyncClient(
        verify=context,
        follow_redirects=False,
        cookies=http.cookiejar.CookieJar(http.cookiejar.DefaultCookiePolicy(allowed_domains=[])),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=8, keepalive_expiry=15),
        headers={"User-Agent": f"attachfs/{__version__} (shared cache)"},
    )
    return ObjectStore(client, address), client


def _address(
    url: str, credentials: tuple[str, Path] | None, environ: Mapping[str, str]
) -> tuple[Address, str]:
    parts = urlsplit(url)
    if parts.scheme != "s3":
        return HttpAddress(url, None if credentials is None else credentials[0]), url
    if credentials is not None:
        raise UsageError(
            "--shared-cache-credentials-file is for http stores: an S3 store's are AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or a profile of ~/.aws/credentials"
        )
    style: Literal["path", "virtual"] | None = None
    match parse_qs(parts.query).get("style"):
        case ["virtual"]:
            style = "virtual"
        case ["path"]:
            style = "path"
    s3 = S3Address(parts.netloc, parts.path, AwsEnvironment(environ, Path.home()), style)
    return s3, s3.base
