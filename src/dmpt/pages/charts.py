"""Line, scatter and bar charts as inline SVG.

Colours are classes of the page's style sheet and text is text, so a chart follows the reader's light or dark scheme and
stays sharp and selectable. Coordinates are rounded to a tenth of a unit, which keeps the page small.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from dmpt.pages.frame import render

_WIDTH, _HEIGHT = 460, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 14, 46
_COLOURS = 6
"""The style sheet has so many, ``.c0`` ... ``.c5``; each has a dash pattern of its own. The next six lines
are thinner."""
_SHAPES = (
    (-4.0, 0.0, "a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z"),
    (-3.6, -3.6, "h7.2v7.2h-7.2z"),
    (0.0, -4.8, "l4.6 8.2h-9.2z"),
    (0.0, -5.0, "l5 5l-5 5l-5 -5z"),
)
"""Marks: disc, square, triangle, diamond, each where it begins beside its middle and how it goes on. Their number and
``_COLOURS`` give twelve pairs."""
_Drawn = tuple[str, str, str]
"""A path: its classes, where it goes, and its name, which may be empty."""


@dataclass(frozen=True)
class Series:
    """A named line, or the points of one group."""

    name: str  # for the key
    x: Sequence[float]  # horizontal values
    y: Sequence[float]  # vertical values, as many
    colour: int | None = None  # its number, so that a run keeps it from chart to chart; None = its place in the chart


@dataclass(frozen=True)
class Axis:
    """One axis."""

    label: str  # what and in which unit
    low: float  # value at its beginning
    high: float  # value at its end
    ticks: tuple[float, ...] = ()  # labelled values; empty = no labels
    log: bool = False  # equal factors are equally long; low is above 0

    def share(self, value: float) -> float:
        """Where a value is on it: 0 at its beginning, 1 at its end."""
        low, high, value = map(math.log, (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        return (value - low) / (high - low)


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


@dataclass(frozen=True)
class Panel:
    """Two axes along a rectangle of a drawing; units of the drawing count from its upper left corner."""

    x: Axis  # along the floor
    y: Axis  # along the left side
    left: float = _LEFT
    right: float = _WIDTH - _RIGHT
    top: float = _TOP
    floor: float = _HEIGHT - _BOTTOM

    def across(self, value: float) -> float:
        """Where a value of ``x`` is."""
        return self.left + self.x.share(value) * (self.right - self.left)

    def down(self, value: float) -> float:
        """Where a value of ``y`` is."""
        return self.floor - self.y.share(value) * (self.floor - self.top)


def lines(series: Sequence[Series], x: Axis, y: Axis, alt: str) -> Markup:
    """Lines over one pair of axes, with a key below where there are several."""
    panel, drawn, key = Panel(x, y), [], []
    for number, one in enumerate(series):
        colour = number if one.colour is None else one.colour
        kind = f"line c{colour % _COLOURS}{' thin' * (colour // _COLOURS % 2)}"
        drawn.append((kind, _line(panel, one.x, one.y), ""))
        key.append((one.name, kind, "M1 5H27"))
    return _chart(panel, alt, drawn, key if len(series) > 1 else ())


def scatter(series: Sequence[Series], x: Axis, y: Axis, alt: str, diagonal: bool = False) -> Markup:
    """Points; each series has a colour and a shape of its own (``marks_key``).

    Args:
        series: at most twelve.
        x: horizontal axis.
        y: vertical axis.
        alt: what a reader who cannot see it should know.
        diagonal: draw the line of equal values.
    """
    panel, ends = Panel(x, y), (x.low, x.high)
    drawn = [("grid", _line(panel, ends, ends), "")] if diagonal else []
    for number, one in enumerate(series):
        points = zip(one.x, one.y, strict=True)
        path = "".join(_mark(number, panel.across(a), panel.down(b)) for a, b in points)
        drawn.append((f"mark c{number % _COLOURS}", path, one.name))
    return _chart(panel, alt, drawn)


def marks_key(names: Sequence[str]) -> Markup:
    """What the marks of a scatter mean; below one chart, or below several with the same series."""
    key = [(name, f"mark c{number % _COLOURS}", _mark(number, 6, 6)) for number, name in enumerate(names)]
    return render("pages/key.html", key=key)


def bars(values: Sequence[float], x: Axis, y: Axis, alt: str) -> Markup:
    """One thin bar per value, at 0, 1, ...; above zero in the colour of gain, below in that of loss."""
    panel = Panel(x, y)
    zero, width, drawn = panel.down(0), panel.across(1) - panel.across(0), []
    for kind, sign in (("gain", 1), ("loss", -1)):
        path = "".join(
            f"M{panel.across(i):.1f} {zero:.1f}V{panel.down(v):.1f}h{width:.2f}V{zero:.1f}z"
            for i, v in enumerate(values)
            if v * sign > 0
        )
        drawn.append((f"area {kind}", path, ""))
    drawn.append(("axis", f"M{panel.left} {zero:.1f}H{panel.right}", ""))
    return _chart(panel, alt, drawn)


def _line(panel: Panel, x: Sequence[float], y: Sequence[float]) -> str:
    return "M" + "L".join(f"{panel.across(a):.1f} {panel.down(b):.1f}" for a, b in zip(x, y, strict=True))


def _mark(number: int, x: float, y: float) -> str:
    across, down, rest = _SHAPES[number % len(_SHAPES)]
    return f"M{x + across:.1f} {y + down:.1f}{rest}"


def _chart(panel: Panel, alt: str, drawn: Sequence[_Drawn], key: Sequence[_Drawn] = ()) -> Markup:
    """Frame, ticks and labels around what is drawn; a key of names, classes and swatches."""
    return render("pages/chart.svg", panel=panel, width=_WIDTH, height=_HEIGHT, alt=alt, drawn=drawn, key=key)
