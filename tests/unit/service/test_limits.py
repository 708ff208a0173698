"""Slots, the gate and the circuit: decided by hand, on a clock that stands still until told."""

import logging
import random
from functools import partial

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from attachfs.errors import RateLimited, Unreachable
from attachfs.service.circuit_breaker import CircuitBreaker
from attachfs.service.concurrency import Limiter
from attachfs.service.rate_limit import RateLimitGate, asked_wait

NOW = 1_700_000_000.0  # Tue, 14 Nov 2023 22:13:20 GMT


class Hands:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Hands:
    return Hands()


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
    assert asked_wait(headers, NOW) == wait


def test_a_gate_stays_shut_for_as_long_as_asked(clock: Hands) -> None:
    gate = RateLimitGate(clock)
    assert gate.remaining == 0
    assert gate.shut(30, clock())
    assert gate.remaining == 30
    clock.now += 31
    assert gate.remaining == 0


def test_without_a_usable_wait_it_doubles_from_round_to_round_up_to_a_bound(clock: Hands) -> None:
    gate, waits = RateLimitGate(clock), []
    for asked in [None, 0, None, None, None, None, None, None]:
        assert gate.shut(asked, clock())
        waits.append(gate.remaining)
        clock.now += gate.remaining + 0.1
    assert waits == [pytest.approx(wait) for wait in (0.5, 1, 2, 4, 8, 16, 30, 30)]
    gate.succeeded(clock())
    assert gate.shut(None, clock() + 0.1)
    assert gate.remaining == pytest.approx(0.5)


def test_a_day_is_not_waited_without_asking_again(clock: Hands) -> None:
    gate = RateLimitGate(clock)
    gate.shut(3600, clock())
    assert gate.remaining == 300


def test_a_burst_of_429s_is_news_once_and_the_longest_wait_holds(clock: Hands) -> None:
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


# -- slots ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("maximum", "bulk"), [(1, 1), (2, 1), (3, 1), (4, 2), (8, 6), (32, 24), (100, 75), (0, 1)]
)
async def test_blobs_never_get_the_last_slots(maximum: int, bulk: int) -> None:
    limiter = Limiter(maximum)
    assert limiter.bulk_limit == bulk
    for _ in range(bulk):
        await limiter.acquire(bulk=True)
    with trio.move_on_after(0) as scope:
        await limiter.acquire(bulk=True)
    assert scope.cancelled_caught
    if maximum > 1:
        with trio.fail_after(0):
            await limiter.acquire(bulk=False)


async def test_metadata_goes_first_and_each_kind_in_its_order() -> None:
    limiter, order = Limiter(1), list[str]()
    slot = await limiter.acquire(bulk=True)

    async def ask(name: str, *, bulk: bool) -> None:
        mine = await limiter.acquire(bulk=bulk)
        order.append(name)
        mine.release()

    async with trio.open_nursery() as nursery:
        for name, bulk in [("blob 1", True), ("blob 2", True), ("info 1", False), ("info 2", False)]:
            nursery.start_soon(partial(ask, name, bulk=bulk))
            await wait_all_tasks_blocked()
        assert limiter.waiting == 4
        assert slot.release()
        assert not slot.release()
    assert order == ["info 1", "info 2", "blob 1", "blob 2"]
    assert (limiter.in_flight, limiter.waiting) == (0, 0)


async def test_blobs_have_their_share_while_much_metadata_waits() -> None:
    limiter = Limiter(16)
    assert limiter.bulk_limit == 12
    order = list[bool]()

    async def ask(*, bulk: bool) -> None:
        await limiter.acquire(bulk=bulk)
        order.append(bulk)

    slots = [await limiter.acquire(bulk=False) for _ in range(16)]
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(partial(ask, bulk=False))
        await wait_all_tasks_blocked()
        for _ in range(20):
            nursery.start_soon(partial(ask, bulk=True))
        for slot in slots:
            await wait_all_tasks_blocked()
            slot.release()
        await wait_all_tasks_blocked()
        assert (order.count(True), order.count(False)) == (6, 10)
        assert all(order[:6]), "and they need not wait until all metadata is there"
        nursery.cancel_scope.cancel()


async def test_a_cancelled_wait_leaves_no_trace_even_if_it_was_just_granted() -> None:
    limiter = Limiter(1)
    slot = await limiter.acquire(bulk=False)

    async def ask(*, bulk: bool) -> None:
        (await limiter.acquire(bulk=bulk)).release()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(ask, bulk=False))
        nursery.start_soon(partial(ask, bulk=True))
        await wait_all_tasks_blocked()
        slot.release()  # grants one
        nursery.cancel_scope.cancel()  # and at the same moment both are cancelled
    assert (limiter.in_flight, limiter.waiting) == (0, 0)
    with trio.fail_after(0):
        await limiter.acquire(bulk=False)


def test_the_bound_halves_and_grows_back_by_one_for_as_many_successes_as_it_has_slots() -> None:
    limiter = Limiter(8)
    limiter.halve()
    assert limiter.limit == 4
    for _ in range(3):
        limiter.succeeded()
    assert limiter.limit == 4
    limiter.succeeded()
    assert limiter.limit == 5
    for _ in range(5 + 6 + 7 + 100):
        limiter.succeeded()
    assert limiter.limit == 8
    for _ in range(10):
        limiter.halve()
    assert limiter.limit == 2


