"""Typed records of the ledger and the parsers from JSON. No I/O; nothing here trusts its input.

The shapes are those of the service's published OpenAPI files and of records seen since 2019: attachments
as flat objects, wrapped in lists, or in the older `arc_attachments` list; hashes under several spellings.
A parser either returns something right or says why not: identities that are not what they should be are
ignored and reported to `note`, so that they never become a path or a URL.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import msgspec

from attachfs.errors import BadAnswer
from attachfs.fields import FIELD_NAMES, UNKNOWN, as_text, leaves
from attachfs.text import excerpt

Realm = Literal["assets", "publicassets"]
Verify = Literal["auto", "strict", "stream", "off"]
ScanPolicy = Literal["off", "warn", "block-bad", "require-ok"]
Note = Callable[[str], None]

EVENTS = "events"  # the directory of an asset's events
STATUS_XATTR = "user.attachfs.status"  # of a mount's root: its figures, as JSON
NO_FILTERS: Mapping[str, str] = MappingProxyType({})  # of a listing

# Lower case only: one attachment has one path, and so one inode.
UUID = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_UUID_RE = re.compile(UUID)
# blobs/<uuid>, attachments/<uuid>, blobsV1/<uuid>, or the bare UUID: at most one plain prefix.
_BLOB_RE = re.compile(rf"(?:(?!assets/|publicassets/)[A-Za-z][A-Za-z0-9_-]*/)?({UUID})")
_ASSET_RE = re.compile(rf"(?:public)?assets/({UUID})")
_EVENT_RE = re.compile(rf"(?:public)?assets/({UUID})/events/({UUID})")

_ALGORITHMS = {"sha256": "sha256", "sha384": "sha384", "sha512": "sha512"}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DEEPEST = 200  # levels of nesting; records seen have 5
_MOST_CONTAINERS = 50_000  # objects and lists in one record
# A string, which may hold brackets, or a bracket.
_TOKEN_RE = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.DOTALL)
_MAX_SIZE = 2**63 - 1  # loff_t; the kernel cannot express a larger st_size


class AssetRef(NamedTuple):
    """An asset's place: its realm and lower-case UUID."""

    realm: Realm
    asset: str

    @property
    def path(self) -> str:
        """The path below the mount, without a leading slash."""
        return f"{self.realm}/{self.asset}"

    def attachment(self, identity: str) -> "AttachmentRef":
        """Return the place of an attachment on this asset."""
        return AttachmentRef(self.realm, self.asset, None, identity)


class EventRef(NamedTuple):
    """An event's place: its asset's and its own lower-case UUID."""

    realm: Realm
    asset: str
    event: str

    @property
    def path(self) -> str:
        """The path below the mount, without a leading slash."""
        return f"{self.realm}/{self.asset}/events/{self.event}"

    def attachment(self, identity: str) -> "AttachmentRef":
        """Return the place of an attachment on this event."""
        return AttachmentRef(self.realm, self.asset, self.event, identity)


class AttachmentRef(NamedTuple):
    """An attachment's place: on an asset (`event` is None) or on one of its events."""

    realm: Realm
    asset: str
    event: str | None
    attachment: str

    @property
    def owner(self) -> AssetRef | EventRef:
        """The asset or event that carries the attachment."""
        if self.event is None:
            return AssetRef(self.realm, self.asset)
        return EventRef(self.realm, self.asset, self.event)

    @property
    def path(self) -> str:
        """The path below the mount, without a leading slash."""
        return f"{self.owner.path}/{self.attachment}"


class Digest(NamedTuple):
    """A content hash: `alg` as hashlib spells it (sha256, sha384, sha512), `hex` in lower case."""

    alg: str
    hex: str

    def __str__(self) -> str:
        return f"{self.alg}:{self.hex}"


class Attachment(msgspec.Struct, frozen=True, gc=False):
    """An attachment as an asset's or event's attributes mention it.

    `key` is the attribute's key; `anchor` the hash that the attribute records, if it is readable.
    """

    id: str
    key: str
    file_name: str = ""
    display_name: str = ""
    anchor: Digest | None = None


class Asset(msgspec.Struct, frozen=True, gc=False):
    """The part of an asset's record that the tree needs.

    `time_ns` is `at_time`, 0 if unknown; `fields` which fields the record has, a number of `FIELD_NAMES`.
    """

    id: str
    time_ns: int = 0
    display_name: str = ""
    attachments: tuple[Attachment, ...] = ()
    fields: int = UNKNOWN


