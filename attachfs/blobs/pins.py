"""First-seen hashes: once an attachment's hash has been seen, another one is a conflict, however plausible.

A SQLite database outside the cache, so that clearing the cache forgets nothing. A pin is on disk (synced)
before `check` returns, hence before a byte is served on its strength; pins that several threads ask for at
once share one sync. Whatever cannot be looked up is refused: without its pins the program could not say
whether the ledger's story has changed. A damaged database is moved aside and everything that is not yet
confirmed is refused until a person has restored a backup or has deliberately deleted the damaged file.
"""

import enum
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from attachfs.errors import Unexpected
from attachfs.model import Digest

_log = logging.getLogger("attachfs.pins")

_BUSY_TIMEOUT = 10.0  # seconds that one process waits for another's transaction
_CONFIRMED_MAX = 100_000  # keys remembered in memory
_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS pins (
    key TEXT PRIMARY KEY, alg TEXT NOT NULL, hex TEXT NOT NULL, size INTEGER NOT NULL,
    first_seen REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS conflicts (
    key TEXT NOT NULL, pinned_alg TEXT NOT NULL, pinned_hex TEXT NOT NULL, pinned_size INTEGER NOT NULL,
    seen_alg TEXT NOT NULL, seen_hex TEXT NOT NULL, seen_size INTEGER NOT NULL,
    first_when REAL NOT NULL, last_when REAL NOT NULL, times INTEGER NOT NULL,
    PRIMARY KEY (key, pinned_alg, pinned_hex, pinned_size, seen_alg, seen_hex, seen_size)
) WITHOUT ROWID;
"""


class PinStatus(enum.Enum):
    """How an attachment's record compares with the first one seen."""

    NEW = "new"
    SAME = "same"
    CHANGED = "changed"


@dataclass(frozen=True)
class Pin:
    """What was first seen of an attachment; `first_seen` in seconds since 1970."""

    key: str
    digest: Digest
    size: int
    first_seen: float

    def __str__(self) -> str:
        return f"{self.digest} ({self.size} bytes)"


@dataclass(frozen=True)
class PinResult:
    """The answer to `check`; `pin` is what is on record, for NEW the one just made."""

    status: PinStatus
    pin: Pin


@dataclass(frozen=True)
class Conflict:
    """A record that differed from the pin, for a person to review; times in seconds since 1970."""

    key: str
    pinned: Digest
    pinned_size: int
    seen: Digest
    seen_size: int
    first_when: float
    last_when: float
    times: int


@dataclass
class _Request:
    key: str
    digest: Digest
    size: int
    result: PinResult | None = None
    error: Unexpected | None = None


class Pins:
    """The pins in the database at `path`. Thread-safe, and safe beside other processes."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self._clock = clock
        self._db: sqlite3.Connection | None = None
        self._db_lock = threading.Lock()
        self._queue_lock = threading.Lock()
        self._queue: list[_Request] = []
        self._confirmed: dict[str, Pin] = {}

    def check(self, key: str, digest: Digest, size: int) -> PinResult:
        """Compare with the first record seen under `key`, and make this one the first if there is none.

        A difference is written down for review. May wait for the disk, but not for what this run confirmed.

        Raises:
            Unexpected: the pins cannot be read or written; nothing may be served on the strength of this.
        """
        known = self._confirmed.get(key)
        if known is not None and known.digest == digest and known.size == size:
            return PinResult(PinStatus.SAME, known)
        request = _Request(key, digest, size)
        with self._queue_lock:
            self._queue.append(request)
        with self._db_lock:
            if request.result is None and request.error is None:  # not done by whoever was here before
                with self._queue_lock:
                    batch, self._queue = self._queue, []
                self._check_batch(batch)
        if request.error is not None:
            raise request.error
        assert request.result is not None
        return request.result

    def confirmed(self, key: str, digest: Digest, size: int) -> bool:
        """Whether this run has already found this record to be the first one seen. Does not wait."""
        pin = self._confirmed.get(key)
        return pin is not None and pin.digest == digest and pin.size == size

    def conflict(self, key: str, digest: Digest, size: int) -> Pin | None:
        """Return the pin that this record differs from, or None. Pins nothing; a difference is written down.

        Raises:
            Unexpected: the pins cannot be read or written.
        """
        if self.confirmed(key, digest, size):
            return None
        pin = self.get(key)
        if pin is None or (pin.digest == digest and pin.size == size):
            return None
        result = self.check(key, digest, size)
        return result.pin if result.status is PinStatus.CHANGED else None

    def get(self, key: str) -> Pin | None:
        """Return the pin of exactly this key.

        Raises:
            Unexpected: the pins cannot be read.
        """
        with self._db_lock, self._connection() as db:
            return self._select(db, key)

    def release(self, key: str) -> bool:
        """Forget one pin, and so believe the next record. Returns whether there was one.

        Raises:
            Unexpected: the pins cannot be written.
        """
        with self._db_lock, self._connection() as db:
            count = db.execute("DELETE FROM pins WHERE key = ?", (key,)).rowcount
            self._confirmed.pop(key, None)
            return count > 0

    def find(self, pattern: str = "") -> list[Pin]:
        """Return the pins whose key matches a shell pattern, or contains a text without `*`, `?` and `[`.

        Raises:
            Unexpected: the pins cannot be read.
        """
        clause = "key GLOB ?" if set(pattern) & set("*?[") else "instr(key, ?)"
        query = f"SELECT key, alg, hex, size, first_seen FROM pins WHERE {clause} ORDER BY key"  # noqa: S608
        with self._db_lock, self._connection() as db:
            return [self._pin(row) for row in db.execute(query, (pattern,))]

    def count(self) -> int:
        """Return how many pins there are.

        Raises:
            Unexpected: the pins cannot be read.
        """
        with self._db_lock, self._connection() as db:
            return int(db.execute("SELECT count(*) FROM pins").fetchone()[0])

    def conflicts(self) -> list[Conflict]:
        """Return every difference ever observed, the latest first.

        Raises:
            Unexpected: the pins cannot be read.
        """
        query = (
            "SELECT key, pinned_alg, pinned_hex, pinned_size, seen_alg, seen_hex, seen_size,"
            " first_when, last_when, times FROM conflicts ORDER BY last_when DESC, key"
        )
        with self._db_lock, self._connection() as db:
            return [
                Conflict(row[0], Digest(row[1], row[2]), row[3], Digest(row[4], row[5]), *row[6:])
                for row in db.execute(query)
            ]

    def close(self) -> None:
        """Close the database; the next call opens it again."""
        with self._db_lock:
            self._close()

    def _close(self) -> None:
        if self._db is not None:
            with suppress(sqlite3.Error):
                self._db.close()
            self._db = None

    def _check_batch(self, batch: list[_Request]) -> None:
        """Answer several requests in one transaction, all or none. The caller holds _db_lock."""
        try:
            with self._connection() as db:
                results = [self._check_one(db, request) for request in batch]
        except Unexpected as error:
            for request in batch:
                request.error = error
            return
        for request, result in zip(batch, results, strict=True):
            request.result = result
            if result.status is not PinStatus.CHANGED:
                if len(self._confirmed) >= _CONFIRMED_MAX:
                    self._confirmed.clear()
                self._confirmed[request.key] = result.pin

    def _check_one(self, db: sqlite3.Connection, request: _Request) -> PinResult:
        pin = self._select(db, request.key)
        now = self._clock()
        if pin is None and not db.in_transaction:
            db.execute("BEGIN IMMEDIATE")
            pin = self._select(db, request.key)  # another process may just have been here
        if pin is None:
            pin = Pin(request.key, request.digest, request.size, now)
            db.execute(
                "INSERT INTO pins (key, alg, hex, size, first_seen) VALUES (?, ?, ?, ?, ?)",
                (pin.key, pin.digest.alg, pin.digest.hex, pin.size, pin.first_seen),
            )
            return PinResult(PinStatus.NEW, pin)
        if pin.digest == request.digest and pin.size == request.size:
            return PinResult(PinStatus.SAME, pin)
        try:
            db.execute(
                "INSERT INTO conflicts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 1)"
                " ON CONFLICT DO UPDATE SET last_when = excluded.last_when, times = times + 1",
                (pin.key, *pin.digest, pin.size, *request.digest, request.size, now, now),
            )
        except sqlite3.OperationalError as error:
            _log.warning("the conflict about %s cannot be written down: %s", pin.key, error)
        return PinResult(PinStatus.CHANGED, pin)

    def _select(self, db: sqlite3.Connection, key: str) -> Pin | None:
        row = db.execute("SELECT key, alg, hex, size, first_seen FROM pins WHERE key = ?", (key,)).fetchone()
        return None if row is None else self._pin(row)

    @staticmethod
    def _pin(row: tuple[str, str, str, int, float]) -> Pin:
        return Pin(row[0], Digest(row[1], row[2]), row[3], row[4])

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """Give the open database for one transaction, committed at the end. The caller holds _db_lock."""
        try:
            db = self._open()
            try:
                yield db
                db.execute("COMMIT") if db.in_transaction else None
            except BaseException:
                with suppress(sqlite3.Error):
                    db.rollback()
                raise
        except sqlite3.Error as error:
            self._close()
            if type(error) is sqlite3.DatabaseError:  # its subclasses tell of anything but damage
                raise self._move_aside(error) from error
            raise Unexpected(f"the pinned hashes in {self.path} cannot be used: {error}") from error
        except OSError as error:
            raise Unexpected(f"the pinned hashes in {self.path} cannot be used: {error.strerror}") from error

    def _open(self) -> sqlite3.Connection:
        if self._db is not None:
            return self._db
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        damaged = sorted(self.path.parent.glob(f"{self.path.name}.damaged-*Z"))
        if damaged:
            raise Unexpected(
                f"the pinned hashes were damaged and lie in {damaged[0]}: put a backup in {self.path} and "
                f"move the damaged file away, or delete it to start without any pins"
            )
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        db = sqlite3.connect(self.path, timeout=_BUSY_TIMEOUT, isolation_level=None, check_same_thread=False)
        try:
            self._prepare(db)
        except BaseException:
            db.close()
            raise
        self._db = db
        return db

    def _prepare(self, db: sqlite3.Connection) -> None:
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version > _SCHEMA_VERSION:
            raise Unexpected(f"the pinned hashes in {self.path} were written by a newer version of attachfs")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        verdict = db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)
        if version < _SCHEMA_VERSION:
            db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {_SCHEMA_VERSION}; COMMIT;")

    def _move_aside(self, error: Exception) -> Unexpected:
        """Move a damaged database out of the way, loudly, and return what to raise."""
        moment = datetime.fromtimestamp(self._clock(), UTC).strftime("%Y%m%dT%H%M%SZ")
        aside = self.path.with_name(f"{self.path.name}.damaged-{moment}")
        try:
            self.path.rename(aside)
            for suffix in ("-wal", "-shm"):
                side = self.path.with_name(self.path.name + suffix)
                with suppress(FileNotFoundError):
                    side.rename(aside.with_name(aside.name + suffix))
        except OSError as problem:
            return Unexpected(f"the pinned hashes in {self.path} are damaged ({error}), {problem.strerror}")
        _log.error(
            "THE PINNED HASHES ARE DAMAGED (%s) and were moved to %s: attachments whose hash is not yet "
            "confirmed do not open until a backup is restored as %s and the damaged file moved away, "
            "or that file is deleted",
            error,
            aside,
            self.path,
        )
        return Unexpected(f"the pinned hashes were damaged ({error}) and moved to {aside}")
