"""Figures as OpenMetrics: one pure function, and the listener that answers with it."""

from contextlib import AsyncExitStack
from typing import Any

import pytest
import trio
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from trio.testing import open_stream_to_socket_listener

from attachfs.config import settings
from attachfs.errors import UsageError
from attachfs.mount.metrics import _CONNECTIONS, exposition, serve_metrics
from attachfs.service.messages import Counters


def stats(**more: Any) -> dict[str, Any]:
    return {
        "mountpoint": '/m "ü"\n',
        "pid": 7,
        "version": "1",
        "open_files": 3,
        "verified_bytes": 10,
        "requests": {"requests": {}, "unreachable_since": None},
        "memory": {},
        "cache": {},
        **more,
    }


def values(*mounts: dict[str, Any], now: float = 1000) -> dict[tuple[str, str], float]:
    """Return every sample by its name and its labels but the mount point."""
    found = {}
    text = exposition(mounts, now).decode()
    for family in text_string_to_metric_families(text):  # type: ignore[no-untyped-call]
        for sample in family.samples:
            labels = ",".join(v for k, v in sorted(sample.labels.items()) if k != "mountpoint")
            found[sample.name, labels] = sample.value
    return found


def test_requests_are_counted_by_kind_and_status_with_a_histogram() -> None:
    counters = Counters(requests=4, errors=1, bytes=99)
    for status, took in ((200, 0.004), (200, 0.2), (404, 99)):
        counters.answered(status, took)
    found = values(stats(requests={"requests": {"info": vars(counters)}, "unreachable_since": None}))
    assert found["attachfs_requests_total", "info,200"] == 2
    assert found["attachfs_requests_total", "info,404"] == 1
    assert found["attachfs_requests_failed_total", "info"] == 1
    assert found["attachfs_received_bytes_total", "info"] == 99
    assert found["attachfs_request_duration_seconds_bucket", "info,0.005"] == 1
    assert found["attachfs_request_duration_seconds_bucket", "info,0.25"] == 2
    assert found["attachfs_request_duration_seconds_bucket", "info,+Inf"] == 3
    assert found["attachfs_request_duration_seconds_count", "info"] == 3


def test_a_shared_cache_has_its_errors_apart_from_its_misses() -> None:
    shared = {"hits": 5, "misses": 2, "bytes": 70, "uploaded": 1, "off": True, "errors": {"wrong": 3}}
    found = values(stats(shared_cache=shared))
    assert found["attachfs_shared_cache_hits_total", ""] == 5
    assert found["attachfs_shared_cache_misses_total", ""] == 2
    assert found["attachfs_shared_cache_errors_total", "wrong"] == 3
    assert found["attachfs_shared_cache_used", ""] == 0
    assert ("attachfs_shared_cache_used", "") not in values(stats(shared_cache=None))


def test_an_outage_is_told_with_its_length() -> None:
    found = values(stats(requests={"requests": {}, "unreachable_since": 400}))
    assert found["attachfs_ledger_reachable", ""] == 0
    assert found["attachfs_ledger_unreachable_seconds", ""] == 600


def test_a_mount_that_does_not_answer_is_down_and_says_no_more() -> None:
    assert values({"mountpoint": "/m"}) == {("attachfs_up", ""): 0}


def test_what_a_mount_does_not_have_is_left_out() -> None:
    found = values(stats(requests={}, errors={"mismatch": 2}))
    assert found["attachfs_refused_total", "mismatch"] == 2
    assert not any(name.startswith(("attachfs_ledger", "attachfs_cache")) for name, _ in found)


@pytest.mark.parametrize(
    ("text", "address"),
    [("9464", "127.0.0.1:9464"), ("0.0.0.0:9464", "0.0.0.0:9464"), ("[::1]:80", "[::1]:80")],
)
def test_the_address_is_this_machines_own_unless_said_otherwise(text: str, address: str) -> None:
    assert settings.load({"metrics": text}, {}, {}).metrics == address


@pytest.mark.parametrize("text", ["", "x", "0", "65536", ":9464", "::1:9464", "host:", "-1"])
def test_an_address_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        settings.load({"metrics": text}, {}, {})


async def test_whoever_connects_and_says_nothing_takes_few_descriptors() -> None:
    """A connection too many is closed at once, and those in time are answered."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
        nursery.start_soon(serve_metrics, listeners, stats)
        streams = [
            await stack.enter_async_context(await open_stream_to_socket_listener(listeners[0]))
            for _ in range(_CONNECTIONS + 4)
        ]
        with trio.fail_after(2):
            for stream in streams[_CONNECTIONS:]:
                assert await stream.receive_some() == b""
            await streams[0].send_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await streams[0].receive_some()).startswith(b"HTTP/1.1 200 OK\r\n")
        nursery.cancel_scope.cancel()
