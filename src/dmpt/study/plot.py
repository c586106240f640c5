"""Pictures of a table: each row a line of dots, or mAP against the time of a step."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from dmpt.pages.charts import Axis, Panel, axis
from dmpt.pages.frame import render

_PANEL, _GAP, _ROW, _TOP, _BOTTOM = 330, 40, 30, 40, 48
_CHARACTERS, _CHARACTER = 62, 6.8
"""Of a name, at most, and the width of one."""
_WIDE, _HIGH, _KEY = 560, 340, 24


@dataclass(frozen=True)
class Line:
    """One row of the picture."""

    name: str  # to the left
    values: Sequence[float]  # mAP of each seed, percent
    seconds: Sequence[float]  # per training step, of each seed; empty where they are not known

    @property
    def short(self) -> str:
        """The name, as far as there is room."""
        return self.name if len(self.name) <= _CHARACTERS else self.name[: _CHARACTERS - 1] + "…"

    @property
    def mean(self) -> float:
        """Of the seeds' mAP, percent."""
        return statistics.mean(self.values)


def strips(title: str, lines: Sequence[Line]) -> str:
    """An SVG file: a dot per seed, a bar at the mean of mAP.

    Args:
        title: above it, and what it says to a reader who cannot see it.
        lines: from top to bottom.
    """
    values = [value for line in lines for value in line.values]
    seconds = [value for line in lines for value in line.seconds]
    axes = [axis("mAP, %", min(values), max(values))]
    if seconds:
        axes.append(axis("seconds per training step", 0, max(seconds)))
    left, step, floor = _label(lines), _PANEL + _GAP, _TOP + _ROW * len(lines)
    return render(
        "study/strips.svg",
        title=title,
        alt="; ".join(f"{line.name}: mAP {line.mean:.1f}" for line in lines),
        width=left + step * len(axes),
        height=floor + _BOTTOM,
        panels=[_panel(x, left + step * n, floor) for n, x in enumerate(axes)],
        rows=[(_TOP + _ROW * (number + 0.5), line) for number, line in enumerate(lines)],
    )


def time_map(title: str, lines: Sequence[Line]) -> str:
    """An SVG file: mean mAP of each row against the seconds of its step, the points numbered and named beside it.

    Args:
        title: above it, and what it says to a reader who cannot see it.
        lines: in the order of their numbers; those without seconds are not on the map, but one must have them.
    """
    points = [(number, line, min(line.seconds)) for number, line in enumerate(lines, 1) if line.seconds]
    seconds, values = [x for *_, x in points], [line.mean for _, line, _ in points]
    x, y = axis("seconds per training step", min(seconds), max(seconds)), axis("mAP, %", min(values), max(values))
    left, floor = _GAP + 14.0, _TOP + max(_HIGH, _KEY * len(points))
    panel = Panel(x, y, left, left + _WIDE, _TOP, floor)
    said = [f"{line.name}: mAP {line.mean:.1f}, {x:.3f} s" for _, line, x in points]
    return render(
        "study/time_map.svg",
        title=title,
        alt="; ".join(said),
        width=panel.right + _GAP + _label(lines),
        height=floor + _BOTTOM,
        panel=panel,
        points=list(zip(points, said, strict=True)),
        names=(panel.right + _GAP, _KEY),
    )


def _label(lines: Sequence[Line]) -> float:
    """Width of the names."""
    return _GAP + _CHARACTER * max(len(line.short) for line in lines)


def _panel(x: Axis, left: float, floor: float) -> Panel:
    """One of the strips; its rows are names and no axis."""
    return Panel(x, Axis("", 0, 1), left, left + _PANEL, _TOP, floor)
