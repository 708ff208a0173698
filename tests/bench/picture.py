"""The picture for the README: a panel for each row, a bar for each contender, a line for each goal. Pure."""

from html import escape

from tests.bench.results import ABSOLUTE, ATTACHFS, GOALS, ROWS, Goal, Results, Row, Series, amount, goal_text

_WIDTH = 920
_COLUMNS = 2
_MARGIN = 24
_LABEL = 132  # left of the bars
_VALUE = 76  # right of the longest bar
_BAR, _GAP = 14, 5
_TITLE, _FOOT = 24, 30
_HEADER = 58

_LEGEND = (
    "Bars are medians; each panel has its own scale. "
    "A dashed line is where attachfs reaches a goal: its bar ends left of it."
)
_STYLE = """
  text { font: 12px "DejaVu Sans", Verdana, sans-serif; fill: #1f2933; }
  .head { font-size: 17px; font-weight: bold; }
  .title { font-weight: bold; }
  .small, .goal { font-size: 10.5px; fill: #52606d; }
  .value { paint-order: stroke; stroke: #ffffff; stroke-width: 3px; }
  .ours { fill: #0b6e4f; } .others { fill: #a9b4c0; }
  .line { stroke: #0b6e4f; stroke-width: 1.6; stroke-dasharray: 4 2; }
"""


def draw(results: Results, caption: str) -> str:
    """Return the SVG."""
    panels = [(row, results.series[row.name]) for row in ROWS if row.name in results.series]
    width = (_WIDTH - _MARGIN * (_COLUMNS + 1)) / _COLUMNS
    bottoms = [float(_HEADER)] * _COLUMNS
    body = []
    for row, series in panels:
        column = bottoms.index(min(bottoms))
        left, top = _MARGIN + column * (width + _MARGIN), bottoms[column]
        drawn, height = _panel(row, series, width)
        body.append(f'<g transform="translate({left:.0f} {top:.0f})">\n{drawn}\n</g>')
        bottoms[column] = top + height
    height = max(bottoms) + 26
    size = f'width="{_WIDTH}" height="{height:.0f}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}" {size} role="img">',
            "<title>attachfs and others, measured</title>",
            f"<style>{_STYLE}</style>",
            '<rect width="100%" height="100%" fill="#ffffff"/>',
            f'<text class="head" x="{_MARGIN}" y="28">attachfs beside others: shorter is better</text>',
            f'<text class="small" x="{_MARGIN}" y="45">{escape(caption)}</text>',
            *body,
            f'<text class="small" x="{_MARGIN}" y="{height - 10:.0f}">{_LEGEND}</text>',
            "</svg>",
            "",
        ]
    )


def target(goal: Goal, series: dict[str, Series]) -> float | None:
    """Return the amount at which attachfs reaches a goal; None if the rival was not measured."""
    if goal.rival == ABSOLUTE:
        return goal.bound
    rival = series.get(goal.rival)
    if rival is None:
        return None
    return rival.median / goal.bound if goal.at_least else rival.median * goal.bound


def _panel(row: Row, series: dict[str, Series], width: float) -> tuple[str, float]:
    """Return a panel's drawing, and its height."""
    goals = [(goal, where) for goal in GOALS if goal.row == row.name and (where := target(goal, series))]
    longest = max([one.median for one in series.values()] + [where for _, where in goals])
    scale = (width - _LABEL - _VALUE) / longest if longest else 0
    lines = [f'<text class="title" x="0" y="14">{escape(row.title)}</text>']
    top = _TITLE
    texts = []
    for contender, one in sorted(series.items(), key=lambda item: item[0] != ATTACHFS):
        look = "ours" if contender == ATTACHFS else "others"
        length = max(1.0, one.median * scale)
        middle = top + _BAR - 3
        lines += [
            f'<text x="{_LABEL - 6}" y="{middle}" text-anchor="end">{escape(contender)}</text>',
            f'<rect class="{look}" x="{_LABEL}" y="{top}" width="{length:.1f}" height="{_BAR}"/>',
        ]
        value = amount(one.median, row.unit)
        texts.append(f'<text class="value" x="{_LABEL + length + 5:.1f}" y="{middle}">{value}</text>')
        top += _BAR + _GAP
    bottom, foot = top, top + 10
    for goal, where in goals:
        at = _LABEL + where * scale
        said = f"goal {amount(where, row.unit)}: {goal_text(goal)}"
        lines += [
            f'<line class="line" x1="{at:.1f}" x2="{at:.1f}" y1="{_TITLE - 4}" y2="{bottom - 3}"/>',
            f'<text class="goal" x="{_LABEL}" y="{foot}">{escape(said)}</text>',
        ]
        foot += 14
    return "\n".join(lines + texts), foot + _FOOT - 14
