"""The verdict on one event: proven, contradicted, or not to be found out, and why."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

from attachfs.proof import mmr
from attachfs.proof.errors import ProofError, State
from attachfs.proof.keys import Key
from attachfs.proof.leaf import Commitment, commitment, leaf_hash, trie_keys
from attachfs.proof.massif import Massif
from attachfs.proof.seal import Seal, parse_seal


class LogFiles(Protocol):
    """Where massifs and seals come from."""

    def massif_of(self, tenant: str, leaf_number: int) -> tuple[bytes, bytes]:
        """Return the massif that holds a leaf of a tenant's log, and that massif's seal.

        Raises:
            ProofError: they are not there.
        """


class Proof(NamedTuple):
    """The verdict.

    `leaf` is the hash in hexadecimal, `mmr_index` its place; `sealed_size` the number of nodes under the
    signature, `sealed_root` the bag of their peaks, `sealed_ms` the signature's time as the signer says, in
    milliseconds since 1970; `key` and `key_fingerprint` who signed.
    """

    state: State
    reason: str = ""
    tenant: str = ""
    leaf: str = ""
    mmr_index: int | None = None
    massif: int | None = None
    sealed_size: int | None = None
    sealed_root: str = ""
    sealed_ms: int | None = None
    key: str = ""
    key_fingerprint: str = ""


def prove(event: dict[str, Any], log: LogFiles, keys: Sequence[Key], tenant: str | None = None) -> Proof:
    """Return the verdict on an event.

    Args:
        event: its record, as received.
        log: massifs and seals.
        keys: those that are trusted.
        tenant: the UUID of the tenant to whom the record was served, where that is known.
    """
    proof = Proof(State.PROVEN)
    try:
        place = commitment(event, tenant)
        proof = proof._replace(tenant=place.tenant, mmr_index=place.mmr_index)
        leaf = leaf_hash(event, place.idtimestamp)
        proof = proof._replace(leaf=leaf.hex())
        number = leaf_number(place)
        raw_massif, raw_seal = log.massif_of(place.tenant, number)
        massif, seal = Massif(raw_massif), parse_seal(raw_seal)
        proof = proof._replace(massif=massif.number, sealed_size=seal.size, sealed_ms=seal.time_ms)
        _check_leaf(event, place, leaf, massif, number)
        key = check_seal(massif, seal, place, keys)
        root = mmr.bag(massif.peaks(seal.size)).hex()
        proof = proof._replace(key=key.name, key_fingerprint=key.fingerprint, sealed_root=root)
        _check_path(place, leaf, massif, seal)
    except ProofError as error:
        return proof._replace(state=error.state, reason=error.reason)
    return proof


def leaves_of(events: Iterable[dict[str, Any]], tenant: str | None = None) -> dict[str, set[int]]:
    """Return the logs in which events stand, by tenant, and the numbers of their leaves there.

    Events without a place in a log are left out. `tenant` is as in `prove`.
    """
    found: dict[str, set[int]] = {}
    for event in events:
        with suppress(ProofError):
            place = commitment(event, tenant)
            found.setdefault(place.tenant, set()).add(leaf_number(place))
    return found


def leaf_number(place: Commitment) -> int:
    """Return which leaf of its log an event is, counted from 0.

    Raises:
        ProofError: no leaf can stand in this place.
    """
    try:
        return mmr.leaf_number(place.mmr_index)
    except ValueError as error:
        raise ProofError(
            State.LEAF_DIFFERS, f"the record's place in the log holds no event: {error}"
        ) from error


def _check_leaf(event: dict[str, Any], place: Commitment, leaf: bytes, massif: Massif, number: int) -> None:
    if not massif.covers(number):
        raise ProofError(State.UNREADABLE, f"massif {massif.number} does not hold node {place.mmr_index}")
    if place.mmr_index >= massif.size:
        raise ProofError(
            State.NOT_SEALED, f"the log has {massif.size} nodes, and the event is node {place.mmr_index}"
        )
    if massif.node(place.mmr_index) == leaf:
        return
    if not place.own:
        raise ProofError(
            State.NOT_REPRODUCIBLE, "the event is another tenant's, whose view of it the log may hold"
        )
    entry = massif.entry(number)
    if entry.idtimestamp != place.idtimestamp and entry.key not in trie_keys(event, place.tenant):
        if place.log_is_named:
            raise ProofError(State.LEAF_DIFFERS, "the log has another event in this place")
        raise ProofError(
            State.NOT_REPRODUCIBLE,
            "the log has another event in this place; if this one was shared with you, say with --tenant "
            "whose log it is",
        )
    raise ProofError(State.LEAF_DIFFERS, "the record was changed: the log has another hash for this event")


def check_seal(massif: Massif, seal: Seal, place: Commitment, keys: Sequence[Key]) -> Key:
    """Return the trusted key that signed a massif's peaks.

    Raises:
        ProofError: none did, or the seal is for another massif, or does not reach the event.
    """
    if seal.subject is not None and seal.subject != (place.tenant, massif.number):
        raise ProofError(
            State.SEAL_BAD, f"the seal is for massif {seal.subject.massif} of tenant {seal.subject.tenant}"
        )
    if seal.version != massif.version:
        raise ProofError(State.UNREADABLE, "massif and seal are of different versions")
    if seal.size <= massif.first:
        raise ProofError(State.UNREADABLE, "the seal is for an earlier massif")
    if seal.size > massif.size:
        raise ProofError(
            State.UNREADABLE,
            f"the massif is cut off: it has {massif.size} of the {seal.size} nodes that are sealed",
        )
    peaks = massif.peaks(seal.size)
    signer = next((key for key in keys if seal.signed_by(peaks, key)), None)
    if signer is None:
        raise _not_signed(seal, peaks, keys)
    if place.mmr_index >= seal.size:
        raise ProofError(
            State.NOT_SEALED, f"the seal has {seal.size} nodes, and the event is node {place.mmr_index}"
        )
    return signer


def _not_signed(seal: Seal, peaks: list[bytes], keys: Sequence[Key]) -> ProofError:
    """Return what it means that none of the keys signed."""
    named = seal.key
    if named is None and not keys:
        return ProofError(State.NO_KEY, "the seal names no key, and none was given (--log-key)")
    if named is not None and all(key.point != named.point for key in keys) and seal.signed_by(peaks, named):
        return ProofError(
            State.NO_KEY,
            f"the seal is signed by {named.name or 'a key'} ({named.fingerprint}), "
            "which is not among the keys given (--log-key)",
        )
    return ProofError(State.SEAL_BAD, "the signature is not over the log's peaks")


def _check_path(place: Commitment, leaf: bytes, massif: Massif, seal: Seal) -> None:
    peak, root = mmr.root_of(leaf, place.mmr_index, seal.size, massif.node)
    if massif.node(peak) != root:
        raise ProofError(State.PATH_DIFFERS, "the log's own nodes do not lead from the event to its peak")
