"""Assets and events packed into bytes, so that many of them take little memory."""

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from attachfs.ledger.ttl_cache import CacheEntry, TTLCache
from attachfs.model import Asset, AssetRef, Attachment, Digest, Event, EventRef

# An asset with more is kept as it is: to pack and unpack it would hold up everybody, and few have so many.
_MANY_ATTACHMENTS = 1_000


class EventTable(TTLCache[EventRef, Event]):
    """Events: those that were asked for or have been used lately, and what else knows of them.

    Args:
        size: how many are kept.
        clock: seconds, monotonic.
        others: where others are looked up.
    """

    def __init__(
        self, size: int, clock: Callable[[], float], others: Callable[[EventRef], CacheEntry[Event] | None]
    ) -> None:
        super().__init__(size, clock)
        self._others = others

    def _otherwise(self, key: EventRef, /) -> CacheEntry[Event] | None:
        return self._others(key)


class AssetTable(TTLCache[AssetRef, Asset]):
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

    def _otherwise(self, key: AssetRef, /) -> CacheEntry[Asset] | None:
        packed = self._packed.get(key.asset) if key.realm == "assets" else None
        return None if packed is None else _unpack_asset(key.asset, packed)

    def put(self, key: AssetRef, cached: CacheEntry[Asset]) -> None:
        """Remember something."""
        super().put(key, cached)
        if key.realm == "assets" and key.asset in self._packed:
            if isinstance(cached.value, Asset) and len(cached.value.attachments) <= _MANY_ATTACHMENTS:
                self._packed[key.asset] = _pack_asset(cached.value, cached)
            else:
                del self._packed[key.asset]

    def put_listed(self, assets: Iterable[Asset], times: CacheEntry[Any]) -> None:
        """Remember what a page of a listing brought, for as long as `times` says."""
        for asset in assets:
            self._cached.pop(AssetRef("assets", asset.id), None)
            self._packed.pop(asset.id, None)
            if len(asset.attachments) > _MANY_ATTACHMENTS:
                self.put(
                    AssetRef("assets", asset.id),
                    CacheEntry(asset, times.expires, times.stale_until, times.learned),
                )
                continue
            self._packed[asset.id] = _pack_asset(asset, times)
            if len(self._packed) > self._listed:
                del self._packed[next(iter(self._packed))]

    def clear(self) -> None:
        """Forget everything."""
        super().clear()
        self._packed.clear()


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
    learned: float
    time_ns: int
    display_name: str
    attachments: list[_Attachment]
    fields: int


class _Event(msgspec.Struct, array_like=True, gc=False):
    id: bytes
    time_ns: int
    display_type: str
    attachments: list[_Attachment]
    fields: int


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
        _Event(
            pack_id(event.id),
            event.time_ns,
            event.display_type,
            _pack_attachments(event.attachments),
            event.fields,
        )
    )
    return len(packed).to_bytes(_LENGTH, "big") + packed


def unpack_events(packed: bytes) -> list[Event]:
    """Return the events that were packed, in their order."""
    events, start = [], 0
    while start < len(packed):
        end = start + _LENGTH + int.from_bytes(packed[start : start + _LENGTH], "big")
        one = _decode_event(packed[start + _LENGTH : end])
        attachments = tuple(_unpack_attachment(a) for a in one.attachments)
        events.append(Event(_unpack_id(one.id), one.time_ns, one.display_type, attachments, one.fields))
        start = end
    return events


def _pack_asset(asset: Asset, times: CacheEntry[Any]) -> bytes:
    attachments = _pack_attachments(asset.attachments)
    ends = times.expires, times.stale_until, times.learned
    return _encode(_Asset(*ends, asset.time_ns, asset.display_name, attachments, asset.fields))


def _unpack_asset(identity: str, packed: bytes) -> CacheEntry[Asset]:
    one = _decode_asset(packed)
    attachments = tuple(_unpack_attachment(a) for a in one.attachments)
    asset = Asset(identity, one.time_ns, one.display_name, attachments, one.fields)
    return CacheEntry(asset, one.expires, one.stale_until, one.learned)


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
