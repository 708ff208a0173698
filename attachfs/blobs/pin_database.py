"""The database of the pins: opened to write, or to read where that cannot be; moved aside if damaged."""

import errno
import logging
import math
import os
import sqlite3
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from attachfs.cache.files import TOO_MANY_FILES, translate
from attachfs.errors import Unexpected

_log = logging.getLogger("attachfs.pins")

_BUSY_TIMEOUT = 10.0  # seconds that one process waits for another's transaction
_WRITE_AGAIN = 60.0  # seconds after which writing is tried again where it could not be done
_UNWRITABLE = frozenset({errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT})
_UNWRITABLE_SQLITE = frozenset(
    {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN}
)
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


class NotWritable(Unexpected):
    """The database has just turned out not to be writable: from now on it is only read."""


def _primary_code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


class PinDatabase:
    """The database at `path`. Not thread-safe: its owner has a lock.

    Args:
        path: where it lies; its directory is made.
        clock: seconds since 1970.
        elapsed: seconds since any moment.
        writes_again: called when writing is tried again after a while in which the database was only read.
    """

    def __init__(
        self,
        path: Path,
        clock: Callable[[], float],
        elapsed: Callable[[], float],
        writes_again: Callable[[], None],
    ) -> None:
        self.path = path
        self._clock = clock
        self._elapsed = elapsed
        self._writes_again = writes_again
        self.generation = 0  # changes whenever the database is opened or closed
        self._db: sqlite3.Connection | None = None
        self._write_again = -math.inf  # when; while it lies ahead, the database is only read
        self._warned = False

    def close(self) -> None:
        """Close it; the next transaction opens it again."""
        self.generation += 1
        if self._db is not None:
            with suppress(sqlite3.Error):
                self._db.close()
            self._db = None

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Give the open database for one transaction, committed at the end.

        Raises:
            NotWritable: from now on it is only read; the transaction may be tried again.
            Unexpected: it cannot be used at all.
        """
        try:
            db = self._open()
            try:
                yield db
                db.execute("COMMIT") if db.in_transaction else None
            except BaseException:
                with suppress(sqlite3.Error):
                    db.rollback()
                raise
        except sqlite3.OperationalError as error:
            self.close()
            if not self.only_read and _primary_code(error) in _UNWRITABLE_SQLITE:
                self._read_only_for_now(str(error))
                raise NotWritable(f"the pinned hashes in {self.path} cannot be written: {error}") from error
            raise Unexpected(f"the pinned hashes in {self.path} cannot be used: {error}") from error
        except sqlite3.Error as error:
            self.close()
            if type(error) is sqlite3.DatabaseError:  # its subclasses tell of anything but damage
                raise self._move_damaged(error) from error
            raise Unexpected(f"the pinned hashes in {self.path} cannot be used: {error}") from error
        except IsADirectoryError as error:
            raise Unexpected(
                f"the pinned hashes in {self.path} cannot be used: it is a directory; move it away and put a "
                f"backup in its place, or start without any pins"
            ) from error
        except OSError as error:
            raise Unexpected(f"the pinned hashes in {self.path} cannot be used: {error.strerror}") from error

    @property
    def only_read(self) -> bool:
        """Whether nothing can be written for now."""
        return self._write_again > -math.inf

    def _read_only_for_now(self, problem: str) -> None:
        """Write nothing for a while; the first time, say so."""
        self._write_again = self._elapsed() + _WRITE_AGAIN
        if not self._warned:
            self._warned = True
            _log.warning(
                "first-seen hashes cannot be written to %s (%s): what is pinned is still compared with, but "
                "a record that changes after this run would not be noticed; make room there or make it "
                "writable, or choose another place with XDG_STATE_HOME",
                self.path,
                problem,
            )

    def _open(self) -> sqlite3.Connection:
        """Return the database, opened for writing if that can be done."""
        if self.only_read and self._elapsed() >= self._write_again:
            self.close()
            self._write_again = -math.inf
            self._writes_again()
        if self._db is not None:
            return self._db
        self.generation += 1
        if not self.only_read:
            try:
                self._db = self._open_to_write()
            except OSError as error:
                if error.errno in TOO_MANY_FILES:
                    raise translate(error, f"cannot open {self.path}") from error
                if error.errno not in _UNWRITABLE:
                    raise
                self._read_only_for_now(error.strerror or str(error))
            except sqlite3.OperationalError as error:
                if _primary_code(error) not in _UNWRITABLE_SQLITE:
                    raise
                self._read_only_for_now(str(error))
        if self.only_read:
            self._db = self._open_to_read()
        assert self._db is not None
        return self._db

    def _open_to_read(self) -> sqlite3.Connection:
        """Return the database as far as it is there; an empty one in memory if it never was."""
        self._refuse_if_damaged()
        if not self._is_there():
            db = self._connect(":memory:")
            db.executescript(_SCHEMA)
            return db
        name = urllib.parse.quote(str(self.path))
        wal = self.path.with_name(f"{self.path.name}-wal")
        # Without room for its shared index SQLite reads a database only if it is told that nobody writes;
        # what is in a log that was never merged would then be overlooked.
        modes = ["mode=ro"] if wal.exists() and wal.stat().st_size else ["mode=ro", "mode=ro&immutable=1"]
        for number, mode in enumerate(modes):
            db = self._connect(f"file:{name}?{mode}", uri=True)
            try:
                self._check_version(db)
                db.execute("SELECT key FROM pins LIMIT 1").fetchall()
            except sqlite3.OperationalError:
                db.close()
                if number == len(modes) - 1:
                    raise
            except BaseException:
                db.close()
                raise
            else:
                return db
        raise AssertionError(modes)

    def _is_there(self) -> bool:
        try:
            return self.path.lstat().st_size > 0
        except FileNotFoundError:
            return False

    def _refuse_if_damaged(self) -> None:
        damaged = sorted(self.path.parent.glob(f"{self.path.name}.damaged-*Z"))
        if damaged:
            raise Unexpected(
                f"the pinned hashes were damaged and lie in {damaged[0]}: put a backup in {self.path} and "
                f"move the damaged file away, or delete it to start without any pins"
            )

    def _open_to_write(self) -> sqlite3.Connection:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._refuse_if_damaged()
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        db = self._connect(self.path)
        try:
            self._prepare(db)
        except BaseException:
            db.close()
            raise
        return db

    @staticmethod
    def _connect(name: str | Path, *, uri: bool = False) -> sqlite3.Connection:
        return sqlite3.connect(
            name, timeout=_BUSY_TIMEOUT, isolation_level=None, check_same_thread=False, uri=uri
        )

    def _check_version(self, db: sqlite3.Connection) -> int:
        version = int(db.execute("PRAGMA user_version").fetchone()[0])
        if version > _SCHEMA_VERSION:
            raise Unexpected(f"the pinned hashes in {self.path} were written by a newer version of attachfs")
        return version

    def _prepare(self, db: sqlite3.Connection) -> None:
        version = self._check_version(db)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        verdict = db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)
        if version < _SCHEMA_VERSION:
            db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {_SCHEMA_VERSION}; COMMIT;")

    def _move_damaged(self, error: Exception) -> Unexpected:
        """Move a damaged database out of the way, loudly, and return what to raise."""
        moment = datetime.fromtimestamp(self._clock(), UTC).strftime("%Y%m%dT%H%M%SZ")
        moved_to = self.path.with_name(f"{self.path.name}.damaged-{moment}")
        try:
            self.path.rename(moved_to)
            for suffix in ("-wal", "-shm"):
                side = self.path.with_name(self.path.name + suffix)
                with suppress(FileNotFoundError):
                    side.rename(moved_to.with_name(moved_to.name + suffix))
        except OSError as problem:
            return Unexpected(f"the pinned hashes in {self.path} are damaged ({error}), {problem.strerror}")
        _log.error(
            "THE PINNED HASHES ARE DAMAGED (%s) and were moved to %s: attachments whose hash is not yet "
            "confirmed do not open until a backup is restored as %s and the damaged file moved away, "
            "or that file is deleted",
            error,
            moved_to,
            self.path,
        )
        return Unexpected(f"the pinned hashes were damaged ({error}) and moved to {moved_to}")
