"""A mount's figures as OpenMetrics: one function from figures to text, and a listener that answers with it.

`attachfs status --openmetrics` prints the same for node_exporter's textfile collector. What the names mean,
and rules for alerts, are in docs/metrics.md.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import trio
from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST, generate_latest

from attachfs.errors import UsageError
from attachfs.service.messages import LATENCY_BOUNDS

log = logging.getLogger(__name__)

CONTENT_TYPE = CONTENT_TYPE_LATEST
_HEAD_BYTES = 8192
_HEAD_WITHIN = 5.0  # seconds
_CONNECTIONS = 16

Stats = Mapping[str, Any]


class _Family(Protocol):
    def add_metric(self, labels: list[str], value: float) -> None: ...


def exposition(mounts: Iterable[Stats], now: float | None = None) -> bytes:
    """Return figures of mounts, as `StatusReport` makes them, in the OpenMetrics text format.

    Args:
        mounts: the figures of each; one that does not answer has a `mountpoint` and nothing else.
        now: seconds since 1970.
    """
    registry = CollectorRegistry()
    registry.register(_Collector(list(mounts), time.time() if now is None else now))
    text: bytes = generate_latest(registry)  # type: ignore[no-untyped-call]
    return text


class _Collector:
    """Turns figures into families of metrics; see prometheus_client's custom collectors."""

    def __init__(self, mounts: list[Stats], now: float) -> None:
        self._mounts = mounts
        self._now = now

    def describe(self) -> list[Metric]:
        """Name nothing in advance."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield each family with the values of every mount."""
        yield self._gauge("up", "Whether the mount answers.", lambda one: "pid" in one)
        info = InfoMetricFamily("attachfs_mount", "What is mounted, and how.", labels=["mountpoint"])
        for one in self._alive():
            labels = {
                name: str(one[name]) for name in ("url", "version", "verify", "scan_policy") if name in one
            }
            info.add_metric([_point(one)], labels)
        yield info
        yield from self._requests()
        yield from self._refused()
        yield from self._ledger()
        yield from self._cache()
        yield from self._shared_cache()
        yield self._gauge("open_files", "Files that programs have open.", lambda one: one["open_files"])
        yield self._gauge(
            "descriptors_open", "Open file descriptors.", lambda one: one["descriptors"]["open"]
        )
        yield self._gauge(
            "descriptors_limit", "File descriptors that may be open.", lambda one: one["descriptors"]["limit"]
        )
        yield self._gauge("uptime_seconds", "Time since the mount began.", lambda one: one["uptime_s"])

    def _requests(self) -> Iterator[Metric]:
        labels = ["mountpoint", "kind"]
        requests = CounterMetricFamily(
            "attachfs_requests", "Requests that were answered, by HTTP status.", labels=[*labels, "status"]
        )
        failed = CounterMetricFamily(
            "attachfs_requests_failed",
            "Requests that had no answer, or none that can be used.",
            labels=labels,
        )
        received = CounterMetricFamily("attachfs_received_bytes", "Bytes of bodies.", labels=labels)
        latency = HistogramMetricFamily(
            "attachfs_request_duration_seconds", "From sending to the answer's head.", labels=labels
        )
        for one, kinds in ((one, one.get("requests", {}).get("requests", {})) for one in self._alive()):
            for kind, counters in sorted(kinds.items()):
                labelled = [_point(one), kind]
                for status, count in sorted(counters["statuses"].items()):
                    requests.add_metric([*labelled, status], count)
                failed.add_metric(labelled, counters["errors"])
                received.add_metric(labelled, counters["bytes"])
                latency.add_metric(labelled, _cumulated(counters["latencies"]), counters["latency_sum"])
        yield from (requests, failed, received, latency)

    def _refused(self) -> Iterator[Metric]:
        refused = CounterMetricFamily(
            "attachfs_refused",
            "Operations that ended with an error, by reason; a mismatch is evidence that differs.",
            labels=["mountpoint", "reason"],
        )
        for one in self._alive():
            for reason, count in one.get("errors", {}).items():
                refused.add_metric([_point(one), reason], count)
        yield refused
        yield self._counter(
            "verified_bytes", "Downloaded bytes that matched the ledger.", lambda one: one["verified_bytes"]
        )

    def _ledger(self) -> Iterator[Metric]:
        def unreachable(one: Stats) -> float:
            since = one["requests"]["unreachable_since"]
            return 0.0 if since is None else max(0.0, self._now - since)

        yield self._gauge(
            "ledger_reachable",
            "Whether the ledger answers (1) or its circuit is open (0).",
            lambda one: one["requests"]["unreachable_since"] is None,
        )
        yield self._gauge("ledger_unreachable_seconds", "For how long it has not answered.", unreachable)
        yield self._gauge(
            "newest_answer_age_seconds",
            "Age of the newest stored answer.",
            lambda one: one["memory"]["newest_s"],
        )
        yield self._gauge(
            "oldest_answer_age_seconds",
            "Age of the oldest answer that is kept.",
            lambda one: one["memory"]["oldest_s"],
        )

    def _cache(self) -> Iterator[Metric]:
        for name, text, key in (
            ("cache_size_bytes", "What the cache may take.", "max_bytes"),
            ("cache_used_bytes", "What it takes.", "used_bytes"),
            ("cache_blobs", "Verified blobs in it.", "blobs"),
            ("cache_quarantine_bytes", "Bytes kept aside because they did not match.", "quarantine_bytes"),
            ("cache_writable", "Whether it can be written.", "writable"),
        ):
            yield self._gauge(name, text, lambda one, key=key: one["cache"][key])
        for name, text, key in (
            ("cache_hits", "Opens that found their bytes in the cache.", "hits"),
            ("cache_misses", "Opens that did not.", "misses"),
            ("cache_evicted", "Blobs that made room for others.", "evicted"),
            ("cache_mismatched", "Cached blobs that were found changed.", "mismatched"),
            ("cache_spills", "Files read through a temporary file for want of room.", "spills"),
        ):
            yield self._counter(name, text, lambda one, key=key: one["cache"][key])

    def _shared_cache(self) -> Iterator[Metric]:
        errors = CounterMetricFamily(
            "attachfs_shared_cache_errors",
            "Times that the shared cache could not be used, by kind; wrong: its bytes differed.",
            labels=["mountpoint", "kind"],
        )
        for one in self._alive():
            for kind, count in ((one.get("shared_cache") or {}).get("errors") or {}).items():
                errors.add_metric([_point(one), kind], count)
        yield errors
        for name, text, key in (
            ("hits", "Blobs that came from the shared cache.", "hits"),
            ("misses", "Blobs that it did not have.", "misses"),
            ("received_bytes", "Bytes of blobs that came from it.", "bytes"),
            ("uploaded", "Blobs that this mount added to it.", "uploaded"),
        ):
            yield self._counter(
                f"shared_cache_{name}", text, lambda one, key=key: (one.get("shared_cache") or {})[key]
            )
        yield self._gauge(
            "shared_cache_used",
            "Whether the shared cache is used (1), or left out after failures (0).",
            lambda one: not (one.get("shared_cache") or {})["off"],
        )

    # -- families with one value a mount -----------------------------------------------------------

    def _gauge(self, name: str, text: str, value: Callable[..., float | None]) -> Metric:
        family = GaugeMetricFamily(f"attachfs_{name}", text, labels=["mountpoint"])
        self._fill(family, self._mounts if name == "up" else self._alive(), value)
        return family

    def _counter(self, name: str, text: str, value: Callable[..., float | None]) -> Metric:
        family = CounterMetricFamily(f"attachfs_{name}", text, labels=["mountpoint"])
        self._fill(family, self._alive(), value)
        return family

    @staticmethod
    def _fill(family: _Family, mounts: Iterable[Stats], value: Callable[..., float | None]) -> None:
        for one in mounts:
            try:
                found = value(one)
            except KeyError:
                continue  # an archive has no requests; a part may be missing
            if found is not None:
                family.add_metric([_point(one)], float(found))

    def _alive(self) -> Iterator[Stats]:
        return (one for one in self._mounts if "pid" in one)