async def test_a_growing_bound_wakes_who_waits() -> None:
    limiter = Limiter(4)
    limiter.halve()
    slots = [await limiter.acquire(bulk=False) for _ in range(2)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(limiter.acquire, bulk=False))
        await wait_all_tasks_blocked()
        limiter.succeeded()
        limiter.succeeded()
    assert limiter.in_flight == 3
    assert len(slots) == 2


# -- the circuit ---------------------------------------------------------------------------------------


def fail(
    circuit: CircuitBreaker, what: str = "/a", *, connecting: bool = False, timeout: bool = False
) -> None:
    permit = circuit.admit(what)
    permit.failed("it rains", connecting=connecting, timeout=timeout)
    permit.release()


def is_open(circuit: CircuitBreaker) -> bool:
    try:
        circuit.check("/x")
    except Unreachable:
        return True
    return False


def test_five_failures_to_connect_open_it_wherever_they_happen(clock: Hands) -> None:
    circuit = CircuitBreaker(clock)
    for _ in range(4):
        fail(circuit, connecting=True)
    assert not is_open(circuit)
    fail(circuit, connecting=True)
    with pytest.raises(Unreachable, match=r"^/b: not asked: .* out of reach since .*\(it rains\)$"):
        circuit.admit("/b")


def test_one_broken_object_never_opens_it(clock: Hands) -> None:
    circuit = CircuitBreaker(clock)
    for _ in range(50):
        fail(circuit, "/a")
        fail(circuit, "/a/info")
        clock.now += 0.1
    assert not is_open(circuit)


def test_many_broken_objects_open_it(clock: Hands) -> None:
    circuit = CircuitBreaker(clock)
    for what in ["/a", "/b", "/a", "/b", "/c"]:
        assert not is_open(circuit)
        fail(circuit, what)
    assert is_open(circuit)


def test_a_success_in_between_starts_the_count_anew(clock: Hands) -> None:
    circuit = CircuitBreaker(clock)
    for _ in range(20):
        for _ in range(4):
            fail(circuit, connecting=True)
        circuit.admit("/b").succeeded()
    assert not is_open(circuit)


def test_fewer_failures_are_enough_if_they_go_on_for_long(clock: Hands) -> None:
    circuit = CircuitBreaker(clock)
    for _ in range(3):
        assert not is_open(circuit)
        permit = circuit.admit("/a")
        clock.now += 10
        permit.failed("no answer", connecting=True)
    assert is_open(circuit)


def test_two_requests_that_ran_out_of_time_are_enough(clock: Hands) -> None:
    circuit = CircuitBreaker(clock)
    for what in ("/a", "/b"):
        assert not is_open(circuit)
        permit = circuit.admit(what)
        clock.now += 60
        permit.failed("no answer", timeout=True)
    assert is_open(circuit)


@pytest.fixture
def opened(clock: Hands) -> CircuitBreaker:
    circuit = CircuitBreaker(clock, wall=lambda: NOW)
    for _ in range(5):
        fail(circuit, connecting=True)
    assert circuit.open_since == NOW
    return circuit


def test_after_the_cooling_one_probe_is_let_through_and_its_success_closes_it(
    opened: CircuitBreaker, clock: Hands
) -> None:
    clock.now += 1
    probe = opened.admit("/probe")
    assert probe.probe
    assert is_open(opened)
    probe.succeeded()
    assert not is_open(opened)
    assert opened.open_since is None


def test_each_failed_probe_doubles_the_cooling_up_to_a_bound(opened: CircuitBreaker, clock: Hands) -> None:
    waits = []
    for _ in range(6):
        waited = 0
        while is_open(opened):
            clock.now += 1
            waited += 1
        waits.append(waited)
        fail(opened)
    assert waits == [1, 2, 4, 8, 15, 15]


def test_a_probe_that_ended_without_telling_leaves_the_place_to_another(
    opened: CircuitBreaker, clock: Hands
) -> None:
    clock.now += 1
    opened.admit("/cancelled").release()
    assert opened.admit("/next").probe


def test_requests_sent_before_it_opened_do_not_count_as_probes(clock: Hands) -> None:
    circuit = CircuitBreaker(clock)
    early = circuit.admit("/early")
    late = circuit.admit("/late")
    for _ in range(5):
        fail(circuit, connecting=True)
    early.failed("it rains", connecting=True)
    clock.now += 1
    assert not is_open(circuit), "the cooling is not longer for that"
    clock.now -= 1
    late.succeeded()
    assert not is_open(circuit), "an answer is an answer"


def test_it_is_logged_once_each_way(
    opened: CircuitBreaker, clock: Hands, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "attachfs.api")
    caplog.clear()
    for _ in range(5):
        clock.now += 20
        fail(opened)
    clock.now += 20
    opened.admit("/a").succeeded()
    opened.admit("/a").succeeded()
    assert [record.message.partition(" since")[0] for record in caplog.records] == [
        "the ledger answers again; it was out of reach"
    ]


def test_opening_is_logged_with_the_reason(clock: Hands, caplog: pytest.LogCaptureFixture) -> None:
    circuit = CircuitBreaker(clock)
    for _ in range(9):
        if not is_open(circuit):
            fail(circuit, connecting=True)
    assert [record.message for record in caplog.records] == [
        "the ledger is out of reach (it rains); requests fail at once until it answers"
    ]
