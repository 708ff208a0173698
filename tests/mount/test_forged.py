"""A ledger that sends forged answers behind its own, and strangers in its place, on a real mount."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from tests.mount.lane import Lane, lane
from tests.services.faulty_ledger import MISSING, Case, Exchange, Reply, forged

PAGE = b"<!DOCTYPE html><html><body>Log in</body></html>"


def problems_of(point: Path, case: Case) -> list[str]:
    problems = []
    for path in (case.path, f"{case.event_path}/{case.event_blob}"):
        try:
            if (point / path).read_bytes() != case.content:
                problems.append(f"{path}: other bytes")
            if os.getxattr(point / path, "user.attachfs.attested") != b"match":
                problems.append(f"{path}: not attested")
        except OSError as error:
            problems.append(f"{path}: {error}")
    return problems


# A connection rests for far longer than what is sent 30 ms late takes, even on a busy machine. What comes on
# one that was quiet for long enough, after the next request, looks like the answer to it.
REST = 2
RESTS_LONGER = f"import attachfs.service.connections as c; c.open_http.__kwdefaults__['quiet'] = {REST}"


@pytest.mark.parametrize("after", [0, 0.03], ids=["at once", "30 ms later"])
@pytest.mark.parametrize("what", ["three answers", "404s"])
def test_forged_answers_behind_all_answers_change_nothing_that_is_read(
    tmp_path: Path, what: str, after: float
) -> None:
    """Three readers, three files after each other, every answer followed by forged ones.

    Promise 37: "What a service, or anything in between, sends after an answer is never taken for the answer
    to another request."
    """
    with lane(tmp_path, prelude=RESTS_LONGER) as mounted:
        cases = [mounted.fresh() for _ in range(12)]
        turn = iter(range(10**6))

        def lie(exchange: Exchange) -> None:
            victim = cases[next(turn) % len(cases)]
            behind = forged(victim) if what == "three answers" else 3 * (MISSING.head() + MISSING.body)
            if after:
                exchange.serve()
                time.sleep(after)
                exchange.send(behind)
            else:
                exchange.send(exchange.good.head() + exchange.good.body + behind)

        mounted.ledger.everything = lie
        with ThreadPoolExecutor(3) as pool:
            problems = [
                problem for found in pool.map(partial(problems_of, mounted.point), cases) for problem in found
            ]
        assert problems == []
        time.sleep(REST)  # until connections would be used again, and what came meanwhile is seen
        mounted.ledger.everything = None
        mounted.serves_a_good_file()
        assert mounted.mounted.status()["requests"]["unsolicited"] > 0
        assert len([line for line in mounted.log if "belong to no answer" in line]) == 1


@pytest.mark.parametrize("status", [404, 403, 401, 200])
def test_a_stranger_s_page_makes_nothing_missing_nor_forbidden_and_heals_at_once(
    tmp_path: Path, status: int
) -> None:
    """Both for the asset's record and for the attachments'.

    Promise 38: "What a gateway or a network's login page answers in the ledger's place makes nothing absent
    or forbidden, and is forgotten at once."
    """
    with lane(tmp_path) as mounted:
        case = mounted.fresh()
        page = Reply(status, PAGE, (("Content-Type", "text/html"),))
        mounted.ledger.everything = lambda exchange: exchange.send(page.head() + page.body)
        for path in (case.path, f"assets/{case.asset}", f"{case.event_path}/{case.event_blob}"):
            with pytest.raises(OSError, match="No route to host"):
                (mounted.point / path).stat()
        mounted.ledger.everything = None
        assert (mounted.point / case.path).read_bytes() == case.content
        assert (mounted.point / f"{case.event_path}/{case.event_blob}").read_bytes() == case.content


def test_what_is_forged_would_be_believed_if_it_were_the_answer(tmp_path: Path) -> None:
    """So the tests above can fail."""
    with lane(tmp_path) as mounted:
        assert isinstance(mounted, Lane)
        case = mounted.fresh()
        other = Case(case.name)
        other.content = b"forged".ljust(len(case.content), b"!")
        mounted.ledger.add(
            case,
            asset=lambda x: x.json({**other.record, "attributes": {"photo": other.entry(case.blob)}}),
            info=lambda x: x.json(other.info_of(case.blob)),
            blob=lambda x: x.reply(200, other.content),
        )
        assert (mounted.point / case.path).read_bytes() == other.content