class Event(msgspec.Struct, frozen=True, gc=False):
    """The part of an event's record that the tree needs.

    `time_ns` is `timestamp_accepted`, 0 if unknown; `fields` as an asset's.
    """

    id: str
    time_ns: int = 0
    display_type: str = ""
    attachments: tuple[Attachment, ...] = ()
    fields: int = UNKNOWN


class Info(msgspec.Struct, frozen=True, gc=False):
    """An attachment's `/info`.

    `size` in bytes; `digest` is None where the hash is missing, malformed or of an unknown algorithm, and
    `digest_problem` then says which; `raw` is the body as received.
    """

    size: int
    digest: Digest | None
    digest_problem: str
    mime_type: str
    time_ns: int
    scanned_status: str
    scanned_bad_reason: str
    raw: bytes


def is_uuid(name: str) -> bool:
    """Whether `name` is a UUID in canonical lower-case form."""
    return _UUID_RE.fullmatch(name) is not None


def parse_digest(alg: object, value: object) -> Digest:
    """Return the digest for any spelling of its algorithm (`SHA256`, `sha-256`, `SHA_256`).

    Raises:
        ValueError: the algorithm is unknown, or the value is not its hexadecimal form.
    """
    if not isinstance(alg, str) or not isinstance(value, str) or not alg or not value:
        raise ValueError("no hash is recorded")
    name = _ALGORITHMS.get(re.sub("[-_ ]", "", alg).lower())
    if name is None:
        raise ValueError(f"the hash algorithm {excerpt(alg)} is not known")
    text = value.lower()
    if re.fullmatch("[0-9a-f]+", text) is None or len(text) != 2 * hashlib.new(name).digest_size:
        raise ValueError(f"the recorded {name} hash {excerpt(value)} is malformed")
    return Digest(name, text)


def parse_time_ns(value: object) -> int:
    """Return an RFC 3339 time as nanoseconds since 1970, or 0 where it is missing, unreadable or earlier."""
    if not isinstance(value, str):
        return 0
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return 0
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    try:
        since = moment - _EPOCH
    except OverflowError:
        return 0
    return max(0, ((since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds) * 1_000)


def decode(raw: bytes, what: str) -> dict[str, Any]:
    """Decode a JSON object.

    Raises:
        BadAnswer: `raw` is not JSON, is nested beyond reason, or is no object.
    """
    _check_nesting(raw, what)
    try:
        value = msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError, ValueError) as error:
        raise BadAnswer(f"{what}: the answer is not readable JSON ({excerpt(error)})") from error
    if not isinstance(value, dict):
        raise BadAnswer(f"{what}: the answer is not a JSON object")
    return value


def _check_nesting(raw: bytes, what: str) -> None:
    """Refuse what is nested so deeply that a parser, or whoever walks over it, may run out of stack.

    Raises:
        BadAnswer: it is, or it has more objects and lists than a record ever needs.
    """
    containers = raw.count(b"{") + raw.count(b"[")
    if containers <= _DEEPEST:  # nearly always; brackets in strings are counted as well
        return
    depth = containers = 0
    for token in _TOKEN_RE.finditer(raw):
        first = raw[token.start()]
        if first in b"{[":
            depth += 1
            containers += 1
            if depth > _DEEPEST or containers > _MOST_CONTAINERS:
                raise BadAnswer(
                    f"{what}: the answer is nested more than {_DEEPEST} levels deep"
                    if depth > _DEEPEST
                    else f"{what}: the answer has more than {_MOST_CONTAINERS:,} objects and lists"
                )
        elif first in b"}]":
            depth -= 1


def parse_info(raw: bytes, ref: AttachmentRef) -> Info:
    """Return the record in an `/info` body.

    A missing or unusable hash is carried as `digest_problem`: such a file can be seen, not opened.

    Raises:
        BadAnswer: unreadable, `size` is not a possible file size, or the identity is another attachment's.
    """
    what = f"{ref.path}/info"
    body = decode(raw, what)
    size = body.get("size")
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= _MAX_SIZE:
        raise BadAnswer(f"{what}: size {excerpt(ascii(size))} is not a file's size")
    identity = body.get("identity")
    if identity not in (None, ""):
        found = _BLOB_RE.fullmatch(identity) if isinstance(identity, str) else None
        if found is None or found[1] != ref.attachment:
            raise BadAnswer(f"{what}: the answer is about {excerpt(ascii(identity))}, not this attachment")
    recorded = body.get("hash")
    recorded = recorded if isinstance(recorded, dict) else {}
    digest, problem = None, ""
    try:
        digest = parse_digest(recorded.get("alg") or recorded.get("algorithm"), recorded.get("value"))
    except ValueError as error:
        problem = str(error)
    return Info(
        size=size,
        digest=digest,
        digest_problem=problem,
        mime_type=_text(body.get("mime_type")),
        time_ns=parse_time_ns(body.get("timestamp_accepted")),
        scanned_status=_text(body.get("scanned_status")),
        scanned_bad_reason=_text(body.get("scanned_bad_reason")),
        raw=raw,
    )


