"""The verdict: proven only if everything fits; each way in which something does not fit is told apart."""

import copy
import json
import time
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attachfs.proof import cbor, mmr
from attachfs.proof.errors import ProofError, State
from attachfs.proof.leaf import commitment, leaf_hash
from attachfs.proof.massif import TRIE_START, Massif
from attachfs.proof.prove import prove
from attachfs.proof.seal import parse_seal
from tests.unit.proof.logs import (
    KEYS,
    OTHER,
    SIGNER,
    STRANGER,
    TENANT,
    Files,
    Nothing,
    commit,
    flipped,
    make_event,
    make_world,
    stamp,
)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40), st.integers(1, 6), st.sampled_from([0, 1]))
def test_every_event_of_any_log_is_proven_from_its_own_massif_alone(
    events: int, height: int, version: int
) -> None:
    world = make_world(events, height, version)
    number = 0
    for massif in range(world.log.massifs):
        files = world.files(massif)
        for _ in range(1 << (height - 1)):
            if number == events:
                break
            proof = prove(world.events[number], files, KEYS)
            assert proof.state is State.PROVEN, proof
            assert proof.massif == massif
            assert proof.key_fingerprint == KEYS[0].fingerprint
            number += 1
    assert number == events


def relevant_bits(massif: Massif, index: int, size: int) -> set[int]:
    """Bits of the massif's file on which a proof stands: the leaf, its path, and all peaks."""
    nodes = {index, *mmr.peaks(size), *(sibling for sibling, _, _ in mmr.path(index, size))}
    bits: set[int] = set()
    for node in nodes:
        value = massif.node(node)
        # every place of the file that holds this node (in these logs nodes are all different)
        start = massif._data.index(value, TRIE_START)
        bits.update(range(8 * start, 8 * (start + 32)))
    return bits | set(range(8 * 21, 8 * 23)) | set(range(8 * 27, 8 * 32))


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize(("events", "height", "number"), [(7, 3, 5), (13, 3, 12), (4, 3, 0)])
def test_with_any_bit_of_leaf_path_or_peaks_flipped_nothing_is_proven(
    events: int, height: int, number: int, version: int
) -> None:
    """Not with a changed path.

    Promise 36: "An event is called proven only if its record, hashed again, is in the transparency log
    under the signature of a key that the user named; with any bit of the record, the path or the seal
    changed, it is not."
    """
    world = make_world(events, height, version)
    event = world.events[number]
    which = number >> (height - 1)
    files = world.files(which)
    assert prove(event, files, KEYS).state is State.PROVEN
    size = parse_seal(files.seal).size
    index = commitment(event).mmr_index
    for bit in relevant_bits(Massif(files.massif), index, size):
        changed = files._replace(massif=flipped(files.massif, bit))
        assert prove(event, changed, KEYS).state is not State.PROVEN, bit


@pytest.mark.parametrize("version", [0, 1])
def test_with_any_bit_of_the_seal_flipped_nothing_is_proven(version: int) -> None:
    """Nor with a changed seal.

    Promise 36: "An event is called proven only if its record, hashed again, is in the transparency log
    under the signature of a key that the user named; with any bit of the record, the path or the seal
    changed, it is not."
    """
    world = make_world(7, 3, version)
    files = world.files(1)
    assert prove(world.events[5], files, KEYS).state is State.PROVEN
    for bit in range(8 * len(files.seal)):
        changed = files._replace(seal=flipped(files.seal, bit))
        assert prove(world.events[5], changed, KEYS).state is not State.PROVEN, bit


def test_with_any_bit_of_the_record_flipped_nothing_is_proven() -> None:
    """Nor with a changed record.

    Promise 36: "An event is called proven only if its record, hashed again, is in the transparency log
    under the signature of a key that the user named; with any bit of the record, the path or the seal
    changed, it is not."
    """
    world = make_world(7, 3)
    raw = json.dumps({**world.events[5], "merklelog_entry": None}).encode()
    for bit in range(8 * len(raw)):
        try:
            event = json.loads(flipped(raw, bit))
        except ValueError:
            continue
        if not isinstance(event, dict) or event == json.loads(raw):
            continue
        event["merklelog_entry"] = world.events[5]["merklelog_entry"]
        proof = prove(event, world.files(1), KEYS)
        if leaf_hash_or_none(event) == leaf_hash_or_none(world.events[5]):
            continue  # a key that is not part of the leaf
        assert proof.state is not State.PROVEN, bit


def leaf_hash_or_none(event: dict[str, Any]) -> bytes | None:
    try:
        return leaf_hash(event, stamp(5))
    except ProofError:
        return None


# -- the states ----------------------------------------------------------------------------------------


def test_a_record_changed_after_the_seal_is_named() -> None:
    world = make_world(7, 3)
    event = copy.deepcopy(world.events[2])
    event["event_attributes"]["number"] = "three"
    proof = prove(event, world.files(0), KEYS)
    assert (proof.state, proof.state.code) == (State.LEAF_DIFFERS, 1)
    assert "changed" in proof.reason


