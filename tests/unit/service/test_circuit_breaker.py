"""When the service counts as out of reach: decided by hand, on a clock that stands still until told."""

import itertools
import logging

import pytest

from attachfs.errors import Unreachable
from attachfs.service.circuit_breaker import CircuitBreaker
from tests.services.manual_clock import ManualClock

NOW = 1_700_000_000.0


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def circuit(clock: ManualClock) -> CircuitBreaker:
    circuit = CircuitBreaker(clock, wall=lambda: NOW)
    circuit.watched = True
    return circuit


def fail(circuit: CircuitBreaker, clock: ManualClock, *whats: str) -> None:
    for what in whats:
        circuit.note_failure(what, "it rains", clock.now)


def is_open(circuit: CircuitBreaker) -> bool:
    try:
        circuit.check("/x")
    except Unreachable:
        return True
    return False


def is_due(circuit: CircuitBreaker) -> bool:
    return circuit.probe_is_due


def is_well(circuit: CircuitBreaker) -> bool:
    return circuit.failing_since is None and circuit.open_since is None


def test_failures_of_two_questions_that_last_for_three_seconds_open_it(
    circuit: CircuitBreaker, clock: ManualClock
) -> None:
    fail(circuit, clock, "/a", "/b", "/a", "/b", "/c")
    assert not is_open(circuit), "it may pass within a moment"
    clock.now += 2.9
    fail(circuit, clock, "/a")
    assert not is_open(circuit)
    clock.now += 0.2
    fail(circuit, clock, "/a")
    with pytest.raises(Unreachable, match=r"^/b: no request: .* out of reach since .*\(it rains\)$"):
        circuit.check("/b")
    assert circuit.open_since == NOW


def test_many_failures_that_come_fast_open_it_after_a_second(
    circuit: CircuitBreaker, clock: ManualClock
) -> None:
    fail(circuit, clock, *("/a", "/b") * 20)
    assert not is_open(circuit), "they may all be of one moment"
    clock.now += 1.1
    fail(circuit, clock, "/a")
    assert is_open(circuit)


def test_one_question_never_opens_it(circuit: CircuitBreaker, clock: ManualClock) -> None:
    for _ in range(50):
        fail(circuit, clock, "/a")
        clock.now += 1
    assert not is_open(circuit)


def test_a_request_that_was_silent_counts_from_when_it_was_sent(
    circuit: CircuitBreaker, clock: ManualClock
) -> None:
    sent = clock.now
    clock.now += 4
    circuit.note_failure("/a", "no answer", sent)
    assert circuit.failing_since == sent
    circuit.note_failure("/b", "no answer", sent)
    assert is_open(circuit)


def test_any_answer_closes_it_and_starts_the_count_anew(circuit: CircuitBreaker, clock: ManualClock) -> None:
    for _ in range(20):
        fail(circuit, clock, "/a", "/b")
        clock.now += 2.9
        circuit.note_answer()
        assert is_well(circuit)
    assert not is_open(circuit)
    fail(circuit, clock, "/a")
    clock.now += 5
    fail(circuit, clock, "/b")
    assert is_open(circuit)
    circuit.note_answer()
    assert not is_open(circuit)
    assert is_well(circuit)


def test_without_anybody_who_probes_it_stops_nobody(circuit: CircuitBreaker, clock: ManualClock) -> None:
    circuit.watched = False
    fail(circuit, clock, "/a")
    clock.now += 5
    fail(circuit, clock, "/b")
    assert circuit.open_since == NOW
    assert not is_open(circuit)


def test_probes_begin_soon_after_the_first_failure_and_grow_rarer_once_it_is_open(
    circuit: CircuitBreaker, clock: ManualClock
) -> None:
    assert not is_due(circuit)
    fail(circuit, clock, "/a")
    at, began = [], clock.now
    while clock.now < began + 40:
        clock.now += 0.5
        if is_due(circuit):
            at.append(clock.now - began)
            fail(circuit, clock, "probe")
            circuit.probed()
    assert at[:5] == [1, 2, 3, 5, 9]
    assert all(later - earlier == 6 for earlier, later in itertools.pairwise(at[4:]))
    circuit.note_answer()
    assert not is_due(circuit)


def test_silence_is_probed_at_once(circuit: CircuitBreaker, clock: ManualClock) -> None:
    circuit.note_failure("/a", "no answer", clock.now - 2)
    assert is_due(circuit)


def test_the_circuit_is_logged_once_as_it_opens_and_once_as_it_closes(
    circuit: CircuitBreaker, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "attachfs.api")
    for _ in range(5):
        fail(circuit, clock, "/a", "/b")
        clock.now += 2
    circuit.note_answer()
    circuit.note_answer()
    assert [record.message.partition(" since")[0] for record in caplog.records] == [
        "the ledger is out of reach (it rains); requests fail at once until it answers",
        "the ledger answers again; it had been out of reach",
    ]
