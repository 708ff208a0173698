"""What was measured, what it is to be compared with, and the table. Measures nothing but the machine.

Every amount is one of which less is better: seconds, CPU seconds, MiB.
"""

import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

ATTACHFS = "attachfs"
TIMES = "\u00d7"
ROUND_TRIPS = f"directories {TIMES} 50 ms"
ABSOLUTE = ""  # a goal that compares with nothing


class Row(NamedTuple):
    """A piece of work: its name, what it is, and the unit of its amounts."""

    name: str
    title: str
    unit: str = "s"


class Goal(NamedTuple):
    """What attachfs is to reach in a row.

    With `at_least`, it is `bound` times as fast as the rival; without, it takes at most `bound` times what
    the rival takes, or at most `bound` where there is no rival.
    """

    row: str
    rival: str
    bound: float
    at_least: bool = False


ROWS = (
    Row("copy", f"cp -r of 500 {TIMES} 64 KiB, cold, 50 ms"),
    Row("copy-cpu", "CPU of the mount for that cp -r", "CPU s"),
    Row("list", "ls -l of those 500, cold, 50 ms"),
    Row("list-cpu", "CPU of the mount for that ls -l", "CPU s"),
    Row("find", f"find over 1,000 assets {TIMES} 2 events, cold, 50 ms"),
    Row("find-cpu", "CPU of the mount for that find", "CPU s"),
    Row("small", f"cp -r of 10,000 {TIMES} 4 KiB, cold, 50 ms"),
    Row("small-cpu", "CPU of the mount for that cp -r", "CPU s"),
    Row("cold", "1 GiB, cold, no delay, verified"),
    Row("again", "1 GiB again (page cache)"),
    Row("dropped", "1 GiB after the page cache was dropped"),
    Row("first", "first byte of 1 GiB, cold, 50 ms, streamed"),
    Row("stat", "stat of a known file, lookup included"),
    Row("getxattr", "getxattr of a known file, lookup included"),
    Row("parallel", "16 cached 64 MiB blobs, 16 readers"),
    Row("idle", "memory, idle", "MiB"),
    Row("memory", "memory, at most, 1 GiB cold", "MiB"),
    Row("crowd", "memory, at most, ls of 100,000 assets", "MiB"),
    Row("cpu", "CPU for 1 GiB, cold, verified", "CPU s"),
    Row("mount", "mount to the first answered stat"),
)

GOALS = (
    Goal("copy", "rclone", 12, at_least=True),
    Goal("copy", "32 connections", 2),
    Goal("copy-cpu", "32 connections", 6),
    Goal("list", "rclone", 3, at_least=True),
    Goal("list", "32 connections", 1.5),
    Goal("find", ROUND_TRIPS, 1 / 25),
    Goal("cold", "rclone", 1.3, at_least=True),
    Goal("cold", "curl", 0.65, at_least=True),
    Goal("again", "local file", 0.5, at_least=True),
    Goal("again", "rclone", 5, at_least=True),
    Goal("dropped", "rclone", 1.3, at_least=True),
    Goal("first", "round trip", 4),
    Goal("stat", "do-nothing", 0.7, at_least=True),
    Goal("getxattr", "do-nothing", 0.7, at_least=True),
    Goal("parallel", "one reader", 0.9, at_least=True),
    Goal("idle", ABSOLUTE, 60),
    Goal("memory", ABSOLUTE, 120),
    Goal("crowd", ABSOLUTE, 200),
    Goal("cpu", "curl + sha256sum", 1.5),
    Goal("mount", ABSOLUTE, 0.8),
    Goal("mount", "do-nothing", 2),
)


class Verdict(NamedTuple):
    """A goal and what came of it. `ratio` is None if one of the two was not measured."""

    goal: Goal
    ratio: float | None

    @property
    def met(self) -> bool | None:
        """Whether it was reached; None if it was not measured."""
        if self.ratio is None:
            return None
        return self.ratio >= self.goal.bound if self.goal.at_least else self.ratio <= self.goal.bound


