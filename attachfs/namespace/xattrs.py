"""Extended attributes: how a record becomes attributes, and those of files, made from their `/info`.

Owns: which attributes there are, which of them are listed, and that nothing in a record can make a list fail.
A name is the key as text.py makes it printable. The kernel has three limits: a name has at most 255 bytes, a
value at most 64 KiB, and so has a list of names, above which it fails as a whole (E2BIG). A field above the
first two is no attribute. Of a list that is too long the most deeply nested names are left out, and can be
read all the same. The whole record is `.json`, and in pieces of 64 KiB `.json.0`, `.json.1`, …
"""

import re
from collections import OrderedDict
from collections.abc import Iterable

from attachfs import model
from attachfs.errors import NoAttribute
from attachfs.fields import FIELD_NAMES, VALUE_LIMIT
from attachfs.ledger.derived import Derived
from attachfs.ledger.ttl_cache import CacheEntry
from attachfs.ledger.view import Ledger
from attachfs.model import AttachmentRef, Info
from attachfs.text import printable

# The kernel's limits (include/uapi/linux/limits.h).
_NAME_MAX = 255
_SIZE_MAX = VALUE_LIMIT
_LIST_MAX = 65_536  # a zero byte behind each name included
_READY = 1024  # files whose attributes are kept ready; up to 4 KiB where all of them have been asked for
_PREFIX = "user.attachment."
_JSON = "user.attachment.json"
# A record that is larger than an attribute may be: in pieces of what one may have, the last one shorter.
_PIECE = re.compile(r"user\.(?:attachment|asset|event)\.json\.(0|[1-9][0-9]{0,3})")
# What desktop tools and hash tools look for.
_MIME_TYPE, _ORIGIN, _SHA256 = "user.mime_type", "user.xdg.origin.url", "user.hash.sha256"


def encoded(values: dict[str, str]) -> dict[str, bytes]:
    """Return the attributes made of names and values: names printable, both within the kernel's limits."""
    found: dict[str, bytes] = {}
    for name, value in values.items():
        shown, content = printable(name), value.encode("utf-8", "replace")
        if len(content) <= _SIZE_MAX and len(shown.encode()) <= _NAME_MAX:
            found.setdefault(shown, content)  # two keys may look the same once they are printable
    return found


def listed(names: Iterable[str]) -> list[bytes]:
    """Return the names to list: all of them, or as many as fit, those with the fewest dots first."""
    shown = (printable(name).encode() for name in names)
    found = [name for name in dict.fromkeys(shown) if len(name) <= _NAME_MAX]
    if sum(len(name) + 1 for name in found) <= _LIST_MAX:
        return found
    space, some = _LIST_MAX, []
    for name in sorted(found, key=lambda name: name.count(b".")):
        space -= len(name) + 1
        if space < 0:
            break
        some.append(name)
    return some


def fitting(value: bytes, path: str, name: str) -> bytes:
    """Return the value if it can be told.

    Raises:
        NoAttribute: it is too large.
    """
    if len(value) > _SIZE_MAX:
        raise NoAttribute(f"{path}: {name} is larger than an attribute may be")
    return value


def record_value(raw: bytes, path: str, name: str) -> bytes | None:
    """Return the record, or the piece of it, that an attribute of this name has; None: the name is another's.

    Raises:
        NoAttribute: it is too large to be told in one, or has no such piece.
    """
    if name.endswith(".json") and name.count(".") == 2:
        return fitting(raw, path, name)
    found = _PIECE.fullmatch(name)
    if found is None:
        return None
    start = int(found[1]) * _SIZE_MAX
    if start > len(raw):
        raise NoAttribute(f"{path}: the record has no piece {found[1]}")
    return raw[start : start + _SIZE_MAX]


def of_file_is_possible(name: str) -> bool:
    """Whether a file may have an attribute, judging by its name."""
    return name.startswith(_PREFIX) or name in (_MIME_TYPE, _ORIGIN, _SHA256)


class RecordXattrs:
    """The names of assets' and events' attributes, from what listings have brought.

    `ls -l` of coreutils 9.4 and later lists the attributes of everything it shows, one after another.
    """

    def __init__(self) -> None:
        self._listed: OrderedDict[tuple[str, int], list[bytes]] = OrderedDict()

    def cached_names(self, prefix: str, fields: int) -> list[bytes] | None:
        """Return what is listed of a record with these fields, or None if they are not known.

        Args:
            prefix: how the names begin, without the last dot.
            fields: a number of `FIELD_NAMES`.
        """
        found = self._listed.get((prefix, fields))
        if found is None:
            names = FIELD_NAMES.names(fields)
            if names is None:
                return None
            found = self._listed[prefix, fields] = listed(f"{prefix}.{name}" for name in names)
            if len(self._listed) > _READY:
                self._listed.popitem(last=False)
        return found


