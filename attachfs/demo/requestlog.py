"""Counts of the requests that the demo ledger answered, for tests and the tour. Not a part of the service.

`GET /demo/requests` answers with

    {"counts": {"assets": 2, "info": 7, …},          requests by kind
     "bytes": {"blob": 4096, …},                     body bytes sent, by kind
     "in_flight": {"blob": 1, …},                    being answered now, by kind
     "in_flight_max": {"info": 4, …},                the most at one time, by kind
     "log": [["GET", "/archivist/v2/assets?page_size=10", 200], …]}   the last 5,000, as they ended

and `DELETE /demo/requests` starts afresh. Status 0 in the log: no response was begun.
"""

import re
from collections import Counter, deque
from http import HTTPStatus

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PATH = "/demo/requests"
_LOG_LENGTH = 5000

_KINDS: tuple[tuple[str, re.Pattern[str], str], ...] = tuple(
    (method, re.compile(f"/archivist/{path}"), kind)
    for method, path, kind in (
        ("GET", r"v2/assets", "assets"),
        ("GET", r"v2/(?:public)?assets/[^/]+/events", "events"),
        ("GET", r"v2/(?:public)?assets/[^/]+/events/[^/]+", "event"),
        ("GET", r"v2/(?:public)?assets/[^/]+", "asset"),
        ("GET", r"(?:v2/attachments/.+|v1/blobs/[^/]+)/info", "info"),
        ("GET", r"(?:v2/attachments/.+|v1/blobs/[^/]+)", "blob"),
        ("POST", r"iam/v1/appidp/token", "token"),
        ("POST", r"v1/blobs", "upload"),
        ("POST", r"v2/assets", "create_asset"),
        ("POST", r"v2/assets/[^/]+/events", "create_event"),
    )
)


def kind_of(method: str, path: str) -> str:
    """Return what a request is counted as."""
    for its_method, pattern, kind in _KINDS:
        if method == its_method and pattern.fullmatch(path):
            return kind
    return "other"


class RequestLog:
    """ASGI middleware that counts, and that answers at `PATH` itself (uncounted)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._in_flight: Counter[str] = Counter()
        self.reset()

    def reset(self) -> None:
        """Forget what was counted. Requests that are in flight stay so."""
        self.counts: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.in_flight_max: Counter[str] = Counter(self._in_flight)
        self.log: deque[tuple[str, str, int]] = deque(maxlen=_LOG_LENGTH)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count a request and pass it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method, path = scope["method"], scope["path"]
        if path == PATH:
            await self._answer(method, send)
            return
        kind = kind_of(method, path)
        query = scope["query_string"]
        status = 0

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            else:
                self.bytes[kind] += len(message.get("body", b""))
            await send(message)

        self.counts[kind] += 1
        self._in_flight[kind] += 1
        self.in_flight_max[kind] = max(self.in_flight_max[kind], self._in_flight[kind])
        try:
            await self._app(scope, receive, watch)
        finally:
            self._in_flight[kind] -= 1
            self.log.append((method, f"{path}?{query.decode('latin-1')}" if query else path, status))

    async def _answer(self, method: str, send: Send) -> None:
        status, body = HTTPStatus.OK, b"{}"
        if method == "DELETE":
            self.reset()
        elif method == "GET":
            body = msgspec.json.encode(
                {
                    "counts": self.counts,
                    "bytes": self.bytes,
                    "in_flight": +self._in_flight,
                    "in_flight_max": self.in_flight_max,
                    "log": list(self.log),
                }
            )
        else:
            status = HTTPStatus.METHOD_NOT_ALLOWED
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": int(status), "headers": headers})
        await send({"type": "http.response.body", "body": body})
