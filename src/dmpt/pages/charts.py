"""Line, scatter and bar charts as inline SVG.

Colours are classes of the page's style sheet and text is text, so a chart follows the reader's light or dark scheme and
stays sharp and selectable. Coordinates are rounded to a tenth of a unit, which keeps the page small.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

WIDTH, HEIGHT = 460, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 14, 46
COLOURS = 6
"""The style sheet has so many, ``.c0`` ... ``.c5``; each has a dash pattern of its own. The next six lines
are thinner."""
SHAPES: tuple[Callable[[float, float], str], ...] = (
    lambda x, y: f"M{x - 4:.1f} {y:.1f}a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z",
    lambda x, y: f"M{x - 3.6:.1f} {y - 3.6:.1f}h7.2v7.2h-7.2z",
    lambda x, y: f"M{x:.1f} {y - 4.8:.1f}l4.6 8.2h-9.2z",
    lambda x, y: f"M{x:.1f} {y - 5:.1f}l5 5l-5 5l-5 -5z",
)
"""Marks: disc, square, triangle, diamond. Their number and ``COLOURS`` give twelve pairs."""


@dataclass(frozen=True)
class Series:
    """A named line, or the points of one group.

    Attributes:
        name: for the key.
        x: horizontal values.
        y: vertical values, as many.
        colour: number of its colour, so that a run keeps it from chart to chart; None = its place in the chart.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int | None = None


@dataclass(frozen=True)
class Axis:
    """One axis.

    Attributes:
        label: what and in which unit.
        low: value at its beginning.
        high: value at its end.
        ticks: labelled values; empty = no labels.
    """

    label: str
    low: float
    high: float
    ticks: tuple[float, ...] = ()


def axis(label: str, low: float, high: float) -> Axis:
    """An axis with some five round ticks; the range is widened to the ticks around it."""
    if not high - low > 1e-8 * max(1, abs(high)):  # ticks are rounded
        low, high = low - 0.5, low + 0.5
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * s for s in (1, 2, 2.5, 5, 10) if power * s >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(round(step * i, 10) for i in range(first, last + 1))
    return Axis(label, ticks[0], ticks[-1], ticks)


def lines(series: Sequence[Series], x: Axis, y: Axis, alt: str) -> Markup:
    """Lines over one pair of axes, with a key below where there are several."""
    kinds = [_kind(i if s.colour is None else s.colour) for i, s in enumerate(series)]
    body = Markup("").join(
        Markup('<path class="{}" d="{}"/>').format(kind, _line(s, x, y)) for kind, s in zip(kinds, series, strict=True)
    )
    chart = _chart(body, x, y, alt)
    if len(series) == 1:
        return chart
    return chart + _key([(s.name, _swatch_line(kind)) for kind, s in zip(kinds, series, strict=True)])


def _kind(number: int) -> str:
    """Classes of a line."""
    return f"line c{number % COLOURS}{' thin' * (number // COLOURS % 2)}"


def scatter(series: Sequence[Series], x: Axis, y: Axis, alt: str, diagonal: bool = False) -> Markup:
    """Points; each series has a colour and a shape of its own (``marks_key``).

    Args:
        series: at most twelve.
        x: horizontal axis.
        y: vertical axis.
        alt: what a reader who cannot see it should know.
        diagonal: draw the line of equal values.
    """
    parts = []
    if diagonal:
        ends = Series("", [x.low, x.high], [x.low, x.high])
        parts.append(Markup('<path class="grid" d="{}"/>').format(_line(ends, x, y)))
    for i, s in enumerate(series):
        mark = SHAPES[i % len(SHAPES)]
        points = "".join(mark(_across(x, a), _down(y, b)) for a, b in zip(s.x, s.y, strict=True))
        parts.append(
            Markup('<path class="mark c{}" d="{}"><title>{}</title></path>').format(i % COLOURS, points, s.name)
        )
    return _chart(Markup("").join(parts), x, y, alt)


