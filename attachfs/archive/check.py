"""Whether a bag is whole and right: by its manifests, and by the records in it.

The `bagit` library says what is missing or too much; what it would open has been looked at before, as a bag
may hold links and pipes where it expects files. Bytes are hashed once, and compared with the manifest, with
the attachment's record, and with the hash in its owner's record.
"""

import hashlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import bagit

from attachfs import model
from attachfs.archive import layout, manifest
from attachfs.archive.folder import BagFolder
from attachfs.errors import AttachfsError, BadAnswer, NotFound
from attachfs.model import AssetRef, AttachmentRef, Digest

_CHUNK = 1 << 20
_RECORD_LIMIT = 8 * 2**20  # bytes
_MANIFEST_LIMIT = 2**30  # bytes of one manifest; a million files have a fifth of that
_NAMED = 100  # problems of one kind that are named

Progress = Callable[[int], object]


class Checked(NamedTuple):
    """What was found of a file: `problem` is "" where it is right; `unknown`: it could not be found out."""

    path: str
    problem: str = ""
    unknown: bool = False
    recorded: Digest | None = None
    found: Digest | None = None
    size: int | None = None


class BagCheck:
    """The check of one bag. Thread-safe once `structure` has been called.

    Args:
        folder: the bag's directory.

    Raises:
        UsageError: it is no bag.
    """

    def __init__(self, folder: BagFolder) -> None:
        self._folder = folder
        manifest.check_declaration(folder)
        self.payload: list[tuple[str, str]] = []  # paths and SHA-256 values that the manifests list
        self.tags: list[tuple[str, str]] = []

    def structure(self) -> list[Checked]:
        """Return what is wrong with the bag as a whole, and learn what its manifests list."""
        found = [*self._foreign_entries()]
        if found:
            return found  # what is no file is in the place of one: nobody should open it
        found += self._listed(layout.MANIFEST, self.payload)
        found += self._listed(layout.TAG_MANIFEST, self.tags)
        if not any(path == layout.MANIFEST for path, _ in self.tags):
            found.append(Checked(layout.TAG_MANIFEST, "it does not vouch for the manifest"))
        return found or [*self._incomplete()]

    def size(self, path: str) -> int:
        """Return a file's size, 0 if it cannot be told."""
        try:
            return self._folder.size(path)
        except (AttachfsError, OSError):
            return 0

    def check_tag(self, path: str, sha256: str, progress: Progress) -> Checked:
        """Compare a tag file (a record, a report, a manifest) with the tag manifest."""
        return self._compared(path, sha256, "sha256", progress)[0]

    def check_payload(self, path: str, sha256: str, progress: Progress) -> Checked:
        """Compare an attachment with the manifest, its record, and its owner's record."""
        ref = layout.parse_place(path.removeprefix(f"{layout.PAYLOAD}/"))
        info, anchors, reason = None, set[Digest](), "it is no attachment, and has no record"
        if isinstance(ref, AttachmentRef):
            try:
                info = model.parse_info(self._folder.read(layout.record_path(ref), _RECORD_LIMIT), ref)
                anchors = self._anchors(ref)
                reason = info.digest_problem
            except (AttachfsError, OSError) as error:
                reason = f"its record cannot be read: {_reason(error)}"
        digest = None if info is None else info.digest
        checked, hashes = self._compared(path, sha256, digest.alg if digest else "sha256", progress)
        if checked.problem:
            return checked
        if info is None or digest is None or reason:
            return checked._replace(problem=reason, unknown=True)
        found = Digest(digest.alg, hashes[digest.alg])
        problem = ""
        if checked.size != info.size:
            problem = f"it has {checked.size} bytes, its record says {info.size}"
        elif found != digest:
            problem = f"its bytes hash to {found}, its record says {digest}"
        elif anchors and anchors != {digest}:
            other = ", ".join(sorted(str(anchor) for anchor in anchors))
            problem = f"two records differ: its own says {digest}, its owner's {other}"
        return checked._replace(problem=problem, recorded=digest, found=found)

    # -- the parts -------------------------------------------------------------------------------------

    def _foreign_entries(self) -> Iterator[Checked]:
        """Yield what is neither a regular file nor a directory; the first of them, if they are many."""
        count = 0
        for name, is_directory in self._folder.names(""):
            if name == layout.WORK:
                continue
            try:
                for path in self._folder.walk(name) if is_directory else [name]:
                    problem = self._problem(path)
                    if problem:
                        yield Checked(path, problem)
                        count += 1
                    if count >= _NAMED:
                        return
            except (AttachfsError, OSError) as error:
                yield Checked(name, _reason(error))
                return

    def _problem(self, path: str) -> str:
        try:
            os.close(self._folder.open(path))
        except (AttachfsError, OSError) as error:
            return _reason(error)
        return ""

    def _listed(self, name: str, into: list[tuple[str, str]]) -> Iterator[Checked]:
        try:
            if self._folder.size(name) > _MANIFEST_LIMIT:
                raise BadAnswer(f"{name} is larger than it can be")
            into += manifest.entries(self._folder, name)
        except NotFound:
            yield Checked(name, "it is missing: nothing says what should be in the bag")
        except (AttachfsError, OSError) as error:
            yield Checked(name, _reason(error))

    def _incomplete(self) -> Iterator[Checked]:
        """Yield what is missing or too much, as the Library of Congress' library finds it."""
        log = logging.getLogger("bagit")
        level = log.level
        log.setLevel(logging.CRITICAL + 1)  # it logs what it raises
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                bag = bagit.Bag(str(self._folder.root))
                missing, unlisted = bag.compare_manifests_with_fs()
                yield from (Checked(path, "it is missing") for path in missing[:_NAMED])
                yield from (Checked(path, "no manifest lists it") for path in unlisted[:_NAMED])
                more = max(0, len(missing) - _NAMED) + max(0, len(unlisted) - _NAMED)
                if more:
                    yield Checked(layout.MANIFEST, f"{more:,} more are missing or not listed")
                bag.validate(completeness_only=True)
        except (bagit.BagError, OSError, ValueError) as error:
            reason = str(error)
            if "incomplete" not in reason:  # which it has just said in detail
                yield Checked(layout.INFO if "Oxum" in reason else layout.DECLARATION, reason)
        finally:
            log.setLevel(level)

    def _anchors(self, ref: AttachmentRef) -> set[Digest]:
        """Return the hashes that the owner's record has for an attachment, if that is there."""
        owner = ref.owner
        try:
            raw = self._folder.read(layout.record_path(owner), _RECORD_LIMIT)
        except NotFound:
            return set()
        body = model.decode(raw, owner.path)
        if isinstance(owner, AssetRef):
            asset = model.parse_asset(body, owner, _ignore)
            attachments = asset.attachments if asset else ()
        else:
            event = model.parse_event(body, owner.asset, _ignore)
            attachments = event[1].attachments if event else ()
        return {one.anchor for one in attachments if one.id == ref.attachment and one.anchor is not None}

    def _compared(
        self, path: str, sha256: str, alg: str, progress: Progress
    ) -> tuple[Checked, dict[str, str]]:
        expected = Digest("sha256", sha256)
        try:
            size, hashes = self._hashed(path, {alg, "sha256"}, progress)
        except NotFound:
            return Checked(path, "it is missing", recorded=expected), {}
        except (AttachfsError, OSError) as error:
            return Checked(path, _reason(error), unknown=isinstance(error, OSError), recorded=expected), {}
        found = Digest("sha256", hashes["sha256"])
        problem = "" if found == expected else f"its bytes hash to {found}, the manifest says {expected}"
        return Checked(path, problem, recorded=expected, found=found, size=size), hashes

    def _hashed(self, path: str, algs: set[str], progress: Progress) -> tuple[int, dict[str, str]]:
        hashers = {alg: hashlib.new(alg) for alg in algs}
        size = 0
        fd = self._folder.open(path)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)  # the disk is asked, not the kernel's memory
            while data := os.read(fd, _CHUNK):
                for hasher in hashers.values():
                    hasher.update(data)
                size += len(data)
                progress(len(data))
        finally:
            os.close(fd)
        return size, {alg: hasher.hexdigest() for alg, hasher in hashers.items()}


def _reason(error: AttachfsError | OSError) -> str:
    return error.reason if isinstance(error, AttachfsError) else error.strerror or str(error)


def _ignore(_: str) -> None:
    """Leave alone what is odd about a record but has nothing to do with the bytes."""
