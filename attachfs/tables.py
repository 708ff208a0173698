"""Tables of what is known: values with their times, and records in a form that takes little room. Sync.

A table holds so many values, and the one that was learnt first goes first: as all are good for the same
time, that is the one which would be asked for again soonest. The assets that pages of listings bring are
kept packed beside it, some 300 bytes each with an attachment: a walk over a ledger comes back for each
of them long after they were listed, and in an order of its own.
"""

from collections.abc import Callable, Iterable
from typing import Generic, NamedTuple, TypeVar

import msgspec

from attachfs.errors import AttachfsError
from attachfs.model import Asset, AssetRef, Attachment, Digest, Event, EventRef

K = TypeVar("K")
T = TypeVar("T")


class Known(NamedTuple, Generic[T]):
    """A value (or the error that stands for it) and the time, on the ledger's clock, it is good until.

    Until `stale_until` it may still be told when the service cannot be asked.
    """

    value: T | AttachfsError
    expires: float
    stale_until: float = 0.0

    def get(self) -> T:
        """Return the value, or raise the remembered error."""
        if isinstance(self.value, AttachfsError):
            raise self.value.with_traceback(None)
        return self.value


class Table(Generic[K, T]):
    """What is known under each key.

    Args:
        size: how many values are kept.
        clock: seconds, monotonic.
    """

    def __init__(self, size: int, clock: Callable[[], float]) -> None:
        self.size = size
        self._clock = clock
        self._known: dict[K, Known[T]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def get(self, key: K) -> Known[T] | None:
        """Return what is known, be it old, for as long as it may be told at all."""
        now = self._clock()
        known = self._known.get(key)
        if known is None or now >= known.expires:
            other = self._otherwise(key)
            if other is not None and (known is None or other.expires > known.expires):
                self._keep(key, other)
                known = other
        if known is None or now < known.expires or now < known.stale_until:
            return known
        self._known.pop(key, None)
        return None

    def fresh(self, key: K) -> Known[T] | None:
        """Return what is known and need not be asked again."""
        now = self._clock()
        known = self._known.get(key)
        if known is not None and now < known.expires:
            return known
        known = self.get(key)
        return known if known is not None and now < known.expires else None

    def put(self, key: K, known: Known[T]) -> None:
        """Remember something."""
        self._keep(key, known)

    def items(self) -> list[tuple[K, Known[T]]]:
        """Return all that is known, with its keys."""
        return list(self._known.items())

    def clear(self) -> None:
        """Forget everything."""
        self._known.clear()

    def _keep(self, key: K, known: Known[T]) -> None:
        self._known.pop(key, None)
        self._known[key] = known
        if len(self._known) > self.size:
            del self._known[next(iter(self._known))]

    def _otherwise(self, _key: K, /) -> Known[T] | None:
        """Return what is known of a value that is not in the table, or old."""
        return None


class EventTable(Table[EventRef, Event]):
    """Events: those that were asked for or have been used lately, and what else knows of them.

    Args:
        size: how many are kept.
        clock: seconds, monotonic.
        others: where others are looked up.
    """

    def __init__(
        self, size: int, clock: Callable[[], float], others: Callable[[EventRef], Known[Event] | None]
    ) -> None:
        super().__init__(size, clock)
        self._others = others

    def _otherwise(self, key: EventRef, /) -> Known[Event] | None:
        return self._others(key)


class AssetTable(Table[AssetRef, Asset]):
    """Assets: those that were asked for one by one or have been used lately, and packed those listed.

    Args:
        size: how many are kept as they are.
        listed: how many are kept packed.
        clock: seconds, monotonic.
    """

    def __init__(self, size: int, listed: int, clock: Callable[[], float]) -> None:
        super().__init__(size, clock)
        self._listed = listed
        self._packed: dict[str, bytes] = {}

    def _otherwise(self, key: AssetRef, /) -> Known[Asset] | None:
        packed = self._packed.get(key.asset) if key.realm == "assets" else None
        return None if packed is None else _unpack_asset(key.asset, packed)

    def put(self, key: AssetRef, known: Known[Asset]) -> None:
        """Remember something."""
        super().put(key, known)
        if key.realm == "assets" and key.asset in self._packed:
            if isinstance(known.value, Asset):
                self._packed[key.asset] = _pack_asset(known.value, known.expires, known.stale_until)
            else:
                del self._packed[key.asset]

    def put_listed(self, assets: Iterable[Asset], expires: float, stale_until: float) -> None:
        """Remember what a page of a listing brought."""
        for asset in assets:
            self._known.pop(AssetRef("assets", asset.id), None)
            self._packed.pop(asset.id, None)
            self._packed[asset.id] = _pack_asset(asset, expires, stale_until)
            if len(self._packed) > self._listed:
                del self._packed[next(iter(self._packed))]

    def clear(self) -> None:
        """Forget everything."""
        super().clear()
        self._packed.clear()


# -- packed records ----------------------------------------------------------------------------------------


class _Attachment(msgspec.Struct, array_like=True, gc=False):
    id: bytes
    key: str
    file_name: str
    display_name: str
    alg: str
    hash: bytes


class _Asset(msgspec.Struct, array_like=True, gc=False):
    expires: float
    stale_until: float
    time_ns: int
    display_name: str
    attachments: list[_Attachment]


class _Event(msgspec.Struct, array_like=True, gc=False):
    id: bytes
    time_ns: int
    display_type: str
    attachments: list[_Attachment]


_encode = msgspec.msgpack.Encoder().encode
_decode_asset = msgspec.msgpack.Decoder(_Asset).decode
_decode_event = msgspec.msgpack.Decoder(_Event).decode
_LENGTH = 4  # bytes before each packed event, which say how long it is


def pack_id(identity: str) -> bytes:
    """Return the 16 bytes of a UUID in canonical form."""
    return bytes.fromhex(identity.replace("-", ""))


def pack_event(event: Event) -> bytes:
    """Return an event in a form to which that of another can be added."""
    packed = _encode(
        _Event(pack_id(event.id), event.time_ns, event.display_type, _pack_attachments(event.attachments))
    )
    return len(packed).to_bytes(_LENGTH, "big") + packed


def unpack_events(packed: bytes) -> list[Event]:
    """Return the events that were packed, in their order."""
    events, start = [], 0
    while start < len(packed):
        end = start + _LENGTH + int.from_bytes(packed[start : start + _LENGTH], "big")
        one = _decode_event(packed[start + _LENGTH : end])
        attachments = tuple(_unpack_attachment(a) for a in one.attachments)
        events.append(Event(_unpack_id(one.id), one.time_ns, one.display_type, attachments))
        start = end
    return events


def _pack_asset(asset: Asset, expires: float, stale_until: float) -> bytes:
    attachments = _pack_attachments(asset.attachments)
    return _encode(_Asset(expires, stale_until, asset.time_ns, asset.display_name, attachments))


def _unpack_asset(identity: str, packed: bytes) -> Known[Asset]:
    one = _decode_asset(packed)
    attachments = tuple(_unpack_attachment(a) for a in one.attachments)
    asset = Asset(identity, one.time_ns, one.display_name, attachments)
    return Known(asset, one.expires, one.stale_until)


def _pack_attachments(attachments: tuple[Attachment, ...]) -> list[_Attachment]:
    return [
        _Attachment(
            pack_id(one.id),
            one.key,
            one.file_name,
            one.display_name,
            one.anchor.alg if one.anchor else "",
            bytes.fromhex(one.anchor.hex) if one.anchor else b"",
        )
        for one in attachments
    ]


def _unpack_attachment(one: _Attachment) -> Attachment:
    anchor = Digest(one.alg, one.hash.hex()) if one.alg else None
    return Attachment(_unpack_id(one.id), one.key, one.file_name, one.display_name, anchor)


def _unpack_id(packed: bytes) -> str:
    digits = packed.hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
