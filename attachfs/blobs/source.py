"""Where a blob's bytes come from, as downloads see it: in order from some place on, or one part by itself.

Owns: what a source has to be able to do. Today it is the service; a store that a fleet
shares fits here too.
"""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from attachfs.cache.descriptor import CachedBlob
from attachfs.errors import Unreachable
from attachfs.model import AttachmentRef, Digest


class Chunk(Protocol):
    """A piece of a blob. `offset` may go back to 0: the transfer began anew."""

    @property
    def discards(self) -> bool:
        """Whether all that came before is void. Only where `digest` was given."""
        ...

    @property
    def offset(self) -> int:
        """Where the piece begins."""
        ...

    @property
    def data(self) -> bytes:
        """The piece."""
        ...


class Chunks(Protocol):
    """A blob's pieces in order."""

    @property
    def etag(self) -> str | None:
        """The source's name for the version they are of; None: not known yet, or it has none."""
        ...

    def __aiter__(self) -> AsyncIterator[Chunk]: ...


class Part(Protocol):
    """The bytes of one part, in pieces."""

    @property
    def etag(self) -> str | None:
        """The source's name for the version they are of, None if it has none."""
        ...

    def __aiter__(self) -> AsyncIterator[bytes]: ...


class BlobSource(Protocol):
    """Where bytes come from."""

    def download(
        self, ref: AttachmentRef, size: int, /, *, start: int = 0, digest: Digest | None = None
    ) -> AbstractAsyncContextManager[Chunks]:
        """Return the attachment's bytes in order, from `start` or from 0 on, at most `size` of them.

        `digest` is given only where nobody is served a byte before the whole is verified: the source may
        then try bytes from elsewhere, and begin anew with a chunk that `discards` them.
        """
        ...

    def part(
        self, ref: AttachmentRef, size: int, /, *, start: int, stop: int
    ) -> AbstractAsyncContextManager[Part | None]:
        """Return the bytes in [start, stop) of an attachment of `size` bytes. None: parts cannot be had."""
        ...


class LocalBlobs(Protocol):
    """Where all bytes are on this machine already: nothing is downloaded or cached. Called in threads."""

    def open(self, ref: AttachmentRef, digest: Digest, size: int, /) -> CachedBlob:
        """Return an attachment's bytes, open and found to be those that are recorded.

        Raises:
            AttachfsError: they are not there, or not those.
        """
        ...

    def contains(self, ref: AttachmentRef, size: int, /) -> bool:
        """Whether an attachment of that size is there, without opening it."""
        ...

    def is_verified(self, ref: AttachmentRef, digest: Digest, /) -> bool:
        """Whether an attachment's bytes have been found to be those of the record, and not changed since."""
        ...


class UnreachableSource:
    """A source without bytes: what a mount without a network has."""

    def download(
        self, ref: AttachmentRef, _size: int, /, *, start: int = 0, digest: Digest | None = None
    ) -> AbstractAsyncContextManager[Chunks]:
        """Raise Unreachable: no bytes come from here."""
        del start, digest
        raise Unreachable(f"{ref.path}: offline, and not in the cache")

    def part(
        self, ref: AttachmentRef, _size: int, /, *, start: int, stop: int
    ) -> AbstractAsyncContextManager[Part | None]:
        """Raise Unreachable: no bytes come from here."""
        del start, stop
        raise Unreachable(f"{ref.path}: offline, and not in the cache")
