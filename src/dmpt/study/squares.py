"""Any-to-any of some rows: the query seen in one set of modalities, the gallery in another, a square of 7 x 7 each."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dmpt.evaluation.missing import square
from dmpt.pages.frame import render
from dmpt.study.groups import Group

_SIDE, _LEFT, _TOP, _GAP = 46, 116, 116, 72
"""Of a cell; left of the first and above it; between two squares."""


@dataclass(frozen=True)
class Square:
    """The mean over a row's seeds."""

    name: str  # of the row
    subsets: Sequence[str]  # in which query (rows) and gallery (columns) are seen
    values: Sequence[Sequence[float]]  # mAP, percent


def squares(rows: Sequence[str], groups: Sequence[Group]) -> list[Square]:
    """Those of the named rows that have results."""
    found = []
    for group in (group for name in rows for group in groups if group.name == name):
        each = [result.numbers.get("missing", {}).get("any_to_any") for result in group.results]
        if of_seeds := [square(one) for one in each if one]:
            values = np.mean([values for _, values in of_seeds], axis=0)
            found.append(Square(group.name, of_seeds[0][0], values.tolist()))
    return found


def picture(title: str, found: Sequence[Square]) -> str:
    """An SVG file: the squares side by side, a stronger colour for a higher mAP, its number in it."""
    count = len(found[0].subsets)
    wide = _LEFT + count * _SIDE + _GAP
    said = [f"{one.name}: mAP {min(map(min, one.values)):.1f} to {max(map(max, one.values)):.1f}" for one in found]
    return render(
        "study/squares.svg",
        title=title,
        alt="; ".join(said),
        width=wide * len(found),
        height=_TOP + count * _SIDE + 16,
        squares=[(wide * number + _LEFT, one) for number, one in enumerate(found)],
        top=_TOP,
        side=_SIDE,
    )
