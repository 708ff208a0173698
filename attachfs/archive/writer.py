"""The last part of an export: manifests, reports, and the declaration that makes a directory a bag.

Everything here is made anew from the journal, a line at a time, so that it may be broken off anywhere and run
again.
"""

import errno
import hashlib
import os
import re
import socket
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from attachfs import __version__
from attachfs.archive import html, layout, report
from attachfs.archive.folder import BagFolder
from attachfs.archive.journal import DONE, REFUSED, Journal, sync_filesystem
from attachfs.archive.thumbnails import Thumbnails
from attachfs.errors import AttachfsError, NoSpace, Unexpected
from attachfs.text import printable
from attachfs.units import format_size

_DECLARATION = "BagIt-Version: 1.0\nTag-File-Character-Encoding: UTF-8\n"

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NAMED_PATHS = 10  # what was exported, as told to people; report.json has all


def cannot_write(bag: Path, error: OSError | sqlite3.Error) -> AttachfsError:
    """Return the exception that tells that a bag cannot be written to."""
    kind = NoSpace if isinstance(error, OSError) and error.errno in _NO_ROOM else Unexpected
    reason = (error.strerror if isinstance(error, OSError) else "") or str(error)
    return kind(f"{bag} cannot be written to ({reason}): once that is settled, run it again to go on")


def write_file(bag: Path, path: str, data: bytes, work: Path) -> str:
    """Write a tag file whole or not at all; return its SHA-256. Thread-safe.

    Raises:
        NoRoom, Unexpected: it cannot be written.
    """
    target = bag / path
    temporary = work / "tmp" / f"{hashlib.sha256(path.encode()).hexdigest()}-{threading.get_ident()}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        temporary.replace(target)
    except OSError as error:
        raise cannot_write(bag, error) from error
    return hashlib.sha256(data).hexdigest()


def finish(bag: Path, journal: Journal, about: dict[str, Any]) -> dict[str, Any]:
    """Write what makes the directory a whole bag, of what the journal says; return the totals.

    Args:
        bag: the directory.
        journal: its journal; what it speaks of is on the disk afterwards.
        about: what the report says of the export as a whole: `url`, `paths`, `mounted`, `by`, `began`.
    """
    journal.commit(now=True)
    files, size = journal.count(DONE)
    totals = {"files": files, "bytes": size, "refused": journal.count(REFUSED)[0]}
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    about = {**about, "ended": now, "software": f"attachfs {__version__}", "totals": totals}
    with _replacing(bag, layout.MANIFEST, journal.work) as file:
        for entry in journal.entries(DONE):
            file.write(f"{entry.sha256}  {layout.encode_name(f'{layout.PAYLOAD}/{entry.path}')}\n")
    with _replacing(bag, layout.INFO, journal.work) as file:
        file.writelines(f"{name}: {_one_line(value)}\n" for name, value in _bag_info(about, totals))
    with _replacing(bag, layout.REPORT, journal.work) as file:
        report.write(file, about, journal.entries(REFUSED), journal.entries(DONE))
    with _replacing(bag, layout.REPORT_HTML, journal.work) as file, BagFolder(bag) as folder:
        pictures = Thumbnails(folder)
        html.write(
            file,
            _facts(about),
            totals,
            journal.entries(REFUSED),
            journal.entries(DONE),
            lambda entry: pictures.of(f"{layout.PAYLOAD}/{entry.path}", entry.mime_type, entry.size),
        )
    (bag / layout.PAYLOAD).mkdir(exist_ok=True)
    with _replacing(bag, layout.TAG_MANIFEST, journal.work) as file:
        for path in (layout.INFO, layout.MANIFEST, layout.REPORT, layout.REPORT_HTML):
            with (bag / path).open("rb") as written:
                file.write(f"{hashlib.file_digest(written, 'sha256').hexdigest()}  {path}\n")
        file.write(f"{hashlib.sha256(_DECLARATION.encode()).hexdigest()}  {layout.DECLARATION}\n")
        for path, sha256 in journal.tags():
            file.write(f"{sha256}  {layout.encode_name(path)}\n")
    sync_filesystem(bag)
    write_file(bag, layout.DECLARATION, _DECLARATION.encode(), journal.work)
    sync_filesystem(bag)
    return totals


def protect(bag: Path, *, read_only: bool) -> None:
    """Give all files and directories of a bag their permissions: for reading only, or to edit and delete."""
    file_mode, directory_mode = (0o444, 0o555) if read_only else (0o644, 0o755)
    for folder, _, names in os.walk(bag, topdown=False):
        for name in names:
            Path(folder, name).chmod(file_mode)
        Path(folder).chmod(directory_mode)


@contextmanager
def _replacing(bag: Path, path: str, work: Path) -> Iterator[TextIO]:
    temporary = work / "tmp" / path
    with temporary.open("w", encoding="utf-8", newline="\n") as file:
        yield file
    temporary.replace(bag / path)


def _bag_info(about: dict[str, Any], totals: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "Bag-Software-Agent", f"attachfs {__version__}"
    yield "Bagging-Date", about["ended"][:10]
    yield "Bag-Size", format_size(totals["bytes"])
    yield "Payload-Oxum", f"{totals['bytes']}.{totals['files']}"
    yield "External-Identifier", about["url"]
    yield "External-Description", f"Attachments of {about['url']}: {_paths(about)}"
    yield "Contact-Name", about["by"]


def _facts(about: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "Ledger", about["url"]
    yield "Exported", _paths(about)
    yield "By", about["by"]
    yield "Begun", f"{html.time_of(about['began'])} UTC"
    yield "Ended", f"{html.time_of(about['ended'])} UTC"
    yield "Transparency log", about.get("transparency_log", "not fetched")
    yield "With", f"{about['software']}, scan policy {about.get('scan_policy', 'unknown')}"


def _paths(about: dict[str, Any]) -> str:
    paths: list[str] = about["paths"]
    more = f" and {len(paths) - _NAMED_PATHS:,} more" if len(paths) > _NAMED_PATHS else ""
    return ", ".join(paths[:_NAMED_PATHS]) + more


def _one_line(text: str) -> str:
    return printable(re.sub(r"\s+", " ", text))


def who() -> str:
    """Return who exports: the user's name and the machine's."""
    import pwd

    name = str(os.getuid())
    with suppress(KeyError):
        name = pwd.getpwuid(os.getuid()).pw_name
    return f"{name} at {socket.gethostname()}"
