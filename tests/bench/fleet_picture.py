"""What a simulated fleet showed, as a table and as curves for docs/fleet.md. Pure."""

import math
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

_BEGIN, _END = "<!-- measured -->\n", "<!-- end of measured -->\n"
_WIDTH, _HEIGHT = 920, 330
_LEFT, _TOP, _PANEL, _GAP, _DEEP = 70, 70, 360, 90, 200
_COLOURS = {False: "#a9b4c0", True: "#0b6e4f"}
_LIMITS = {"blobs": "blobs only", "all": "all requests"}


class Row(NamedTuple):
    """What one run showed. The counts are of what was run: `reads` of the `needed`."""

    workstations: int
    shared: bool
    limit: str  # what the service limits: blobs, or all requests
    needed: int  # reads until all workstations have all files
    reads: int
    blobs: int  # that the service sent
    records: int  # that it sent
    refused: int  # requests answered 429
    seconds: float

    @property
    def scale(self) -> float:
        """How many times as much all of it would have been; 1 if all was run."""
        return self.needed / max(1, self.reads)

    @property
    def all_seconds(self) -> float:
        """How long all of it takes."""
        return self.seconds * self.scale

    @property
    def all_blobs(self) -> float:
        """How many blobs the service sends for all of it."""
        return self.blobs * self.scale


def table(rows: Iterable[Row], size: int) -> str:
    """Return a table in Markdown, and under it which rows were computed from a part."""
    lines = [
        "| limited | workstations | shared cache | blobs sent | MiB | records sent | 429s | time for all |",
        "|---|---|---|---|---|---|---|---|",
    ]
    computed = False
    for row in rows:
        about = "" if row.scale == 1 else "≈ "
        computed |= row.scale != 1
        cells = (
            _LIMITS[row.limit],
            f"{row.workstations:,}",
            "yes" if row.shared else "no",
            f"{about}{row.all_blobs:,.0f}",
            f"{about}{row.all_blobs * size / 2**20:,.1f}",
            f"{about}{row.records * row.scale:,.0f}",
            f"{about}{row.refused * row.scale:,.0f}",
            f"{about}{_duration(row.all_seconds)}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    if computed:
        lines += ["", "≈: a part was run, and the rest computed from it at the same rate."]
    return "\n".join(lines) + "\n"


def replace_block(page: str, made: str) -> str:
    """Return a page with a table in place of the one that was measured before.

    Raises:
        ValueError: the page has no place for it.
    """
    block = f"{_BEGIN}\n{made}\n![curves](fleet.svg)\n\n{_END}"
    found, count = re.subn(f"{re.escape(_BEGIN)}.*?{re.escape(_END)}", lambda _: block, page, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"the page has {count} places for the table")
    return found


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


def draw(rows: Sequence[Row]) -> str:
    """Return the SVG: what the ledger sends, and how long all takes, over the number of workstations."""
    chosen = [row for row in rows if row.limit == rows[0].limit]
    panels = [
        _panel(0, "blobs that the ledger sends", [(row, row.all_blobs) for row in chosen]),
        _panel(1, "seconds until all have read all", [(row, row.all_seconds) for row in chosen]),
    ]
    limited = _LIMITS[rows[0].limit]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">',
            "<title>A fleet with and without a shared cache</title>",
            '<style>text { font: 12px "DejaVu Sans", Verdana, sans-serif; fill: #1f2933; }</style>',
            '<rect width="100%" height="100%" fill="#ffffff"/>',
            f'<text x="{_LEFT}" y="26" font-weight="bold">One ledger, limited: {limited}</text>',
            *panels,
            *_legend(),
            "</svg>",
            "",
        ]
    )


def _legend() -> Iterable[str]:
    for number, (shared, words) in enumerate([(False, "without"), (True, "with a shared cache")]):
        x, y = _LEFT + number * 120, _HEIGHT - 14
        yield f'<circle cx="{x}" cy="{y - 4}" r="4" fill="{_COLOURS[shared]}"/>'
        yield f'<text x="{x + 10}" y="{y}">{words}</text>'


def _panel(number: int, title: str, points: Sequence[tuple[Row, float]]) -> str:
    """Return one panel: workstations to the right and a figure upwards, both in powers of ten from 1 on."""
    left = _LEFT + number * (_PANEL + _GAP)
    right_end = max(1, math.ceil(math.log10(max(row.workstations for row, _ in points))))
    up_end = max(1, math.ceil(math.log10(max(1.0, *(value for _, value in points)))))

    def x(value: float) -> float:
        return left + _PANEL * math.log10(value) / right_end

    def y(value: float) -> float:
        return _TOP + _DEEP * (1 - math.log10(max(1.0, value)) / up_end)

    parts = [f'<text x="{left}" y="{_TOP - 16}">{title}</text>']
    for power in range(up_end + 1):
        at = y(10**power)
        parts.append(f'<path d="M{left} {at:.1f}h{_PANEL}" stroke="#e4e7eb"/>')
        parts.append(f'<text x="{left - 8}" y="{at + 4:.1f}" text-anchor="end">{10**power:,}</text>')
    for power in range(right_end + 1):
        across = x(10**power)
        parts.append(
            f'<text x="{across:.1f}" y="{_TOP + _DEEP + 18}" text-anchor="middle">{10**power:,}</text>'
        )
    for shared, colour in _COLOURS.items():
        series = sorted((row.workstations, value) for row, value in points if row.shared is shared)
        line = " ".join(f"{x(count):.1f},{y(value):.1f}" for count, value in series)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for count, value in series:
            place = f'cx="{x(count):.1f}" cy="{y(value):.1f}"'
            parts.append(
                f'<circle {place} r="4" fill="{colour}"><title>{count:,}: {value:,.0f}</title></circle>'
            )
    return "\n".join(parts)
