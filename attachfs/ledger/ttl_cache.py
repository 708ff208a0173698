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
        self._cached: TLRUCache[K, CacheEntry[T]] = TLRUCache(size, _last_use, timer=clock)

    def __len__(self) -> int:
        return len(self._cached)

    def get(self, key: K) -> CacheEntry[T] | None:
        """Return what is known, be it old, for as long as it may be told at all."""
        now = self._clock()
        cached = self._cached.get(key)
        if cached is None or now >= cached.expires:
            other = self._otherwise(key)
            if other is not None and (cached is None or other.expires > cached.expires):
                self._keep(key, other)
                cached = other
        return cached

    def fresh(self, key: K) -> CacheEntry[T] | None:
        """Return what is known and need not be asked again."""
        now = self._clock()
        cached = self._cached.get(key)
        if cached is not None and now < cached.expires:
            return cached
        cached = self.get(key)
        return cached if cached is not None and now < cached.expires else None

    def put(self, key: K, cached: CacheEntry[T]) -> None:
        """Remember something."""
        self._keep(key, cached)

    def items(self) -> list[tuple[K, CacheEntry[T]]]:
        """Return all that is known, with its keys."""
        return list(self._cached.items())

    def clear(self) -> None:
        """Forget everything."""
        self._cached.clear()

    def _keep(self, key: K, cached: CacheEntry[T]) -> None:
        self._cached.pop(key, None)
        self._cached[key] = cached

    def _otherwise(self, _key: K, /) -> CacheEntry[T] | None:
        """Return what is known of a value that is not in the table, or old."""
        return None


def _last_use(_key: object, cached: CacheEntry[Any], _now: float) -> float:
    """Return until when an entry may be served at all."""
    return max(cached.expires, cached.stale_until)
