"""Transparency logs that are kept in memory: leaves are appended, massifs and seals are written out of them.

They write what `attachfs.proof` reads, in the service's formats (see `proof/massif.py`, `proof/seal.py`).
"""

import hashlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils

from attachfs.proof import cbor, mmr
from attachfs.proof.errors import ProofError
from attachfs.proof.leaf import PUBLIC_TENANT, leaf_hash
from attachfs.proof.massif import FIXED_STACK, HASH, TRIE_ENTRY, TRIE_START

ISSUER = "https://demo.attachfs.invalid/log"
_ES384 = -35
_COORDINATE = 48


class SigningKey:
    """A key that seals logs, made anew for each object."""

    def __init__(self, name: str = "demo-log-signing") -> None:
        self._private = ec.generate_private_key(ec.SECP384R1())
        self.name = name

    def pem(self) -> bytes:
        """Return the public key."""
        return self._private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def cose_key(self) -> cbor.Value:
        """Return the public key as seals carry it."""
        numbers = self._private.public_key().public_numbers()
        x, y = (one.to_bytes(_COORDINATE, "big") for one in (numbers.x, numbers.y))
        return {1: "EC", 2: self.name, 3: _ES384, -1: "P-384", -2: x, -3: y}

    def sign(self, message: bytes) -> bytes:
        """Return an ES384 signature."""
        der = self._private.sign(message, ec.ECDSA(hashes.SHA384()))
        return b"".join(one.to_bytes(_COORDINATE, "big") for one in utils.decode_dss_signature(der))


class _Leaf(NamedTuple):
    key: bytes
    idtimestamp: bytes


class TransparencyLog:
    """The log of one tenant.

    Args:
        tenant: its UUID.
        height: of massifs, counted from 1.
        version: 0 or 1.
    """

    def __init__(self, tenant: str, height: int, version: int = 0) -> None:
        self.tenant = tenant
        self._height = height
        self._version = version
        self._nodes: list[bytes] = []
        self._leaves: list[_Leaf] = []

    @property
    def size(self) -> int:
        """The number of nodes."""
        return len(self._nodes)

    @property
    def massifs(self) -> int:
        """The number of massifs."""
        return -(-len(self._leaves) // self._leaves_each)

    @property
    def _leaves_each(self) -> int:
        return 1 << (self._height - 1)

    def end_of(self, number: int) -> int:
        """Return the number of nodes up to and with a massif's last one."""
        return mmr.size_of(min((number + 1) * self._leaves_each, len(self._leaves)))

    def append(self, leaf: bytes, identity: str, idtimestamp: bytes) -> int:
        """Append a leaf, and return its index.

        Args:
            leaf: its hash.
            identity: the event's.
            idtimestamp: eight bytes, later than those before.
        """
        key = hashlib.sha256(b"\0" + f"tenant/{self.tenant}{identity}".encode()).digest()
        self._leaves.append(_Leaf(key, idtimestamp))
        index = len(self._nodes)
        self._nodes.append(leaf)
        level = 0
        while mmr.height(len(self._nodes)) > level:
            parent = len(self._nodes)
            left, right = self._nodes[parent - (2 << level)], self._nodes[parent - 1]
            self._nodes.append(mmr.interior(parent, left, right))
            level += 1
        return index

    def node(self, index: int) -> bytes:
        """Return the node at an index."""
        return self._nodes[index]

    def massif(self, number: int) -> bytes:
        """Return a massif's file."""
        first_leaf = number * self._leaves_each
        leaves = self._leaves[first_leaf : first_leaf + self._leaves_each]
        first, end = mmr.size_of(first_leaf), mmr.size_of(first_leaf + len(leaves))
        header = bytearray(TRIE_START)
        header[8:16] = leaves[-1].idtimestamp
        header[21:23] = self._version.to_bytes(2, "big")
        header[23:27] = (1).to_bytes(4, "big")
        header[27] = self._height
        header[28:32] = number.to_bytes(4, "big")
        trie = b"".join(leaf.key + bytes(24) + leaf.idtimestamp for leaf in leaves)
        stack = b"".join(self._nodes[index] for index in mmr.peaks(first))
        if self._version:
            stack = stack.ljust(HASH * FIXED_STACK, b"\0")
        body = b"".join(self._nodes[first:end])
        return bytes(header) + trie.ljust(TRIE_ENTRY << self._height, b"\0") + stack + body

    def seal(self, number: int, key: SigningKey, time_ms: int) -> bytes:
        """Return the seal of a massif as it is now, with the peaks taken out as the service does."""
        leaves = min((number + 1) * self._leaves_each, len(self._leaves))
        size = self.end_of(number)
        peaks = [self._nodes[index] for index in mmr.peaks(size)]
        stamp = int.from_bytes(self._leaves[leaves - 1].idtimestamp, "big")
        payload: dict[cbor.Value, cbor.Value] = {1: size, 3: time_ms, 4: stamp, 6: 1}
        signed = dict(payload)
        if self._version:
            payload[7] = signed[7] = self._version
            signed[8] = list[cbor.Value](peaks)
        else:
            signed[2] = mmr.bag(peaks)
        subject = f"v1/mmrs/tenant/{self.tenant}/0/massifs/{number:016d}.log"
        protected = cbor.encode({1: _ES384, 13: {1: ISSUER, 2: subject, 8: {1: key.cose_key()}}})
        signature = key.sign(cbor.encode(["Signature1", protected, b"", cbor.encode(signed)]))
        return cbor.encode(cbor.Tag(18, [protected, {}, cbor.encode(payload), signature]))


_HEIGHT = 4  # eight events a massif, so that the story fills several
_FIRST_STAMP = 0x018F_54C3_4A73_0000


class Logs:
    """The logs of a demo ledger: one for each tenant, and the public one. Each event is committed at once.

    All are sealed whenever a seal is asked for, with a key that is made for this object and nothing else.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.key = SigningKey()
        self._clock = clock
        self._logs: dict[str, TransparencyLog] = {}
        self._seals: dict[tuple[str, int], tuple[int, bytes]] = {}  # the log's size then, and the seal

    def commit(self, event: dict[str, Any]) -> dict[str, Any] | None:
        """Append an event's leaf to its log, and return its `merklelog_entry`; None if it cannot have one."""
        tenant = str(event["tenant_identity"]).removeprefix("tenant/")
        if event["identity"].startswith("publicassets/"):
            tenant = PUBLIC_TENANT
        log = self._logs.setdefault(tenant, TransparencyLog(tenant, _HEIGHT))
        stamp = (_FIRST_STAMP + log.size).to_bytes(8, "big")
        try:
            leaf = leaf_hash(event, stamp)
        except ProofError:
            return None
        index = log.append(leaf, event["identity"].removeprefix("public"), stamp)
        return {"commit": {"index": str(index), "idtimestamp": f"01{stamp.hex()}"}}

    def massif(self, tenant: str, number: int) -> bytes | None:
        """Return a massif's file, None if there is none."""
        log = self._logs.get(tenant)
        return log.massif(number) if log is not None and number < log.massifs else None

    def seal(self, tenant: str, number: int) -> bytes | None:
        """Return a massif's seal, None if there is no such massif."""
        log = self._logs.get(tenant)
        if log is None or number >= log.massifs:
            return None
        size, seal = self._seals.get((tenant, number), (0, b""))
        if size != log.end_of(number):
            size, seal = log.end_of(number), log.seal(number, self.key, int(self._clock() * 1000))
            self._seals[tenant, number] = size, seal
        return seal
