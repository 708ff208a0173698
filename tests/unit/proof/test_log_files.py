"""Logs on disk: fetched once, kept, and compared with what was sealed before."""

import os
from pathlib import Path
from typing import Any

import pytest

from attachfs.demo.transparency_log import TransparencyLog
from attachfs.errors import AttachfsError, NotFound, Unreachable, UsageError
from attachfs.proof.errors import State
from attachfs.proof.fetch import fetch_logs
from attachfs.proof.keys import Key
from attachfs.proof.log_files import GivenFiles, KeptLogs, LogFolder, copy_logs, load_keys
from attachfs.proof.prove import Proof, leaves_of, prove
from tests.unit.proof.logs import (
    KEYS,
    OTHER,
    SEALED_MS,
    SIGNER,
    STRANGER,
    TENANT,
    World,
    commit,
    flipped,
    make_event,
    make_world,
)


class Service:
    """Serves a log, counts what is fetched, and fails on request."""

    def __init__(self, log: TransparencyLog) -> None:
        self.log = log
        self.fetched: list[str] = []
        self.failure: AttachfsError | None = None
        self._seals: dict[tuple[int, int], bytes] = {}

    def _check(self, what: str, tenant: str, number: int) -> None:
        self.fetched.append(f"{what} {number}")
        if self.failure is not None:
            raise self.failure
        if tenant != self.log.tenant or number >= self.log.massifs:
            raise NotFound("the log is not there (404)")

    async def massif(self, tenant: str, number: int) -> bytes:
        self._check("massif", tenant, number)
        return self.log.massif(number)

    async def seal(self, tenant: str, number: int) -> bytes:
        self._check("seal", tenant, number)
        key = (number, len(self.log.massif(number)))
        if key not in self._seals:
            self._seals[key] = self.log.seal(number, SIGNER, SEALED_MS)
        return self._seals[key]


class Prover:
    """What the command does: fetch, prove, remember; with a fresh view of the folder each time."""

    def __init__(self, folder: Path, service: Service, keys: list[Key] = KEYS) -> None:
        self.folder, self.service, self.keys = folder, service, keys

    async def __call__(self, *events: dict[str, Any]) -> list[Proof]:
        kept = KeptLogs(self.folder)
        await fetch_logs(leaves_of(events), self.service, kept)
        proofs = [prove(event, kept, self.keys) for event in events]
        for proof in proofs:
            kept.remember(proof)
        return proofs


def grow(world: World, more: int) -> None:
    for number in range(len(world.events), len(world.events) + more):
        event = make_event(number)
        commit(event, world.log, number)
        world.events.append(event)


async def test_events_of_several_massifs_are_proven_and_fetched_once(tmp_path: Path) -> None:
    world = make_world(11, 3)
    service = Service(world.log)
    run = Prover(tmp_path, service)
    assert {proof.state for proof in await run(*world.events)} == {State.PROVEN}
    assert set(service.fetched) == {f"{kind} {number}" for kind in ("massif", "seal") for number in range(3)}
    service.fetched.clear()
    assert {proof.state for proof in await run(*world.events)} == {State.PROVEN}
    assert service.fetched == ["seal 0", "seal 1", "seal 2"]  # unchanged: no massif again


async def test_a_log_that_grew_is_fetched_again_and_still_proves_what_it_proved(tmp_path: Path) -> None:
    world = make_world(2, 3)
    run = Prover(tmp_path, Service(world.log))
    assert (await run(world.events[0]))[0].sealed_size == 3
    for more in (1, 1, 3, 9):
        grow(world, more)
        assert {proof.state for proof in await run(*world.events)} == {State.PROVEN}


async def test_a_shrunk_log_is_a_contradiction(tmp_path: Path) -> None:
    world = make_world(4, 3)
    assert (await Prover(tmp_path, Service(world.log))(world.events[0]))[0].state is State.PROVEN
    shrunk = make_world(3, 3)
    (proof,) = await Prover(tmp_path, Service(shrunk.log))(world.events[0])
    assert (proof.state, proof.state.code) == (State.LOG_REWRITTEN, 1)
    assert "had 7 before" in proof.reason


