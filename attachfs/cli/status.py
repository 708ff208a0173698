"""`attachfs status`: the figures of running mounts, as they tell them themselves; once, or live."""

import contextlib
import io
import json
import select
import sys
import termios
import tty
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from attachfs.cli import arguments, output
from attachfs.errors import UsageError, names_path
from attachfs.mount import probe, unmount
from attachfs.mount.mountinfo import Mount, mount_above, whole
from attachfs.mount.probe import State
from attachfs.text import printable
from attachfs.units import format_size

_EVERY = 1.0  # seconds between two looks with --watch
_KINDS = ("assets", "asset", "events", "event", "info", "blob")
_WIDTH = 10_000  # columns; what is piped into another program is not folded


def run(point: Path | None, *, as_json: bool = False, watch: bool = False, openmetrics: bool = False) -> int:
    """Print the figures of the mount at or above `point`, or of all; return the exit code.

    Raises:
        UsageError: `point` is not on a mount, or there is no terminal to watch it in.
    """
    if watch:
        if as_json or not (sys.stdin.isatty() and sys.stdout.isatty()):
            raise UsageError("--watch needs a terminal, and no --json")
        return _watch(point)
    answers = [(mount, *_query(mount)) for mount in _chosen(point)]
    if openmetrics:
        from attachfs.mount.metrics import exposition

        text = exposition({"mountpoint": str(mount.point), **stats} for mount, _, stats in answers)
        output.say(text.decode().rstrip("\n"))
    elif as_json:
        for mount, state, stats in answers:
            about = {"mountpoint": str(mount.point), "source": mount.source, "state": state.value}
            output.say_json(about | stats)
    else:
        piped = None if sys.stdout.isatty() else io.StringIO()
        console = Console(highlight=False, file=piped, width=None if piped is None else _WIDTH)
        for number, (mount, state, stats) in enumerate(answers):
            if number:
                console.print()
            console.print(picture(mount, state, stats))
        if piped is not None and answers:
            output.say("\n".join(line.rstrip() for line in piped.getvalue().splitlines()))
    if not answers and not openmetrics:
        output.note("no attachfs mount is running here")
    return output.DIFFERS if any(state is not State.ALIVE for _, state, _ in answers) else output.OK


def _chosen(point: Path | None) -> list[Mount]:
    if point is None:
        return unmount.ours()
    there = mount_above(point)
    if there is None or not there.is_ours:
        raise UsageError(f"{point} is not on an attachfs mount")
    return [whole(there)]


def _query(mount: Mount) -> tuple[State, dict[str, Any]]:
    state, said = probe.probe(mount.point)
    try:
        stats = json.loads(said)
    except ValueError:
        return state, {}
    return state, stats if isinstance(stats, dict) else {}


def _watch(point: Path | None) -> int:
    with (
        _keys() as keys,
        contextlib.suppress(KeyboardInterrupt),
        Live(auto_refresh=False, screen=True) as live,
    ):
        while True:
            pictures: list[RenderableType] = []
            for mount in _chosen(point):
                pictures += [picture(mount, *_query(mount)), ""]
            pictures.append(
                Text("press q to quit" if pictures else "no attachfs mount is running here; press q to quit")
            )
            live.update(Group(*pictures), refresh=True)
            if select.select([keys], [], [], _EVERY)[0] and keys.read(1) in ("q", "Q", ""):
                return output.OK
    return output.OK


@contextlib.contextmanager
def _keys() -> Iterator[Any]:
    """Let standard input give each key as it is pressed."""
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield sys.stdin
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def picture(mount: Mount, state: State, stats: dict[str, Any]) -> RenderableType:
    """Return a mount's figures, to be printed."""
    title = Text.assemble((printable(mount.point), "bold"), "  ", printable(mount.source))
    if state is not State.ALIVE:
        remedy = f"attachfs umount {'--lazy ' if state is State.HUNG else ''}{mount.point}"
        what = "its process is gone" if state is State.DEAD else "it does not answer"
        return Group(title, Text(f"  {what}; clear it with: {printable(remedy)}", "red"))
    if not stats:
        return Group(title, Text("  another user's: only that user can see its status"))
    parts: list[RenderableType] = [title, _facts(stats), _requests(stats)]
    if stats.get("last_errors"):
        parts.append(_errors(stats["last_errors"]))
    return Group(*parts)