def _point(one: Stats) -> str:
    return str(one["mountpoint"])


def _cumulated(counts: list[int]) -> list[tuple[str, float]]:
    total, buckets = 0, []
    for bound, count in zip([*map(str, LATENCY_BOUNDS), "+Inf"], counts, strict=True):
        total += count
        buckets.append((bound, float(total)))
    return buckets


# -- the listener --------------------------------------------------------------------------------------


async def listen(address: str) -> list[trio.SocketListener]:
    """Return listeners on an address, HOST:PORT.

    Raises:
        UsageError: it is taken, or none of this machine.
    """
    host, _, port = address.rpartition(":")
    try:
        return list(await trio.open_tcp_listeners(int(port), host=host.strip("[]")))
    except OSError as error:
        raise UsageError(f"--metrics: cannot listen on {address}: {error.strerror or error}") from error


async def serve_metrics(listeners: list[trio.SocketListener], stats: Callable[[], Stats]) -> None:
    """Answer GET /metrics, for as long as this runs.

    Args:
        listeners: from `listen`.
        stats: returns the mount's figures.
    """
    connections = trio.CapacityLimiter(_CONNECTIONS)

    async def answer(stream: trio.SocketStream) -> None:
        async with stream:
            try:
                connections.acquire_nowait()
            except trio.WouldBlock:
                return  # one that waited would hold a descriptor that a file needs
            try:
                with trio.move_on_after(_HEAD_WITHIN):
                    await stream.send_all(_response(await _request_line(stream), stats))
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return  # whoever asked has gone
            except Exception:  # a statistic ends nothing
                log.exception("the metrics could not be made")
            finally:
                connections.release()

    await trio.serve_listeners(answer, listeners)


async def _request_line(stream: trio.SocketStream) -> bytes:
    head = b""
    while b"\r\n\r\n" not in head:
        more = await stream.receive_some(4096)
        head += more
        if not more or len(head) > _HEAD_BYTES:
            return b""
    return head.partition(b"\r\n")[0]


def _response(line: bytes, stats: Callable[[], Stats]) -> bytes:
    method, _, rest = line.partition(b" ")
    path = rest.partition(b" ")[0].partition(b"?")[0]
    status, kind, body = "200 OK", CONTENT_TYPE, b""
    if method not in (b"GET", b"HEAD"):
        status, kind, body = "405 Method Not Allowed", "text/plain", b"GET /metrics\n"
    elif path != b"/metrics":
        status, kind, body = "404 Not Found", "text/plain", b"the metrics are at /metrics\n"
    else:
        body = exposition([stats()])
    lines = (
        f"HTTP/1.1 {status}",
        f"Content-Type: {kind}",
        f"Content-Length: {len(body)}",
        "Connection: close",
    )
    return "\r\n".join((*lines, "", "")).encode() + (b"" if method == b"HEAD" else body)