class _CachedEntry(Derived):
    """A file's attributes: at first those that need no JSON, and all once another was asked for."""

    __slots__ = ("complete", "listed", "values")

    def __init__(self, ledger: Ledger, file: AttachmentRef, cached: CacheEntry[Info], info: Info) -> None:
        super().__init__(ledger, file, cached)
        self.complete = False
        self.listed: list[bytes] = []
        self.values = {name.encode(): value for name, value in encoded(_facts(info)).items()}


class FileXattrs:
    """The extended attributes of files; those asked for last are kept ready.

    Args:
        ledger: the ledger view.
        base_url: the service's address, for `user.xdg.origin.url`.
    """

    def __init__(self, ledger: Ledger, base_url: str) -> None:
        self._ledger = ledger
        self._base_url = base_url
        self._ready: OrderedDict[AttachmentRef, _CachedEntry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._ready)

    def cached(self, file: AttachmentRef, name: bytes) -> bytes | None:
        """Return an attribute from what is known, or None if that has to be asked for.

        Raises:
            NoAttribute: there is none of that name.
            AttachfsError: the file is known not to be there, or not to be readable.
        """
        ready = self._ready.get(file)
        if ready is not None and ready.ttl_remaining():
            value = ready.values.get(name)
            if value is not None:
                return value
        cached = self._ledger.cached_info(file)
        text = name.decode("utf-8", "replace")
        if cached is None or not of_file_is_possible(text):
            return None
        info = cached.get()
        if text.startswith(_JSON):
            return self.value(file, info, text)
        ready = self._made_ready(file, cached, info)
        value = ready.values.get(name)
        if value is None:
            value = self._completed(ready, info).get(name)
        if value is None:
            raise NoAttribute(f"{file.path} has no attribute {text}")
        return value

    def cached_names(self, file: AttachmentRef) -> list[bytes] | None:
        """Return what attributes are listed, or None if that has to be asked for.

        Raises:
            AttachfsError: the file is known not to be there, or not to be readable.
        """
        cached = self._ledger.cached_info(file)
        if cached is None:
            return None
        info = cached.get()
        ready = self._made_ready(file, cached, info)
        self._completed(ready, info)
        return ready.listed

    def value(self, file: AttachmentRef, info: Info, name: str) -> bytes:
        """Return an attribute of a file with this `/info`.

        Raises:
            NoAttribute: there is none of that name.
        """
        value = record_value(info.raw, file.path, name)
        if value is not None:
            return value
        values = self.all(file, info)
        if name not in values:
            raise NoAttribute(f"{file.path} has no attribute {name}")
        return values[name]

    def all(self, file: AttachmentRef, info: Info) -> dict[str, bytes]:
        """Return all but the whole record, whether they can be listed or not."""
        values = {f"{_PREFIX}{key}": value for key, value in model.flatten(info.raw, file.path).items()}
        realm, remainder = file.path.split("/", 1)
        values[_ORIGIN] = f"{self._base_url}/archivist/v2/attachments/{realm}/{remainder}"
        return encoded(values | _facts(info))

    def _completed(self, ready: _CachedEntry, info: Info) -> dict[bytes, bytes]:
        if not ready.complete:
            values = self.all(ready.file, info)
            ready.values = {name.encode(): value for name, value in values.items()}
            ready.listed = listed(values)
            ready.complete = True
        return ready.values

    def _made_ready(self, file: AttachmentRef, cached: CacheEntry[Info], info: Info) -> _CachedEntry:
        ready = self._ready.get(file)
        if ready is None or ready.cached is not cached:
            ready = self._ready[file] = _CachedEntry(self._ledger, file, cached, info)
            self._ready.move_to_end(file)
            if len(self._ready) > _READY:
                self._ready.popitem(last=False)
        return ready


def _facts(info: Info) -> dict[str, str]:
    """Return what is asked for most, and is in no need of JSON."""
    facts = {_MIME_TYPE: info.mime_type}
    if info.digest is not None and info.digest.alg == "sha256":
        facts[_SHA256] = info.digest.hex
    return facts
