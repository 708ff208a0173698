"""The demo ledger as an ASGI application: the service's addresses, answers and errors. No storage.

Differences from the service: no access policies (but single blobs may be forbidden), no quotas, everything
is confirmed at once, listings come oldest first, and ranges of downloads are honoured.
"""

import functools
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, NamedTuple, TypeVar, cast

import msgspec
import trio
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from attachfs.demo.downloads import BlobResponse
from attachfs.demo.query import BadQuery, Query, parse_query, read_token, write_token
from attachfs.demo.records import TENANT, Blob, Ledger, Page, Refused
from attachfs.demo.requestlog import RequestLog
from attachfs.demo.tokens import Tokens

CLIENT_ID = "demo-client"
CLIENT_SECRET = "demo-secret"  # noqa: S105 - nothing is behind it
TOKEN_LIFETIME = 3660.0
PAGE_LIMIT = 500  # records on one page at most

# HTTP status to the code in an error's body.
_CODES = {400: 3, 401: 16, 403: 7, 404: 5, 405: 12}
_PAGING = {"page_size", "page_token"}

_T = TypeVar("_T")
_Handler = Callable[[Request], Awaitable[ASGIApp]]


class _Place(NamedTuple):
    asset: str
    event: str | None
    public: bool


def create_app(
    ledger: Ledger,
    *,
    client_id: str = CLIENT_ID,
    client_secret: str = CLIENT_SECRET,
    token_lifetime: float = TOKEN_LIFETIME,
    require_auth: bool = True,
    static_tokens: Iterable[str] = (),
    page_limit: int = PAGE_LIMIT,
    delay: float = 0.0,
) -> Starlette:
    """Return the application. Its `state` has `ledger` and `tokens`.

    Args:
        ledger: a `Store`, or a computed ledger.
        client_id: whom the token endpoint knows.
        client_secret: and by which secret.
        token_lifetime: seconds for which an issued token is good.
        require_auth: whether requests need a token (public assets never do).
        static_tokens: bearer tokens that are always good.
        page_limit: records on one page at most.
        delay: seconds by which each answer is held back, as a far-away service would.
    """
    service = _Service(ledger, Tokens(token_lifetime, static_tokens), page_limit)
    service.client = (client_id, client_secret)
    service.require_auth = require_auth
    middleware = [Middleware(RequestLog)]
    if delay:
        middleware.append(Middleware(_Delay, seconds=delay))
    app = Starlette(
        routes=list(service.routes()),
        middleware=middleware,
        exception_handlers={HTTPException: _on_http_error},
    )
    app.state.ledger = ledger
    app.state.tokens = service.tokens
    return app


class _Delay:
    """ASGI middleware that waits before each request is answered."""

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self._app = app
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await trio.sleep(self._seconds)
        await self._app(scope, receive, send)


