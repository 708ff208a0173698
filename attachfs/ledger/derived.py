"""What was made of a file's record, and need not be made again while the ledger believes that record."""

from attachfs.ledger.ttl_cache import CacheEntry
from attachfs.ledger.view import Ledger
from attachfs.model import AttachmentRef, Info


class Derived:
    """Something made of what is known of a file now.

    Args:
        ledger: what is known.
        file: the file.
        known: what it has just said of the file.
    """

    __slots__ = ("_ledger", "_revision", "file", "known")

    def __init__(self, ledger: Ledger, file: AttachmentRef, known: CacheEntry[Info]) -> None:
        self._ledger = ledger
        self._revision = ledger.revision
        self.file = file
        self.known = known

    def left(self) -> float:
        """Return the seconds for which it may still be told; 0 if it may not."""
        ledger = self._ledger
        left = self.known.expires - ledger.clock()
        if left <= 0:
            return 0.0
        if self._revision != ledger.revision:
            # Of some file something else is known, or all is forgotten. The very same record must be there.
            if ledger.known_info(self.file) is not self.known:
                return 0.0
            self._revision = ledger.revision
        return left
