"""Small blobs, all of whose bytes are in memory: several are stored by one thread in one go.

Owns: in which order. Each is on the disk for good before any is pinned, and all are pinned, in one
transaction, before any is served.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from attachfs.blobs.source import Chunk
from attachfs.blobs.staged_blob import StagedBlob
from attachfs.cache.disk_cache import CachedBlob, Writer
from attachfs.errors import IntegrityError
from attachfs.model import AttachmentRef, Digest

PinMany = Callable[[Sequence[tuple[AttachmentRef, Digest, int]]], Sequence[IntegrityError | None]]


@dataclass(frozen=True, slots=True)
class SmallBlob:
    """A blob that has come and is to be stored. `append` hashes and writes a piece of it."""

    ref: AttachmentRef
    expected: Digest
    size: int
    staged: StagedBlob
    pieces: Sequence[Chunk]
    append: Callable[[Chunk], None]
    spill: Callable[[], Writer]


def store_all(
    blobs: Sequence[SmallBlob], reserve: Callable[[int], Writer], pin: PinMany
) -> Sequence[CachedBlob | Exception]:
    """Write, verify, admit and pin blobs. Runs in a thread.

    Args:
        blobs: each fails by itself.
        reserve: gives room for so many bytes.
        pin: pins records that were found right; returns what speaks against each.

    Returns:
        For each the blob, open, or what it failed with.
    """
    outcomes = [_store(blob, reserve) for blob in blobs]
    right = [number for number, outcome in enumerate(outcomes) if isinstance(outcome, CachedBlob)]
    if right:
        records = [(blobs[number].ref, blobs[number].expected, blobs[number].size) for number in right]
        for number, failure in zip(right, pin(records), strict=True):
            if failure is not None:
                stored, outcomes[number] = outcomes[number], failure
                assert isinstance(stored, CachedBlob)
                stored.close()
    return outcomes


def _store(blob: SmallBlob, reserve: Callable[[int], Writer]) -> CachedBlob | Exception:
    try:
        if not blob.staged.begun:
            blob.staged.begin(reserve(blob.size))
        for piece in blob.pieces:
            blob.append(piece)
        return blob.staged.verify(blob.spill)
    except Exception as error:  # noqa: BLE001 - it is its own download's, and not the others'
        return error