class _Service:
    def __init__(self, ledger: Ledger, tokens: Tokens, page_limit: int) -> None:
        self.ledger = ledger
        self.tokens = tokens
        self.page_limit = page_limit
        self.client = ("", "")
        self.require_auth = True

    def routes(self) -> Iterable[Route]:
        def route(method: str, path: str, handler: _Handler, *, public: bool = False) -> Route:
            async def endpoint(request: Request) -> Response:
                if not public:
                    self._check_token(request)
                try:
                    # Starlette calls whatever it gets as an ASGI application.
                    return cast("Response", await handler(request))
                except BadQuery as error:
                    raise HTTPException(400, str(error)) from error
                except Refused as error:
                    raise HTTPException(403, str(error)) from error

            return Route(f"/archivist/{path}", endpoint, methods=[method])

        yield route("POST", "iam/v1/appidp/token", self.issue_token, public=True)
        yield route("GET", "v1/tenancies/{tenant}:publicinfo", self.public_info, public=True)
        yield route("POST", "v1/blobs", self.upload)
        yield route("GET", "v1/blobs/{blob}/info", self.blob_info)
        yield route("GET", "v1/blobs/{blob}", self.blob)
        yield route("GET", "v2/assets", self.list_assets)
        yield route("POST", "v2/assets", self.create_asset)
        yield route("GET", "v2/assets/{asset}:publicurl", self.public_url)
        yield route("GET", "v2/assets/{asset}/events/{event}:publicurl", self.public_url)
        yield route("POST", "v2/assets/{asset}/events", self.create_event)
        for realm in ("assets", "publicassets"):
            add = functools.partial(route, "GET", public=realm == "publicassets")
            yield add(f"v2/{realm}/{{asset}}", self.asset)
            yield add(f"v2/{realm}/{{asset}}/events", self.list_events)
            yield add(f"v2/{realm}/{{asset}}/events/{{event}}", self.event)
            for owner in (f"{realm}/{{asset}}", f"{realm}/{{asset}}/events/{{event}}"):
                # The shape .../{asset}/events/{event} never collides with .../{asset}/{blob}/info: "events".
                yield add(f"v2/attachments/{owner}/{{blob}}/info", self.attachment_info)
                yield add(f"v2/attachments/{owner}/{{blob}}", self.attachment)
        logs = "/verifiabledata/merklelogs/v1/mmrs/tenant/{tenant}/0"
        yield Route(f"{logs}/massifs/{{number:int}}.log", self.massif)
        yield Route(f"{logs}/massifseals/{{number:int}}.sth", self.seal)

    # Credentials

    async def issue_token(self, request: Request) -> Response:
        form = await request.form()
        if form.get("grant_type") != "client_credentials":
            raise HTTPException(400, "grant_type must be client_credentials")
        if (form.get("client_id"), form.get("client_secret")) != self.client:
            raise HTTPException(401, "client authentication failed")
        lifetime = int(self.tokens.lifetime)
        return _json({"access_token": self.tokens.issue(), "expires_in": lifetime, "token_type": "Bearer"})

    def _check_token(self, request: Request) -> None:
        if self.require_auth and not self.tokens.accepts(request.headers.get("authorization", "")):
            raise HTTPException(401, "request is not authenticated")

    # Assets and events

    async def list_assets(self, request: Request) -> Response:
        return self._listing(request, "assets", "assets", self.ledger.list_assets)

    async def list_events(self, request: Request) -> Response:
        place = _place(request)
        asset = None if place.asset == "-" and not place.public else place.asset

        def list_page(query: Query, offset: int, limit: int) -> Page | None:
            return self.ledger.list_events(asset, query, offset, limit, public=place.public)

        return self._listing(request, "events", f"events of {place.asset}", list_page)

    async def asset(self, request: Request) -> Response:
        place = _place(request)
        return _raw(_found(self.ledger.asset(place.asset, public=place.public), "asset"))

    async def event(self, request: Request) -> Response:
        place = _place(request)
        return _raw(_found(self.ledger.event(place.asset, place.event or "", public=place.public), "event"))

    async def public_url(self, request: Request) -> Response:
        place = _place(request)
        _found(self.ledger.asset(place.asset, public=True), "public asset")
        path = f"/archivist/v2/publicassets/{place.asset}"
        if place.event is not None:
            _found(self.ledger.event(place.asset, place.event, public=True), "event")
            path += f"/events/{place.event}"
        return _json({"publicurl": str(request.url.replace(path=path, query=""))})

    async def public_info(self, request: Request) -> Response:
        identity = f"tenant/{request.path_params['tenant']}"
        if identity != TENANT:
            raise HTTPException(404, "there is no such tenancy")
        return _json({"identity": identity, "display_name": "Demo tenancy", "verified_domain": "UNKNOWN"})

    async def create_asset(self, request: Request) -> Response:
        body = await _body(request)
        asset = self.ledger.create_asset(
            _field(body, "attributes", dict),
            behaviours=_field(body, "behaviours", list),
            public=body.get("public") is True,
            proof_mechanism=_field(body, "proof_mechanism", str) or "MERKLE_LOG",
        )
        return _raw(_found(self.ledger.asset(asset), "asset"))

    async def create_event(self, request: Request) -> Response:
        place, body = _place(request), await _body(request)
        event = self.ledger.create_event(
            place.asset,
            _field(body, "event_attributes", dict),
            _field(body, "asset_attributes", dict),
            operation=_field(body, "operation", str) or "Record",
            behaviour=_field(body, "behaviour", str) or "RecordEvidence",
            declared=_field(body, "timestamp_declared", str) or None,
        )
        return _raw(_found(self.ledger.event(place.asset, _found(event, "asset")), "event"))

    def _listing(
        self, request: Request, key: str, listing: str, list_page: Callable[[Query, int, int], Page | None]
    ) -> Response:
        params = request.query_params
        items = [(name, value) for name, value in params.multi_items() if name not in _PAGING]
        offset = 0
        if params.get("page_token"):
            offset, items = read_token(params["page_token"], listing)
        limit = self.page_limit
        if params.get("page_size"):
            limit = min(limit, _page_size(params["page_size"]))
        page = _found(list_page(parse_query(items), offset, limit), "asset")
        token = write_token(listing, offset + limit, items) if page.more else ""
        body = b'{"%b":[%b],"next_page_token":%b}' % (
            key.encode(),
            b",".join(page.records),
            msgspec.json.encode(token),
        )
        # Without a page size, 206 says that the server's limit cut the listing.
        response = _raw(body, 206 if page.more and not params.get("page_size") else 200)
        if request.headers.get("x-request-total-count", "").lower() == "true":
            response.headers["X-Total-Count"] = str(page.total)
        return response

    # Blobs and attachments

    async def upload(self, request: Request) -> Response:
        async with request.form() as form:
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise HTTPException(400, "the form has no file in the field 'file'")
            blob = await trio.to_thread.run_sync(self.ledger.add_blob, file.file)
        return _raw(blob.info())

    async def blob_info(self, request: Request) -> Response:
        return _raw(self._blob(request).info())

    async def blob(self, request: Request) -> ASGIApp:
        return _download(self._blob(request), request)

    async def attachment_info(self, request: Request) -> Response:
        return _raw(self._attachment(request).info())

    async def attachment(self, request: Request) -> ASGIApp:
        return _download(self._attachment(request), request)

    # Transparency logs: public, and no part of the API.

    async def massif(self, request: Request) -> Response:
        params = request.path_params
        return _binary(self.ledger.massif(params["tenant"], params["number"]))

    async def seal(self, request: Request) -> Response:
        params = request.path_params
        return _binary(self.ledger.seal(params["tenant"], params["number"]))

    def _blob(self, request: Request) -> Blob:
        return _allowed(_found(self.ledger.blob(request.path_params["blob"]), "blob"))

    def _attachment(self, request: Request) -> Blob:
        place = _place(request)
        blob = request.path_params["blob"]
        found = self.ledger.find_attachment(place.asset, place.event, blob, public=place.public)
        return _allowed(_found(found, "attachment"))


