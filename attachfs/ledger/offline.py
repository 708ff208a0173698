"""What the service has answered, kept on the disk, so that a laptop can mount without a network.

`RecordingSource` passes questions on and writes the answers down; `OfflineSource` answers from what was
written, and from nothing else. Nothing here is believed about bytes: those are verified against the
records in any case. The database is bounded; the oldest answers go first.
"""

import logging
import sqlite3
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import trio

from attachfs.errors import Unreachable, UsageError
from attachfs.ledger.listings import Page, Source
from attachfs.model import NO_FILTERS, AssetRef, AttachmentRef, EventRef

log = logging.getLogger(__name__)

_MAX_BYTES = 256 * 2**20  # of answers; about 250,000 records
_WRITE_EVERY = 1.0  # seconds
_WRITE_SOON = 2 * 2**20  # bytes waiting, above which they are written down at once
_WRITE_AT_ONCE = 16 * 2**20  # bytes waiting, above which new answers are dropped: the disk is too slow
_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY, body BLOB NOT NULL, time REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_time ON answers (time);
"""


class StoredPage(NamedTuple):
    """A listing's page as it was written down."""

    records: list[dict[str, Any]]
    next_token: str


class AnswerStore:
    """The answers of one ledger, in an SQLite database. Thread-safe.

    Args:
        path: the database; its directory is made, 0700.
        clock: seconds since 1970.

    Raises:
        UsageError: the database cannot be used.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting: dict[str, tuple[bytes, float]] = {}
        self._waiting_bytes = 0
        self._wake = trio.Event()
        self._much = trio.Event()
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.touch(mode=0o600)
            self._db = sqlite3.connect(path, check_same_thread=False, timeout=10)
            # Losing the last second of this in a power cut costs a request, so it need not wait for the disk.
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise UsageError(
                f"the memory of the ledger's records in {path} cannot be used ({error}); "
                f"move it away, it will be made anew"
            ) from error

    def get(self, key: str) -> bytes | None:
        """Return the answer to a question, or None if it was never given."""
        with self._lock:
            waiting = self._waiting.get(key)
            if waiting is not None:
                return waiting[0]
            row = self._db.execute("SELECT body FROM answers WHERE key = ?", (key,)).fetchone()
        return None if row is None else bytes(row[0])

    def put(self, key: str, body: bytes) -> None:
        """Remember an answer; it is written down a little later."""
        if self._waiting_bytes + len(body) <= _WRITE_AT_ONCE:
            self._waiting[key] = (body, self._clock())
            self._waiting_bytes += len(body)
            self._wake.set()
            if self._waiting_bytes > _WRITE_SOON:
                self._much.set()

    def figures(self) -> dict[str, Any]:
        """Return how many answers there are, and the ages of the oldest and newest in seconds."""
        with self._lock:
            count, oldest, newest = self._db.execute(
                "SELECT COUNT(*), MIN(time), MAX(time) FROM answers"
            ).fetchone()
        now = self._clock()
        return {
            "answers": count,
            "oldest_s": None if oldest is None else round(now - oldest, 1),
            "newest_s": None if newest is None else round(now - newest, 1),
        }

    def write(self) -> None:
        """Write down what waits. May wait for the disk."""
        with self._lock:
            waiting, self._waiting, self._waiting_bytes = self._waiting, {}, 0
            try:
                with self._db:
                    self._db.executemany(
                        "INSERT OR REPLACE INTO answers VALUES (?, ?, ?)",
                        [(key, body, when) for key, (body, when) in waiting.items()],
                    )
                    self._forget_oldest()
            except sqlite3.Error as error:
                log.warning("the ledger's records could not be written down for --offline: %s", error)

    def _forget_oldest(self) -> None:
        pages, free, size = (
            self._db.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
        if (pages - free) * size > _MAX_BYTES:
            self._db.execute(
                "DELETE FROM answers WHERE key IN (SELECT key FROM answers ORDER BY time LIMIT "
                "(SELECT COUNT(*) / 10 + 1 FROM answers))"
            )

    async def keep_writing(self) -> None:
        """Write down what comes, for as long as this runs."""
        while True:
            await self._wake.wait()
            with trio.move_on_after(_WRITE_EVERY):
                await self._much.wait()
            self._wake, self._much = trio.Event(), trio.Event()
            await trio.to_thread.run_sync(self.write)

    def close(self) -> None:
        """Write down the rest."""
        with suppress(sqlite3.Error):
            self.write()
            self._db.close()


class RecordingSource:
    """Asks the service, and remembers what it answered.

    Args:
        source: the service's client.
        memory: where answers are written down.
    """

    def __init__(self, source: Source, memory: AnswerStore) -> None:
        self._source = source
        self._memory = memory

    async def assets_page(self, token: str = "", filters: Mapping[str, str] = NO_FILTERS) -> Page:
        """Return one page of all assets that pass the filters."""
        page = await self._source.assets_page(token, filters)
        return self._kept_page(_page_key("assets", token, filters), page)

    async def events_page(
        self, asset: AssetRef | None, token: str = "", filters: Mapping[str, str] = NO_FILTERS
    ) -> Page:
        """Return one page of an asset's events that pass the filters."""
        page = await self._source.events_page(asset, token, filters)
        return self._kept_page(_page_key(_events(asset), token, filters), page)

    async def asset(self, ref: AssetRef) -> bytes:
        """Return an asset's record."""
        return self._kept(ref.path, await self._source.asset(ref))

    async def event(self, ref: EventRef) -> bytes:
        """Return an event's record."""
        return self._kept(ref.path, await self._source.event(ref))

    async def info(self, ref: AttachmentRef) -> bytes:
        """Return an attachment's `/info`."""
        return self._kept(f"{ref.path}/info", await self._source.info(ref))

    def _kept(self, key: str, body: bytes) -> bytes:
        self._memory.put(key, body)
        return body

    def _kept_page(self, key: str, page: Page) -> Page:
        self._memory.put(key, msgspec.json.encode((page.records, page.next_token)))
        return page


