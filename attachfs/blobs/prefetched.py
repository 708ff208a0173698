"""Verified blobs that were fetched ahead, kept open for the program that is about to open them.

Each is opened once: looking it up again takes a change of thread, as long as all else that its open does.
Owns: for how long they are kept. Nobody may come for them, and an open blob cannot be evicted.
"""

from collections import OrderedDict

import trio

from attachfs.background import TaskStarter
from attachfs.blobs.handle import BlobHandle
from attachfs.model import AttachmentRef, Digest

_KEPT = 64  # handles, each with a descriptor
_SECONDS = 2.0  # for which they are kept


class Prefetched:
    """Blobs that were fetched ahead, by attachment.

    Args:
        nursery: where they are closed after a while; whatever is left when it ends is closed too.
    """

    def __init__(self, nursery: TaskStarter) -> None:
        self._nursery = nursery
        self._kept: OrderedDict[AttachmentRef, tuple[BlobHandle, float]] = OrderedDict()  # until when

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, ref: AttachmentRef, blob: BlobHandle) -> None:
        """Keep a verified blob; it is closed here if nobody takes it."""
        before = self.take(ref)
        if before is not None:
            before.close()
        if not self._kept:
            self._nursery.start_soon(self._close_in_time)
        self._kept[ref] = (blob, trio.current_time() + _SECONDS)
        if len(self._kept) > _KEPT:
            _, (oldest, _) = self._kept.popitem(last=False)
            oldest.close()

    def take(self, ref: AttachmentRef) -> BlobHandle | None:
        """Return the blob of an attachment, which is the caller's from now on."""
        kept = self._kept.pop(ref, None)
        return None if kept is None else kept[0]

    def take_same(self, ref: AttachmentRef, digest: Digest, size: int) -> BlobHandle | None:
        """Return the blob of an attachment, if it is what is recorded now, and nobody has changed it."""
        blob = self.take(ref)
        if blob is None or (blob.digest == digest and blob.size == size and blob.intact):
            return blob
        blob.close()
        return None

    async def _close_in_time(self) -> None:
        try:
            while self._kept:
                _, until = next(iter(self._kept.values()))
                await trio.sleep_until(until)
                while self._kept and next(iter(self._kept.values()))[1] <= trio.current_time():
                    _, (oldest, _) = self._kept.popitem(last=False)
                    oldest.close()
        finally:
            for blob, _ in self._kept.values():
                blob.close()
            self._kept.clear()
