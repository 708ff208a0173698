"""Which reads are worth a request of their own, and for how much; on a clock that is just a number."""

from attachfs.blobs.range_policy import PendingRead, RangePolicy
from attachfs.blobs.withholding import WITHHELD

MIB = 2**20
SIZE = 512 * WITHHELD


def test_a_read_near_the_stream_is_left_to_it() -> None:
    policy = RangePolicy(SIZE)
    assert not policy.is_ahead(PendingRead(MIB, MIB + 1, 0), 0)
    assert policy.is_ahead(PendingRead(MIB + 1, MIB + 2, 0), 0)


def test_reads_that_follow_each_other_from_the_stream_on_are_left_to_it_however_far_they_get() -> None:
    policy = RangePolicy(SIZE)
    for offset in range(0, 4 * MIB, WITHHELD):
        assert not policy.is_ahead(PendingRead(offset, offset + WITHHELD, 0), 0)


def test_what_the_stream_brings_within_a_round_trip_waits_for_that_long_at_most() -> None:
    policy = RangePolicy(SIZE)
    read = PendingRead(2 * MIB, 2 * MIB + 1, 10.0)
    assert policy.delay(read, 0, 10.0) == 0
    policy.note_received(4 * MIB, 10.0)
    assert policy.delay(read, 0, 10.1) > 0
    assert policy.delay(read, 0, 10.3) == 0


def test_after_a_failure_nothing_is_requested_for_a_while_that_doubles() -> None:
    policy = RangePolicy(SIZE)
    read = PendingRead(2 * MIB, 2 * MIB + 1, 0.0)
    policy.failed(100.0)
    assert policy.delay(read, 0, 100.0) == 5
    policy.failed(105.0)
    assert policy.delay(read, 0, 105.0) == 10
    policy.succeeded()
    policy.failed(200.0)
    assert policy.delay(read, 0, 200.0) == 5


def test_reads_that_follow_each_other_are_given_more_each_time_up_to_what_is_there() -> None:
    policy = RangePolicy(SIZE)

    def nothing(_: int) -> bool:
        return False

    assert policy.extent(range(10, 11), nothing) == range(10, 11)
    assert policy.extent(range(11, 12), nothing) == range(11, 13)
    assert policy.extent(range(13, 14), nothing) == range(13, 17)
    assert policy.extent(range(17, 18), lambda block: block == 20) == range(17, 20)
    assert policy.extent(range(511, 512), nothing) == range(511, 512)