def _facts(stats: dict[str, Any]) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    colour, health = _health(stats)
    cache = stats.get("cache", {})
    requests = _kinds(stats)
    opened, hits = stats.get("opened", 0), stats.get("cache_hits", 0)
    rate = f", {100 * hits // opened} % from the cache" if opened else ""
    blobs = requests.get("blob", {})
    usage = f"{format_size(cache.get('used_bytes', 0))} of {format_size(cache.get('max_bytes', 0))}"
    rows: list[tuple[str, str, str]] = [
        (
            "up",
            f"{_span(stats.get('uptime_s', 0))}, process {stats.get('pid')}, {stats.get('version')}",
            "",
        ),
        ("account", str(stats.get("credentials", "")), ""),
        ("server", f"{stats.get('url')}: {health}", colour),
        (
            "open",
            (
                f"{output.count(stats.get('open_files', 0), 'file')}, "
                f"{output.count(stats.get('open_directories', 0), 'directory')}, "
                f"{output.count(stats.get('inodes', 0), 'inode')}"
            ),
            "",
        ),
        ("opened", f"{output.count(opened, 'file')}{rate}", ""),
        (
            "downloads",
            (
                f"{stats.get('downloading', 0)} under way, {format_size(int(blobs.get('bytes', 0)))} "
                f"in all, {format_size(stats.get('verified_bytes', 0))} verified"
            ),
            "",
        ),
        (
            "cache",
            (
                f"{usage} in {output.count(cache.get('blobs', 0), 'blob')}, {cache.get('evicted', 0)} evicted"
                f"{'' if cache.get('writable', True) else ', NOT WRITABLE'}"
            ),
            "",
        ),
    ]
    shared = stats.get("shared_cache")
    if shared:
        off = shared.get("off")
        words = (
            f"{shared.get('store')}: {shared.get('hits', 0):,} hits, {shared.get('misses', 0):,} misses, "
            f"{sum(shared.get('errors', {}).values()):,} errors, {format_size(shared.get('bytes', 0))} saved"
        )
        rows.append(("shared cache", words + (", NOT USED at present" if off else ""), "red" if off else ""))
    custody = stats.get("custody")
    if custody:
        words = (
            f"{custody['path']}: {output.count(custody['lines'], 'line')}, the last {custody['last_hash']}"
        )
        if custody["error"]:
            then = "opens go on without it" if custody["optional"] else "files do not open"
            words += f"; CANNOT BE WRITTEN ({custody['error']}): {then}"
        rows.append(("custody log", words, "red" if custody["error"] else ""))
    memory = stats.get("memory", {})
    if memory.get("answers"):
        ages = f"{_span(memory['newest_s'])} to {_span(memory['oldest_s'])} old"
        rows.append(("kept for --offline", f"{output.count(memory['answers'], 'answer')}, {ages}", ""))
    of_a_service = {"account", "downloads", "cache"} if stats.get("archive") else set()
    for name, value, style in (row for row in rows if row[0] not in of_a_service):
        table.add_row(Text(name), Text(printable(value), style))
    return table


def _health(stats: dict[str, Any]) -> tuple[str, str]:
    requests = stats.get("requests", {})
    if stats.get("archive"):
        return "green", "an archive; no requests are made"
    if stats.get("offline"):
        return "yellow", "offline; no requests are made"
    if requests.get("unreachable_since") is not None:
        since = output.moment(requests["unreachable_since"])
        return "red", f"out of reach since {since} ({requests.get('unreachable_reason')})"
    if requests.get("rate_limited_for_s"):
        return "yellow", f"limits the rate; next request in {requests['rate_limited_for_s']} s"
    if stats.get("stale"):
        return "yellow", _silence(stats.get("outage", {}))
    return "green", "answers"


def _silence(outage: dict[str, Any]) -> str:
    """Return since when the service has not answered, and how old is what is served meanwhile."""
    if outage.get("since") is None:
        return "does not answer: stale metadata is served"
    oldest = _span(outage["oldest_s"])
    return f"silent since {output.moment(outage['since'])}: metadata up to {oldest} old is served"


def _kinds(stats: dict[str, Any]) -> dict[str, dict[str, float]]:
    kinds = stats.get("requests", {}).get("requests", {})
    return kinds if isinstance(kinds, dict) else {}


def _requests(stats: dict[str, Any]) -> RenderableType:
    kinds = _kinds(stats)
    if not kinds:
        return Text("no requests yet", "dim")
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("requests")
    for name in ("sent", "now", "again", "failed", "mean ms", "max ms", "bytes"):
        table.add_column(name, justify="right")
    for kind in sorted(kinds, key=lambda kind: (_KINDS.index(kind) if kind in _KINDS else 99, kind)):
        one = kinds[kind]
        mean = 1000 * one["latency_sum"] / one["requests"] if one["requests"] else 0
        cells = (
            f"{one['requests']:,.0f}",
            f"{one['in_flight']:.0f}",
            f"{one['retries']:,.0f}",
            f"{one['errors']:,.0f}",
            f"{mean:.0f}",
            f"{1000 * one['latency_max']:.0f}",
            format_size(int(one["bytes"])),
        )
        table.add_row(Text(printable(kind)), *cells)
    return table


def _errors(errors: list[dict[str, Any]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("last errors", no_wrap=True)
    table.add_column("", overflow="fold")
    latest: dict[str, float] = {}
    times: Counter[str] = Counter()
    for one in errors:
        path, reason = one["path"], one["reason"]
        where = "" if names_path(reason, path) else f" {path}"
        said = f"{one['operation']}{where}: {reason}"
        times[said] += 1
        latest[said] = max(one["time"], latest.get(said, 0))
    for said, when in latest.items():
        repeats = f" ({times[said]} times)" if times[said] > 1 else ""
        table.add_row(output.moment(when), Text(printable(said) + repeats))
    return table


def _span(seconds: float) -> str:
    minutes, remainder = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {remainder} s" if minutes else f"{remainder} s"


@click.command("status")
@click.argument("mountpoint", required=False, type=arguments.MountPoint())
@arguments.as_json
@click.option("--watch", is_flag=True, help="Show it live, until q or Ctrl-C.")
@click.option("--openmetrics", is_flag=True, help="Print it as OpenMetrics, for Prometheus.")
def command(mountpoint: Path | None, as_json: bool, watch: bool, openmetrics: bool) -> None:
    """Show what the mount at MOUNTPOINT is doing, or all running mounts."""
    sys.exit(run(mountpoint, as_json=as_json, watch=watch, openmetrics=openmetrics))