def _download(blob: Blob, request: Request) -> ASGIApp:
    if request.query_params.get("strict") == "true" and blob.scanned_status == "NOT_SCANNED":
        raise HTTPException(400, "the blob has not been scanned yet")
    return BlobResponse(blob, request.headers.get("range"))


def _place(request: Request) -> _Place:
    params = request.path_params
    public = "/publicassets/" in request.scope["path"]
    return _Place(params["asset"], params.get("event"), public)


def _allowed(blob: Blob) -> Blob:
    if blob.forbidden:
        raise HTTPException(403, "an access policy does not let you read this attachment")
    return blob


def _found(value: _T | None, what: str) -> _T:
    if value is None:
        raise HTTPException(404, f"{what} not found")
    return value


def _page_size(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise BadQuery("page_size is not a positive number")
    return int(text)


async def _body(request: Request) -> dict[str, Any]:
    try:
        body = msgspec.json.decode(await request.body())
    except msgspec.DecodeError as error:
        raise HTTPException(400, f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise HTTPException(400, "the body is not a JSON object")
    return body


def _field(body: dict[str, Any], name: str, kind: type[_T]) -> _T:
    value = body.get(name)
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise HTTPException(400, f"{name} is not of the right type")
    return value


def _binary(body: bytes | None) -> Response:
    return Response(_found(body, "log"), media_type="application/octet-stream")


def _json(value: object, status: int = 200) -> Response:
    return _raw(msgspec.json.encode(value), status)


def _raw(body: bytes, status: int = 200) -> Response:
    return Response(body, status, media_type="application/json")


def _on_http_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = error.status_code
    return _json({"code": _CODES.get(status, 2), "message": error.detail, "details": []}, status)
