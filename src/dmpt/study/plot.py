"""Pictures of a table: each row a line of dots, or mAP against the time of a step."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from dmpt.pages.charts import Axis, axis

PANEL, GAP, ROW, TOP, BOTTOM = 330, 40, 30, 40, 48
CHARACTERS, CHARACTER = 62, 6.8
"""Of a name, at most, and the width of one."""
WIDE, HIGH, KEY = 560, 340, 24
STYLE = """
svg { font: 13px system-ui, sans-serif; background: #fdfdfc; } text { fill: #1d2125; }
.soft { fill: #5a6068; } .grid { stroke: #e3e4df; } .dot { fill: #0b62a4; fill-opacity: .55; }
.mean { stroke: #0b62a4; stroke-width: 2.5; } .time { fill: #c8500a; fill-opacity: .7; }
.number { font-size: 11px; }
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
    label = _label(lines)
    width = label + PANEL + GAP + (PANEL + GAP if right else 0)
    alt = "; ".join(f"{line.name}: mAP {statistics.mean(line.values):.1f}" for line in lines)
    parts = [_frame(left, label, height)]
    if right:
        parts.append(_frame(right, label + PANEL + GAP, height))
    for number, line in enumerate(lines):
        middle = TOP + ROW * (number + 0.5)
        parts.append(_text(label - 14, middle + 4.5, _short(line.name), "end"))
        mean = _across(left, label, statistics.mean(line.values))
        parts.append(
            Markup('<path class="mean" d="M{:.1f} {:.1f}v18"><title>{}</title></path>').format(
                mean, middle - 9, f"mean {statistics.mean(line.values):.2f}"
            )
        )
        parts += [_dot("dot", _across(left, label, value), middle, f"{value:.2f}") for value in line.values]
        if right:
            at = label + PANEL + GAP
            parts += [_dot("time", _across(right, at, value), middle, f"{value:.2f}") for value in line.seconds]
    return _svg(title, f"{title}. {alt}", width, height, parts)


def time_map(title: str, lines: Sequence[Line]) -> str:
    """An SVG file: mean mAP of each row against the seconds of its step, the points numbered and named beside it.

    Args:
        title: above it, and what it says to a reader who cannot see it.
        lines: in the order of their numbers; those without seconds are not on the map, but one must have them.
    """
    points = [
        (n, line, min(line.seconds), statistics.mean(line.values)) for n, line in enumerate(lines, 1) if line.seconds
    ]
    seconds, values = [x for _, _, x, _ in points], [y for *_, y in points]
    across, up = axis("seconds per training step", min(seconds), max(seconds)), axis("mAP, %", min(values), max(values))
    height = TOP + max(HIGH, KEY * len(points)) + BOTTOM
    left, floor = GAP + 14.0, height - BOTTOM
    parts = [_frame(across, left, height, WIDE), _text(left, TOP - 5, up.label, "start", "soft")]
    for value in up.ticks:
        y = _down(up, floor, value)
        parts.append(Markup('<path class="grid" d="M{:.1f} {:.1f}h{}"/>').format(left, y, WIDE))
        parts.append(_text(left - 8, y + 4.5, f"{value:g}", "end", "soft"))
    said = []
    for place, (number, line, x, y) in enumerate(points, 1):
        at, down = _across(across, left, x, WIDE), _down(up, floor, y)
        said.append(f"{line.name}: mAP {y:.1f}, {x:.3f} s")
        parts.append(_dot("dot", at, down, said[-1]))
        parts.append(_text(at + 4, down - 6, str(number), "start", "number"))
        parts.append(_text(left + WIDE + GAP, TOP + KEY * place - 8, f"{number}  {_short(line.name)}"))
    return _svg(title, f"{title}. {'; '.join(said)}", left + WIDE + GAP + _label(lines), height, parts)


def _svg(title: str, alt: str, width: float, height: float, parts: Sequence[Markup]) -> str:
    return str(
        Markup(
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w:g} {h:g}" width="{w:g}" height="{h:g}" role="img" '
            'aria-label="{alt}"><style>{style}</style>\n<text x="14" y="22" font-weight="600">{title}</text>\n'
            "{body}\n</svg>\n"
        ).format(w=width, h=height, alt=alt, style=Markup(STYLE), title=title, body=Markup("\n").join(parts))
    )


def _label(lines: Sequence[Line]) -> float:
    """Width of the names."""
    return GAP + CHARACTER * max(len(_short(line.name)) for line in lines)


def _short(name: str) -> str:
    return name if len(name) <= CHARACTERS else name[: CHARACTERS - 1] + "…"


def _text(x: float, y: float, text: str, anchor: str = "start", kind: str = "name") -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(kind, x, y, anchor, text)


def _down(axis: Axis, floor: float, value: float) -> float:
    return floor - (value - axis.low) / (axis.high - axis.low) * (floor - TOP)


def _across(axis: Axis, left: float, value: float, width: float = PANEL) -> float:
    return left + (value - axis.low) / (axis.high - axis.low) * width


def _dot(kind: str, x: float, y: float, said: str) -> Markup:
    return Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="4.5"><title>{}</title></circle>').format(
        kind, x, y, said
    )


def _frame(axis: Axis, left: float, height: float, width: float = PANEL) -> Markup:
    """Grid, ticks and label of one panel."""
    floor = height - BOTTOM
    parts = []
    for value in axis.ticks:
        x = _across(axis, left, value, width)
        parts.append(Markup('<path class="grid" d="M{:.1f} {}V{:.1f}"/>').format(x, TOP, floor))
        parts.append(_text(x, floor + 18, f"{value:g}", "middle", "soft"))
    return Markup("").join([*parts, _text(left + width / 2, floor + 38, axis.label, "middle", "soft")])