@dataclass
class Series:
    """One contender in one row: an amount for each run, and what it cost besides."""

    amounts: list[float] = field(default_factory=list)
    requests: list[int] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The middle amount."""
        return statistics.median(self.amounts)

    @property
    def best(self) -> float:
        """The least amount."""
        return min(self.amounts)


def loop_ms() -> float:
    """Return the milliseconds that this machine takes for a fixed loop: its speed just now."""
    began = time.perf_counter()
    total = 0
    for number in range(1_000_000):
        total += number & 7
    assert total
    return (time.perf_counter() - began) * 1000


class Results:
    """Amounts by row and contender, in the order in which they came."""

    def __init__(self) -> None:
        self.series: dict[str, dict[str, Series]] = {}
        self.notes: list[str] = []
        self.loops: dict[str, list[float]] = {}  # ms of a fixed loop beside each piece of work, by row

    def add(self, row: str, contender: str, amount: float, requests: int | None = None) -> None:
        """Note one run."""
        series = self.series.setdefault(row, {}).setdefault(contender, Series())
        series.amounts.append(amount)
        if requests is not None:
            series.requests.append(requests)

    def note(self, text: str) -> None:
        """Note something a reader of the table should know, once."""
        if text not in self.notes:
            self.notes.append(text)

    def load(self, saved: Mapping[str, Any]) -> None:
        """Take what `as_json` returned."""
        for row, series in saved["rows"].items():
            for contender, one in series.items():
                self.series.setdefault(row, {})[contender] = Series(one["runs"], one["requests"])
        self.notes += saved["notes"]
        self.loops |= saved.get("loop_ms", {})

    def verdicts(self, *, best: bool = False) -> list[Verdict]:
        """Return every goal whose row was measured, by medians or by the best of each."""
        return [
            Verdict(goal, _ratio(self.series[goal.row], goal, best=best))
            for goal in GOALS
            if goal.row in self.series
        ]

    def as_json(self, about: Mapping[str, Any]) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        by_best = self.verdicts(best=True)
        return {
            **about,
            "rows": {
                row: {
                    contender: {
                        "median": one.median,
                        "best": one.best,
                        "runs": one.amounts,
                        "requests": one.requests,
                    }
                    for contender, one in series.items()
                }
                for row, series in self.series.items()
            },
            "goals": [
                {**verdict.goal._asdict(), "ratio": verdict.ratio, "best": best.ratio, "met": verdict.met}
                for verdict, best in zip(self.verdicts(), by_best, strict=True)
            ],
            "notes": self.notes,
            "loop_ms": self.loops,
        }


def _ratio(series: Mapping[str, Series], goal: Goal, *, best: bool) -> float | None:
    ours, rival = series.get(ATTACHFS), series.get(goal.rival)
    if ours is None or (rival is None and goal.rival != ABSOLUTE):
        return None
    mine = ours.best if best else ours.median
    if rival is None:
        return mine
    other = rival.best if best else rival.median
    return other / mine if goal.at_least else mine / other


# -- text ----------------------------------------------------------------------------------------------


def amount(value: float, unit: str) -> str:
    """Return an amount as people write it."""
    if unit != "s":
        return f"{value:.0f} {unit}" if value >= 10 else f"{value:.2f} {unit}"
    for scale, name in ((1, "s"), (1e-3, "ms")):
        if value >= scale:
            return f"{value / scale:.3g} {name}"
    return f"{value * 1e6:.3g} µs"


def factor(value: float, unit: str = TIMES) -> str:
    """Return a ratio, or an absolute goal's amount, in three digits."""
    return f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"


def goal_text(goal: Goal) -> str:
    """Return what is to be reached."""
    bound = f"1/25 {TIMES}" if goal.bound == 1 / 25 else factor(goal.bound)
    if goal.rival == ABSOLUTE:
        return f"at most {factor(goal.bound, _unit(goal.row))}"
    return f"at least {bound} {goal.rival}" if goal.at_least else f"at most {bound} {goal.rival}"


def _unit(row: str) -> str:
    return next(one.unit for one in ROWS if one.name == row)


def table(results: Results) -> str:
    """Return the rows with every contender's median, then the goals with what came of them."""
    lines = [["work", "contender", "median", "best", "runs", "requests", "machine"]]
    for row in ROWS:
        for index, (contender, one) in enumerate(results.series.get(row.name, {}).items()):
            requests = f"{statistics.median(one.requests):.0f}" if one.requests else ""
            cells = [amount(one.median, row.unit), amount(one.best, row.unit), str(len(one.amounts))]
            loops = results.loops.get(row.name) if index == 0 else None
            speed = f"{statistics.median(loops):.0f} ms" if loops else ""
            lines.append([row.title if index == 0 else "", contender, *cells, requests, speed])
    goals = [["work", "goal", "median", "best", ""]]
    titles = {row.name: row.title for row in ROWS}
    for verdict, best in zip(results.verdicts(), results.verdicts(best=True), strict=True):
        unit = TIMES if verdict.goal.rival else _unit(verdict.goal.row)
        reached = [factor(one.ratio, unit) if one.ratio is not None else "-" for one in (verdict, best)]
        word = {True: "met", False: "MISSED", None: "not measured"}[verdict.met]
        goals.append([titles[verdict.goal.row], goal_text(verdict.goal), *reached, word])
    notes = [f"* {note}" for note in results.notes]
    return "\n".join([*columns(lines), "", *columns(goals), *([""] if notes else []), *notes])


def columns(lines: Sequence[Sequence[str]]) -> Iterable[str]:
    """Return lines of cells as lines of text, the first underlined."""
    widths = [max(len(line[index]) for line in lines) for index in range(len(lines[0]))]
    for number, line in enumerate(lines):
        yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        if number == 0:
            yield "  ".join("-" * width for width in widths)