async def test_a_massif_that_was_there_and_is_gone_is_a_contradiction(tmp_path: Path) -> None:
    world = make_world(6, 3)
    assert (await Prover(tmp_path, Service(world.log))(world.events[5]))[0].state is State.PROVEN
    (proof,) = await Prover(tmp_path, Service(make_world(4, 3).log))(world.events[5])
    assert proof.state is State.LOG_REWRITTEN


def rewritten(leaves: int, at: int) -> World:
    """Return a log in which one event is another one, sealed by the same key."""
    log = TransparencyLog(TENANT, 3)
    events = []
    for number in range(leaves):
        event = make_event(number)
        if number == at:
            event["operation"] = "Rewritten"
        commit(event, log, number)
        events.append(event)
    return World(log, events)


@pytest.mark.parametrize("leaves", [4, 6, 9])
async def test_a_rewritten_log_is_a_contradiction_even_for_events_that_it_would_prove(
    tmp_path: Path, leaves: int
) -> None:
    world = make_world(4, 3)
    assert (await Prover(tmp_path, Service(world.log))(world.events[0]))[0].state is State.PROVEN
    other = rewritten(leaves, 2)
    (proof,) = await Prover(tmp_path, Service(other.log))(other.events[2])
    assert (proof.state, proof.state.code) == (State.LOG_REWRITTEN, 1)


async def test_a_rewriting_is_noticed_in_a_later_massif(tmp_path: Path) -> None:
    world = make_world(3, 3)
    assert (await Prover(tmp_path, Service(world.log))(world.events[0]))[0].state is State.PROVEN
    other = rewritten(10, 1)
    proof = (await Prover(tmp_path, Service(other.log))(other.events[5]))[0]
    assert proof.state is State.LOG_REWRITTEN


async def test_a_rewriting_is_noticed_in_an_earlier_massif(tmp_path: Path) -> None:
    world = make_world(6, 3)
    assert (await Prover(tmp_path, Service(world.log))(world.events[5]))[0].state is State.PROVEN
    other = rewritten(6, 1)
    proof = (await Prover(tmp_path, Service(other.log))(other.events[1]))[0]
    assert proof.state is State.LOG_REWRITTEN


async def test_what_no_trusted_key_signed_is_not_remembered(tmp_path: Path) -> None:
    world = make_world(4, 3)
    assert (await Prover(tmp_path, Service(world.log), STRANGER)(world.events[0]))[0].state is State.NO_KEY
    other = rewritten(4, 2)
    assert (await Prover(tmp_path, Service(other.log))(other.events[2]))[0].state is State.PROVEN


async def test_a_log_out_of_reach_is_proven_from_what_is_kept(tmp_path: Path) -> None:
    world = make_world(4, 3)
    service = Service(world.log)
    run = Prover(tmp_path, service)
    assert (await run(world.events[0]))[0].state is State.PROVEN
    service.failure = Unreachable("no connection")
    assert (await run(world.events[1]))[0].state is State.PROVEN
    proof = (await Prover(tmp_path / "new", service)(world.events[1]))[0]
    assert (proof.state, proof.reason) == (State.NO_LOG, "no connection")


async def test_a_copy_damaged_on_this_disk_is_fetched_again_and_no_contradiction(tmp_path: Path) -> None:
    world = make_world(4, 3)
    run = Prover(tmp_path, Service(world.log))
    assert (await run(world.events[0]))[0].state is State.PROVEN
    path = KeptLogs(tmp_path).massif_path(TENANT, 0)
    whole = path.read_bytes()
    for bit in range(8 * (len(whole) - 7 * 32), 8 * len(whole), 37):
        path.write_bytes(flipped(whole, bit))
        assert (await run(world.events[0]))[0].state is State.PROVEN
        assert path.read_bytes() == whole


async def test_damaged_memory_is_said_and_does_not_let_a_rewritten_log_pass(tmp_path: Path) -> None:
    world = make_world(4, 3)
    run = Prover(tmp_path, Service(world.log))
    await run(world.events[0])
    path = tmp_path / TENANT / "sealed.json"
    for damage in (b"", b"[]", b"{", b'{"0": 1}', b"[" * 100_000):
        path.write_bytes(damage)
        proof = (await run(world.events[0]))[0]
        assert proof.state is State.UNREADABLE
        assert "sealed.json" in proof.reason


