"""What programs do with a file or a directory of a faulty ledger, and which of it asks for what first."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.services.faulty_ledger import Case

KINDS = ("asset", "events", "event", "info", "blob")


def read(point: Path, case: Case) -> bytes:
    return pieces(point / case.path)


def read_event_file(point: Path, case: Case) -> bytes:
    return pieces(point / case.event_path / case.event_blob)


def pieces(path: Path) -> bytes:
    """Read as cp does: a size is not believed."""
    with path.open("rb", buffering=0) as file:
        return b"".join(iter(lambda: file.read(64 * 1024), b""))


def stat(point: Path, case: Case) -> int:
    return (point / case.path).stat().st_size


def ls(point: Path, case: Case) -> list[str]:
    return sorted(path.name for path in (point / "assets" / case.asset).iterdir())


def ls_events(point: Path, case: Case) -> list[str]:
    return sorted(path.name for path in (point / case.events).iterdir())


def ls_event(point: Path, case: Case) -> list[str]:
    return sorted(path.name for path in (point / case.event_path).iterdir())


def attributes(point: Path, case: Case) -> dict[str, bytes]:
    path = point / case.path
    return {name: os.getxattr(path, name) for name in os.listxattr(path)}


OPERATIONS: dict[str, Callable[[Path, Case], Any]] = {
    "read": read,
    "read event file": read_event_file,
    "stat": stat,
    "ls": ls,
    "ls events": ls_events,
    "ls event": ls_event,
    "attributes": attributes,
}
USUAL = {"asset": "ls", "events": "ls events", "event": "ls event", "info": "stat", "blob": "read"}


def outcome(operation: Callable[[Path, Case], Any], point: Path, case: Case) -> tuple[int, Any, float]:
    began = time.monotonic()
    try:
        found = operation(point, case)
    except OSError as error:
        return error.errno or -1, None, time.monotonic() - began
    return 0, found, time.monotonic() - began
