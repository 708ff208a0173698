"""Objects of an S3 bucket: `s3://bucket/prefix` holds them as `prefix/cas/<sha256>`."""

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Literal
from urllib.parse import quote, urlsplit
from xml.parsers import expat

from attachfs.model import Digest
from attachfs.shared_cache.aws_credentials import AwsEnvironment
from attachfs.shared_cache.objects import Listed
from attachfs.shared_cache.sigv4 import signed_headers

_DNS_BUCKET = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")  # fits into a certificate's `*.`
_KEY = re.compile(r"[0-9a-f]{64}")


class S3Address:
    """A bucket, or a part of one.

    Args:
        bucket, prefix: of `s3://bucket/prefix`.
        environment: credentials, region and endpoint.
        style: how the bucket is named to the endpoint; None: by host at Amazon's, by path elsewhere.
        clock: the present, in UTC.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str,
        environment: AwsEnvironment,
        style: Literal["path", "virtual"] | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        prefix = prefix.strip("/")
        self.name = f"s3://{bucket}/{prefix}" if prefix else f"s3://{bucket}"
        self._environment = environment
        self._clock = clock
        self._region = environment.region
        self._folder = f"{prefix}/cas/" if prefix else "cas/"
        endpoint = environment.endpoint or f"https://s3.{self._region}.amazonaws.com"
        if style is None:
            style = "virtual" if not environment.endpoint and _DNS_BUCKET.fullmatch(bucket) else "path"
        parts = urlsplit(endpoint.rstrip("/"))
        if style == "virtual":
            self.base = f"{parts.scheme}://{bucket}.{parts.netloc}{parts.path}/"
        else:
            self.base = f"{parts.scheme}://{parts.netloc}{parts.path}/{quote(bucket, safe='')}/"

    def url(self, digest: Digest) -> str:
        """Return an object's URL."""
        return self.base + quote(self._folder, safe="/-._~") + digest.hex

    async def headers(
        self, method: str, url: str, payload_sha256: str, more: Mapping[str, str]
    ) -> dict[str, str]:
        """Return `more` with the signature.

        Raises:
            Trouble: there are no credentials.
        """
        keys = await self._environment.keys()
        now = self._clock()
        return signed_headers(method, url, more, payload_sha256, keys=keys, region=self._region, now=now)

    def put_headers(self, _digest: Digest, *, overwrite: bool) -> dict[str, str]:
        """Return the condition under which the store takes an object: that there is none yet."""
        return {} if overwrite else {"If-None-Match": "*"}

    def listing_url(self, after: str) -> str:
        """Return the URL of a page of the listing (ListObjectsV2)."""
        query = {"list-type": "2", "max-keys": "1000", "prefix": self._folder}
        if after:
            query["continuation-token"] = after
        return (
            self.base + "?" + "&".join(f"{name}={quote(query[name], safe='-._~')}" for name in sorted(query))
        )

    def parse_listing(self, body: bytes) -> tuple[list[Listed], str]:
        """Return a page's objects, and the token of the next page, "" at the end.

        Raises:
            ValueError: that is no listing.
        """
        values = _Elements(body)
        found = []
        for key, size in zip(values.of("Contents/Key"), values.of("Contents/Size"), strict=True):
            name = key.removeprefix(self._folder)
            if _KEY.fullmatch(name) and size.isdigit():
                found.append(Listed(Digest("sha256", name), int(size[:18])))
        token = values.of("NextContinuationToken")
        truncated = values.of("IsTruncated") == ["true"]
        return found, token[0] if truncated and token else ""


class _Elements:
    """The texts of an XML document, by their place below the root. Refuses declarations of entities."""

    def __init__(self, body: bytes) -> None:
        self._texts: dict[str, list[str]] = {}
        self._path: list[str] = []
        self._text: list[str] = []
        parser = expat.ParserCreate(namespace_separator=" ")
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._text.append
        parser.EntityDeclHandler = self._refuse
        try:
            parser.Parse(body, True)
        except expat.ExpatError as error:
            raise ValueError("not XML") from error

    def of(self, place: str) -> list[str]:
        """Return the texts of all elements at `place`, in order."""
        return self._texts.get(place, [])

    def _start(self, name: str, _attributes: dict[str, str]) -> None:
        self._path.append(name.rpartition(" ")[2])
        self._text.clear()

    def _end(self, _name: str) -> None:
        self._texts.setdefault("/".join(self._path[1:]), []).append("".join(self._text))
        self._path.pop()
        self._text.clear()

    def _refuse(self, *_: object) -> None:
        raise ValueError("a listing does not declare entities")