def test_a_path_that_does_not_lead_to_its_peak_is_told_apart() -> None:
    world = make_world(7, 3)
    files = world.files(0)
    sibling = Massif(files.massif).node(1)  # beside leaf 0, and no peak
    massif = files.massif.replace(sibling, bytes(32))
    proof = prove(world.events[0], files._replace(massif=massif), KEYS)
    assert (proof.state, proof.state.code) == (State.PATH_DIFFERS, 1)


def test_a_signature_over_other_peaks_is_told_apart() -> None:
    world, other = make_world(7, 3), make_world(7, 3)
    other.log._nodes[:] = [bytes(32)] * other.log.size
    proof = prove(world.events[0], world.files(0)._replace(seal=other.files(0).seal), KEYS)
    assert (proof.state, proof.state.code) == (State.SEAL_BAD, 1)


@pytest.mark.parametrize(("number", "tenant", "why"), [(1, TENANT, "massif 1"), (0, OTHER, OTHER)])
def test_a_seal_for_another_log_or_massif_is_told_apart(number: int, tenant: str, why: str) -> None:
    world = make_world(7, 3)
    world.log.tenant = tenant
    files = Files(world.log.massif(0), world.log.seal(number, SIGNER, 1))
    proof = prove(world.events[0], files, KEYS)
    assert proof.state is State.SEAL_BAD
    assert why in proof.reason


def test_without_the_key_it_cannot_be_found_out_and_the_key_in_the_seal_proves_nothing() -> None:
    world = make_world(7, 3)
    for keys in ([], STRANGER):
        proof = prove(world.events[0], world.files(0), keys)
        assert (proof.state, proof.state.code) == (State.NO_KEY, 3)
        assert KEYS[0].fingerprint in proof.reason


def test_one_of_several_keys_is_enough() -> None:
    world = make_world(7, 3)
    assert prove(world.events[0], world.files(0), [*STRANGER, *KEYS]).state is State.PROVEN


def test_an_event_behind_the_seal_is_not_sealed_yet() -> None:
    world = make_world(3, 4)
    seal = world.files(0).seal
    late = make_event(3)
    commit(late, world.log, 3)
    proof = prove(late, Files(world.log.massif(0), seal), KEYS)
    assert (proof.state, proof.state.code) == (State.NOT_SEALED, 3)
    assert prove(world.events[0], Files(world.log.massif(0), seal), KEYS).state is State.PROVEN
    early = make_world(3, 4)
    assert prove(late, early.files(0), KEYS).state is State.NOT_SEALED


def test_a_massif_cut_off_before_the_sealed_size_is_no_contradiction() -> None:
    world = make_world(7, 4)
    files = world.files(0)
    proof = prove(world.events[0], files._replace(massif=files.massif[:-32]), KEYS)
    assert (proof.state, proof.state.code) == (State.UNREADABLE, 3)
    assert "cut off" in proof.reason


@pytest.mark.parametrize(
    "entry", [None, {}, {"commit": None}, {"commit": {"index": ""}}, {"commit": {"index": "0"}}, [1], "x"]
)
def test_an_event_without_a_place_is_not_committed(entry: object) -> None:
    proof = prove({**make_event(1), "merklelog_entry": entry}, Nothing(), KEYS)
    assert (proof.state, proof.state.code) == (State.NOT_COMMITTED, 3)


@pytest.mark.parametrize("index", ["-1", "0x1", "9" * 30, 2**63, True, 1.0, [], "٣"])
def test_a_malformed_place_is_not_committed(index: object) -> None:
    entry = {"commit": {"index": index, "idtimestamp": "01" + "00" * 8}}
    assert prove({**make_event(1), "merklelog_entry": entry}, Nothing(), KEYS).state is State.NOT_COMMITTED


def test_without_the_log_it_cannot_be_found_out() -> None:
    world = make_world(1, 3)
    proof = prove(world.events[0], Nothing(), KEYS)
    assert (proof.state, proof.state.code) == (State.NO_LOG, 3)


def test_an_index_may_be_a_number_and_the_idtimestamp_may_have_a_prefix() -> None:
    world = make_world(3, 3)
    commit_ = world.events[2]["merklelog_entry"]["commit"]
    commit_["index"] = int(commit_["index"])
    commit_["idtimestamp"] = "0x" + commit_["idtimestamp"]
    assert prove(world.events[2], world.files(0), KEYS).state is State.PROVEN


def test_another_tenants_event_that_cannot_be_reproduced_is_no_contradiction() -> None:
    world = make_world(3, 3)
    event = {**world.events[1], "tenant_identity": f"tenant/{OTHER}"}
    proof = prove(event, world.files(0), KEYS, tenant=TENANT)
    assert (proof.state, proof.state.code) == (State.NOT_REPRODUCIBLE, 3)


def test_another_event_in_its_place_is_a_contradiction_only_where_the_log_is_certain() -> None:
    world = make_world(3, 3)
    event = make_event(9)
    event["merklelog_entry"] = {"commit": {"index": "1", "idtimestamp": "01" + stamp(9).hex()}}
    assert prove(event, world.files(0), KEYS).state is State.NOT_REPRODUCIBLE
    assert prove(event, world.files(0), KEYS, tenant=TENANT).state is State.LEAF_DIFFERS


