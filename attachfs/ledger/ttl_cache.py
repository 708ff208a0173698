"""Tables of what is known: values with their times, and records in a form that takes little room. Sync.

A table holds so many values, and the one that was used least lately goes first. The assets that pages of
listings bring are kept packed beside it, some 300 bytes each with an attachment: a walk over a ledger comes
back for each of them long after they were listed, and in an order of its own.
"""

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

from cachetools import TLRUCache

from attachfs.errors import AttachfsError

K = TypeVar("K")
T = TypeVar("T")


class CacheEntry(NamedTuple, Generic[T]):
    """A value (or the error that stands for it) and the time, on the ledger's clock, it is good until.

    Until `stale_until` it may still be served when the service does not answer. `learned`: when it answered.
    """

    value: T | AttachfsError
    expires: float
    stale_until: float = 0.0
    learned: float = 0.0

    def get(self) -> T:
        """Return the value, or raise the remembered error."""
        if isinstance(self.value, AttachfsError):
            raise self.value.with_traceback(None)
        return self.value


class TTLCache(Generic[K, T]):
    """What is known under each key.

    Args:
        size: how many values are kept.
        clock: seconds, monotonic.
    """

    def __init__(self, size: int, clock: Callable[[], float]) -> None:
        self.size = size
        self._clock = clock
        # Drops what may not be served any more, and of the rest what was used least lately.
        self._known: TLRUCache[K, CacheEntry[T]] = TLRUCache(size, _last_use, timer=clock)

    def __len__(self) -> int:
        return len(self._known)

    def get(self, key: K) -> CacheEntry[T] | None:
        """Return what is known, be it old, for as long as it may be told at all."""
        now = self._clock()
        known = self._known.get(key)
        if known is None or now >= known.expires:
            other = self._otherwise(key)
            if other is not None and (known is None or other.expires > known.expires):
                self._keep(key, other)
                known = other
        return known

    def fresh(self, key: K) -> CacheEntry[T] | None:
        """Return what is known and need not be asked again."""
        now = self._clock()
        known = self._known.get(key)
        if known is not None and now < known.expires:
            return known
        known = self.get(key)
        return known if known is not None and now < known.expires else None

    def put(self, key: K, known: CacheEntry[T]) -> None:
        """Remember something."""
        self._keep(key, known)

    def items(self) -> list[tuple[K, CacheEntry[T]]]:
        """Return all that is known, with its keys."""
        return list(self._known.items())

    def clear(self) -> None:
        """Forget everything."""
        self._known.clear()

    def _keep(self, key: K, known: CacheEntry[T]) -> None:
        self._known.pop(key, None)
        self._known[key] = known

    def _otherwise(self, _key: K, /) -> CacheEntry[T] | None:
        """Return what is known of a value that is not in the table, or old."""
        return None


def _last_use(_key: object, known: CacheEntry[Any], _now: float) -> float:
    """Return until when an entry may be served at all."""
    return max(known.expires, known.stale_until)
