"""When the shared store is asked, and what is counted of its answers."""

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypedDict

from attachfs.model import Digest
from attachfs.shared_cache.breaker import StoreBreaker
from attachfs.shared_cache.objects import ObjectStore, StoreError

_SHUNNED = 600.0  # seconds for which an object that was wrong is not asked for again
_MANY = 10_000  # digests remembered, of each kind


class SharedCacheStats(TypedDict, total=False):
    """A shared cache as `status` and metrics show it."""

    store: str
    off: bool
    hits: int
    misses: int
    bytes: int
    wrong: int
    slower_than_service: int
    errors: dict[str, int]
    uploaded: int
    uploaded_bytes: int
    upload_drops: int
    writes_off: bool


class SharedCache:
    """A store, whether it is used at present, and its figures.

    Args:
        store: its objects.
        clock: seconds, monotonic.
    """

    def __init__(self, store: ObjectStore, clock: Callable[[], float]) -> None:
        self.store = store
        self.reads = StoreBreaker(store.name, clock)
        self.writes = StoreBreaker(f"{store.name} (writing)", clock)
        self._clock = clock
        self._wrong: OrderedDict[Digest, float] = OrderedDict()  # until when each is not asked for
        self._there: OrderedDict[Digest, None] = OrderedDict()  # verified to be right in the store
        self.hits = 0
        self.misses = 0
        self.bytes = 0
        self.wrong = 0
        self.lost_races = 0  # the service was faster
        self.uploaded = 0
        self.uploaded_bytes = 0
        self.upload_drops = 0
        self.errors: dict[str, int] = {}

    def admit(self, digest: Digest) -> bool:
        """Whether the store may be asked for a blob now. Then call one of the methods below."""
        if digest.alg != "sha256" or self._wrong.get(digest, -math.inf) > self._clock():
            return False
        return self.reads.admit()

    def hit(self, digest: Digest, size: int) -> None:
        """Note a blob that came whole and right."""
        self.hits += 1
        self.bytes += size
        self._remember(self._there, digest, None)
        self._wrong.pop(digest, None)
        self.reads.succeeded()

    def missed(self) -> None:
        """Note that the store has no such object."""
        self.misses += 1
        self.reads.succeeded()

    def lost(self) -> None:
        """Note that the service, asked later, was faster: what a store must not be more than a few times."""
        self.lost_races += 1
        self.reads.failed("it is slower than the service")

    def failed(self, error: StoreError) -> None:
        """Note what went wrong."""
        self.errors[error.kind] = self.errors.get(error.kind, 0) + 1
        self.reads.failed(error.reason, cost_time=error.kind == "slow")

    def differs(self, digest: Digest) -> bool:
        """Note an object whose bytes are wrong; return whether to log it: the first of them since start."""
        self.wrong += 1
        self.errors["wrong"] = self.errors.get("wrong", 0) + 1
        self._remember(self._wrong, digest, self._clock() + _SHUNNED)
        self._there.pop(digest, None)
        self.reads.failed("its objects differ from the ledger")
        return self.wrong == 1

    def is_wrong(self, digest: Digest) -> bool:
        """Whether the store is known to hold other bytes under this digest."""
        return digest in self._wrong

    def is_there(self, digest: Digest) -> bool:
        """Whether the store is known to have this blob."""
        return digest in self._there

    def stored(self, digest: Digest, size: int, *, new: bool) -> None:
        """Note an upload; `new` unless the store had it."""
        if new:
            self.uploaded += 1
            self.uploaded_bytes += size
        self._wrong.pop(digest, None)
        self._remember(self._there, digest, None)

    def stats(self) -> SharedCacheStats:
        """Return what `status` and metrics show."""
        return {
            "store": self.store.name,
            "off": self.reads.is_open,
            "hits": self.hits,
            "misses": self.misses,
            "bytes": self.bytes,
            "wrong": self.wrong,
            "slower_than_service": self.lost_races,
            "errors": dict(self.errors),
            "uploaded": self.uploaded,
            "uploaded_bytes": self.uploaded_bytes,
            "upload_drops": self.upload_drops,
            "writes_off": self.writes.is_open,
        }

    @staticmethod
    def _remember(table: "OrderedDict[Digest, Any]", digest: Digest, value: Any) -> None:
        table[digest] = value
        table.move_to_end(digest)
        while len(table) > _MANY:
            table.popitem(last=False)
