"""Names for people: any text as a safe file name, and what to do when two come out the same. No I/O.

A safe name is not empty, `.`, `..` or hidden; holds no `/`, NUL, control, format (bidirectional overrides and
isolates among them) or surrogate character; neither begins nor ends with a space or a dot, nor begins with
a hyphen (`rm *` would take it for an option); is NFC, and at most 255 bytes long, cut at a character.
Everything here is a fixed table or rule, not the machine's: a name is the same on every mount.

How text changes: forbidden characters become `_`; path components that say nothing (`./cat.jpg`,
`../../etc/passwd`) are left out, and a slash that remains becomes U+2215, which looks like one.
"""

import itertools
import re
import unicodedata
from collections.abc import Iterable

from attachfs.model import UUID

LIMIT = 255  # bytes, what Linux allows in a name
# What a name that somebody else may come to share may be long: with " (<identity>)" it is within LIMIT.
SHARED_LIMIT = 216
SLASH = "\u2215"  # DIVISION SLASH; unlike U+FF0F, no normalisation turns it into a real one

# Unicode's Cc, Cf, Cs, Zl and Zp, and what is reserved for them: what a Python knows of them grows with it.
_FORBIDDEN = re.compile(
    "[\0-\x1f\x7f-\x9f\xad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e\u200b-\u200f\u2028-\u202e"
    "\u2060-\u206f\ud800-\udfff\ufeff\ufff0-\ufffb\U000110bd\U000110cd\U00013430-\U0001343f"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_EDGES = ". \u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000"
_EXTENSION = re.compile(r"(?<=.)(?:\.tar)?\.(?=[0-9]*[A-Za-z])[A-Za-z0-9]{1,10}\Z", re.DOTALL)
_SHORT = re.compile(r"(.+) \(([0-9a-f]{8})\)", re.DOTALL)
_WHOLE = re.compile(rf".+ \(({UUID})\)|({UUID})", re.DOTALL)

# What the service's sniffing tells apart, and what is seen in ledgers.
_EXTENSIONS = {
    "application/dicom": ".dcm",
    "application/epub+zip": ".epub",
    "application/gzip": ".gz",
    "application/json": ".json",
    "application/ld+json": ".jsonld",
    "application/msword": ".doc",
    "application/pdf": ".pdf",
    "application/pgp-signature": ".asc",
    "application/pkcs7-mime": ".p7m",
    "application/pkix-cert": ".cer",
    "application/postscript": ".ps",
    "application/rtf": ".rtf",
    "application/vnd.apache.parquet": ".parquet",
    "application/vnd.cyclonedx+json": ".json",
    "application/vnd.cyclonedx+xml": ".xml",
    "application/vnd.ms-excel": ".xls",
    "application/vnd.ms-outlook": ".msg",
    "application/vnd.ms-powerpoint": ".ppt",
    "application/vnd.oasis.opendocument.presentation": ".odp",
    "application/vnd.oasis.opendocument.spreadsheet": ".ods",
    "application/vnd.oasis.opendocument.text": ".odt",
    "application/vnd.openxmlformats-officedocument.presentationml.presentation": ".pptx",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": ".xlsx",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": ".docx",
    "application/vnd.sqlite3": ".sqlite",
    "application/x-7z-compressed": ".7z",
    "application/x-bzip2": ".bz2",
    "application/x-gzip": ".gz",
    "application/x-rar-compressed": ".rar",
    "application/x-sqlite3": ".sqlite",
    "application/x-tar": ".tar",
    "application/x-xz": ".xz",
    "application/x-yaml": ".yaml",
    "application/xml": ".xml",
    "application/yaml": ".yaml",
    "application/zip": ".zip",
    "application/zstd": ".zst",
    "audio/aac": ".aac",
    "audio/aiff": ".aiff",
    "audio/flac": ".flac",
    "audio/midi": ".mid",
    "audio/mp4": ".m4a",
    "audio/mpeg": ".mp3",
    "audio/ogg": ".ogg",
    "audio/wav": ".wav",
    "audio/wave": ".wav",
    "audio/x-wav": ".wav",
    "image/avif": ".avif",
    "image/bmp": ".bmp",
    "image/gif": ".gif",
    "image/heic": ".heic",
    "image/heif": ".heif",
    "image/jp2": ".jp2",
    "image/jpeg": ".jpg",
    "image/jpg": ".jpg",
    "image/png": ".png",
    "image/svg+xml": ".svg",
    "image/tiff": ".tiff",
    "image/vnd.microsoft.icon": ".ico",
    "image/webp": ".webp",
    "image/x-icon": ".ico",
    "message/rfc822": ".eml",
    "text/calendar": ".ics",
    "text/css": ".css",
    "text/csv": ".csv",
    "text/html": ".html",
    "text/javascript": ".js",
    "text/markdown": ".md",
    "text/plain": ".txt",
    "text/rtf": ".rtf",
    "text/tab-separated-values": ".tsv",
    "text/xml": ".xml",
    "text/yaml": ".yaml",
    "video/avi": ".avi",
    "video/mp4": ".mp4",
    "video/mpeg": ".mpg",
    "video/ogg": ".ogv",
    "video/quicktime": ".mov",
    "video/webm": ".webm",
    "video/x-matroska": ".mkv",
    "video/x-msvideo": ".avi",
}


def safe(text: str, limit: int = LIMIT) -> str:
    """Return a safe name for `text`, or "" if nothing of it is left; a safe name is its own."""
    text = unicodedata.normalize("NFC", _FORBIDDEN.sub("_", text))
    text = SLASH.join(part for part in text.split("/") if part not in ("", ".", ".."))
    text = text.strip(_EDGES)
    return _cut(f"_{text}" if text.startswith("-") else text, limit)


def safe_file(text: str) -> str:
    """Return a safe name for a file: as `safe`, but what has to be cut is cut before the extension."""
    whole = safe(text, len(text) * 16 + 1)  # NFC can make text longer; never by that much
    return with_extension(whole.removesuffix(extension(whole)), extension(whole))


def extension(name: str) -> str:
    """Return a file name's extension with its dot, or "": `Report 2.0` has none."""
    found = _EXTENSION.search(name)
    return found[0] if found else ""


def extension_for(mime_type: str) -> str:
    """Return the extension for a MIME type, or "" where there is no telling one."""
    return _EXTENSIONS.get(mime_type.partition(";")[0].strip().lower(), "")


def with_extension(stem: str, ending: str) -> str:
    """Return `stem` with an extension, within the limit."""
    return _cut(stem, LIMIT - len(ending.encode())) + ending


def beginning(name: str, length: int) -> str:
    """Return what is left of a name at least if it is cut to no less than `length` characters."""
    return name[:length].rstrip(_EDGES)


def _cut(text: str, limit: int) -> str:
    encoded = text.encode()
    if len(encoded) <= limit:
        return text
    return encoded[:limit].decode("utf-8", "ignore").rstrip(_EDGES)


# -- names that are shared ------------------------------------------------------------------------------

PLAIN, SHORT, WHOLE = range(3)  # X, X (<8 digits>), X (<identity>)


def at_level(base: str, identity: str, level: int) -> str:
    """Return the name that something called `base` has at a level."""
    if level == PLAIN:
        return base
    if not base:
        return identity
    return f"{base} ({identity[:8] if level == SHORT else identity})"


def first_level(base: str) -> int:
    """Return the level from which `base` may be had: what looks like a suffixed name always gets a suffix."""
    if _WHOLE.fullmatch(base):
        return WHOLE
    return SHORT if _SHORT.fullmatch(base) else PLAIN


def split(name: str) -> tuple[str, str]:
    """Return a name's base and the digits behind it ("" if there are none)."""
    found = _SHORT.fullmatch(name)
    return (found[1], found[2]) if found else (name, "")


def whole_identity(name: str) -> str | None:
    """Return the identity in a name that ends with a whole one, or is one."""
    found = _WHOLE.fullmatch(name)
    return found[1] or found[2] if found else None


def origin(base: str) -> str:
    """Return the one text that is looked for under a name: the most that can be undone is a slash."""
    return base.replace(SLASH, "/")


class NameTable:
    """Names given out one by one, as records come in, so that the outcome depends on no order.

    Of several with one base the one with the smallest identity holds the plain name, and each of the others
    its own with eight digits; of several that share these too, the smallest holds that, and the others have
    their whole identity. Whoever comes either takes a new name, or takes over one from a larger identity,
    which moves on: in any case exactly one name is new, and none that was given out is ever withdrawn.
    """

    __slots__ = ("owners",)

    def __init__(self) -> None:
        self.owners: dict[str, str] = {}

    def add(self, base: str, identity: str, level: int) -> str | None:
        """Add one whose names begin at `level`; return the name that is new, None if it was known already."""
        while True:
            name = at_level(base, identity, level)
            owner = self.owners.get(name)
            if owner is None:
                self.owners[name] = identity
                return name
            if owner == identity:
                return None
            if identity < owner:
                self.owners[name], identity = identity, owner
            level += 1


def distinct(named: Iterable[tuple[str, str]], reserved: Iterable[str] = ()) -> dict[str, str]:
    """Return unique names for (file name, identity) pairs that are all known, sorted: name to identity.

    All that share a name, or have a reserved one, get ` (<first 8 digits>)` before the extension, or the
    whole identity if that is taken.
    """
    groups: dict[str, set[str]] = {}
    for name, identity in named:
        groups.setdefault(name, set()).add(identity)
    taken = dict.fromkeys(reserved, "")
    found = {name: min(ids) for name, ids in groups.items() if len(ids) == 1 and name not in taken}
    taken |= found
    for name, identity in sorted((n, i) for n, ids in groups.items() if n not in found for i in ids):
        unique = next(one for one in _suffixed(name, identity) if taken.get(one, identity) == identity)
        taken[unique] = found[unique] = identity
    return dict(sorted(found.items()))


def _suffixed(name: str, identity: str) -> Iterable[str]:
    ending = extension(name)
    stem = name.removesuffix(ending)
    numbered = (f" ({identity}) ({number})" for number in itertools.count(2))
    for suffix in itertools.chain((f" ({identity[:8]})", f" ({identity})"), numbered):
        yield _cut(stem, LIMIT - len(ending.encode()) - len(suffix)) + suffix + ending
