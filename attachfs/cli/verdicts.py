"""What `attachfs verify` finds of one file."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from attachfs.model import Digest


class Verdict(StrEnum):
    """What became of one file."""

    OK = "OK"
    DIFFERS = "DIFFERS"
    UNKNOWN = "COULD NOT TELL"


@dataclass(frozen=True)
class Result:
    """One file's verdict. `live`: compared with the ledger, and not just with the copy's own record."""

    path: Path
    verdict: Verdict
    reason: str = ""
    live: bool = False
    recorded: Digest | None = None
    found: Digest | None = None
    size: int | None = None
