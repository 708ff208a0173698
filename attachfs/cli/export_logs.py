"""The transparency log in an export: what proves events goes into the bag, the verdicts into the report.

A log that is out of reach, or another tenant's, takes nothing from the bag: it is noted in the report. What
was sealed is remembered as `prove` remembers it, also what the bag proves already: a log that was shrunk or
rewritten since is named, and takes no massif from the bag.
"""

import functools
import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from attachfs import model
from attachfs.archive import layout
from attachfs.archive.folder import BagFolder
from attachfs.archive.journal import Journal
from attachfs.cli import output
from attachfs.cli.prove import bring_logs, kept_logs
from attachfs.config.settings import Config
from attachfs.errors import AttachfsError
from attachfs.model import AssetRef, EventRef
from attachfs.proof import massif, seal
from attachfs.proof.errors import CONTRADICTED_CODE, PROVEN_CODE, UNKNOWN_CODE, ProofError
from attachfs.proof.keys import Key
from attachfs.proof.log_files import KeptLogs, LogFolder, copy_logs, load_keys
from attachfs.proof.prove import Proof, leaves_of, prove

_BATCH = 500  # events in memory at a time
_RECORD_LIMIT = 8 * 2**20  # bytes
# Of several events that carry one attachment: what contradicts outweighs a proof, and that what is not known.
_WEIGHTS = {UNKNOWN_CODE: 0, PROVEN_CODE: 1, CONTRADICTED_CODE: 2}
_MASSIFS = 4  # in memory at a time, 1.5 MB each


class Brought(NamedTuple):
    """What became of the transparency log, in a sentence; and what could not be had."""

    summary: str
    problems: list[str]


class _Cached:
    """A log's files, the last ones kept in memory."""

    def __init__(self, log: LogFolder) -> None:
        self._height = functools.cache(log.height)
        self._of_number = functools.lru_cache(_MASSIFS)(
            lambda tenant, number: log.massif_of(tenant, number << (self._height(tenant) - 1))
        )

    def massif_of(self, tenant: str, leaf_number: int) -> tuple[bytes, bytes]:
        """Return the massif that holds a leaf, and its seal. ProofError: they are not there."""
        found: tuple[bytes, bytes] = self._of_number(tenant, leaf_number >> (self._height(tenant) - 1))
        return found


class _Memory:
    """Remembers what was sealed, once for each massif and size.

    Args:
        kept: where; None: nowhere.
    """

    def __init__(self, kept: KeptLogs | None = None) -> None:
        self._kept = kept
        self._noted: set[tuple[str, int | None, int | None]] = set()
        self.problems: list[str] = []

    def note(self, proof: Proof) -> None:
        """Remember what a proof says was sealed."""
        place = (proof.tenant, proof.massif, proof.sealed_size)
        if self._kept is None or not proof.sealed_root or place in self._noted:
            return
        self._noted.add(place)
        try:
            self._kept.remember(proof)
        except (OSError, ProofError) as error:
            self.problems = [f"{self._kept.folder}: what was sealed cannot be remembered: {error}"]


def add_logs(journal: Journal, bag: Path, config: Config, status: dict[str, Any]) -> Brought:
    """Bring what proves the bag's events, note the verdicts, and return what became of it.

    Args:
        journal: the export's.
        bag: its directory.
        config: says where logs are, and which keys are trusted.
        status: of the mount that is exported.
    """
    leaves: dict[str, set[int]] = {}
    events = (event for _, event in _events(journal, bag))
    while batch := list(itertools.islice(events, _BATCH)):
        for tenant, numbers in leaves_of(batch).items():
            leaves.setdefault(tenant, set()).update(numbers)
    if not leaves:
        return Brought("no event here says that it is in one", [])
    log = LogFolder(bag / layout.PROOF)
    keys = load_keys(list(config.log_key or ()))
    problems: list[str] = []
    kept = None
    try:
        if isinstance(status.get("archive"), str):
            _copy_from_bag(Path(status["archive"]), list(leaves), log)
        elif not status.get("offline"):
            url = str(status.get("ledger"))
            problems += _remember_earlier(journal, bag, log, kept_logs(config, url), keys)
            kept = bring_logs(config, url, leaves)
            problems += copy_logs(leaves, kept, log)
    except OSError as error:
        problems.append(f"the transparency log cannot be kept: {error.strerror or error}")
    except AttachfsError as error:
        problems.append(error.reason)
    for path in sorted((bag / layout.PROOF).rglob("*")):
        if path.is_file():
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            journal.add_tags([(str(path.relative_to(bag)), digest)])
    memory = _Memory(kept)
    _note_verdicts(journal, bag, _Cached(kept or log), keys, memory)
    problems += memory.problems
    count = sum(map(len, leaves.values()))
    return Brought(f"what proves {output.count(count, 'event')} is in {layout.PROOF}/", problems)


def _remember_earlier(
    journal: Journal, bag: Path, log: LogFolder, kept: KeptLogs, keys: list[Key]
) -> list[str]:
    """Remember what an earlier run, perhaps on another machine, has brought; return what went wrong."""
    memory = _Memory(kept)
    if log.folder.exists():
        cached = _Cached(log)
        for _, event in _events(journal, bag):
            memory.note(prove(event, cached, keys))
    return memory.problems


def _copy_from_bag(archive: Path, tenants: list[str], log: LogFolder) -> None:
    with BagFolder(archive) as folder:
        for tenant in tenants:
            above = f"{layout.PROOF}/{tenant}"
            for name, _ in folder.names(f"{above}/massifs"):
                number = name.removesuffix(".log")
                if number.isascii() and number.isdigit():
                    raw = folder.read(f"{above}/massifs/{name}", massif.MAX_SIZE)
                    sealed = folder.read(f"{above}/seals/{number}.sth", seal.MAX_SIZE)
                    log.save(tenant, int(number), raw, sealed)


def _events(journal: Journal, bag: Path) -> Iterator[tuple[EventRef, dict[str, Any]]]:
    with BagFolder(bag) as folder:
        for path, _ in journal.tags():
            place = layout.parse_place(path.removeprefix(f"{layout.RECORDS}/").removesuffix(".json"))
            if isinstance(place, EventRef) and path == layout.record_path(place):
                try:
                    yield place, model.decode(folder.read(path, _RECORD_LIMIT), path)
                except AttachfsError:
                    continue  # it is no event, and the report says what of it could not be exported


def _note_verdicts(journal: Journal, bag: Path, log: _Cached, keys: list[Key], memory: _Memory) -> None:
    """Note of each attachment whether the event that carries it is in the log."""
    for ref, event in _events(journal, bag):
        proof = prove(event, log, keys)
        memory.note(proof)
        state = proof.state
        parsed = model.parse_event(event, ref.asset, lambda _: None)
        attachments = parsed[1].attachments if parsed else ()
        owners = (ref.path, AssetRef(ref.realm, ref.asset).path)
        paths = (f"{owner}/{one.id}" for one in attachments for owner in owners)
        journal.add_proofs((path, str(state), _WEIGHTS[state.code]) for path in paths)
