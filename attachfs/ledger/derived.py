"""What was made of a file's record, and need not be made again while the ledger believes that record."""

from attachfs.ledger.ttl_cache import CacheEntry
from attachfs.ledger.view import Ledger
from attachfs.model import AttachmentRef, Info


class Derived:
    """Something made of what is known of a file now.

    Args:
        ledger: what is known.
        file: the file.
        cached: what it has just said of the file.
    """

    __slots__ = ("_ledger", "_revision", "cached", "file")

    def __init__(self, ledger: Ledger, file: AttachmentRef, cached: CacheEntry[Info]) -> None:
        self._ledger = ledger
        self._revision = ledger.revision
        self.file = file
        self.cached = cached

    def ttl_remaining(self) -> float:
        """Return the seconds for which it may still be told; 0 if it may not."""
        ledger = self._ledger
        ttl_remaining = self.cached.expires - ledger.clock()
        if ttl_remaining <= 0:
            return 0.0
        if self._revision != ledger.revision:
            # Of some file something else is known, or all is forgotten. The very same record must be there.
            if ledger.cached_info(self.file) is not self.cached:
                return 0.0
            self._revision = ledger.revision
        return ttl_remaining
