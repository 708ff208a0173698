"""Brings what proofs need from where a log is served: the massifs and seals of given events."""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Protocol

from attachfs.errors import AttachfsError, NotFound
from attachfs.proof.errors import ProofError, State
from attachfs.proof.log_files import KeptLogs

_JOINING = 64  # massifs that are fetched at most to join a log to what is remembered of it


class LogService(Protocol):
    """Where logs are served. Errors are `AttachfsError`s."""

    async def massif(self, tenant: str, number: int) -> bytes:
        """Return a massif's file."""

    async def seal(self, tenant: str, number: int) -> bytes:
        """Return a massif's seal."""


async def fetch_logs(leaves: Mapping[str, AbstractSet[int]], service: LogService, kept: KeptLogs) -> None:
    """Bring the massifs and seals that proofs of these leaves need.

    What is kept already is fetched again only if its seal has changed, and stands if the log is out of reach.
    What could not be brought, `kept` says when it is asked for it.

    Args:
        leaves: by tenant, the numbers of leaves in its log (see `leaves_of`).
        service: where to fetch from.
        kept: where to.
    """
    for log, numbers in leaves.items():
        for number in await _numbers(log, numbers, service, kept):
            await _bring(log, number, service, kept)


async def _numbers(log: str, leaves: AbstractSet[int], service: LogService, kept: KeptLogs) -> list[int]:
    """Return the massifs in which leaves stand. The first one fetched says how high massifs are."""
    if not kept.has_any(log):
        guess = min(leaves) >> (kept.height(log) - 1)
        await _bring(log, guess, service, kept)
        if guess and not kept.has_any(log):
            await _bring(log, 0, service, kept)  # there are fewer massifs if they are higher
    height = kept.height(log)
    numbers = {leaf >> (height - 1) for leaf in leaves}
    try:
        for number in sorted(numbers):
            joining = kept.unfinished(log, number)
            if len(joining) <= _JOINING:
                numbers.update(joining)
    except ProofError as error:
        for number in numbers:
            kept.refuse(log, number, error)
        return []
    return sorted(numbers)


async def _bring(log: str, number: int, service: LogService, kept: KeptLogs) -> None:
    kept_seal_of = kept.kept_seal(log, number)
    try:
        # The seal first: the massif that comes after it holds at least what is sealed.
        raw_seal = await service.seal(log, number)
        if raw_seal == kept_seal_of:
            return
        kept.add(log, number, await service.massif(log, number), raw_seal)
    except ProofError as error:
        kept.refuse(log, number, error)
    except NotFound as error:
        was_there = kept.is_remembered(log, number)
        kept.refuse(log, number, _gone(number) if was_there else ProofError(State.NO_LOG, error.reason))
    except AttachfsError as error:
        if kept_seal_of is None:
            kept.refuse(log, number, ProofError(State.NO_LOG, error.reason))
    except OSError as error:
        reason = f"{kept.folder}: the log cannot be kept: {error.strerror}"
        kept.refuse(log, number, ProofError(State.NO_LOG, reason))


def _gone(number: int) -> ProofError:
    return ProofError(
        State.LOG_REWRITTEN, f"the log was shrunk or rewritten: massif {number} was there, and is gone"
    )
