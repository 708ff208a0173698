"""Receives one blob from its source, and stores and verifies it.

A small blob that nobody may read before it is verified is received into memory; then all that is to be done
with the disk is done in one go, together with others (small_blobs.py). Any other is hashed and written by one
thread for as long as it comes.
"""

from collections.abc import Callable
from queue import SimpleQueue

import trio

from attachfs.blobs.read_gate import ReadGate
from attachfs.blobs.small_blobs import SmallBlob
from attachfs.blobs.source import BlobSource, Chunk
from attachfs.blobs.staged_blob import StagedBlob
from attachfs.blobs.staging import Staging
from attachfs.cache.disk_cache import CachedBlob, Writer
from attachfs.errors import NoSpace, Unexpected
from attachfs.model import AttachmentRef, Digest

_BACKLOG = 4 * 2**20  # bytes received and not stored yet, above which the service has to wait
_SMALL = 2**20  # bytes of a blob that is stored in one go, where nobody may read it before


class Receiver:
    """Receives one blob; may be cancelled, and goes on where it was.

    Args:
        ref: the attachment that is fetched.
        expected: its recorded digest; None: nobody vouches for the bytes.
        size: its recorded length in bytes.
        source: where the bytes come from.
        staging: where they go.
        staged: those that have come.
        gate: notified of them.
        early_readers: whether somebody may read before all is verified.
    """

    def __init__(
        self,
        ref: AttachmentRef,
        expected: Digest | None,
        size: int,
        source: BlobSource,
        staging: Staging,
        staged: StagedBlob,
        gate: ReadGate,
        *,
        early_readers: bool,
    ) -> None:
        self._ref = ref
        self._expected = expected
        self._size = size
        self._source = source
        self._staging = staging
        self._staged = staged
        self._gate = gate
        # Nobody is served a byte before the whole is verified: the source may try bytes from elsewhere.
        self._offered = None if early_readers else expected
        self.receive = self._receive_small if self._offered is not None and size <= _SMALL else self._receive
        self._received = 0  # bytes handed to the thread that stores them, and those it is done with
        self._stored = 0

    async def _receive(self, on_stored: Callable[[], None], on_received: Callable[[], None]) -> CachedBlob:
        """Receive, store and verify the blob, and return it.

        Args:
            on_stored: called when more of it can be read.
            on_received: called when all of it has come.

        Raises:
            AttachfsError: it could not be had, or is wrong.
        """
        if not self._staged.begun:
            self._staged.begin(await self._staging.reserve(self._ref, self._expected, self._size))
        pieces = SimpleQueue[Chunk | None]()
        # Where it was stopped, the transfer goes on.
        source = self._source.download(
            self._ref, self._size, start=self._staged.written, digest=self._offered
        )
        async with source as chunks, trio.open_nursery() as nursery:
            self._gate.range_reads.beside(chunks)
            nursery.start_soon(self._store_in_thread, pieces, on_stored)
            try:
                async for chunk in chunks:
                    self._received += len(chunk.data)
                    self._gate.range_reads.note_received(len(chunk.data))
                    pieces.put(chunk)
                    while self._received - self._stored > _BACKLOG:
                        await self._gate.progress()
            finally:
                pieces.put(None)
        on_received()
        return await self._staging.in_thread(lambda: self._staged.verify(self._spill))

    async def _receive_small(self, _: Callable[[], None], on_received: Callable[[], None]) -> CachedBlob:
        """Receive a blob into memory, and have all else done in one thread."""
        async with self._source.download(self._ref, self._size, digest=self._offered) as chunks:
            pieces = []
            async for chunk in chunks:
                pieces.append(chunk)  # noqa: PERF401 - a comprehension would be one more task-like frame
        on_received()
        assert self._expected is not None
        blob = SmallBlob(
            self._ref, self._expected, self._size, self._staged, pieces, self._append, self._spill
        )
        try:
            return await self._staging.store(blob)
        except NoSpace:
            if self._staged.begun:
                raise
            # Something has to be given up or waited for, which takes more than that thread.
            self._staged.begin(await self._staging.reserve(self._ref, self._expected, self._size))
            return await self._staging.store(blob)

    async def _store_in_thread(
        self, pieces: SimpleQueue[Chunk | None], on_stored: Callable[[], None]
    ) -> None:
        """Hash and write what comes, as long as it comes."""
        run_in_loop = trio.lowlevel.current_trio_token().run_sync_soon

        def store() -> None:
            while (piece := pieces.get()) is not None:
                self._append(piece)
                self._stored += len(piece.data)
                run_in_loop(on_stored, idempotent=True)

        # A thread of its own: it may wait for the service as long as the transfer takes.
        await trio.to_thread.run_sync(store, limiter=trio.CapacityLimiter(1))

    def _append(self, piece: Chunk) -> None:
        if piece.discards:
            if self._offered is None:  # somebody may have read what would be void
                raise Unexpected(f"{self._ref.path}: its source took back what it had sent")
            self._staged.restart()
        self._staged.append(piece.data, piece.offset, self._spill)

    def _spill(self) -> Writer:
        return self._staging.spill(self._ref, self._size, "the cache's disk did not take all of it")
