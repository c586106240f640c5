"""``dmpt report RUN_A RUN_B``: which queries got better, which worse."""

from pathlib import Path

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from dmpt.pages.charts import Axis, Series, axis, bars, marks_key, scatter
from dmpt.pages.frame import Section, count, figure, folded, pair, paragraph, subheading, table, write_page
from dmpt.report import curves, ranked
from dmpt.report.measured import Measured
from dmpt.report.provenance import caution, provenance
from dmpt.retrieval.metrics import MEASURES
from dmpt.retrieval.statistics import DRAWS, bootstrap

LISTS = 3
NAMED = 500
"""Queries in the table of names, at most."""
BARS = 400
"""Drawn at most; of more queries evenly spread ones are taken from the sorted differences."""


def differences(a: Measured, b: Measured) -> NDArray[np.float64]:
    """Average precision of each query in b minus that in a, percentage points; NaN where there is nothing to find."""
    return b.metrics.average_precision - a.metrics.average_precision


def compare(first: Measured, second: Measured, out: Path | None = None) -> Path:
    """Write a comparison of two runs on the same test data.

    Args:
        first: what is compared with.
        second: the one in question.
        out: the file; None = ``compare.html`` in the second's folder.

    Returns:
        The file.

    Raises:
        UserError: it cannot be written.
    """
    out = out or second.run / f"compare{second.ending}.html"
    change = differences(first, second)
    valid = np.flatnonzero(~np.isnan(change))
    better, worse = int((change[valid] > 0).sum()), int((change[valid] < 0).sum())
    same = len(valid) - better - worse
    lead = Markup("").join(
        [
            paragraph(
                f"Of {len(valid)} queries {better} got better, {worse} got worse and {same} stayed the "
                f"same from {first.name} to {second.name}. Rates are percent, differences percentage points."
            ),
            _numbers(first, second),
            paragraph(_certainty(first, second)),
            caution(first),
            caution(second),
            provenance(first),
            provenance(second),
        ]
    )
    cmc = figure(curves.cmc([first, second]), "CMC: how often a right match is among the first k. Higher is better.")
    sections = [
        _query_section(first, second, change, valid),
        Section("curves", "CMC curves", "The higher line finds a right match sooner.", pair(cmc)),
        _list_section(first, second, change, valid),
    ]
    write_page(out, f"{first.name} and {second.name} compared", lead, sections)
    return out


def _numbers(a: Measured, b: Measured) -> Markup:
    rows: list[list[str]] = []
    for key, label in MEASURES.items():
        before, after = getattr(a.metrics, key), getattr(b.metrics, key)
        rows.append([label, f"{before:.1f}", f"{after:.1f}", _signed(after - before)])
    rows.append(["trained parameters", count(a.trained), count(b.trained), ""])
    return table(["", a.name, b.name, "difference"], rows)


def _certainty(a: Measured, b: Measured) -> str:
    """How much of the difference could be the draw of identities."""
    found = bootstrap(a.metrics.average_precision[None], b.metrics.average_precision[None], a.query_labels.pids)
    return (
        f"Difference in mAP {_signed(found.difference)}, 95 % interval {_signed(found.low)} to {_signed(found.high)}, "
        f"p {'< 0.001' if found.p < 0.001 else f'= {found.p:.3f}'}: a paired bootstrap ({DRAWS:,} draws) over the "
        "identities of the queries, gallery fixed. It speaks of these two runs; other training seeds are a study's "
        "question (dmpt study)."
    )


def _query_section(a: Measured, b: Measured, changes: NDArray[np.float64], valid: NDArray[np.int64]) -> Section:
    change = changes[valid]
    before, after = (run.metrics.average_precision[valid] for run in (a, b))
    points = axis("change of average precision, points", min(0.0, float(change.min())), max(0.0, float(change.max())))
    ordered = np.sort(change)[::-1]
    if len(ordered) > BARS:
        ordered = ordered[np.linspace(0, len(ordered) - 1, BARS).round().astype(int)]
    chart = bars(
        ordered.tolist(),
        Axis("queries, from most gained to most lost", 0, len(ordered)),
        points,
        f"Sorted change of average precision of {len(change)} queries, from {_signed(float(change.max()))} to "
        f"{_signed(float(change.min()))} points, mean {_signed(float(change.mean()))}",
    )
    percent = (0.0, 20.0, 40.0, 60.0, 80.0, 100.0)
    groups = [
        Series(name, before[chosen].tolist(), after[chosen].tolist())
        for name, chosen in (("better", change > 0), ("worse", change < 0), ("the same", change == 0))
    ]
    dots = scatter(
        groups,
        Axis(f"average precision in {a.name}, %", 0, 100, percent),
        Axis(f"in {b.name}, %", 0, 100, percent),
        f"Average precision of each query in {a.name} (across) and {b.name} (up)",
        diagonal=True,
    )
    body = pair(
        figure(chart, f"The mean of these bars is the difference in mAP, {_signed(float(change.mean()))} points."),
        figure(
            dots + marks_key([group.name for group in groups]),
            "Each mark is a query; above the diagonal it got better.",
        ),
    )
    return Section(
        "queries",
        "Which queries changed",
        "A mean hides that some queries win and others lose. Look how much of the left chart lies below zero, and "
        "whether easy queries (to the right in the other) stayed easy.",
        body + _names(a, b, changes, valid),
    )


def _names(a: Measured, b: Measured, change: NDArray[np.float64], valid: NDArray[np.int64]) -> Markup:
    """Which files the queries are that changed, the most changed first."""
    order = valid[np.argsort(-np.abs(change[valid]), kind="stable")][:NAMED]
    before, after = (run.metrics.average_precision for run in (a, b))
    rows = []
    for q in order:
        record, numbers = a.query[q], (f"{before[q]:.1f}", f"{after[q]:.1f}", _signed(change[q]))
        rows.append([record.name, f"{record.pid}", f"{record.camera}", *numbers])
    header = ["query", "identity", "camera", f"average precision in {a.name}", f"in {b.name}", "change"]
    every = "All queries" if len(order) == len(valid) else f"The {len(order)} queries that changed most"
    return folded(f"{every}, by file", table(header, rows))


def _list_section(a: Measured, b: Measured, change: NDArray[np.float64], valid: NDArray[np.int64]) -> Section:
    pids = a.query_labels.pids.tolist()
    parts = []
    for title, sign in (("Most gained", 1), ("Most lost", -1)):
        order = valid[np.argsort(-sign * change[valid], kind="stable")]
        moved = [int(q) for q in order if sign * change[q] > 0]
        parts.append(subheading(title))
        for query in ranked.one_per_identity(moved, pids, LISTS):
            parts.append(
                ranked.columns(a, *(ranked.ranked_list(r, r.ranked(query, ranked.TOP), r.name) for r in (a, b)))
            )
        if not moved:
            parts.append(Markup("<p>None.</p>"))
    return Section(
        "lists",
        "Ranked lists of the queries that changed most",
        "Each pair of lists answers the same query, first by one run, then by the other. ✓ and a solid frame: the "
        "right identity; ✗ and a dashed frame: another one. One query per identity.",
        Markup("").join(parts),
    )


def _signed(value: float) -> str:
    # rounded first, so that no "-0.0" is shown
    rounded = round(float(value), 1) + 0.0
    return f"{rounded:+.1f}".replace("-", "\N{MINUS SIGN}") if rounded else "0.0"
