"""Records and listings as the service answered them, kept on disk: for outages, and for `--offline`.

`RecordingSource` passes questions on and writes the answers down; `StoredAnswers` has them with their age,
and `OfflineSource` answers from them and from nothing else. Nothing here is believed about bytes: those are
verified against the records in any case.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from contextlib import aclosing
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec
import trio

from attachfs.errors import NotFound, Unreachable
from attachfs.ledger.answer_store import AnswerStore
from attachfs.ledger.listings import Page, Source
from attachfs.model import NO_FILTERS, AssetRef, AttachmentRef, EventRef

T = TypeVar("T")
_GONE = b""  # what is kept in the place of an answer once the service says that there is no such thing


class StoredPage(NamedTuple):
    """A listing's page as it was written down."""

    records: list[dict[str, Any]]
    next_token: str


class Aged(NamedTuple, Generic[T]):
    """What was kept, and the age in seconds of the oldest answer that it was made of."""

    value: T
    age: float


class RecordingSource:
    """Asks the service, and remembers what it answered.

    Args:
        source: the service's client.
        store: where answers are kept.
    """

    def __init__(self, source: Source, store: AnswerStore) -> None:
        self._source = source
        self._store = store

    async def assets_page(self, token: str = "", filters: Mapping[str, str] = NO_FILTERS) -> Page:
        """Return one page of all assets that pass the filters."""
        generation = self._store.generation
        page = await self._source.assets_page(token, filters)
        return await self._kept_page(_page_key("assets", token, filters), page, generation)

    async def events_page(
        self, asset: AssetRef | None, token: str = "", filters: Mapping[str, str] = NO_FILTERS
    ) -> Page:
        """Return one page of an asset's events that pass the filters."""
        generation = self._store.generation
        page = await self._source.events_page(asset, token, filters)
        return await self._kept_page(_page_key(_events(asset), token, filters), page, generation)

    # Not coroutines of their own: a request's stack is resumed frame by frame at each of its task switches.

    def asset(self, ref: AssetRef) -> Coroutine[Any, Any, bytes]:
        """Return an asset's record."""
        return self._kept(ref.path, self._source.asset(ref))

    def event(self, ref: EventRef) -> Coroutine[Any, Any, bytes]:
        """Return an event's record."""
        return self._kept(ref.path, self._source.event(ref))

    def info(self, ref: AttachmentRef) -> Coroutine[Any, Any, bytes]:
        """Return an attachment's `/info`."""
        return self._kept(f"{ref.path}/info", self._source.info(ref))

    async def _kept(self, key: str, answer: Awaitable[bytes]) -> bytes:
        generation = self._store.generation
        try:
            body = await answer
        except NotFound:
            self._store.put(key, _GONE, generation)
            raise
        self._store.put(key, body, generation)
        return body

    async def _kept_page(self, key: str, page: Page, generation: int) -> Page:
        self._store.put(key, await _encode_page(page), generation)
        return page


