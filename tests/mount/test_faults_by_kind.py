"""Columns of the fault matrix that need a mount of their own, for each kind of request.

What stands behind an answer: a host that did that once is not trusted with a connection a second time, so
each case has a mount that has seen nothing of it. Silence at connect and on an idle connection: all kinds
wait side by side.
"""

import concurrent.futures
import errno
import socket
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.mount.lane import Lane, lane
from tests.mount.programs import KINDS, OPERATIONS, USUAL, outcome
from tests.services.faulty_ledger import MISSING, PATIENCE, Case, Exchange, forged

SLACK = 3
IDLE = 12  # connections
BEFORE = {"asset": None, "events": "ls", "event": "ls", "info": "ls", "blob": "stat"}


def run(kind: str, mounted: Lane, case: Case) -> tuple[int, object, float]:
    return outcome(OPERATIONS[USUAL[kind]], mounted.point, case)


def prepare(mounted: Lane) -> dict[str, Case]:
    """Return a case for each kind of request, of which that kind is the next that is missing."""
    cases = {kind: mounted.ledger.add(Case(kind)) for kind in KINDS}
    for kind, operation in BEFORE.items():
        if operation is not None:
            assert outcome(OPERATIONS[operation], mounted.point, cases[kind])[0] == 0
            assert mounted.ledger.count(kind, cases[kind]) == 0
    return cases


@pytest.mark.parametrize("after", [0, 0.03], ids=["at once", "30 ms later"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_stands_behind_an_answer_is_not_the_next_one(tmp_path: Path, kind: str, after: float) -> None:
    """Forged answers for the file that is asked for next, and 404s for the one after that."""
    with lane(tmp_path) as mounted:
        case, *victims = (mounted.fresh() for _ in range(3))

        def lie(x: Exchange) -> None:
            behind = forged(victims[0]) + MISSING.head() + MISSING.body
            if after:
                x.serve()
                time.sleep(after)
                x.send(behind)
            else:
                x.send(x.good.head() + x.good.body + behind)

        mounted.ledger.add(case, **{kind: lie})
        assert run(kind, mounted, case)[0] == 0
        for victim in victims:
            mounted.serves_a_good_file(victim)
        patience = time.monotonic() + PATIENCE
        while not mounted.mounted.status()["requests"]["unsolicited"]:  # noticed at the latest when it is old
            assert time.monotonic() < patience
            mounted.serves_a_good_file()
        assert len(mounted.log.told("belong to no answer")) == 1


def test_silence_on_an_idle_connection_costs_every_kind_two_seconds_and_no_error(tmp_path: Path) -> None:
    """Each goes out once on a connection that swallows it, and once more on a new one."""
    with lane(tmp_path, "--timeout=20") as mounted:
        cases = prepare(mounted)
        warm(mounted)
        for kind, case in cases.items():
            mounted.ledger.add(case, **{kind: lambda x: x.stall() if x.used else x.serve()})
        with concurrent.futures.ThreadPoolExecutor(len(cases)) as pool:
            found = list(pool.map(lambda kind: run(kind, mounted, cases[kind]), cases))
        for kind, (number, _, took) in zip(cases, found, strict=True):
            assert number == 0, kind
            assert 1.9 < took < 2 + SLACK, kind
            assert mounted.ledger.count(kind, cases[kind]) == 2, kind
            assert mounted.log.told(cases[kind].asset) == []
        mounted.serves_a_good_file()


def warm(mounted: Lane) -> None:
    """Have many connections that are idle: as many requests are answered once all of them have come."""
    cases = [mounted.fresh() for _ in range(IDLE)]
    together = threading.Barrier(IDLE)

    def meet(x: Exchange) -> None:
        together.wait(10)
        x.serve()

    for case in cases:
        mounted.ledger.add(case, info=meet)
    with concurrent.futures.ThreadPoolExecutor(IDLE) as pool:
        list(pool.map(mounted.serves_a_good_file, cases))
    time.sleep(0.1)  # for which nothing may have come before a connection is used again


def test_silence_at_connect_fails_every_kind_in_time_and_heals(tmp_path: Path) -> None:
    """A backlog that is full drops what would begin a connection."""
    with ExitStack() as stack, lane(tmp_path, "--timeout=3") as mounted:
        cases = prepare(mounted)
        mounted.ledger.stop()
        full = stack.enter_context(socket.socket())
        full.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        full.bind(("127.0.0.1", mounted.ledger.port))
        full.listen(0)
        for _ in range(3):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        with concurrent.futures.ThreadPoolExecutor(len(cases)) as pool:
            found = list(pool.map(lambda kind: run(kind, mounted, cases[kind]), cases))
        for kind, (number, _, took) in zip(cases, found, strict=True):
            assert errno.errorcode.get(number) in ("EHOSTUNREACH", "ETIMEDOUT"), kind
            assert took < 3 + SLACK, kind
            assert mounted.ledger.count(kind, cases[kind]) == 0, kind
        stack.close()
        mounted.ledger.start()
        mounted.serves_a_good_file_soon((errno.EHOSTUNREACH, errno.ETIMEDOUT))
        for kind, case in cases.items():
            assert run(kind, mounted, case)[0] == 0, kind
