"""The bytes of one download on the disk: hashed and written as they come, verified in the end.

Sync; called in threads, one at a time. Owns: that bytes are admitted only if digest and length are the
recorded ones, and quarantined if not; and that a disk which fails on the way costs the place in the cache,
not the download.
"""

import hashlib
import logging
import os
import time
from collections.abc import Callable

from attachfs.cache.disk_cache import CachedBlob, Writer
from attachfs.cache.quarantine import QuarantineNote
from attachfs.errors import (
    AttachfsError,
    BadAnswer,
    IntegrityError,
    NoSpace,
    Unexpected,
)
from attachfs.model import AttachmentRef, Digest

log = logging.getLogger(__name__)

_BLOCK = 2**20  # bytes copied or hashed again at a time


class StagedBlob:
    """The bytes of one download.

    Args:
        ref: the attachment that is fetched.
        expected: its recorded digest; None: nobody vouches for the bytes.
        size: its recorded length in bytes.
    """

    def __init__(self, ref: AttachmentRef, expected: Digest | None, size: int) -> None:
        self.written = 0  # bytes stored, from 0 on, in order
        self.reader: CachedBlob | None = None  # a view of them that outlives the writer
        self._ref = ref
        self._expected = expected
        self._size = size
        self._hash = hashlib.new(expected.alg if expected else "sha256")
        self._writer: Writer | None = None
        self._paused_state: tuple[int, ...] | None = None  # of the file, when it was to be left alone

    @property
    def begun(self) -> bool:
        """Whether there is a place for the bytes."""
        return self._writer is not None

    @property
    def spilled(self) -> bool:
        """Whether they go to a temporary file outside of the cache."""
        return self._writer is not None and self._writer.spilled

    def begin(self, writer: Writer) -> None:
        """Take the place where the bytes go."""
        self._writer = writer
        self.reader = writer.dup_reader()

    def append(self, data: bytes, offset: int, spill: Callable[[], Writer]) -> None:
        """Hash and write a piece. What a transfer that began anew repeats must be the same.

        Raises:
            BadAnswer: it does not follow, or differs from what came before.
            NoRoom, Unexpected: no disk takes it.
        """
        assert self._writer is not None
        again = self.written - offset
        if again < 0:
            raise BadAnswer(f"{self._ref.path}: {-again} bytes are missing at {self.written}")
        if again:
            repeated = data[:again]
            assert self.reader is not None
            if self.reader.pread(len(repeated), offset) != repeated:
                raise BadAnswer(f"{self._ref.path}: the service sent other bytes the second time")
            data = data[again:]
            offset = self.written
        if not data:
            return
        self._hash.update(data)
        try:
            self._writer.write(data, offset)
        except NoSpace as error:
            self._relocate(error, spill)
            self._writer.write(data, offset)
        self.written = offset + len(data)

    def mark_paused(self) -> None:
        """Remember the file as it is: until more is appended, nobody has a reason to change it."""
        self._paused_state = self._file_state()

    def unchanged(self) -> bool:
        """Whether the file is as it was at `mark_paused`."""
        return self._paused_state == self._file_state()

    def _file_state(self) -> tuple[int, ...] | None:
        try:
            st = os.fstat(-1 if self._writer is None else self._writer.fd)
        except OSError:
            return None
        return st.st_size, st.st_mtime_ns, st.st_ctime_ns

    def restart(self) -> None:
        """Void what came before: its source could not vouch for it, and nobody was served any of it."""
        self.written = 0
        self._hash = hashlib.new(self._hash.name)

    def verify(self, spill: Callable[[], Writer]) -> CachedBlob:
        """Compare what came with what is recorded, and admit or quarantine it.

        Raises:
            BadAnswer: it has another length.
            IntegrityError: it has another digest.
            NoRoom, Unexpected: no disk takes it.
        """
        assert self._writer is not None
        if self.written != self._size:
            reason = f"the record says {self._size} bytes, {self.written} came"
            self._quarantine(reason)
            raise BadAnswer(f"{self._ref.path}: {reason}")
        got, expected = self._hash.hexdigest(), self._expected
        if expected is None:
            return self._writer.admit(Digest("sha256", got))
        if got != expected.hex:
            reason = f"the bytes do not match the record: expected {expected}, got {got}"
            self._quarantine(reason)
            raise IntegrityError(f"{self._ref.path}: {reason}")
        try:
            return self._writer.admit(expected)
        except (NoSpace, Unexpected) as error:
            # Not on the disk for good: what was kept is copied, and kept only if it is right again.
            self._relocate(error, spill)
            if self._digest_again(expected.alg) != expected.hex:
                raise Unexpected(f"{self._ref.path}: the disk lost what was written to it") from error
            return self._writer.admit(expected)

    def abort(self) -> None:
        """Drop the bytes, unless they were admitted or quarantined. Does not take long."""
        if self._writer is not None:
            self._writer.abort_soon()

    def _relocate(self, error: AttachfsError, spill: Callable[[], Writer]) -> None:
        """Go on in a temporary file: the disk would not take what had been reserved."""
        before, old = self._writer, self.reader
        assert before is not None
        assert old is not None
        if before.spilled:
            raise error
        log.info("%s continues in a temporary file: %s", self._ref.path, error.reason)
        after = spill()
        try:
            for offset in range(0, self.written, _BLOCK):
                after.write(old.pread(min(_BLOCK, self.written - offset), offset), offset)
            reader = after.dup_reader()
        except BaseException:
            after.abort()
            raise
        self._writer, self.reader = after, reader
        old.close()
        before.abort()

    def _digest_again(self, algorithm: str) -> str:
        assert self._writer is not None
        digest = hashlib.new(algorithm)
        for offset in range(0, self._size, _BLOCK):
            digest.update(self._writer.pread(min(_BLOCK, self._size - offset), offset))
        return digest.hexdigest()

    def _quarantine(self, reason: str) -> None:
        assert self._writer is not None
        if self._expected is None:
            return
        self._writer.quarantine(
            QuarantineNote(
                path=self._ref.path,
                url_path=self._ref.path,
                expected=self._expected,
                got=Digest(self._hash.name, self._hash.hexdigest()),
                expected_size=self._size,
                got_size=self.written,
                time=time.time(),
                reason=reason,
            )
        )
