"""The service's answers in an SQLite database, for outages and for `--offline`.

Owns: the database file. All of SQLite's work is done in a thread, one piece at a time, under a limiter of its
own; the event loop only ever touches the answers that wait to be written. A database that is damaged is
set aside, and one that is locked, full or read-only is done without: each costs one warning and nothing else.
"""

import errno
import hashlib
import logging
import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, TypeVar
from urllib.parse import quote

import trio

from attachfs.errors import UsageError

log = logging.getLogger(__name__)

_MAX_BYTES = 256 * 2**20  # of answers; about 250,000 records
_WRITE_EVERY = 1.0  # seconds
_WRITE_SOON = 2 * 2**20  # bytes waiting, above which they are written at once
_MAX_WAITING = 16 * 2**20  # bytes waiting, above which new answers are dropped: the disk is too slow
_BUSY = 1.0  # seconds for which a lock of another process is waited for
_PATIENCE = 2.0  # seconds that a reader waits for the database in all
_RETRY = 60.0  # seconds after which a database that could not be opened is tried again
_CORRUPT = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY, body BLOB NOT NULL, time REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_time ON answers (time);
"""

T = TypeVar("T")


class StoredAnswer(NamedTuple):
    """An answer, and its age in seconds. An empty body: the service said that there is no such thing."""

    body: bytes
    age: float


class AnswerStats(TypedDict, total=False):
    """The answers on disk as `status` shows them: how many, the ages of the oldest and the newest."""

    answers: int
    oldest_s: float | None
    newest_s: float | None
    problem: str


class AnswerStore:
    """The answers of one ledger. Nothing is opened before `open` or the first use.

    Args:
        path: the database; its directory is made, 0700.
        clock: seconds since 1970.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self._clock = clock
        self._limiter = trio.CapacityLimiter(1)
        self._db: sqlite3.Connection | None = None
        self._problem = ""  # why there is no database; said once
        self._retry_at = 0.0
        self._closed = False
        self._counts: tuple[int, float | None, float | None] = (0, None, None)
        # On the event loop only:
        self.puts = 0  # answers that were kept since the start
        self._generation = 0
        self._queued: dict[str, tuple[bytes, float]] = {}
        self._writing: dict[str, tuple[bytes, float]] = {}
        self._queued_bytes = 0
        self._wake = trio.Event()
        self._much = trio.Event()

    @property
    def generation(self) -> int:
        """Changes when what is remembered is cleared; `put` takes it as it was at the question."""
        return self._generation

    def begin_generation(self) -> None:
        """Keep no answer to a question that was asked before now."""
        self._generation += 1

    async def open(self) -> None:
        """Open the database, for a mount that has nothing else to answer from.

        Raises:
            UsageError: it cannot be used; the message says what to do.
        """
        await trio.to_thread.run_sync(self._connect, limiter=self._limiter)
        if self._problem:
            raise UsageError(
                f"the ledger's answers that were kept in {self.path} cannot be used ({self._problem}); "
                f"mount once without --offline, and look at what you will need"
            )

    async def get(self, key: str) -> StoredAnswer | None:
        """Return an answer; None: there is none, or the database cannot be read in time."""
        queued = self._queued.get(key) or self._writing.get(key)
        if queued is None:
            with trio.move_on_after(_PATIENCE):
                queued = await trio.to_thread.run_sync(
                    self._read, key, limiter=self._limiter, abandon_on_cancel=True
                )
        return None if queued is None else StoredAnswer(queued[0], max(0.0, self._clock() - queued[1]))

    def put(self, key: str, body: bytes, generation: int) -> None:
        """Remember an answer, written a little later; not if it was asked for in an older generation."""
        if generation != self._generation or self._queued_bytes + len(body) > _MAX_WAITING:
            return
        self.puts += 1
        self._queued[key] = (body, self._clock())
        self._queued_bytes += len(body)
        self._wake.set()
        if self._queued_bytes > _WRITE_SOON:
            self._much.set()

    def stats(self) -> AnswerStats:
        """Return how many answers there are, and the ages of the oldest and newest in seconds."""
        count, oldest, newest = self._counts
        now = self._clock()
        return {
            "answers": count,
            "oldest_s": None if oldest is None else round(now - oldest, 1),
            "newest_s": None if newest is None else round(now - newest, 1),
            "problem": self._problem,
        }

    async def keep_writing(self) -> None:
        """Write what comes, for as long as this runs."""
        await trio.to_thread.run_sync(self._connect, limiter=self._limiter)
        while True:
            await self._wake.wait()
            with trio.move_on_after(_WRITE_EVERY):
                await self._much.wait()
            self._wake, self._much = trio.Event(), trio.Event()
            await self.write()

    async def write(self) -> None:
        """Write what waits."""
        self._writing, self._queued, self._queued_bytes = self._queued, {}, 0
        try:
            await trio.to_thread.run_sync(self._write, self._writing, limiter=self._limiter)
        except trio.Cancelled:
            # The mount ends while another has the database: closing it writes these as well.
            self._queued = {**self._writing, **self._queued}
            raise
        finally:
            self._writing = {}

    async def aclose(self) -> None:
        """Write the rest, and close. Nobody may use it any more."""
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 3 * _BUSY):
            await self.write()
            await trio.to_thread.run_sync(self._close, limiter=self._limiter)

    # -- in the thread -----------------------------------------------------------------------------

    def _connect(self) -> sqlite3.Connection | None:
        if self._db is None and not self._closed and self._clock() >= self._retry_at:
            try:
                self._db = self._opened()
                self._problem = ""
            except (OSError, sqlite3.Error) as error:
                self._fail(error)
        return self._db

    def _opened(self) -> sqlite3.Connection:
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.path.touch(mode=0o600)
            if self.path.is_dir():  # which SQLite calls an I/O error
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            return self._prepared(sqlite3.connect(self.path, check_same_thread=False, timeout=_BUSY))
        except (OSError, sqlite3.Error) as error:
            if _is_corrupt(error):
                self._move_damaged(error)
                return self._prepared(sqlite3.connect(self.path, check_same_thread=False, timeout=_BUSY))
            # A directory that cannot be written to may hold what was seen before all the same.
            uri = f"file:{quote(str(self.path))}?mode=ro&immutable=1"
            if isinstance(error, IsADirectoryError):
                raise
            read_only = isinstance(error, OSError) or _code(error) in (
                sqlite3.SQLITE_READONLY,
                sqlite3.SQLITE_CANTOPEN,
            )
            if not read_only or not os.access(self.path, os.R_OK):
                raise
            db = sqlite3.connect(uri, uri=True, check_same_thread=False)
            self._count(db)
            return db

    def _prepared(self, db: sqlite3.Connection) -> sqlite3.Connection:
        try:
            # Losing the last second of this in a power cut costs a request, so it need not wait for the disk.
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            db.executescript(_SCHEMA)
            with suppress(sqlite3.OperationalError):  # it is there already
                db.execute("ALTER TABLE answers ADD COLUMN digest BLOB")
            self._count(db)
        except BaseException:
            db.close()
            raise
        return db

    def _read(self, key: str) -> tuple[bytes, float] | None:
        row: Any = self._guarded(
            lambda db: db.execute("SELECT body, time, digest FROM answers WHERE key = ?", (key,)).fetchone()
        )
        if row is None:
            return None
        body = bytes(row[0])
        if row[2] is not None and bytes(row[2]) != _digest(key, body):
            log.warning("%s: what was kept of %s is damaged, and is not used", self.path, key)
            return None
        return body, float(row[1])

    def _write(self, batch: dict[str, tuple[bytes, float]]) -> None:
        def work(db: sqlite3.Connection) -> None:
            with db:
                db.executemany(
                    "INSERT OR REPLACE INTO answers (key, body, time, digest) VALUES (?, ?, ?, ?)",
                    [(key, body, when, _digest(key, body)) for key, (body, when) in batch.items()],
                )
                _drop_oldest(db)
            self._count(db)

        if batch:
            self._guarded(work)

    def _guarded(self, work: Callable[[sqlite3.Connection], T]) -> T | None:
        """Do something with the database; None if that is impossible, which is said once."""
        db = self._connect()
        if db is None:
            return None
        try:
            result = work(db)
        except sqlite3.Error as error:
            if _is_corrupt(error):
                self._close_database()
                try:
                    self._move_damaged(error)
                except OSError as also:
                    self._fail(also)
            else:
                self._complain(error)
            return None
        self._problem = ""
        return result

    def _count(self, db: sqlite3.Connection) -> None:
        self._counts = db.execute("SELECT COUNT(*), MIN(time), MAX(time) FROM answers").fetchone()

    def _fail(self, error: Exception) -> None:
        self._retry_at = self._clock() + _RETRY
        self._complain(error)

    def _complain(self, error: Exception) -> None:
        reason = (error.strerror if isinstance(error, OSError) else "") or str(error)
        said, self._problem = self._problem, reason
        if not said:
            log.warning(
                "%s cannot be used (%s): answers are not kept for --offline and outages; %s",
                self.path,
                reason,
                _remedy(error, self.path),
            )

    def _move_damaged(self, error: Exception) -> None:
        """Move a damaged database out of the way; a new one is made in its place."""
        damaged = self.path.with_name(f"{self.path.name}.damaged")
        self.path.replace(damaged)
        for suffix in ("-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        self._counts = (0, None, None)
        log.warning(
            "%s is damaged (%s): it is set aside as %s and a new one is begun; "
            "--offline shows what is seen from now on",
            self.path,
            error,
            damaged.name,
        )

    def _close(self) -> None:
        self._closed = True
        self._close_database()

    def _close_database(self) -> None:
        if self._db is not None:
            with suppress(sqlite3.Error), closing(self._db):
                pass
            self._db = None


def _drop_oldest(db: sqlite3.Connection) -> None:
    pages, free, size = (
        db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    if (pages - free) * size > _MAX_BYTES:
        db.execute(
            "DELETE FROM answers WHERE key IN (SELECT key FROM answers ORDER BY time LIMIT "
            "(SELECT COUNT(*) / 10 + 1 FROM answers))"
        )


def _digest(key: str, body: bytes) -> bytes:
    """Return what shows a flipped bit in an answer, which SQLite would not."""
    return hashlib.blake2b(
        body, digest_size=8, key=hashlib.sha256(key.encode("utf-8", "replace")).digest()
    ).digest()


def _code(error: Exception) -> int:
    code = getattr(error, "sqlite_errorcode", None)
    return code & 0xFF if isinstance(code, int) else 0


def _is_corrupt(error: Exception) -> bool:
    return _code(error) in _CORRUPT


def _remedy(error: Exception, path: Path) -> str:
    if _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return "end what else has it open"
    if isinstance(error, IsADirectoryError):
        return f"move {path} away"
    if _code(error) == sqlite3.SQLITE_FULL:
        return f"make room in {path.parent}"
    return f"make {path.parent} writable, or let XDG_STATE_HOME name another place"