class StoredAnswers:
    """What is kept of a ledger, with its age. Records that a listing brought are found in the listing.

    Args:
        store: has the answers.
    """

    def __init__(self, store: AnswerStore) -> None:
        self.store = store
        self._all_events: dict[str, list[str]] | None = None
        self._as_of = 0  # how many answers there were when that was found out

    async def assets_page(self, token: str = "", filters: Mapping[str, str] = NO_FILTERS) -> Aged[StoredPage]:
        """Return one page of all assets that pass the filters."""
        return await self._page(_page_key("assets", token, filters))

    async def events_page(
        self, asset: AssetRef | None, token: str = "", filters: Mapping[str, str] = NO_FILTERS
    ) -> Aged[StoredPage]:
        """Return one page of an asset's events that pass the filters."""
        key = _page_key(_events(asset), token, filters)
        if asset is None or token or filters:
            return await self._page(key)
        others, age = await self._of_all_events(asset)
        if not others:
            return await self._page(key)
        try:
            page, own_age = await self._page(key)
        except Unreachable:
            return Aged(StoredPage(others, ""), age)
        # Events are never taken away: what either listing has was there.
        cached = {record.get("identity") for record in page.records}
        more = [record for record in others if record["identity"] not in cached]
        records = page.records + ([] if page.next_token else more)
        return Aged(StoredPage(records, page.next_token), max(age, own_age))

    async def asset(self, ref: AssetRef) -> Aged[bytes]:
        """Return an asset's record."""
        return await self._answer(ref.path, lambda: self._listed("assets", ref.path))

    async def event(self, ref: EventRef) -> Aged[bytes]:
        """Return an event's record."""
        owner = AssetRef(ref.realm, ref.asset)

        async def listed() -> Aged[bytes] | None:
            found = await self._listed(_events(owner), ref.path)
            if found is None:
                others, age = await self._of_all_events(owner)
                found = next(
                    (Aged(msgspec.json.encode(r), age) for r in others if r["identity"] == ref.path), None
                )
            return found

        return await self._answer(ref.path, listed)

    async def info(self, ref: AttachmentRef) -> Aged[bytes]:
        """Return an attachment's `/info`."""
        return await self._answer(f"{ref.path}/info")

    async def _answer(
        self, key: str, otherwise: Callable[[], Awaitable[Aged[bytes] | None]] | None = None
    ) -> Aged[bytes]:
        stored = await self.store.get(key)
        found = None if stored is None else Aged(stored.body, stored.age)
        if found is None and otherwise is not None:
            found = await otherwise()
        if found is None or found.value == _GONE:
            raise Unreachable(f"{key}: offline, and not seen before")
        return found

    async def _page(self, key: str) -> Aged[StoredPage]:
        body, age = await self._answer(key)
        page = await _decode_page(body)
        if page is None:
            raise Unreachable(f"{key}: offline, and what was kept of it is damaged")
        return Aged(page, age)

    async def _of_all_events(self, asset: AssetRef) -> Aged[list[dict[str, Any]]]:
        """Return an asset's events from the listing of all assets' events, if that was read to its end."""
        if self._all_events is None or self._as_of != self.store.puts:
            self._as_of = self.store.puts
            self._all_events = await self._find_all_events()
        found, oldest = [], 0.0
        for token in self._all_events.get(asset.path, ()):
            page, age = await self._page(_page_key(_events(None), token))
            found += [record for record in page.records if _owner(record) == asset.path]
            oldest = max(oldest, age)
        return Aged(found, oldest)

    async def _find_all_events(self) -> dict[str, list[str]]:
        """Return on which pages each asset's events are."""
        found: dict[str, list[str]] = {}
        async with aclosing(self._pages(_events(None))) as pages:
            async for token, page, _ in pages:
                for owner in dict.fromkeys(map(_owner, page.records)):
                    found.setdefault(owner, []).append(token)
                if not page.next_token:
                    return found
        return {}

    async def _listed(self, listing: str, identity: str) -> Aged[bytes] | None:
        """Return a record that only a listing has brought."""
        async with aclosing(self._pages(listing)) as pages:
            async for _, page, age in pages:
                for record in page.records:
                    if record.get("identity") == identity:
                        return Aged(msgspec.json.encode(record), age)
        return None

    async def _pages(self, listing: str) -> AsyncGenerator[tuple[str, StoredPage, float], None]:
        """Yield the pages of a listing, each with its token and its age, until one is missing."""
        token, seen = "", set[str]()
        while token not in seen:
            seen.add(token)
            stored = await self.store.get(_page_key(listing, token))
            page = None if stored is None else await _decode_page(stored.body)
            if stored is None or page is None:
                return
            yield token, page, stored.age
            token = page.next_token
            if not token:
                return


class OfflineSource:
    """Answers from what is kept alone. What was never asked is Unreachable, not absent.

    Args:
        answers: what is kept.
    """

    def __init__(self, answers: StoredAnswers) -> None:
        self._answers = answers

    async def assets_page(self, token: str = "", filters: Mapping[str, str] = NO_FILTERS) -> Page:
        """Return one page of all assets that pass the filters."""
        return (await self._answers.assets_page(token, filters)).value

    async def events_page(
        self, asset: AssetRef | None, token: str = "", filters: Mapping[str, str] = NO_FILTERS
    ) -> Page:
        """Return one page of an asset's events that pass the filters."""
        return (await self._answers.events_page(asset, token, filters)).value

    async def asset(self, ref: AssetRef) -> bytes:
        """Return an asset's record."""
        return (await self._answers.asset(ref)).value

    async def event(self, ref: EventRef) -> bytes:
        """Return an event's record."""
        return (await self._answers.event(ref)).value

    async def info(self, ref: AttachmentRef) -> bytes:
        """Return an attachment's `/info`."""
        return (await self._answers.info(ref)).value


_MANY_RECORDS = 100  # records from which on a page is encoded beside the event loop
_IN_A_THREAD = 256 * 2**10  # bytes of JSON from which on it is decoded beside the event loop


async def _encode_page(page: Page) -> bytes:
    content = (page.records, page.next_token)
    if len(page.records) > _MANY_RECORDS:
        return await trio.to_thread.run_sync(msgspec.json.encode, content)
    return msgspec.json.encode(content)


async def _decode_page(body: bytes) -> StoredPage | None:
    """Return a page as it was written down, or None if it is damaged."""
    try:
        if len(body) > _IN_A_THREAD:
            return await trio.to_thread.run_sync(_decode, body)
        return _decode(body)
    except (msgspec.DecodeError, RecursionError):
        return None


def _decode(body: bytes) -> StoredPage:
    return msgspec.json.decode(body, type=StoredPage)


def _owner(event: dict[str, Any]) -> str:
    """Return the path of the asset that an event's record says it is of."""
    identity = event.get("identity")
    return identity.partition("/events/")[0] if isinstance(identity, str) else ""


def _events(asset: AssetRef | None) -> str:
    return "assets/-/events" if asset is None else f"{asset.path}/events"


def _page_key(listing: str, token: str, filters: Mapping[str, str] = NO_FILTERS) -> str:
    return f"{listing}?{token}" + "".join(f"&{name}={value}" for name, value in sorted(filters.items()))