def marks_key(names: Sequence[str]) -> Markup:
    """What the marks of a scatter mean; below one chart, or below several with the same series."""
    return _key([(name, _swatch_mark(i)) for i, name in enumerate(names)])


def bars(values: Sequence[float], x: Axis, y: Axis, alt: str) -> Markup:
    """One thin bar per value, at 0, 1, ...; above zero in the colour of gain, below in that of loss."""
    zero, width = _down(y, 0), _across(x, 1) - _across(x, 0)
    parts = []
    for kind, sign in (("gain", 1), ("loss", -1)):
        path = "".join(
            f"M{_across(x, i):.1f} {zero:.1f}V{_down(y, v):.1f}h{width:.2f}V{zero:.1f}z"
            for i, v in enumerate(values)
            if v * sign > 0
        )
        parts.append(Markup('<path class="area {}" d="{}"/>').format(kind, path))
    parts.append(Markup('<path class="axis" d="M{} {}H{}"/>').format(LEFT, f"{zero:.1f}", WIDTH - RIGHT))
    return _chart(Markup("").join(parts), x, y, alt)


def _across(axis: Axis, value: float) -> float:
    return LEFT + (value - axis.low) / (axis.high - axis.low) * (WIDTH - LEFT - RIGHT)


def _down(axis: Axis, value: float) -> float:
    return HEIGHT - BOTTOM - (value - axis.low) / (axis.high - axis.low) * (HEIGHT - TOP - BOTTOM)


def _line(series: Series, x: Axis, y: Axis) -> str:
    return "M" + "L".join(f"{_across(x, a):.1f} {_down(y, b):.1f}" for a, b in zip(series.x, series.y, strict=True))


def _text(x: float, y: float, anchor: Literal["start", "middle", "end"], text: str, more: str = "") -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}"{}>{}</text>').format(x, y, anchor, Markup(more), text)


def _chart(body: Markup, x: Axis, y: Axis, alt: str) -> Markup:
    """Frame, ticks and labels around ``body``."""
    right, floor = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = [Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(WIDTH, HEIGHT, alt)]
    for value in y.ticks:
        height = _down(y, value)
        parts.append(Markup('<path class="grid" d="M{} {:.1f}H{}"/>').format(LEFT, height, right))
        parts.append(_text(LEFT - 7, height + 4, "end", _number(value)))
    for value in x.ticks:
        parts.append(_text(_across(x, value), floor + 18, "middle", _number(value)))
    parts.append(body)
    if x.ticks or x.label:
        parts.append(Markup('<path class="axis" d="M{} {}H{}"/>').format(LEFT, floor, right))
    parts.append(_text((LEFT + right) / 2, HEIGHT - 8, "middle", x.label))
    middle = (TOP + floor) / 2
    parts.append(_text(13, middle, "middle", y.label, f' transform="rotate(-90 13 {middle:.1f})"'))
    parts.append(Markup("</svg>"))
    return Markup("").join(parts)


def _key(entries: Sequence[tuple[str, Markup]]) -> Markup:
    """Names behind their swatches."""
    items = Markup("").join(Markup("<li>{}{}</li>").format(swatch, name) for name, swatch in entries)
    return Markup('<ul class="key">{}</ul>').format(items)


def _swatch_line(kind: str) -> Markup:
    return Markup('<svg viewBox="0 0 28 10" aria-hidden="true"><path class="{}" d="M1 5H27"/></svg>').format(kind)


def _swatch_mark(index: int) -> Markup:
    return Markup(
        '<svg class="dot" viewBox="0 0 12 12" aria-hidden="true"><path class="mark c{}" d="{}"/></svg>'
    ).format(index % COLOURS, SHAPES[index % len(SHAPES)](6, 6))


def _number(value: float) -> str:
    return f"{value:,.10g}".replace("-", "\N{MINUS SIGN}")
