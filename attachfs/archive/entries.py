"""What an export says of each attachment, as in its journal and in `report.json`."""

import errno

import msgspec

from attachfs.errors import (
    AccessDenied,
    AttachfsError,
    BadAnswer,
    IntegrityError,
    NotFound,
    ScanRefused,
    Unreachable,
)
from attachfs.model import Digest


class Exported(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """An attachment whose bytes are in the bag, or (with `errno`) that was refused; or a directory that was.

    `path` is below the mount; `size` in bytes, -1 if not known; `alg` and `hex` are the recorded hash, "" if
    there is none; `sha256` that of the bytes; `name`, `asset` and `event` what people call it and its owners;
    `exported` when they were compared. Times are RFC 3339.
    """

    path: str
    size: int = -1
    alg: str = ""
    hex: str = ""
    sha256: str = ""
    name: str = ""
    asset: str = ""
    event: str = ""
    mime_type: str = ""
    accepted: str = ""
    scan: str = ""
    scan_reason: str = ""
    attested: str = ""
    proof: str = ""
    exported: str = ""
    errno: str = ""
    reason: str = ""

    @property
    def digest(self) -> Digest | None:
        """The recorded hash."""
        return Digest(self.alg, self.hex) if self.alg else None


# What a program that opens a refused file is told, as on the day of the export.
_ERRORS: dict[str, type[AttachfsError]] = {
    "ENOENT": NotFound,
    "EPERM": ScanRefused,
    "EBADMSG": IntegrityError,
    "EACCES": AccessDenied,
    "EIO": BadAnswer,
}


def name_of(number: int | None) -> str:
    """Return an errno's name, as reports write it."""
    return errno.errorcode.get(number or 0, "EIO")


def error_of(refused: Exported) -> AttachfsError:
    """Return the error that a refused attachment failed with when it was exported."""
    kind = _ERRORS.get(refused.errno, Unreachable)
    return kind(f"{refused.path}: not in the archive, as it was refused on export: {refused.reason[:500]}")
