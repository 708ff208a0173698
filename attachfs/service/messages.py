"""What goes out and what comes back: requests, accepted answers, redirects, and their counters.

Owns: where a redirect may lead.
"""

import bisect
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, TypedDict
from urllib.parse import urljoin, urlsplit

import httpx

from attachfs.errors import BadAnswer
from attachfs.service.concurrency import Slot
from attachfs.service.http1 import Http1Answer
from attachfs.service.http_body import RawBody

_LONGEST_LOCATION = 16 * 1024  # characters


class Request(NamedTuple):
    """A request: what the caller wants to know, and what it would accept.

    `path` is below the base URL and holds validated ids only; `query` is quoted already; `bulk` is a body
    that may take minutes; `of_store`: a plain web server has it, whose 404 counts unless it is a page for
    people.
    """

    kind: str
    path: str
    query: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    accept: frozenset[int] = frozenset({200})
    credentials: bool = True
    bulk: bool = False
    of_store: bool = False


LATENCY_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)  # seconds


@dataclass
class Counters:
    """What became of one kind of request. Times in seconds, from sending to the response's headers.

    `latencies` counts answers by `LATENCY_BOUNDS`: each up to its bound, the last one above all of them.
    """

    requests: int = 0
    retries: int = 0
    errors: int = 0
    bytes: int = 0
    latency_sum: float = 0.0
    latency_max: float = 0.0
    in_flight: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    latencies: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_BOUNDS) + 1))

    def answered(self, status: int, duration: float) -> None:
        """Count an answer's head."""
        self.statuses[str(status)] = self.statuses.get(str(status), 0) + 1
        self.latencies[bisect.bisect_left(LATENCY_BOUNDS, duration)] += 1
        self.latency_sum += duration
        self.latency_max = max(self.latency_max, duration)


class ServiceStats(TypedDict, total=False):
    """The client as `status` shows it: `requests` are `Counters` by kind; times in seconds."""

    requests: dict[str, dict[str, Any]]
    max_connections: int
    connections_allowed: int
    in_flight: int
    waiting: int
    rate_limited_for_s: float
    unsolicited: int
    unreachable_since: float | None
    unreachable_reason: str


@dataclass
class Stats:
    """Counters by kind: assets, events, asset, event, info, blob."""

    kinds: dict[str, Counters] = field(default_factory=dict)

    def of(self, kind: str) -> Counters:
        """Return the counters of a kind."""
        return self.kinds.setdefault(kind, Counters())

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """Return all figures, ready for JSON."""
        return {kind: asdict(counters) for kind, counters in self.kinds.items()}


class Response:
    """An accepted response, its body not read yet. Holds a slot until it is closed."""

    def __init__(
        self, response: httpx.Response | Http1Answer, body: RawBody, slot: Slot, counters: Counters
    ) -> None:
        self.status = response.status_code
        self.body = body
        self._headers: Mapping[str, str] = response.headers
        self._slot = slot
        self._counters = counters

    def header(self, name: str) -> str | None:
        """Return a header, None if it is missing. Its name is given in lower case."""
        return self._headers.get(name)

    async def aclose(self) -> None:
        """Close the response and give the slot back. Cannot be cancelled; a second call does nothing."""
        try:
            await self.body.aclose()
        finally:
            if self._slot.release():
                self._counters.bytes += self.body.received
                self._counters.in_flight -= 1


def redirect_target(url: httpx.URL, location: str, what: str) -> httpx.URL:
    """Return where a redirect from `url` leads.

    Raises:
        BadAnswer: `location` is not a plain http or https address, or leads from https to http.
    """
    if not location or len(location) > _LONGEST_LOCATION:
        raise BadAnswer(f"{what}: redirected to nowhere")
    # No blanks, control characters, backslashes or non-ASCII: parsers differ on what those mean.
    if any(not "!" <= character <= "~" or character == "\\" for character in location):
        raise BadAnswer(f"{what}: redirected to something that is not an address")
    try:
        parts = urlsplit(location)
        target = httpx.URL(urljoin(str(url), location))
        # A scheme without a host would be filled up from the request's; and what looks encoded may not be.
        plain = bool(parts.netloc or not parts.scheme) and parts.port != 0 and bool(target.host)
    except (httpx.InvalidURL, ValueError) as error:
        raise BadAnswer(f"{what}: redirected to something that is not an address") from error
    if not plain or target.scheme not in ("http", "https") or not target.host or target.userinfo:
        raise BadAnswer(f"{what}: redirected to something that is not an address")
    if url.scheme == "https" and target.scheme == "http":
        raise BadAnswer(f"{what}: redirected from https to http, which is refused")
    return target.copy_with(fragment=None)


def origin(url: httpx.URL) -> tuple[str, str, int]:
    """Return what makes two addresses the same place for a secret."""
    return url.scheme, url.host, url.port or (443 if url.scheme == "https" else 80)
