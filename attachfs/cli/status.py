"""`attachfs status`: the figures of running mounts, as they tell them themselves; once, or live."""

import contextlib
import io
import json
import select
import sys
import termios
import tty
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from attachfs.cli import arguments, output
from attachfs.errors import UsageError
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
    told = [(mount, *_ask(mount)) for mount in _chosen(point)]
    if openmetrics:
        from attachfs.mount.metrics import exposition

        text = exposition({"mountpoint": str(mount.point), **figures} for mount, _, figures in told)
        output.say(text.decode().rstrip("\n"))
    elif as_json:
        for mount, state, figures in told:
            about = {"mountpoint": str(mount.point), "source": mount.source, "state": state.value}
            output.say_json(about | figures)
    else:
        piped = None if sys.stdout.isatty() else io.StringIO()
        console = Console(highlight=False, file=piped, width=None if piped is None else _WIDTH)
        for number, (mount, state, figures) in enumerate(told):
            if number:
                console.print()
            console.print(picture(mount, state, figures))
        if piped is not None and told:
            output.say("\n".join(line.rstrip() for line in piped.getvalue().splitlines()))
    if not told and not openmetrics:
        output.note("no attachfs mount is running here")
    return output.DIFFERS if any(state is not State.ALIVE for _, state, _ in told) else output.OK


def _chosen(point: Path | None) -> list[Mount]:
    if point is None:
        return unmount.ours()
    there = mount_above(point)
    if there is None or not there.is_ours:
        raise UsageError(f"{point} is not on an attachfs mount")
    return [whole(there)]


def _ask(mount: Mount) -> tuple[State, dict[str, Any]]:
    state, said = probe.ask(mount.point)
    try:
        figures = json.loads(said)
    except ValueError:
        return state, {}
    return state, figures if isinstance(figures, dict) else {}


