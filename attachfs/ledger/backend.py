"""What every part of the ledger view asks by and decides by, handed in as one."""

from typing import NamedTuple

from attachfs.background import TaskStarter
from attachfs.ledger.lifetimes import Lifetimes
from attachfs.ledger.listings import Source
from attachfs.ledger.offline import StoredAnswers
from attachfs.ledger.outage import Outage


class Backend(NamedTuple):
    """Where answers come from, and for how long they are good.

    Args:
        source: the service's client.
        nursery: where shared requests run.
        lifetimes: says for how long what is learned is good.
        outage: knows whether the service answers, and is told what is served while it does not.
        stored: what is kept on disk; None: nothing is.
    """

    source: Source
    nursery: TaskStarter
    lifetimes: Lifetimes
    outage: Outage
    stored: StoredAnswers | None