class OfflineSource:
    """Answers from memory alone. What was never asked is Unreachable, not absent.

    Records that a listing brought are found in the listing.
    """

    def __init__(self, memory: AnswerStore) -> None:
        self._memory = memory
        self._all_events: dict[str, list[str]] | None = None

    async def assets_page(self, token: str = "", filters: Mapping[str, str] = NO_FILTERS) -> Page:
        """Return one page of all assets that pass the filters."""
        return await self._page(_page_key("assets", token, filters))

    async def events_page(
        self, asset: AssetRef | None, token: str = "", filters: Mapping[str, str] = NO_FILTERS
    ) -> Page:
        """Return one page of an asset's events that pass the filters."""
        key = _page_key(_events(asset), token, filters)
        if asset is None or token or filters:
            return await self._page(key)
        others = await self._of_all_events(asset)
        if not others:
            return await self._page(key)
        try:
            page = await self._page(key)
        except Unreachable:
            return StoredPage(others, "")
        # Events are never taken away: what either listing has was there.
        known = {record.get("identity") for record in page.records}
        more = [record for record in others if record["identity"] not in known]
        return StoredPage(page.records + ([] if page.next_token else more), page.next_token)

    async def asset(self, ref: AssetRef) -> bytes:
        """Return an asset's record."""
        return await self._answer(ref.path, lambda: self._listed("assets", ref.path))

    async def event(self, ref: EventRef) -> bytes:
        """Return an event's record."""
        owner = AssetRef(ref.realm, ref.asset)

        async def listed() -> bytes | None:
            found = await self._listed(_events(owner), ref.path)
            if found is None:
                others = await self._of_all_events(owner)
                found = next((msgspec.json.encode(r) for r in others if r["identity"] == ref.path), None)
            return found

        return await self._answer(ref.path, listed)

    async def info(self, ref: AttachmentRef) -> bytes:
        """Return an attachment's `/info`."""
        return await self._answer(f"{ref.path}/info")

    async def _answer(
        self, key: str, otherwise: Callable[[], Awaitable[bytes | None]] | None = None
    ) -> bytes:
        body = await trio.to_thread.run_sync(self._memory.get, key)
        if body is None and otherwise is not None:
            body = await otherwise()
        if body is None:
            raise Unreachable(f"{key}: offline, and not seen before")
        return body

    async def _page(self, key: str) -> StoredPage:
        body = await self._answer(key)
        return msgspec.json.decode(body, type=StoredPage)

    async def _of_all_events(self, asset: AssetRef) -> list[dict[str, Any]]:
        """Return an asset's events from the listing of all assets' events, if that was read to its end."""
        if self._all_events is None:
            self._all_events = await trio.to_thread.run_sync(self._find_all_events)
        found = []
        for token in self._all_events.get(asset.path, ()):
            page = await self._page(_page_key(_events(None), token))
            found += [record for record in page.records if _owner(record) == asset.path]
        return found

    def _find_all_events(self) -> dict[str, list[str]]:
        """Return on which pages each asset's events are. May wait for the disk."""
        found: dict[str, list[str]] = {}
        token, seen = "", set[str]()
        while token not in seen:
            seen.add(token)
            body = self._memory.get(_page_key(_events(None), token))
            if body is None:
                return {}
            page = msgspec.json.decode(body, type=StoredPage)
            for owner in dict.fromkeys(map(_owner, page.records)):
                found.setdefault(owner, []).append(token)
            token = page.next_token
            if not token:
                return found
        return {}

    async def _listed(self, listing: str, identity: str) -> bytes | None:
        """Return a record that only a listing has brought."""
        token, seen = "", set[str]()
        while token not in seen:
            seen.add(token)
            body = await trio.to_thread.run_sync(self._memory.get, _page_key(listing, token))
            if body is None:
                return None
            page = msgspec.json.decode(body, type=StoredPage)
            for record in page.records:
                if record.get("identity") == identity:
                    return msgspec.json.encode(record)
            token = page.next_token
            if not token:
                return None
        return None


def _owner(event: dict[str, Any]) -> str:
    """Return the path of the asset that an event's record says it is of."""
    identity = event.get("identity")
    return identity.partition("/events/")[0] if isinstance(identity, str) else ""


def _events(asset: AssetRef | None) -> str:
    return "assets/-/events" if asset is None else f"{asset.path}/events"


def _page_key(listing: str, token: str, filters: Mapping[str, str] = NO_FILTERS) -> str:
    return f"{listing}?{token}" + "".join(f"&{name}={value}" for name, value in sorted(filters.items()))