async def test_another_massif_than_asked_for_is_refused(tmp_path: Path) -> None:
    world = make_world(6, 3)
    service = Service(world.log)

    async def wrong(tenant: str, number: int) -> bytes:
        del tenant
        return world.log.massif(1 - number)

    service.massif = wrong  # type: ignore[method-assign]
    assert (await Prover(tmp_path, service)(world.events[0]))[0].state is State.UNREADABLE


async def test_an_event_without_a_place_needs_no_log(tmp_path: Path) -> None:
    service = Service(make_world(1, 3).log)
    assert (await Prover(tmp_path, service)(make_event(1)))[0].state is State.NOT_COMMITTED
    assert service.fetched == []


async def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    world = make_world(1, 3)
    kept = KeptLogs(tmp_path / "file")
    await fetch_logs(leaves_of(world.events), Service(world.log), kept)
    proof = prove(world.events[0], kept, KEYS)
    assert proof.state is State.NO_LOG
    assert "cannot be kept" in proof.reason


def test_a_folder_as_in_a_bag_proves_offline(tmp_path: Path) -> None:
    world = make_world(6, 3)
    bag = LogFolder(tmp_path / "proof")
    assert prove(world.events[0], bag, KEYS).state is State.NO_LOG
    for number in (0, 1):
        bag.save(TENANT, number, *world.files(number))
    assert (tmp_path / "proof" / TENANT / "massifs" / "0000000000000001.log").exists()
    assert {prove(event, bag, KEYS).state for event in world.events} == {State.PROVEN}
    stranger = {**world.events[0], "tenant_identity": f"tenant/{OTHER}"}
    assert prove(stranger, bag, KEYS).state is State.NO_LOG


async def test_what_events_need_is_copied_into_a_bag(tmp_path: Path) -> None:
    world = make_world(6, 3)
    kept, bag = KeptLogs(tmp_path / "kept"), LogFolder(tmp_path / "bag")
    wanted = [world.events[0], make_event(77), world.events[2]]
    leaves = leaves_of(wanted)
    await fetch_logs(leaves, Service(world.log), kept)
    assert copy_logs(leaves, kept, bag) == []
    assert [path.name for path in (tmp_path / "bag" / TENANT / "massifs").iterdir()] == [
        "0000000000000000.log"
    ]
    assert [prove(event, bag, KEYS).state for event in wanted] == [
        State.PROVEN,
        State.NOT_COMMITTED,
        State.PROVEN,
    ]
    (problem,) = copy_logs(leaves_of([world.events[5]]), kept, bag)
    assert "No such file" in problem


def test_two_files_prove_an_event(tmp_path: Path) -> None:
    world = make_world(3, 3)
    massif, seal = tmp_path / "massif", tmp_path / "seal"
    files = world.files(0)
    massif.write_bytes(files.massif)
    seal.write_bytes(files.seal)
    assert prove(world.events[1], GivenFiles(massif, seal), KEYS).state is State.PROVEN
    os.truncate(massif, 100)
    assert prove(world.events[1], GivenFiles(massif, seal), KEYS).state is State.UNREADABLE
    os.truncate(massif, 1 << 40)  # sparse
    assert "larger than" in prove(world.events[1], GivenFiles(massif, seal), KEYS).reason
    massif.unlink()
    os.mkfifo(massif)  # nobody writes: it must not hang
    assert prove(world.events[1], GivenFiles(massif, seal), KEYS).state is State.UNREADABLE


def test_keys_are_given_by_file_or_by_name(tmp_path: Path) -> None:
    file = tmp_path / "log.pem"
    file.write_bytes(SIGNER.pem())
    assert [key.point for key in load_keys([str(file)])] == [KEYS[0].point]
    assert len(load_keys(["datatrails", str(file)])) == 3
    assert load_keys([]) == []
    with pytest.raises(UsageError, match="No such file"):
        load_keys([str(tmp_path / "none")])
    with pytest.raises(UsageError, match="directory"):
        load_keys([str(tmp_path)])
