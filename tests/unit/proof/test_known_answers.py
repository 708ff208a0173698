"""Real material: an event of the service's public log, a key of a trie entry, and a real seal.

The event is from the vendor's own demonstrations; so is the seal (of 860 nodes, with its root still in it),
which is signed by the first of the two keys that they published.
"""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from attachfs.demo.transparency_log import TransparencyLog
from attachfs.proof import mmr
from attachfs.proof.errors import ProofError, State
from attachfs.proof.keys import published
from attachfs.proof.leaf import PUBLIC_TENANT, commitment, leaf_hash, trie_keys
from attachfs.proof.massif import HASH, TRIE_ENTRY, TRIE_START
from attachfs.proof.prove import prove
from attachfs.proof.seal import parse_seal
from tests.unit.proof.logs import KEYS, SEALED_MS, SIGNER, Files, flipped

DATA = Path(__file__).parent / "data"
PEAK_510 = bytes.fromhex("7fafc7edc434225afffc19b0582efa2a71b06a2d035358356df0a52d2256c235")
LEAF_511 = bytes.fromhex("43d7c2907542dcaaa4e9a74da533aae313f453ef58d92175affdab10717fb2fa")
HEIGHT = 14


class PublicLog(TransparencyLog):
    """The public log as far as it is known: the peaks of its first 512 nodes. The test's key seals it."""

    def __init__(self) -> None:
        super().__init__(PUBLIC_TENANT, HEIGHT)
        for number in range(257):
            self.append(bytes(HASH), "", number.to_bytes(8, "big"))
        self._nodes[510:] = [PEAK_510, LEAF_511]


@pytest.fixture
def event() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((DATA / "public-event-511.json").read_text())
    return loaded


def public_files() -> Files:
    log = PublicLog()
    return Files(log.massif(0), log.seal(0, SIGNER, SEALED_MS))


def test_the_leaf_of_a_real_event(event: dict[str, Any]) -> None:
    place = commitment(event)
    assert (place.tenant, place.mmr_index, place.own) == (PUBLIC_TENANT, 511, True)
    assert leaf_hash(event, place.idtimestamp) == LEAF_511


def test_the_root_that_the_real_event_names(event: dict[str, Any]) -> None:
    assert mmr.peaks(512) == [510, 511]
    named = base64.b64decode(event["merklelog_entry"]["confirm"]["root"])
    assert mmr.bag([PEAK_510, LEAF_511]) == named


def test_a_real_event_is_proven_and_its_twins_are_not(event: dict[str, Any]) -> None:
    files = public_files()
    assert len(files.massif) == TRIE_START + (TRIE_ENTRY << HEIGHT) + 512 * HASH
    proof = prove(event, files, KEYS)
    assert (proof.state, proof.mmr_index, proof.sealed_size) == (State.PROVEN, 511, 512)
    for name in ("operation", "behaviour", "timestamp_committed", "tenant_identity"):
        changed = {**event, name: event[name] + "x"}
        assert prove(changed, files, KEYS).state is State.LEAF_DIFFERS
    for attributes in ("event_attributes", "asset_attributes"):
        for key, value in event[attributes].items():
            for bit in range(8 * len(value)):
                twin = flipped(value.encode(), bit).decode("latin-1")
                changed = {**event, attributes: {**event[attributes], key: twin}}
                assert prove(changed, files, KEYS).state is State.LEAF_DIFFERS


def test_the_key_of_a_trie_entry() -> None:
    event = {
        "identity": "assets/20d6f57c-bce2-4be9-8e70-95ded25399b7/events/bbd934cb-a20f-44c9-aa5d-a3ce333c5208"
    }
    keys = trie_keys(event, "6a009b40-eb55-4159-81f0-69024f89f53c")
    assert bytes.fromhex("d273400cca0d594ddbd4f04bc9275e0e6d995da1accafa00b5be879a265ecda9") in keys


def test_a_real_seal_is_signed_by_the_first_published_key() -> None:
    raw = (DATA / "seal-size-860.cbor").read_bytes()
    seal = parse_seal(raw)
    assert seal.subject is not None
    assert (seal.size, seal.version, seal.subject.tenant) == (860, 0, PUBLIC_TENANT)
    root = seal.payload[2]
    assert isinstance(root, bytes)
    first, second = published()
    assert seal.signed_by([root], first)  # one peak is its own bag
    assert not seal.signed_by([root], second)
    assert not seal.signed_by([flipped(root, 0)], first)
    assert seal.key is not None
    assert seal.key.point == first.point
    for bit in range(8 * len(raw)):
        try:
            twin = parse_seal(flipped(raw, bit))
        except ProofError:
            continue
        assert not twin.signed_by([root], first), bit
