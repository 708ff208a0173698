"""What can be said of an event's place in the log, and the exception that carries it."""

from enum import StrEnum

PROVEN_CODE, CONTRADICTED_CODE, UNKNOWN_CODE = 0, 1, 3  # exit statuses


class State(StrEnum):
    """The state of a proof. Its text is what `--json` and the table show."""

    PROVEN = "proven"

    LEAF_DIFFERS = "leaf differs"  # the log has another hash for this event
    PATH_DIFFERS = "path differs"  # the leaf does not lead to the log's peak
    SEAL_BAD = "seal bad"  # the signature is not over this log
    LOG_REWRITTEN = "log rewritten"  # it is smaller than, or differs from, what was sealed earlier
    HASH_DIFFERS = "hash differs"  # the event records another hash than the attachment has

    NOT_COMMITTED = "not committed"
    NOT_SEALED = "not sealed yet"
    NO_LOG = "log not available"
    UNREADABLE = "log not readable"  # damaged, cut off, or in a version that is not known
    NO_KEY = "key not given"
    NOT_REPRODUCIBLE = "not reproducible"  # the event is another tenant's, or cannot be encoded
    NO_RECORD = "record not available"

    @property
    def code(self) -> int:
        """The exit status: 0 proven, 1 contradicted, 3 it could not be found out."""
        if self is State.PROVEN:
            return PROVEN_CODE
        return CONTRADICTED_CODE if self in _CONTRADICTED else UNKNOWN_CODE


_CONTRADICTED = frozenset(
    (State.LEAF_DIFFERS, State.PATH_DIFFERS, State.SEAL_BAD, State.LOG_REWRITTEN, State.HASH_DIFFERS)
)


class ProofError(Exception):
    """There is no proof.

    Args:
        state: why, as a state; never `PROVEN`.
        reason: one sentence for a person.
    """

    def __init__(self, state: State, reason: str) -> None:
        super().__init__(reason)
        self.state = state
        self.reason = reason
