"""The downloads under way: which there are, who joins which, and what is known of those that have ended."""

from collections.abc import Callable

from attachfs.background import TaskStarter
from attachfs.blobs.download import Download, PausePolicy, State
from attachfs.blobs.range_reads import RangeReadContext
from attachfs.blobs.source import BlobSource
from attachfs.blobs.staging import Staging
from attachfs.blobs.withholding import ServedHistory
from attachfs.errors import IntegrityError
from attachfs.model import AttachmentRef, Digest


class Downloads:
    """Downloads by what they bring: a digest, or an attachment whose bytes nobody vouches for.

    Args:
        source: where bytes come from.
        staging: where they go.
        nursery: where downloads run.
        policy: what becomes of a download that nobody reads any more.
        on_end: called with each that has ended, before its readers see it.
    """

    def __init__(
        self,
        source: BlobSource,
        staging: Staging,
        nursery: TaskStarter,
        policy: PausePolicy,
        on_end: Callable[[Download], None],
    ) -> None:
        self._source = source
        self._staging = staging
        self._nursery = nursery
        self._policy = policy
        self._on_end = on_end
        self.table: dict[Digest | AttachmentRef, Download] = {}
        self._history = ServedHistory()
        self._mismatched: list[Download] = []  # while somebody reads who was served wrong bytes
        self.ended = 0

    @property
    def running(self) -> int:
        """How many are under way."""
        return len(self.table) - self.paused

    @property
    def paused(self) -> int:
        """How many were stopped, and what came is kept."""
        return sum(one.state is State.PAUSED for one in self.table.values())

    def find(self, key: Digest | AttachmentRef) -> Download | None:
        """Return the download that brings this, if it may be joined.

        One that was paused, and whose file somebody has changed since, goes; nobody is served any of it.
        """
        download = self.table.get(key)
        if download is None or not download.joinable:
            return None
        if download.discard_if_changed():
            if download.expected is not None:  # for the one that is begun instead, before this one has ended
                self._history.keep(download.expected, download.size, download.gate.served)
            return None
        return download

    def start(
        self, ref: AttachmentRef, expected: Digest | None, size: int, *, early_readers: bool
    ) -> Download:
        """Begin to download an attachment; `early_readers`: somebody may read before all is verified."""
        key = ref if expected is None else expected
        download = Download(
            ref,
            expected,
            size,
            self._source,
            self._staging,
            self._policy,
            early_readers=early_readers,
            served=None if expected is None else self._history.take(expected, size),
            context=RangeReadContext(self._source, self._nursery) if early_readers else None,
        )
        self.table[key] = download
        self._nursery.start_soon(download.run, self._ended)
        return download

    def refuse_beside_mismatch(self, ref: AttachmentRef) -> None:
        """Refuse to open a file while somebody has it open who was served wrong bytes ahead of the stream.

        The right ones would come into the kernel's pages, and be read on from there without an error.

        Raises:
            IntegrityError: somebody has.
        """
        self._mismatched = [one for one in self._mismatched if one.has_readers]
        if any(ref in one.refs for one in self._mismatched):
            raise IntegrityError(
                f"{ref.path}: a program that has it open was given wrong bytes; close it there"
            )

    def _ended(self, download: Download) -> None:
        expected = download.expected
        if download.served_bytes_mismatch:
            self._mismatched.append(download)
        elif expected is not None and not download.verified:
            self._history.keep(expected, download.size, download.gate.served)
        key = download.ref if expected is None else expected
        if self.table.get(key) is download:
            del self.table[key]
        self.ended += 1
        self._on_end(download)
