"""What a 429 asks for, and the gate that it shuts: on a clock that stands still until told."""

import random

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from attachfs.errors import RateLimited
from attachfs.service.rate_limit import RateLimitGate, requested_wait
from tests.services.manual_clock import ManualClock

NOW = 1_700_000_000.0  # Tue, 14 Nov 2023 22:13:20 GMT


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(autouse=True)
def _no_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "uniform", lambda low, _high: low)


# -- what a 429 asks for -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({}, None),
        ({"archivist-rate-limit-reset": "2.75"}, 2.75),
        ({"retry-after": "3"}, 3),
        ({"retry-after": "0"}, 0),
        ({"retry-after": " 7 "}, 7),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "1e9"}, None),
        ({"retry-after": "1e999"}, None),
        ({"retry-after": "1_0"}, None),
        ({"retry-after": "٣"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "9" * 400}, None),
        ({"retry-after": "Tue, 14 Nov 2023 22:13:30 GMT"}, 10),
        ({"retry-after": "Tue, 14 Nov 2023 22:13:30"}, 10),
        ({"retry-after": "Tue, 14 Nov 2023 22:13:10 GMT"}, 0),
        ({"retry-after": "Tue, 14 Nov 2033 22:13:30 GMT"}, None),
        ({"retry-after": "Tue, 99 Nov 2023 99:13:30 GMT"}, None),
        ({"retry-after": "Tue, 14 Nov 99999999999 22:13:30 GMT"}, None),
        # The service's clock, not ours, says how far off a date is.
        ({"retry-after": "Mon, 14 Nov 2022 22:13:30 GMT", "date": "Mon, 14 Nov 2022 22:13:20 GMT"}, 10),
        ({"retry-after": "Tue, 14 Nov 2023 22:13:30 GMT", "date": "garbage"}, 10),
        ({"archivist-rate-limit-reset": "2", "retry-after": "5"}, 5),
        ({"archivist-rate-limit-reset": "6.5", "retry-after": "5"}, 6.5),
        ({"archivist-rate-limit-reset": "1e9", "retry-after": "5"}, 5),
        ({"archivist-rate-limit-reset": "nan", "retry-after": "garbage"}, None),
    ],
)
def test_the_longer_sane_wait_is_taken(headers: dict[str, str], wait: float | None) -> None:
    assert requested_wait(headers, NOW) == wait


def test_a_gate_stays_shut_for_as_long_as_asked(clock: ManualClock) -> None:
    gate = RateLimitGate(clock)
    assert gate.remaining == 0
    assert gate.shut(30, clock())
    assert gate.remaining == 30
    clock.now += 31
    assert gate.remaining == 0


def test_without_a_usable_wait_it_doubles_from_round_to_round_up_to_a_bound(clock: ManualClock) -> None:
    gate, waits = RateLimitGate(clock), []
    for asked in [None, 0, None, None, None, None, None, None]:
        assert gate.shut(asked, clock())
        waits.append(gate.remaining)
        clock.now += gate.remaining + 0.1
    assert waits == [pytest.approx(wait) for wait in (0.5, 1, 2, 4, 8, 16, 30, 30)]
    gate.succeeded(clock())
    assert gate.shut(None, clock() + 0.1)
    assert gate.remaining == pytest.approx(0.5)


def test_a_day_is_not_waited_without_asking_again(clock: ManualClock) -> None:
    gate = RateLimitGate(clock)
    gate.shut(3600, clock())
    assert gate.remaining == 300


def test_a_burst_of_429s_is_news_once_and_the_longest_wait_holds(clock: ManualClock) -> None:
    gate, began = RateLimitGate(clock), clock()
    clock.now += 1
    assert gate.shut(5, began)
    assert not gate.shut(9, began)
    assert not gate.shut(2, began)
    assert gate.remaining == 9


async def test_everybody_waits_at_the_gate_unless_it_opens_too_late(mock_clock: MockClock) -> None:
    gate, through = RateLimitGate(trio.current_time), list[str]()
    gate.shut(10, 0.0)
    with pytest.raises(RateLimited, match="asks to wait 10 s"):
        await gate.passed("/x", deadline=9)

    async def wait(name: str) -> None:
        await gate.passed(name, deadline=100)
        through.append(name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, "a")
        nursery.start_soon(wait, "b")
        await wait_all_tasks_blocked()
        mock_clock.jump(9)
        gate.shut(3, mock_clock.current_time())
        mock_clock.jump(2)
        await wait_all_tasks_blocked()
        assert through == []
        mock_clock.jump(1.5)
    assert sorted(through) == ["a", "b"]
