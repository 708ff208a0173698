"""How far an export has come: a database beside what is being written, so that it can go on after any end.

A row is committed only after everything that it speaks of is on the disk: one syncfs(2) for all files since
the last commit, instead of an fsync(2) for each of a hundred thousand. What was written and not committed
when the power failed is looked at again by the next run, which keeps what it finds right.
"""

import ctypes
import fcntl
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

import msgspec

from attachfs.archive import layout
from attachfs.archive.entries import Exported
from attachfs.errors import Unexpected, UsageError

_COMMIT_EVERY = 2.0  # seconds
_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS owners (path TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tags (path TEXT PRIMARY KEY, sha256 TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS proofs (
    path TEXT PRIMARY KEY, state TEXT NOT NULL, weight INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS files (
    path TEXT PRIMARY KEY, state INTEGER NOT NULL, size INTEGER NOT NULL, stamp TEXT NOT NULL,
    entry BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_state ON files (state, path);
"""
TODO, DONE, REFUSED = range(3)
_PAGE = 500  # rows read at a time

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Exported)


class Journal:
    """The state of an export into a directory. For one thread.

    Args:
        bag: the directory.
        clock: seconds, monotonic.

    Raises:
        UsageError: another export writes there, or the journal cannot be used.
    """

    def __init__(self, bag: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._bag = bag
        self._clock = clock
        self.work = bag / layout.WORK
        with ExitStack() as opened:  # which closes what is open if the rest fails
            try:
                (self.work / "tmp").mkdir(parents=True, exist_ok=True)
                self._lock = os.open(self.work / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
                opened.callback(os.close, self._lock)
                try:
                    fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise UsageError(f"another export into {bag} is running") from None
                for leftover in (self.work / "tmp").iterdir():
                    leftover.unlink()
                self._db = sqlite3.connect(self.work / "journal.sqlite", isolation_level=None)
                opened.callback(self._db.close)
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute("PRAGMA synchronous = NORMAL")
                self._db.executescript(_SCHEMA)
                version = self.get("version")
            except (OSError, sqlite3.Error) as error:
                raise UsageError(f"{bag} cannot be written to: {error}") from error
            if version not in (None, str(_VERSION)):
                raise UsageError(
                    f"the export in {bag} was started by another version of attachfs; "
                    "finish it with that version"
                )
            opened.pop_all()
        self._db.execute("BEGIN")
        self.set("version", str(_VERSION))
        self._committed = clock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- rows ------------------------------------------------------------------------------------------

    def get(self, key: str) -> str | None:
        """Return a fact about the export as a whole."""
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def set(self, key: str, value: str) -> None:
        """Note a fact about the export as a whole."""
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def is_listed(self, path: str) -> bool:
        """Whether all that an asset or event has was noted."""
        return self._db.execute("SELECT 1 FROM owners WHERE path = ?", (path,)).fetchone() is not None

    def set_listed(self, path: str) -> None:
        """Note that all that an asset or event has was noted."""
        self._db.execute("INSERT OR REPLACE INTO owners VALUES (?)", (path,))

    def add_tags(self, tags: Sequence[tuple[str, str]]) -> None:
        """Note tag files (records, proofs): path and SHA-256."""
        self._db.executemany("INSERT OR REPLACE INTO tags VALUES (?, ?)", tags)

    def add_proofs(self, proofs: Iterable[tuple[str, str, int]]) -> None:
        """Note of attachments whether an event that carries them is in the log: path, state and weight.

        Of several events, the state of the greatest weight stays.
        """
        self._db.executemany(
            "INSERT INTO proofs VALUES (?, ?, ?) ON CONFLICT (path) DO UPDATE SET state = excluded.state,"
            " weight = excluded.weight WHERE excluded.weight > weight",
            proofs,
        )

    def clear_proofs(self) -> None:
        """Forget what was noted of the transparency log."""
        self._db.execute("DELETE FROM proofs")

    def add(self, entry: Exported) -> None:
        """Note an attachment that is to be exported, unless it has been, or one that is refused already."""
        state = REFUSED if entry.errno else TODO
        self._db.execute(
            "INSERT INTO files VALUES (?, ?, ?, '', ?) ON CONFLICT (path) DO UPDATE SET"
            " state = excluded.state, size = excluded.size, entry = excluded.entry WHERE state != 1",
            (entry.path, state, entry.size, _encoder.encode(entry)),
        )

    def finish(self, entry: Exported, stamp: str = "") -> None:
        """Note what became of an attachment; `stamp`: of the file in the bag, "" for one that was refused."""
        state = REFUSED if entry.errno else DONE
        self._db.execute(
            "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)",
            (entry.path, state, entry.size, stamp, _encoder.encode(entry)),
        )

    def reopen(self, path: str) -> None:
        """Have an attachment exported again."""
        self._db.execute("UPDATE files SET state = ?, stamp = '' WHERE path = ?", (TODO, path))

    def retry(self) -> None:
        """Let everything that was refused before be tried again."""
        self._db.execute("DELETE FROM files WHERE state = ? AND size < 0", (REFUSED,))
        self._db.execute("UPDATE files SET state = ? WHERE state = ?", (TODO, REFUSED))

    def count(self, state: int) -> tuple[int, int]:
        """Return how many attachments are in a state, and their bytes."""
        row = self._db.execute(
            "SELECT count(*), coalesce(sum(max(size, 0)), 0) FROM files WHERE state = ?", (state,)
        ).fetchone()
        return int(row[0]), int(row[1])

    def entries(self, state: int) -> Iterator[Exported]:
        """Yield the attachments in a state, by path. Rows may change meanwhile."""
        return (entry for entry, _ in self._rows(state))

    def stamps(self) -> Iterator[tuple[Exported, str]]:
        """Yield the attachments that were exported, each with its file's stamp."""
        return self._rows(DONE)

    def _rows(self, state: int) -> Iterator[tuple[Exported, str]]:
        last = ""
        while True:
            rows = self._db.execute(
                "SELECT path, entry, stamp, proofs.state FROM files LEFT JOIN proofs USING (path)"
                " WHERE files.state = ? AND path > ? ORDER BY path LIMIT ?",
                (state, last, _PAGE),
            ).fetchall()
            for _, entry, stamp, proof in rows:
                yield msgspec.structs.replace(_decoder.decode(entry), proof=proof or ""), str(stamp)
            if len(rows) < _PAGE:
                return
            last = rows[-1][0]

    def tags(self) -> Iterator[tuple[str, str]]:
        """Yield the tag files, by path."""
        last = ""
        while True:
            rows = self._db.execute(
                "SELECT path, sha256 FROM tags WHERE path > ? ORDER BY path LIMIT ?", (last, _PAGE)
            ).fetchall()
            yield from rows
            if len(rows) < _PAGE:
                return
            last = rows[-1][0]

    # -- the disk --------------------------------------------------------------------------------------

    def commit(self, *, now: bool = False) -> None:
        """Have what was written and noted on the disk, if it was not lately, or `now`."""
        if not now and self._clock() - self._committed < _COMMIT_EVERY:
            return
        sync_filesystem(self._bag)
        self._db.execute("COMMIT")
        self._db.execute("BEGIN")
        self._committed = self._clock()

    def close(self) -> None:
        """Commit and let go."""
        with suppress(sqlite3.Error, OSError):
            self.commit(now=True)
        self._db.close()
        with suppress(OSError):
            os.close(self._lock)

    def remove(self) -> None:
        """Remove the journal: the bag is whole."""
        self.close()
        shutil.rmtree(self.work)


def sync_filesystem(path: Path) -> None:
    """Have everything that was written to a directory's filesystem on the disk.

    Raises:
        Unexpected: the disk failed.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.syncfs(fd) != 0:
            number = ctypes.get_errno()
            raise Unexpected(f"{path} cannot be written to the disk: {os.strerror(number)}")
    finally:
        os.close(fd)
