"""The transparency log: whether an event is committed to its tenant's log, and under whose signature.

Owns: the log's formats (`leaf`, `massif`, `seal`, `cbor`), the arithmetic of its Merkle mountain range
(`mmr`), trusted keys (`keys`), the verdict (`prove`), and copies of logs on disk (`log_files`, `fetch`).

Invariants: an event is proven only if its leaf, recomputed from the record, is the node at its index; the
path from there ends at a peak; and a key that the user named signed these very peaks. A key that comes with
a seal proves nothing. Everything read is bounded in size and depth before it is looked at.

All but the copies is pure: bytes in, values or `ProofError` out, safe in any thread. `log_files` blocks on
the disk: it is for commands, not for the mount's event loop. What it remembers changes under a file lock.
"""
