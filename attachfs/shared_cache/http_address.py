"""Objects below an HTTP address, by Bazel's layout: `https://host/cas/<sha256>`."""

import base64
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from attachfs.errors import UsageError
from attachfs.model import Digest
from attachfs.shared_cache.objects import Listed


class HttpAddress:
    """A folder of an HTTP server.

    Args:
        base: its URL, without credentials.
        authorization: the header that goes with each request; None: none.
    """

    def __init__(self, base: str, authorization: str | None = None) -> None:
        self.name = base
        self._base = base.rstrip("/") + "/"
        self._authorization = authorization

    def url(self, digest: Digest) -> str:
        """Return an object's URL."""
        return self._base + digest.hex

    async def headers(
        self, _method: str, _url: str, _payload_sha256: str, more: Mapping[str, str]
    ) -> dict[str, str]:
        """Return `more` with the credentials, if there are any."""
        found = dict(more)
        if self._authorization is not None:
            found["Authorization"] = self._authorization
        return found

    def put_headers(self, _digest: Digest, *, overwrite: bool) -> dict[str, str]:
        """Return nothing: a server that takes PUT overwrites, and the name says what it should hold."""
        del overwrite
        return {}

    def listing_url(self, _after: str) -> None:
        """Return None: there is no common way to list."""

    def parse_listing(self, _body: bytes) -> tuple[list[Listed], str]:
        """Never called."""
        raise ValueError("an HTTP store has no listing")


def authorization_of(text: str, path: Path) -> str:
    """Return the header for what a credentials file holds: a header line, a bearer token, or `user:password`.

    Raises:
        UsageError: it is none of these.
    """
    name, colon, value = text.partition(":")
    if colon and name.strip().lower() == "authorization":
        return value.strip()
    if colon:
        return "Basic " + base64.b64encode(text.encode()).decode()
    if text and quote(text, safe="-._~+/=") == text:
        return f"Bearer {text}"
    raise UsageError(
        f"--shared-cache-credentials-file {path}: put one line into it: a token, user:password, "
        "or a whole 'Authorization: …' line"
    )
