"""Which queries got better, which worse, from one run to another."""

from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from dmpt.evaluation.evaluate import Evaluation
from dmpt.pages.charts import Axis, Series, axis, bars, marks_key, scatter
from dmpt.pages.frame import Section, render, signed
from dmpt.pages.pictures import lying
from dmpt.report import ranked
from dmpt.retrieval.statistics import DRAWS, bootstrap

_LISTS = 3
_NAMED = 500
"""Queries in the table of names, at most."""
_PERCENT = (0.0, 20.0, 40.0, 60.0, 80.0, 100.0)
_BARS = 400
"""Drawn at most; of more queries evenly spread ones are taken from the sorted differences."""


def _differences(a: Evaluation, b: Evaluation) -> NDArray[np.float64]:
    """Average precision of each query in b minus that in a, percentage points; NaN where there is nothing to find."""
    return b.metrics.average_precision - a.metrics.average_precision


def summary(a: Evaluation, b: Evaluation) -> dict[str, Any]:
    """How many queries moved, and how much of the difference in mAP could be the draw of identities."""
    change = _differences(a, b)
    compared = bootstrap(a.metrics.average_precision[None], b.metrics.average_precision[None], a.seen.query_labels.pids)
    moved = {"better": (change > 0).sum(), "worse": (change < 0).sum(), "same": (change == 0).sum()}
    return {**moved, "compared": compared, "draws": DRAWS}


def section(a: Evaluation, b: Evaluation) -> Section:
    """Every query's change as bars, before against after, and by file."""
    changes = _differences(a, b)
    valid = np.flatnonzero(~np.isnan(changes))
    change, before, after = (of[valid] for of in (changes, a.metrics.average_precision, b.metrics.average_precision))
    groups = [
        Series(name, before[chosen].tolist(), after[chosen].tolist())
        for name, chosen in (("better", change > 0), ("worse", change < 0), ("the same", change == 0))
    ]
    x, y = (Axis(label, 0, 100, _PERCENT) for label in (f"average precision in {a.name}, %", f"in {b.name}, %"))
    alt = f"Average precision of each query in {a.name} (across) and {b.name} (up)"
    named = np.argsort(-np.abs(change), kind="stable")[:_NAMED]
    body = render(
        "report/changes.html",
        bars=_sorted_bars(change),
        mean=change.mean(),
        dots=scatter(groups, x, y, alt, diagonal=True) + marks_key([group.name for group in groups]),
        names=(a.name, b.name),
        every=len(named) == len(valid),
        named=[(a.query[valid[q]], before[q], after[q], change[q]) for q in named],
    )
    return Section("queries", "Which queries changed", body)


def list_section(a: Evaluation, b: Evaluation) -> Section:
    """The ranked lists of the queries that changed most, of both runs, one query per identity."""
    change, groups = _differences(a, b), []
    for title, sign in (("Most gained", 1), ("Most lost", -1)):
        order = np.argsort(-sign * change, kind="stable")  # those without a change come last
        moved = [int(q) for q in order if sign * change[q] > 0]
        queries = ranked.one_per_identity(a, moved, _LISTS)
        groups.append((title, [[ranked.shown(run, query, run.name) for run in (a, b)] for query in queries]))
    body = render("report/changed_lists.html", groups=groups, wide=lying(a.opened.data))
    return Section("lists", "Ranked lists of the queries that changed most", body)


def _sorted_bars(change: NDArray[np.float64]) -> Markup:
    ordered = np.sort(change)[::-1]
    if len(ordered) > _BARS:
        ordered = ordered[np.linspace(0, len(ordered) - 1, _BARS).round().astype(int)]
    most, least = float(change.max()), float(change.min())
    return bars(
        ordered.tolist(),
        Axis("queries, from most gained to most lost", 0, len(ordered)),
        axis("change of average precision, points", min(0.0, least), max(0.0, most)),
        f"Sorted change of average precision of {len(change)} queries, from {signed(most)} to {signed(least)} points, "
        f"mean {signed(change.mean())}",
    )
