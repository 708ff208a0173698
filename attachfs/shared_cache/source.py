"""A source of bytes that tries the shared store before the service.

Where a download's bytes are served before all of them are verified, nothing is taken from the store: only
the service is asked. Elsewhere (up to `--strict-limit`, or for all of `--verify=strict`) the store is asked
first. If its first byte takes longer than a quarter of a second, the service is asked beside it, and the
faster one is followed. What came from the store and turns out to be wrong, short or late is voided, and the
service sends all of it.
"""

import hashlib
import itertools
import logging
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from typing import NamedTuple

import trio

from attachfs.blobs.source import BlobSource, Chunk, Chunks, Part
from attachfs.errors import first_of
from attachfs.model import AttachmentRef, Digest
from attachfs.shared_cache.objects import FIRST_BYTE, Missing, ObjectStream, StoreError
from attachfs.shared_cache.policy import SharedCache

log = logging.getLogger(__name__)

HEDGE = 0.25  # seconds without a first byte after which the service is asked beside the store
# From the first byte on a body may take this many seconds, and what it takes at this many bytes a second. A
# store behind a slower line than that is no help.
_BODY = 1.0
_RATE = 16 * 2**20
_PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds before a miss is asked for again, beside a slow service
_SIDE_BY_SIDE = 16  # requests to the store; beside the service's own limit


class SharedChunk(NamedTuple):
    """A piece of a blob."""

    offset: int
    data: bytes
    discards: bool = False


class SharedCacheSource:
    """The service's bytes, or the same from the shared store.

    Args:
        service: asked for all that the store does not bring.
        shared: the store and what is known of it.
    """

    def __init__(self, service: BlobSource, shared: SharedCache) -> None:
        self.service = service
        self.shared = shared
        self.slots = trio.CapacityLimiter(_SIDE_BY_SIDE)
        # Blobs of which a download keeps bytes that came from the store and were never verified: what is
        # asked for next of one has to come whole from the service.
        self.unverified: set[Digest] = set()

    @asynccontextmanager
    async def download(
        self, ref: AttachmentRef, size: int, /, *, start: int = 0, digest: Digest | None = None
    ) -> AsyncIterator[Chunks]:
        """Return the attachment's bytes in order, as BlobSource says."""
        async with AsyncExitStack() as stack:
            if digest is None:
                yield await stack.enter_async_context(self.service.download(ref, size, start=start))
                return
            transfer = _Transfer(self, ref, size, digest, start)
            stack.push_async_callback(transfer.aclose)
            yield transfer

    def part(
        self, ref: AttachmentRef, size: int, /, *, start: int, stop: int
    ) -> AbstractAsyncContextManager[Part | None]:
        """Return a part's bytes from the service: they are served before the whole is verified."""
        return self.service.part(ref, size, start=start, stop=stop)


