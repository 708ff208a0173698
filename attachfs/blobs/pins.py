"""First-seen hashes: once an attachment's hash has been seen, another one is a conflict, however plausible.

A SQLite database outside the cache, so that clearing the cache forgets nothing. A pin is on disk (synced)
before `check` returns, hence before a byte is served on its strength; pins that several threads ask for at
once share one sync. Whatever cannot be looked up is refused: without its pins the program could not say
whether the ledger's story has changed. A damaged database is moved aside and everything that is not yet
confirmed is refused until a person has restored a backup or has deliberately deleted the damaged file.

Where nothing can be written (a full or read-only disk) that is not so: the pins that are there are read and
compared with, new ones are held in memory, and a warning says what to do; writing is tried again from time to
time.
"""

import enum
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from attachfs.blobs.pin_database import NotWritable, PinDatabase
from attachfs.errors import AttachfsError
from attachfs.model import Digest

_log = logging.getLogger("attachfs.pins")

_KEYS_MAX = 200_000  # pins whose keys are remembered; of more, none
_CONFIRMED_MAX = 100_000  # keys remembered in memory


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


class PinRecord(NamedTuple):
    """What is recorded of an attachment now."""

    key: str
    digest: Digest
    size: int


@dataclass
class _Request:
    key: str
    digest: Digest
    size: int
    result: PinResult | None = None
    error: AttachfsError | None = None

    def answer(self) -> PinResult | AttachfsError:
        """Return what came of it, once it is done."""
        answer = self.error or self.result
        assert answer is not None
        return answer


