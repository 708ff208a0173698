"""For how long what was learned is good, and which generation of the cache it belongs to."""

from collections.abc import Callable
from typing import Any, TypeVar

import trio

from attachfs.errors import AttachfsError
from attachfs.ledger.ttl_cache import CacheEntry

T = TypeVar("T")

RETRY_AFTER = 5.0  # seconds for which something stale is served before the service is asked for it again


class Lifetimes:
    """The times to live of cached metadata.

    A generation ends when the cache is cleared (SIGHUP). An answer that was asked for in an earlier one goes
    to its callers and is not kept: it may say what the clearing was meant to drop.

    Args:
        metadata_ttl: seconds for which a record is good.
        negative_ttl: seconds for which an absence or a refusal is.
        stale_ttl: seconds for which either may be served while the service does not answer.
        soft_timeout: seconds that a request is waited for where something stale could be served instead.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        metadata_ttl: float,
        negative_ttl: float,
        stale_ttl: float,
        soft_timeout: float,
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        self.clock = clock
        self.generation = 0
        self.set_ttls(metadata_ttl, negative_ttl, stale_ttl, soft_timeout)

    def set_ttls(
        self, metadata_ttl: float, negative_ttl: float, stale_ttl: float, soft_timeout: float
    ) -> None:
        """Change the times of what is learned from now on."""
        self.ttl = metadata_ttl
        self.negative_ttl = negative_ttl
        self.stale_ttl = max(stale_ttl, metadata_ttl)
        self.soft_timeout = soft_timeout

    def entry(self, value: T) -> CacheEntry[T]:
        """Return a cache entry for a value that was learned now."""
        now = self.clock()
        return CacheEntry(value, now + self.ttl, now + self.stale_ttl, now)

    def absence(self, error: AttachfsError) -> CacheEntry[T]:
        """Return a cache entry for a refusal or absence that was learned now."""
        now = self.clock()
        return CacheEntry(error, now + self.negative_ttl, now + self.stale_ttl, now)

    def is_current(self, entry: CacheEntry[Any], since: float) -> bool:
        """Whether the service said so after `since`, or so lately that it need not be asked."""
        return entry.learned >= since or self.clock() < entry.learned + self.ttl

    def stale(self, old: CacheEntry[T]) -> CacheEntry[T]:
        """Return an old entry as one that may be served for a moment, without asking again."""
        return old._replace(expires=min(self.clock() + RETRY_AFTER, old.stale_until))

    def kept(self, value: T, age: float) -> CacheEntry[T] | None:
        """Return an entry for a value from disk that is `age` seconds old; None: it is too old."""
        learned = self.clock() - max(age, 0.0)
        entry: CacheEntry[T] = CacheEntry(value, 0.0, learned + self.stale_ttl, learned)
        return self.stale(entry) if self.clock() < entry.stale_until else None
