"""Logs for tests: events, a log that holds their leaves, and its files."""

from typing import Any, NamedTuple

from attachfs.demo.transparency_log import SigningKey, TransparencyLog
from attachfs.proof.errors import ProofError, State
from attachfs.proof.keys import parse_keys
from attachfs.proof.leaf import leaf_hash

TENANT = "5f0a5d1e-7f5e-4b1c-9c1e-0d2f6a3b8c4d"
OTHER = "00000000-0000-4000-8000-000000000001"
SIGNER = SigningKey()
KEYS = parse_keys(SIGNER.pem(), "log.pem")
STRANGER = parse_keys(SigningKey("stranger").pem(), "stranger.pem")
SEALED_MS = 1_700_000_000_000


def stamp(number: int) -> bytes:
    return (0x018F_54C3_4A73_0000 + number).to_bytes(8, "big")


def make_event(number: int, tenant: str = TENANT) -> dict[str, Any]:
    identity = (
        f"assets/{number:08x}-0000-4000-8000-000000000000/events/{number:08x}-1111-4000-8000-000000000000"
    )
    return {
        "identity": identity,
        "event_attributes": {"arc_display_type": "Seal", "number": str(number)},
        "asset_attributes": {},
        "operation": "Record",
        "behaviour": "RecordEvidence",
        "timestamp_declared": "2026-03-02T10:40:52Z",
        "timestamp_accepted": "2026-03-02T10:40:52Z",
        "timestamp_committed": "2026-03-02T10:40:53.1Z",
        "principal_declared": {"issuer": "", "subject": "someone"},
        "principal_accepted": {"issuer": "", "subject": "someone"},
        "tenant_identity": f"tenant/{tenant}",
    }


def commit(event: dict[str, Any], log: TransparencyLog, number: int) -> None:
    """Append an event to a log, and say so in its record."""
    index = log.append(leaf_hash(event, stamp(number)), event["identity"], stamp(number))
    event["merklelog_entry"] = {"commit": {"index": str(index), "idtimestamp": "01" + stamp(number).hex()}}


class World(NamedTuple):
    """A log and the events in it."""

    log: TransparencyLog
    events: list[dict[str, Any]]

    def files(self, number: int) -> "Files":
        return Files(self.log.massif(number), self.log.seal(number, SIGNER, SEALED_MS))


class Files(NamedTuple):
    """One massif and its seal, whatever is asked for."""

    massif: bytes
    seal: bytes

    def massif_of(self, tenant: str, leaf_number: int) -> tuple[bytes, bytes]:
        del tenant, leaf_number
        return self


class Nothing:
    def massif_of(self, tenant: str, leaf_number: int) -> tuple[bytes, bytes]:
        raise ProofError(State.NO_LOG, f"no log of {tenant} ({leaf_number})")


def make_world(events: int, height: int, version: int = 0) -> World:
    log = TransparencyLog(TENANT, height, version)
    made = []
    for number in range(events):
        event = make_event(number)
        commit(event, log, number)
        made.append(event)
    return World(log, made)


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)