class Pins:
    """The pins in the database at `path`. Thread-safe, and safe beside other processes."""

    def __init__(
        self,
        path: Path,
        clock: Callable[[], float] = time.time,
        elapsed: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = path
        self._clock = clock
        self._confirmed: dict[str, Pin] = {}
        # What was first seen meanwhile is then written at its next open.
        self._database = PinDatabase(path, clock, elapsed, writes_again=self._confirmed.clear)
        self._db_lock = threading.Lock()
        self._queue_lock = threading.Lock()
        self._queue: list[_Request] = []
        self._keys: set[int] = set()  # hashes of all keys, as they were when the database was opened
        self._keys_of = -1  # the database's generation that they are of
        self._unwritten: dict[str, Pin] = {}  # first seen while nothing could be written; held by _db_lock

    def check(self, key: str, digest: Digest, size: int) -> PinResult:
        """Compare with the first record seen under `key`, and make this one the first if there is none.

        A difference is written down for review. May wait for the disk, but not for what this run confirmed.

        Raises:
            Unexpected: the pins cannot be read or written; nothing may be served on the strength of this.
        """
        result = self.check_many([PinRecord(key, digest, size)])[0]
        if isinstance(result, AttachfsError):
            raise result
        return result

    def check_many(self, records: Sequence[PinRecord]) -> list[PinResult | AttachfsError]:
        """Do for several what `check` does, in one transaction; return for each its answer or error."""
        answers: list[PinResult | _Request] = []
        for record in records:
            pinned = self._confirmed.get(record.key)
            if pinned is not None and pinned.digest == record.digest and pinned.size == record.size:
                answers.append(PinResult(PinStatus.SAME, pinned))
            else:
                answers.append(_Request(*record))
        requests = [answer for answer in answers if isinstance(answer, _Request)]
        if requests:
            with self._queue_lock:
                self._queue += requests
            with self._db_lock:
                # One batch takes all that is queued, so ours are done together, by us or by somebody else.
                if requests[-1].result is None and requests[-1].error is None:
                    with self._queue_lock:
                        batch, self._queue = self._queue, []
                    self._check_batch(batch)
        return [answer.answer() if isinstance(answer, _Request) else answer for answer in answers]

    def surely_new(self, key: str) -> bool:
        """Whether nothing was pinned under `key` when the database was opened, nor by this run.

        Does not wait. What another process has pinned since, `check` finds.
        """
        return self._keys_of == self._database.generation and hash(key) not in self._keys

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
        with self._db_lock, self._database.transaction() as db:
            self._learn_keys(db)
            return self._select(db, key) or self._unwritten.get(key)

    def release(self, key: str) -> bool:
        """Forget one pin, and so believe the next record. Returns whether there was one.

        Raises:
            Unexpected: the pins cannot be written.
        """
        with self._db_lock, self._database.transaction() as db:
            count = db.execute("DELETE FROM pins WHERE key = ?", (key,)).rowcount
            self._confirmed.pop(key, None)
            return self._unwritten.pop(key, None) is not None or count > 0

    def find(self, pattern: str = "") -> list[Pin]:
        """Return the pins whose key matches a shell pattern, or contains a text without `*`, `?` and `[`.

        Raises:
            Unexpected: the pins cannot be read.
        """
        clause = "key GLOB ?" if set(pattern) & set("*?[") else "instr(key, ?)"
        query = f"SELECT key, alg, hex, size, first_seen FROM pins WHERE {clause} ORDER BY key"  # noqa: S608
        with self._db_lock, self._database.transaction() as db:
            return [self._pin(row) for row in db.execute(query, (pattern,))]

    def count(self) -> int:
        """Return how many pins there are.

        Raises:
            Unexpected: the pins cannot be read.
        """
        with self._db_lock, self._database.transaction() as db:
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
        with self._db_lock, self._database.transaction() as db:
            return [
                Conflict(row[0], Digest(row[1], row[2]), row[3], Digest(row[4], row[5]), *row[6:])
                for row in db.execute(query)
            ]

    def close(self) -> None:
        """Close the database; the next call opens it again."""
        with self._db_lock:
            self._database.close()

    def _check_batch(self, batch: list[_Request]) -> None:
        """Answer several requests in one transaction, all or none. The caller holds _db_lock."""
        try:
            try:
                with self._database.transaction() as db:
                    results = [self._check_one(db, request) for request in batch]
            except NotWritable:
                with self._database.transaction() as db:
                    results = [self._check_one(db, request) for request in batch]
        except AttachfsError as error:
            for request in batch:
                request.error = error
            return
        for request, result in zip(batch, results, strict=True):
            request.result = result
            if result.status is not PinStatus.CHANGED:
                if len(self._confirmed) >= _CONFIRMED_MAX:
                    self._confirmed.clear()
                self._confirmed[request.key] = result.pin

    def _learn_keys(self, db: sqlite3.Connection) -> None:
        """Remember which keys there are. The caller holds _db_lock."""
        if self._keys_of == self._database.generation:
            return
        if db.execute("SELECT count(*) FROM pins").fetchone()[0] <= _KEYS_MAX:
            self._keys = {hash(key) for (key,) in db.execute("SELECT key FROM pins")}
            self._keys.update(map(hash, self._unwritten))
            self._keys_of = self._database.generation

    def _check_one(self, db: sqlite3.Connection, request: _Request) -> PinResult:
        pin = self._select(db, request.key)
        self._keys.add(hash(request.key))
        now = self._clock()
        first = self._unwritten.get(request.key) or Pin(request.key, request.digest, request.size, now)
        if pin is None and self._database.only_read:
            pin = self._unwritten.setdefault(request.key, first)
            if len(self._unwritten) > _CONFIRMED_MAX:
                del self._unwritten[next(iter(self._unwritten))]
        elif pin is None:
            if not db.in_transaction:
                db.execute("BEGIN IMMEDIATE")
                pin = self._select(db, request.key)  # another process may just have been here
            if pin is None:
                pin = first
                db.execute(
                    "INSERT INTO pins (key, alg, hex, size, first_seen) VALUES (?, ?, ?, ?, ?)",
                    (pin.key, pin.digest.alg, pin.digest.hex, pin.size, pin.first_seen),
                )
                if pin.digest == request.digest and pin.size == request.size:
                    return PinResult(PinStatus.NEW, pin)
        if pin.digest == request.digest and pin.size == request.size:
            return PinResult(PinStatus.SAME, pin)
        if self._database.only_read:
            _log.warning("the conflict about %s cannot be recorded", pin.key)
            return PinResult(PinStatus.CHANGED, pin)
        try:
            db.execute(
                "INSERT INTO conflicts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 1)"
                " ON CONFLICT DO UPDATE SET last_when = excluded.last_when, times = times + 1",
                (pin.key, *pin.digest, pin.size, *request.digest, request.size, now, now),
            )
        except sqlite3.OperationalError as error:
            _log.warning("the conflict about %s cannot be recorded: %s", pin.key, error)
        return PinResult(PinStatus.CHANGED, pin)

    def _select(self, db: sqlite3.Connection, key: str) -> Pin | None:
        row = db.execute("SELECT key, alg, hex, size, first_seen FROM pins WHERE key = ?", (key,)).fetchone()
        return None if row is None else self._pin(row)

    @staticmethod
    def _pin(row: tuple[str, str, str, int, float]) -> Pin:
        return Pin(row[0], Digest(row[1], row[2]), row[3], row[4])
