"""One picture per table: each row a line of dots, mAP to the left and the time of a step to the right."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from dmpt.report.figures import Axis, axis

LABEL, PANEL, GAP, ROW, TOP, BOTTOM = 285, 330, 40, 30, 40, 48
CHARACTERS = 38
STYLE = """
svg { font: 13px system-ui, sans-serif; background: #fdfdfc; } text { fill: #1d2125; }
.soft { fill: #5a6068; } .grid { stroke: #e3e4df; } .dot { fill: #0b62a4; fill-opacity: .55; }
.mean { stroke: #0b62a4; stroke-width: 2.5; } .time { fill: #c8500a; fill-opacity: .7; }
@media (prefers-color-scheme: dark) {
  svg { background: #15181b; } text { fill: #e8e8e4; } .soft { fill: #a4abb2; } .grid { stroke: #2b3035; }
  .dot { fill: #74b6ee; } .mean { stroke: #74b6ee; } .time { fill: #f59352; }
}
"""


@dataclass(frozen=True)
class Line:
    """One row of the picture.

    Attributes:
        name: to the left.
        values: mAP of each seed, percent.
        seconds: per training step, of each seed; empty where they are not known.
    """

    name: str
    values: Sequence[float]
    seconds: Sequence[float]


def strips(title: str, lines: Sequence[Line]) -> str:
    """An SVG file: a dot per seed, a bar at the mean of mAP.

    Args:
        title: above it, and what it says to a reader who cannot see it.
        lines: from top to bottom.
    """
    seconds = [value for line in lines for value in line.seconds]
    values = [value for line in lines for value in line.values]
    left = axis("mAP, %", min(values), max(values))
    right = axis("seconds per training step", 0, max(seconds)) if seconds else None
    height = TOP + ROW * len(lines) + BOTTOM
    width = LABEL + PANEL + GAP + (PANEL + GAP if right else 0)
    alt = "; ".join(f"{line.name}: mAP {statistics.mean(line.values):.1f}" for line in lines)
    parts = [_frame(left, LABEL, height)]
    if right:
        parts.append(_frame(right, LABEL + PANEL + GAP, height))
    for number, line in enumerate(lines):
        middle = TOP + ROW * (number + 0.5)
        name = line.name if len(line.name) <= CHARACTERS else line.name[: CHARACTERS - 1] + "…"
        parts.append(
            Markup('<text x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(LABEL - 14, middle + 4.5, name)
        )
        mean = _across(left, LABEL, statistics.mean(line.values))
        parts.append(
            Markup('<path class="mean" d="M{:.1f} {:.1f}v18"><title>{}</title></path>').format(
                mean, middle - 9, f"mean {statistics.mean(line.values):.2f}"
            )
        )
        parts += [_dot("dot", _across(left, LABEL, value), middle, value) for value in line.values]
        if right:
            at = LABEL + PANEL + GAP
            parts += [_dot("time", _across(right, at, value), middle, value) for value in line.seconds]
    return str(
        Markup(
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w} {h}" width="{w}" height="{h}" role="img" '
            'aria-label="{alt}"><style>{style}</style>\n<text x="14" y="22" font-weight="600">{title}</text>\n'
            "{body}\n</svg>\n"
        ).format(
            w=width, h=height, alt=f"{title}. {alt}", style=Markup(STYLE), title=title, body=Markup("\n").join(parts)
        )
    )


def _across(axis: Axis, left: float, value: float) -> float:
    return left + (value - axis.low) / (axis.high - axis.low) * PANEL


def _dot(kind: str, x: float, y: float, value: float) -> Markup:
    return Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="4.5"><title>{:.2f}</title></circle>').format(
        kind, x, y, value
    )


def _frame(axis: Axis, left: float, height: float) -> Markup:
    """Grid, ticks and label of one panel."""
    floor = height - BOTTOM
    parts = []
    for value in axis.ticks:
        x = _across(axis, left, value)
        parts.append(Markup('<path class="grid" d="M{:.1f} {}V{:.1f}"/>').format(x, TOP, floor))
        parts.append(
            Markup('<text class="soft" x="{:.1f}" y="{:.1f}" text-anchor="middle">{:g}</text>').format(
                x, floor + 18, value
            )
        )
    label = Markup('<text class="soft" x="{:.1f}" y="{:.1f}" text-anchor="middle">{}</text>')
    return Markup("").join([*parts, label.format(left + PANEL / 2, floor + 38, axis.label)])
