"""The transparency log: whether an event is committed to its tenant's log, and under whose signature.

Owns: the log's formats (`leaf`, `massif`, `seal`, `cbor`), the arithmetic of its Merkle mountain range
(`mmr`), trusted keys (`keys`), and the verdict (`prove`).

Invariants: an event is proven only if its leaf, recomputed from the record, is the node at its index; the
path from there ends at a peak; and a key that the user named signed these very peaks. A key that comes with
a seal proves nothing. Everything read is bounded in size and depth before it is looked at.

All of it is pure: bytes in, values or `ProofError` out; no locks, and safe in any thread.
"""