def test_a_place_that_is_no_leaf_is_a_contradiction() -> None:
    world = make_world(3, 3)
    world.events[0]["merklelog_entry"]["commit"]["index"] = "2"
    assert prove(world.events[0], world.files(0), KEYS).state is State.LEAF_DIFFERS


def test_the_wrong_massif_is_no_contradiction() -> None:
    world = make_world(7, 3)
    assert prove(world.events[0], world.files(1), KEYS).state is State.UNREADABLE


@pytest.mark.parametrize("value", [1, 1.5, [1], {"a": {"b": 2}}, "\ud800", {"\ud800": "x"}])
def test_what_the_log_cannot_encode_cannot_be_reproduced(value: object) -> None:
    event = make_event(1)
    event["event_attributes"]["odd"] = value
    with pytest.raises(ProofError) as caught:
        leaf_hash(event, stamp(1))
    assert caught.value.state is State.NOT_REPRODUCIBLE


def test_a_deeply_nested_record_is_refused() -> None:
    event = make_event(1)
    for _ in range(100_000):
        event["event_attributes"] = {"a": event["event_attributes"]}
    with pytest.raises(ProofError, match="too deep"):
        leaf_hash(event, stamp(1))


def test_null_is_left_out_and_a_missing_text_is_empty() -> None:
    event = make_event(1)
    assert leaf_hash({**event, "operation": None}, stamp(1)) == leaf_hash(
        {**event, "operation": ""}, stamp(1)
    )
    with_null = {**event, "event_attributes": {**event["event_attributes"], "x": None}}
    assert leaf_hash(with_null, stamp(1)) == leaf_hash(event, stamp(1))
    absent = {key: value for key, value in event.items() if key != "asset_attributes"}
    assert leaf_hash(absent, stamp(1)) == leaf_hash({**event, "asset_attributes": None}, stamp(1))
    assert leaf_hash(absent, stamp(1)) != leaf_hash(event, stamp(1))  # there it is empty


# -- hostile files ---------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.binary(max_size=2000))
def test_any_bytes_as_massif_are_no_proof(data: bytes) -> None:
    world = make_world(3, 3)
    assert prove(world.events[0], world.files(0)._replace(massif=data), KEYS).state.code == 3


@settings(deadline=None)
@given(st.binary(max_size=2000))
def test_any_bytes_as_seal_are_no_proof(data: bytes) -> None:
    world = make_world(3, 3)
    assert prove(world.events[0], world.files(0)._replace(seal=data), KEYS).state.code == 3


def header(**fields: int) -> bytes:
    made = bytearray(TRIE_START)
    made[21:23] = fields.get("version", 0).to_bytes(2, "big")
    made[27] = fields.get("height", 3)
    made[28:32] = fields.get("number", 0).to_bytes(4, "big")
    return bytes(made)


@pytest.mark.parametrize(
    ("massif", "why"),
    [
        (b"", "shorter than its header"),
        (header(version=2), "version 2 is not known"),
        (header(version=0xFFFF), "version 65535 is not known"),
        (header(height=0), "height 0"),
        (header(height=255), "height 255"),
        (header(height=18, number=0xFFFFFFFF), "cut off"),
        (header(), "cut off"),
        (header() + bytes(64 * 8 + 31), "cut off"),
        (header() + bytes(64 * 8 + 32 * 8), "more nodes"),
    ],
)
def test_a_hostile_massif_says_what_is_wrong(massif: bytes, why: str) -> None:
    with pytest.raises(ProofError, match=why):
        Massif(massif)


def test_a_huge_massif_or_seal_takes_neither_time_nor_memory() -> None:
    world = make_world(3, 3)
    huge = bytes(33 << 20)
    tracemalloc.start()
    try:
        began = time.process_time()
        for files in (Files(huge, world.files(0).seal), Files(world.files(0).massif, huge)):
            assert prove(world.events[0], files, KEYS).state is State.UNREADABLE
        assert time.process_time() - began < 1
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("size", [0, -1, 2, 1 << 63, "3"])
def test_a_seal_of_an_impossible_size_is_refused(size: object) -> None:
    seal = cbor.decode(make_world(3, 3).files(0).seal)
    assert isinstance(seal, cbor.Tag)
    assert isinstance(seal.value, list)
    assert isinstance(seal.value[2], bytes)
    payload = cbor.decode(seal.value[2])
    assert isinstance(payload, dict)
    assert isinstance(size, int | str)
    seal.value[2] = cbor.encode({**payload, 1: size})
    with pytest.raises(ProofError):
        parse_seal(cbor.encode(seal))


def test_every_state_has_one_of_the_three_exit_codes() -> None:
    codes = {state: state.code for state in State}
    assert [state for state, code in codes.items() if code == 0] == [State.PROVEN]
    assert set(codes.values()) == {0, 1, 3}
