"""Copies of logs on disk: in a bag, in a folder of one's own, and as two files that somebody was sent.

    <folder>/<tenant>/massifs/<number, 16 digits>.log
    <folder>/<tenant>/seals/<number, 16 digits>.sth
    <folder>/<tenant>/sealed.json                      what was sealed, for `KeptLogs` only

A log only grows. `KeptLogs` remembers for each massif the largest sealed size that a trusted key has signed,
and its root: what is smaller later, or has another root at that size, was rewritten.
"""

import fcntl
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from attachfs.errors import UsageError
from attachfs.proof import keys, massif, seal
from attachfs.proof.errors import ProofError, State
from attachfs.proof.massif import DEFAULT_HEIGHT, Massif
from attachfs.proof.prove import Proof

_NAME_RE = re.compile("([0-9]{16})\\.log")
_MAX_SEALED = 1 << 20  # bytes of sealed.json


def read_file(path: Path, limit: int) -> bytes:
    """Return a regular file's bytes.

    Raises:
        OSError: it cannot be read.
        ValueError: it is larger than `limit`, or no regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # no waiting for a fifo
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("not a regular file")
        raw = file.read(limit + 1)
    if len(raw) > limit:
        raise ValueError(f"larger than {limit} bytes")
    return raw


def load_keys(given: list[str]) -> list[keys.Key]:
    """Return the keys that the user trusts, from the values of --log-key: file names, or `datatrails`.

    Raises:
        UsageError: one of them cannot be used.
    """
    found: list[keys.Key] = []
    for name in given:
        if name == keys.PUBLISHED:
            found += keys.published()
            continue
        try:
            raw = read_file(Path(name), keys.MAX_SIZE)
        except OSError as error:
            raise UsageError(f"--log-key {name}: {error.strerror}") from error
        except ValueError as error:
            raise UsageError(f"--log-key {name}: {error}") from error
        found += keys.parse_keys(raw, f"--log-key {name}")
    return found


class GivenFiles:
    """One massif and its seal, whichever event is asked about."""

    def __init__(self, massif_file: Path, seal_file: Path) -> None:
        self._massif, self._seal = massif_file, seal_file

    def massif_of(self, tenant: str, leaf_number: int) -> tuple[bytes, bytes]:
        """Return the two files."""
        del tenant, leaf_number
        return _read(self._massif, massif.MAX_SIZE), _read(self._seal, seal.MAX_SIZE)


class LogFolder:
    """Massifs and seals in a folder: `proof/` of a bag, for instance.

    Args:
        folder: where; it need not be there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def massif_path(self, tenant: str, number: int) -> Path:
        """Return where a massif is, or would be."""
        return self.folder / tenant / "massifs" / f"{number:016d}.log"

    def seal_path(self, tenant: str, number: int) -> Path:
        """Return where a massif's seal is, or would be."""
        return self.folder / tenant / "seals" / f"{number:016d}.sth"

    def has_any(self, tenant: str) -> bool:
        """Whether there is a massif of a log."""
        return self._any(tenant) is not None

    def height(self, tenant: str) -> int:
        """Return the height of a log's massifs, as one of them says; the service's if there is none."""
        path = self._any(tenant)
        if path is None:
            return DEFAULT_HEIGHT
        try:
            with path.open("rb") as file:
                return massif.height_of(file.read(massif.TRIE_START))
        except OSError:
            return DEFAULT_HEIGHT

    def _any(self, tenant: str) -> Path | None:
        folder = self.folder / tenant / "massifs"
        try:
            with os.scandir(folder) as entries:
                names = (
                    entry.name for entry in entries if entry.is_file() and _NAME_RE.fullmatch(entry.name)
                )
                name = next(names, None)
        except OSError:
            return None
        return None if name is None else folder / name

    def massif_of(self, tenant: str, leaf_number: int) -> tuple[bytes, bytes]:
        """Return the massif that holds a leaf, and its seal.

        Raises:
            ProofError: they are not there.
        """
        number = leaf_number >> (self.height(tenant) - 1)
        return (
            _read(self.massif_path(tenant, number), massif.MAX_SIZE),
            _read(self.seal_path(tenant, number), seal.MAX_SIZE),
        )

    def save(self, tenant: str, number: int, raw_massif: bytes, raw_seal: bytes) -> None:
        """Write a massif and its seal, each whole or not at all.

        Raises:
            OSError: they cannot be written.
        """
        for path, raw in (
            (self.massif_path(tenant, number), raw_massif),
            (self.seal_path(tenant, number), raw_seal),
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            _replace(path, raw)


class _Sealed(NamedTuple):
    """What a trusted key has signed of one massif: the size, and the root in hexadecimal."""

    size: int
    root: str


class KeptLogs(LogFolder):
    """Logs that are fetched again and again. What a trusted key once signed is compared with what comes.

    Args:
        folder: where; made as needed, for its owner only.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._problems: dict[tuple[str, int], ProofError] = {}
        self._rewritten: dict[str, ProofError] = {}

    def massif_of(self, tenant: str, leaf_number: int) -> tuple[bytes, bytes]:
        """Return the massif that holds a leaf, and its seal.

        Raises:
            ProofError: they are not there, or what came for them contradicts what was sealed.
        """
        number = leaf_number >> (self.height(tenant) - 1)
        problem = self._rewritten.get(tenant) or self._problems.get((tenant, number))
        if problem is not None:
            raise problem
        return super().massif_of(tenant, leaf_number)

    def refuse(self, tenant: str, number: int, problem: ProofError) -> None:
        """Let all that needs a massif end with this problem; if it is a rewriting, all that needs the log."""
        if problem.state is State.LOG_REWRITTEN:
            self._rewritten.setdefault(tenant, problem)
        self._problems[tenant, number] = problem

    def kept_seal(self, tenant: str, number: int) -> bytes | None:
        """Return a seal that is kept beside its massif; None if not both are, or one was damaged here."""
        try:
            raw_seal = read_file(self.seal_path(tenant, number), seal.MAX_SIZE)
            kept = Massif(read_file(self.massif_path(tenant, number), massif.MAX_SIZE))
            sealed = seal.parse_seal(raw_seal)
            trusted = self._sealed(tenant).get(number)
            if trusted is None or trusted != (sealed.size, kept.root(sealed.size).hex()):
                return None
            return raw_seal if kept.is_consistent(sealed.size) else None
        except (OSError, ValueError, ProofError):
            return None

    def is_remembered(self, tenant: str, number: int) -> bool:
        """Whether a trusted key has signed a size of this massif, or of a later one.

        Raises:
            ProofError: what is remembered is damaged.
        """
        return any(one >= number for one in self._sealed(tenant))

    def add(self, tenant: str, number: int, raw_massif: bytes, raw_seal: bytes) -> None:
        """Keep what came, unless it contradicts what was sealed.

        Raises:
            ProofError: it does, or it cannot be used.
            OSError: it cannot be written.
        """
        received = Massif(raw_massif)
        if received.number != number:
            raise ProofError(State.UNREADABLE, f"massif {received.number} came instead of massif {number}")
        self._compare(tenant, received, seal.parse_seal(raw_seal).size)
        self.save(tenant, number, raw_massif, raw_seal)

    def remember(self, proof: Proof) -> None:
        """Note a sealed size and root that a trusted key has signed.

        Raises:
            OSError: it cannot be written.
        """
        if not proof.sealed_root or proof.massif is None or proof.sealed_size is None:
            return
        with self._locked(proof.tenant):
            sealed = self._sealed(proof.tenant)
            trusted = sealed.get(proof.massif)
            if trusted is not None and trusted.size >= proof.sealed_size:
                return
            sealed[proof.massif] = _Sealed(proof.sealed_size, proof.sealed_root)
            body = {str(number): list(one) for number, one in sorted(sealed.items())}
            _replace(self.folder / proof.tenant / "sealed.json", json.dumps(body, indent=1).encode())

    def unfinished(self, tenant: str, number: int) -> list[int]:
        """Return the massifs between what is remembered and a later massif: they join the two."""
        trusted = max((one for one in self._sealed(tenant) if one < number), default=number)
        return list(range(trusted, number))

    def _compare(self, tenant: str, received: Massif, sealed_size: int) -> None:
        sealed = self._sealed(tenant)
        trusted = sealed.get(received.number)
        if trusted is not None:
            if min(received.size, sealed_size) < trusted.size:
                raise _rewritten(
                    f"it has {min(received.size, sealed_size)} sealed nodes, and had {trusted.size} before"
                )
            _compare_root(received, trusted)
        before = sealed.get(received.number - 1)
        if before is not None and before.size == received.first:
            _compare_root(received, before)
        try:
            after = Massif(read_file(self.massif_path(tenant, received.number + 1), massif.MAX_SIZE))
        except (OSError, ValueError, ProofError):
            return
        if received.number + 1 in sealed and received.root(received.full_size) != after.root(after.first):
            raise _rewritten("it does not lead to the massif that follows it")

    def _sealed(self, tenant: str) -> dict[int, _Sealed]:
        """Return what is remembered of a log.

        Raises:
            ProofError: it is damaged; forgetting it silently would let a rewritten log pass.
        """
        path = self.folder / tenant / "sealed.json"
        try:
            body = json.loads(read_file(path, _MAX_SEALED))
            return {int(number): _Sealed(int(size), str(root)) for number, (size, root) in body.items()}
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise ProofError(
                State.UNREADABLE, f"{path}, where the sealed sizes are remembered, cannot be read ({error})"
            ) from error

    @contextmanager
    def _locked(self, tenant: str) -> Iterator[None]:
        folder = self.folder / tenant
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def copy_logs(leaves: Mapping[str, AbstractSet[int]], source: LogFolder, target: LogFolder) -> list[str]:
    """Copy the massifs and seals that proofs of these leaves need, into a bag for instance.

    Args:
        leaves: by tenant, the numbers of leaves in its log (see `leaves_of`).
        source: where they are (see `fetch_logs`).
        target: where to.

    Returns:
        why some could not be copied, a sentence each.

    Raises:
        OSError: they cannot be written.
    """
    problems: dict[str, None] = {}
    for tenant, numbers in leaves.items():
        each = 1 << (source.height(tenant) - 1)  # leaves of a massif
        for number in sorted({leaf // each for leaf in numbers}):
            try:
                target.save(tenant, number, *source.massif_of(tenant, number * each))
            except ProofError as error:
                problems[error.reason] = None
    return list(problems)


def _compare_root(received: Massif, trusted: _Sealed) -> None:
    if received.root(trusted.size).hex() != trusted.root:
        raise _rewritten(f"its first {trusted.size} nodes are not those that were sealed before")


def _rewritten(what: str) -> ProofError:
    return ProofError(State.LOG_REWRITTEN, f"the log was shrunk or rewritten: {what}")


def _read(path: Path, limit: int) -> bytes:
    try:
        return read_file(path, limit)
    except OSError as error:
        raise ProofError(State.NO_LOG, f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise ProofError(State.UNREADABLE, f"{path}: {error}") from error


def _replace(path: Path, raw: bytes) -> None:
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        new.write_bytes(raw)
        new.replace(path)
    except OSError:
        new.unlink(missing_ok=True)
        raise