def _watch(point: Path | None) -> int:
    with (
        _keys() as keys,
        contextlib.suppress(KeyboardInterrupt),
        Live(auto_refresh=False, screen=True) as live,
    ):
        while True:
            pictures: list[RenderableType] = []
            for mount in _chosen(point):
                pictures += [picture(mount, *_ask(mount)), ""]
            pictures.append(
                Text("q ends this" if pictures else "no attachfs mount is running here; q ends this")
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


def picture(mount: Mount, state: State, figures: dict[str, Any]) -> RenderableType:
    """Return a mount's figures, to be printed."""
    title = Text.assemble((printable(mount.point), "bold"), "  ", printable(mount.source))
    if state is not State.ALIVE:
        remedy = f"attachfs umount {'--lazy ' if state is State.HUNG else ''}{mount.point}"
        what = "its process is gone" if state is State.DEAD else "it does not answer"
        return Group(title, Text(f"  {what}; clear it with: {printable(remedy)}", "red"))
    if not figures:
        return Group(title, Text("  another user's, who alone can see its figures"))
    parts: list[RenderableType] = [title, _facts(figures), _requests(figures)]
    if figures.get("last_errors"):
        parts.append(_errors(figures["last_errors"]))
    return Group(*parts)


def _facts(figures: dict[str, Any]) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    colour, health = _health(figures)
    cache = figures.get("cache", {})
    requests = _kinds(figures)
    opened, hits = figures.get("opened", 0), figures.get("cache_hits", 0)
    rate = f", {100 * hits // opened} % from the cache" if opened else ""
    blobs = requests.get("blob", {})
    room = f"{format_size(cache.get('used_bytes', 0))} of {format_size(cache.get('max_bytes', 0))}"
    rows: list[tuple[str, str, str]] = [
        (
            "up",
            f"{_span(figures.get('uptime_s', 0))}, process {figures.get('pid')}, {figures.get('version')}",
            "",
        ),
        ("account", str(figures.get("credentials", "")), ""),
        ("server", f"{figures.get('url')}: {health}", colour),
        (
            "open",
            (
                f"{output.count(figures.get('open_files', 0), 'file')}, "
                f"{output.count(figures.get('open_directories', 0), 'directory')}, "
                f"{output.count(figures.get('inodes', 0), 'inode')}"
            ),
            "",
        ),
        ("opened", f"{output.count(opened, 'file')}{rate}", ""),
        (
            "downloads",
            (
                f"{figures.get('downloading', 0)} under way, {format_size(int(blobs.get('bytes', 0)))} "
                f"in all, {format_size(figures.get('verified_bytes', 0))} verified"
            ),
            "",
        ),
        (
            "cache",
            (
                f"{room} in {output.count(cache.get('blobs', 0), 'blob')}, {cache.get('evicted', 0)} evicted"
                f"{'' if cache.get('writable', True) else ', NOT WRITABLE'}"
            ),
            "",
        ),
    ]
    shared = figures.get("shared_cache")
    if shared:
        off = shared.get("off")
        words = (
            f"{shared.get('store')}: {shared.get('hits', 0):,} hits, {shared.get('misses', 0):,} misses, "
            f"{sum(shared.get('errors', {}).values()):,} errors, {format_size(shared.get('bytes', 0))} saved"
        )
        rows.append(("shared cache", words + (", NOT USED at present" if off else ""), "red" if off else ""))
    memory = figures.get("memory", {})
    if memory.get("answers"):
        ages = f"{_span(memory['newest_s'])} to {_span(memory['oldest_s'])} old"
        rows.append(("kept for --offline", f"{output.count(memory['answers'], 'answer')}, {ages}", ""))
    of_a_service = {"account", "downloads", "cache"} if figures.get("archive") else set()
    for name, value, style in (row for row in rows if row[0] not in of_a_service):
        table.add_row(Text(name), Text(printable(value), style))
    return table


def _health(figures: dict[str, Any]) -> tuple[str, str]:
    requests = figures.get("requests", {})
    if figures.get("archive"):
        return "green", "an archive, nobody is asked"
    if figures.get("offline"):
        return "yellow", "offline, not asked"
    if requests.get("unreachable_since") is not None:
        since = output.moment(requests["unreachable_since"])
        return "red", f"out of reach since {since} ({requests.get('unreachable_reason')})"
    if requests.get("rate_limited_for_s"):
        return "yellow", f"limits the rate, asked again in {requests['rate_limited_for_s']} s"
    if figures.get("stale"):
        return "yellow", _silence(figures.get("outage", {}))
    return "green", "answers"


def _silence(outage: dict[str, Any]) -> str:
    """Return since when the service has not answered, and how old is what is served meanwhile."""
    if outage.get("since") is None:
        return "does not answer: stale metadata is served"
    oldest = _span(outage["oldest_s"])
    return f"silent since {output.moment(outage['since'])}: metadata up to {oldest} old is served"


def _kinds(figures: dict[str, Any]) -> dict[str, dict[str, float]]:
    kinds = figures.get("requests", {}).get("requests", {})
    return kinds if isinstance(kinds, dict) else {}


def _requests(figures: dict[str, Any]) -> RenderableType:
    kinds = _kinds(figures)
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
    for one in errors:
        path, reason = one["path"], one["reason"]
        where = "" if path and path in reason else f" {path}"  # most reasons begin with it
        reason = f"{one['operation']}{where}: {reason}"
        table.add_row(output.moment(one["time"]), Text(printable(reason)))
    return table


def _span(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


@click.command("status")
@click.argument("mountpoint", required=False, type=arguments.MountPoint())
@arguments.as_json
@click.option("--watch", is_flag=True, help="Show them live, until q or Ctrl-C.")
@click.option("--openmetrics", is_flag=True, help="Print them as OpenMetrics, for Prometheus.")
def command(mountpoint: Path | None, as_json: bool, watch: bool, openmetrics: bool) -> None:
    """Show the figures of the mount at MOUNTPOINT, or of all running mounts."""
    sys.exit(run(mountpoint, as_json=as_json, watch=watch, openmetrics=openmetrics))