class _Transfer:
    """The chunks of one download, from the store for as long as that goes well."""

    def __init__(
        self, source: SharedCacheSource, ref: AttachmentRef, size: int, digest: Digest, start: int
    ) -> None:
        self._source = source
        self._shared = source.shared
        self._ref = ref
        self._size = size
        self._digest = digest
        self._start = start
        self._stack = AsyncExitStack()  # holds the service's download
        self._service: AsyncIterator[Chunk] | None = None
        self._service_chunks: Chunks | None = None
        self._stream: ObjectStream | None = None  # the store's
        self._hash = hashlib.sha256()
        self._sent = 0  # bytes of the store's that were passed on
        self._deadline = 0.0
        self._first: Chunk | None = None  # the winner's first piece, not passed on yet

    @property
    def etag(self) -> str | None:
        """The service's name for the version; None for what the store sends."""
        return None if self._service_chunks is None else self._service_chunks.etag

    def __aiter__(self) -> "_Transfer":
        return self

    async def __anext__(self) -> Chunk:
        if self._service is None and self._stream is None:
            await self._begin()
        if self._service is not None:
            first, self._first = self._first, None
            return first if first is not None else await anext(self._service)
        piece = await self._from_store()
        return piece if piece is not None else await self._from_service_instead()

    async def aclose(self) -> None:
        """End whatever is under way."""
        stream, self._stream = self._stream, None
        if stream is not None:
            self._shared.reads.dropped()
            await stream.aclose()
        await self._stack.aclose()

    # -- who sends it --------------------------------------------------------------------------------

    async def _begin(self) -> None:
        tainted = self._digest in self._source.unverified
        if self._start and not tainted:
            await self._open_service(self._start)
        elif tainted:
            await self._restart_from_service()
        elif not self._size or not self._shared.admit(self._digest):
            await self._open_service(0)
        else:
            await self._race()

    async def _open_service(self, start: int) -> None:
        service = self._source.service
        chunks = await self._stack.enter_async_context(service.download(self._ref, self._size, start=start))
        self._service_chunks, self._service = chunks, aiter(chunks)

    async def _restart_from_service(self) -> None:
        """Have the service send all, and void what came from the store."""
        await self._open_service(0)
        assert self._service is not None
        first = await anext(self._service, None)
        if first is not None:
            self._first = SharedChunk(first.offset, first.data, discards=True)
        self._source.unverified.discard(self._digest)

    async def _race(self) -> None:
        """Ask the store, and after a while the service beside it, and follow whose first byte comes first."""
        failed = trio.Event()  # the store has nothing to give
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._try_store, failed, nursery.cancel_scope)
                nursery.start_soon(self._try_service, failed, nursery.cancel_scope)
        except BaseExceptionGroup as group:
            raise first_of(group) from None
        if self._stream is not None and self._service is not None:  # both, in the same turn of the loop
            stream, self._stream = self._stream, None
            self._shared.reads.dropped()
            await stream.aclose()

    async def _try_store(self, failed: trio.Event, race: trio.CancelScope) -> None:
        stream: ObjectStream | None = None
        reported = False
        try:
            stream, first = await self._open_store(failed)
            if self._service is not None:
                return
            reported = True
            self._stream, stream = stream, None
            self._first = SharedChunk(0, first)
            self._deadline = trio.current_time() + _BODY + self._size / _RATE
            race.cancel()
        except (StoreError, trio.TooSlowError) as error:
            reported = True
            slow = StoreError("slow", f"no first byte within {FIRST_BYTE:g} s")
            self._note(error if isinstance(error, StoreError) else slow)
            failed.set()
        finally:
            if not reported and not failed.is_set():
                if self._service is not None:
                    self._shared.lost()
                else:
                    self._shared.reads.dropped()
            if stream is not None:
                await stream.aclose()

    async def _open_store(self, failed: trio.Event) -> tuple[ObjectStream, bytes]:
        """Return the store's answer and its first piece; a miss sets `failed` and is asked again.

        While the service takes its time, because it limits the rate, say, another machine may have added it.
        """
        for pause in itertools.chain(_PAUSES, itertools.repeat(_PAUSES[-1])):
            with suppress(Missing), trio.fail_after(FIRST_BYTE):
                async with self._source.slots:
                    stream = await self._shared.store.open(self._digest, self._size)
                    try:
                        return stream, await stream.next()
                    except BaseException:
                        await stream.aclose()
                        raise
            if not failed.is_set():
                self._shared.missed()
                failed.set()
            await trio.sleep(pause)
        raise AssertionError

    async def _try_service(self, failed: trio.Event, race: trio.CancelScope) -> None:
        with trio.move_on_after(HEDGE):
            await failed.wait()
        service = self._source.service
        async with AsyncExitStack() as stack:
            try:
                chunks = await stack.enter_async_context(service.download(self._ref, self._size))
                iterator = aiter(chunks)
                first = await anext(iterator, None)
            except Exception:
                # What the service refuses may still come from the store, if that is about to.
                with trio.move_on_after(FIRST_BYTE):
                    await failed.wait()
                raise
            if self._stream is not None:
                return
            self._service_chunks, self._service, self._first = chunks, iterator, first
            self._stack = stack.pop_all()
            race.cancel()

    # -- the store's bytes ---------------------------------------------------------------------------

    async def _from_store(self) -> Chunk | None:
        """Return the next piece; None: what came is to be voided. Ends once all of it is right."""
        assert self._stream is not None
        if self._first is not None:
            piece, self._first = self._first.data, None
        else:
            try:
                with trio.fail_at(self._deadline):
                    piece = await self._stream.next()
            except StoreError as error:
                await self._stop_store()
                self._note(error)
                return None
            except trio.TooSlowError:
                await self._stop_store()
                self._note(StoreError("slow", "its bytes come too slowly"))
                return None
        if piece:
            self._hash.update(piece)
            chunk = SharedChunk(self._sent, piece)
            self._sent += len(piece)
            self._source.unverified.add(self._digest)
            return chunk
        await self._stop_store()
        if self._hash.hexdigest() == self._digest.hex:
            self._source.unverified.discard(self._digest)
            self._shared.hit(self._digest, self._size)
            raise StopAsyncIteration
        self._note(StoreError("wrong", "the bytes do not match the digest"))
        return None

    async def _stop_store(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.aclose()

    async def _from_service_instead(self) -> Chunk:
        await self._restart_from_service()
        first, self._first = self._first, None
        if first is None:
            raise StopAsyncIteration
        return first

    def _note(self, error: StoreError) -> None:
        if error.kind != "wrong":
            self._shared.failed(error)
        elif self._shared.differs(self._digest):
            log.warning(
                "the shared cache %s holds something else under %s (%s); the service is used instead",
                self._shared.store.name,
                self._digest.hex,
                error.reason,
            )
