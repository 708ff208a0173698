"""Blobs made of numbers, put into a cache and read from it."""

import hashlib
import random
from pathlib import Path

from attachfs.cache.disk_cache import DiskCache
from attachfs.model import Digest


def digest_of(data: bytes, alg: str = "sha256") -> Digest:
    return Digest(alg, hashlib.new(alg, data).hexdigest())


def blob_of(number: int, size: int = 10_000) -> bytes:
    return random.Random(number).randbytes(size)


def path_of(cache: DiskCache, data: bytes, alg: str = "sha256") -> Path:
    digest = digest_of(data, alg)
    return cache.root / "blobs" / alg / digest.hex[:2] / digest.hex


def put(cache: DiskCache, data: bytes, alg: str = "sha256") -> None:
    writer = cache.reserve(len(data))
    writer.write(data, 0)
    writer.admit(digest_of(data, alg)).close()


def get(cache: DiskCache, data: bytes) -> bytes | None:
    blob = cache.open(digest_of(data), len(data))
    if blob is None:
        return None
    with blob:
        return blob.pread(len(data) + 1, 0)