def parse_asset(record: dict[str, Any], ref: AssetRef | None, note: Note) -> Asset | None:
    """Return an asset, or None where its identity is not one, or not that of `ref` (None: any asset)."""
    identity = record.get("identity")
    found = _ASSET_RE.fullmatch(identity) if isinstance(identity, str) else None
    if found is None or (ref is not None and found[1] != ref.asset):
        note(f"ignored an asset whose identity is {excerpt(ascii(identity))}")
        return None
    attributes = _object(record.get("attributes"))
    return Asset(
        id=found[1],
        time_ns=parse_time_ns(record.get("at_time")),
        display_name=_text(attributes.get("arc_display_name")),
        attachments=tuple(parse_attachments(attributes, note)),
        fields=FIELD_NAMES.number_of(record),
    )


def parse_event(record: dict[str, Any], asset: str | None, note: Note) -> tuple[str, Event] | None:
    """Return the asset's id and the event, or None where the identity is unusable or another asset's."""
    identity = record.get("identity")
    found = _EVENT_RE.fullmatch(identity) if isinstance(identity, str) else None
    if found is None or (asset is not None and found[1] != asset):
        note(f"ignored an event whose identity is {excerpt(ascii(identity))}")
        return None
    event_attributes = _object(record.get("event_attributes"))
    attachments = [
        *parse_attachments(event_attributes, note),
        *parse_attachments(_object(record.get("asset_attributes")), note),
    ]
    display = event_attributes.get("arc_display_type") or record.get("operation")
    return found[1], Event(
        id=found[2],
        time_ns=parse_time_ns(record.get("timestamp_accepted")),
        display_type=_text(display),
        attachments=tuple(attachments),
        fields=FIELD_NAMES.number_of(record),
    )


def parse_attachments(attributes: dict[str, Any], note: Note) -> Iterator[Attachment]:
    """Yield the attachments among `attributes`, in every shape since 2019, in the record's order.

    One attachment may be yielded several times, under several keys. Bare strings and objects without
    `arc_attribute_type` are not attachments, unless they stand in `arc_attachments`.
    """
    for key, value in attributes.items():
        for entry in value if isinstance(value, list) else (value,):
            if not isinstance(entry, dict):
                continue
            if entry.get("arc_attribute_type") != "arc_attachment" and key != "arc_attachments":
                continue
            identity = entry.get("arc_blob_identity") or entry.get("arc_attachment_identity")
            found = _BLOB_RE.fullmatch(identity) if isinstance(identity, str) else None
            if found is None:
                note(f"ignored an attachment whose identity is {excerpt(ascii(identity))}")
                continue
            yield Attachment(
                id=found[1],
                key=key,
                file_name=_text(entry.get("arc_file_name")),
                display_name=_text(entry.get("arc_display_name")),
                anchor=_anchor(entry),
            )


def flatten(raw: bytes, what: str) -> dict[str, str]:
    """Return a record's fields as text, nested keys dotted (`hash.value`), in the record's order.

    Values: strings as they are, numbers and booleans as JSON writes them, null as "", lists as JSON.

    Raises:
        BadAnswer: `raw` is not a JSON object, or is nested beyond reason.
    """
    try:
        return {name: as_text(value) for name, value in leaves(decode(raw, what))}
    except RecursionError as error:
        raise BadAnswer(f"{what}: the answer is nested too deep") from error


def _anchor(entry: dict[str, Any]) -> Digest | None:
    alg = entry.get("arc_blob_hash_alg") or entry.get("arc_hash_alg")
    value = entry.get("arc_blob_hash_value") or entry.get("arc_hash_value")
    try:
        return parse_digest(alg, value)
    except ValueError:
        return None


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
