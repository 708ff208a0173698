"""The quarantine: bytes that did not match the ledger, kept for a person to look at, never served.

Each item is `<UTC time>-<hash>.blob` and a note of what was expected, `<UTC time>-<hash>.json`, both 0400.
The folder has a bound of its own; the oldest items go first. An item larger than that leaves only its note.
"""

import json
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from attachfs.cache import files
from attachfs.errors import Unexpected
from attachfs.model import Digest

_MODE = 0o400
_NOTE_SPACE = 2 * files.BLOCK  # a note's block, and one by which the folder may grow


@dataclass(frozen=True)
class QuarantineNote:
    """Why bytes were quarantined: `path` below the mount, what was expected of it and what came.

    `time` is in seconds since 1970; `reason` a sentence for a person.
    """

    path: str
    url_path: str
    expected: Digest | None
    got: Digest
    expected_size: int
    got_size: int
    time: float
    reason: str


@dataclass(frozen=True)
class QuarantineItem:
    """One item as it lies in the folder; `blob` is None where only the note was kept."""

    note_path: Path
    blob: Path | None
    size: int
    note: dict[str, object]


class Quarantine:
    """A bounded folder of items. Thread-safe; the folder is made when the first item comes."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self._used = 0
        self._lock = threading.Lock()

    @property
    def used(self) -> int:
        """The room that the folder takes, as of the last look at it."""
        return self._used

    def scan(self, *, trim: bool = True) -> None:
        """Measure the folder and, if `trim`, drop what is beyond the bound."""
        with self._lock, suppress(FileNotFoundError), self._folder() as dir_fd:
            if trim:
                self._make_space(dir_fd, 0)
            else:
                self._used = self._measure(dir_fd)[0]

    def add(self, fd: int, note: QuarantineNote, source: tuple[int, str] | None = None) -> Path | None:
        """Put a file aside and return where: moved from `source` (folder, name), or copied from `fd`.

        The caller closes `fd`. None: only the note was kept, and a file at `source` is still there.

        Raises:
            Unexpected, NoSpace: the disk failed; at most the note was kept.
        """
        size = os.fstat(fd).st_size
        moment = datetime.fromtimestamp(note.time, UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        space = files.disk_usage_of(size) + _NOTE_SPACE
        keep = space <= self.max_bytes
        try:
            with self._lock, self._folder(create=True) as dir_fd:
                self._make_space(dir_fd, space if keep else _NOTE_SPACE)
                try:
                    stem = self._write_note(dir_fd, f"{moment}-{note.got.hex}", note, kept=keep)
                    if keep:
                        self._take(dir_fd, f"{stem}.blob", fd, source)
                    os.fsync(dir_fd)
                finally:
                    self._used = self._measure(dir_fd)[0]
        except OSError as error:
            raise files.translate(error, f"cannot put a mismatching file aside in {self.path}") from error
        return self.path / f"{stem}.blob" if keep else None

    def list(self) -> list[QuarantineItem]:
        """Return the items, oldest first."""
        items = []
        with self._lock, suppress(FileNotFoundError), self._folder() as dir_fd:
            for stem, names in sorted(self._measure(dir_fd)[1].items()):
                blob = self.path / f"{stem}.blob" if f"{stem}.blob" in names else None
                size = os.stat(f"{stem}.blob", dir_fd=dir_fd, follow_symlinks=False).st_size if blob else 0
                note = self._read_note(dir_fd, f"{stem}.json")
                items.append(QuarantineItem(self.path / f"{stem}.json", blob, size, note))
        return items

    @contextmanager
    def _folder(self, *, create: bool = False) -> Iterator[int]:
        root = files.open_root(str(self.path.parent))
        try:
            with files.folder(root, self.path.name, create=create) as fd:
                yield fd
        finally:
            os.close(root)

    def _measure(self, dir_fd: int) -> tuple[int, dict[str, dict[str, int]]]:
        """Return the room taken and, by stem, each item's files with theirs. Foreign names are left alone."""
        total = files.disk_usage_of_stat(os.fstat(dir_fd))
        items: dict[str, dict[str, int]] = {}
        with os.scandir(dir_fd) as entries:
            for entry in entries:
                try:
                    st = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                disk_usage = files.disk_usage_of_stat(st)
                total += disk_usage
                stem, dot, kind = entry.name.rpartition(".")
                if dot and kind in {"blob", "json"} and stat.S_ISREG(st.st_mode):
                    items.setdefault(stem, {})[entry.name] = disk_usage
        return total, items

    def _make_space(self, dir_fd: int, space: int) -> None:
        used, items = self._measure(dir_fd)
        for stem in sorted(items):
            if used + space <= self.max_bytes:
                break
            for name, disk_usage in items[stem].items():
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=dir_fd)
                used -= disk_usage
        self._used = used

    @staticmethod
    def _write_note(dir_fd: int, stem: str, note: QuarantineNote, *, kept: bool) -> str:
        text = json.dumps(
            {
                "path": note.path,
                "url_path": note.url_path,
                "reason": note.reason,
                "time": datetime.fromtimestamp(note.time, UTC).isoformat(),
                "expected": str(note.expected) if note.expected else None,
                "expected_size": note.expected_size,
                "got": str(note.got),
                "got_size": note.got_size,
                "bytes_kept": kept,
            },
            indent=2,
        )
        for number in range(1000):
            name = f"{stem}-{number}" if number else stem
            try:
                fd = files.create(f"{name}.json", dir_fd, _MODE)
            except FileExistsError:
                continue
            with _or_unlinked(dir_fd, f"{name}.json", fd):
                files.write_all(fd, text.encode() + b"\n", 0)
                os.fsync(fd)
            return name
        raise Unexpected(f"the quarantine already holds {stem} a thousand times")

    @staticmethod
    def _take(dir_fd: int, name: str, fd: int, source: tuple[int, str] | None) -> None:
        if source is not None:
            os.fchmod(fd, _MODE)
            os.rename(source[1], name, src_dir_fd=source[0], dst_dir_fd=dir_fd)
            os.fsync(fd)
            return
        target = files.create(name, dir_fd, _MODE)
        with _or_unlinked(dir_fd, name, target):
            files.copy(fd, target)
            os.fsync(target)

    @staticmethod
    def _read_note(dir_fd: int, name: str) -> dict[str, object]:
        try:
            fd = files.open_read(name, dir_fd)
        except OSError:
            return {}
        try:
            value = json.loads(os.pread(fd, 1 << 20, 0))
        except (OSError, ValueError):
            return {}
        finally:
            os.close(fd)
        return value if isinstance(value, dict) else {}


@contextmanager
def _or_unlinked(dir_fd: int, name: str, fd: int) -> Iterator[None]:
    """Close a new file when the block ends, and remove it if the block fails."""
    try:
        yield
    except BaseException:
        with suppress(OSError):
            os.unlink(name, dir_fd=dir_fd)
        raise
    finally:
        os.close(fd)
