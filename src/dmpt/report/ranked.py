"""Ranked lists: a query and what was found for it, in all spectra."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from markupsafe import Markup

from dmpt.data.records import Record
from dmpt.pages.pictures import labelled, lying, sample, spectra_of, stacked
from dmpt.report.measured import Measured, Ranked

TOP = 8


def chosen(run: Measured, which: Literal["best", "worst"], count: int) -> list[int]:
    """Queries of the highest or lowest average precision, one per identity; equal ones by row.

    One per identity, since the queries of a lost identity look alike, and so do hundreds with a perfect list.
    """
    precision, pids = run.metrics.average_precision, run.query_labels.pids
    order = np.argsort(-precision if which == "best" else precision, kind="stable")
    return one_per_identity([int(q) for q in order if not np.isnan(precision[q])], pids.tolist(), count)


def one_per_identity(queries: Sequence[int], pids: Sequence[int], count: int) -> list[int]:
    """The first ``count`` queries of different identities."""
    first: dict[int, int] = {}
    for query in queries:
        first.setdefault(pids[query], query)
    return list(first.values())[:count]


def lists(run: Measured, queries: Sequence[int], title: str) -> Markup:
    """A column of lists under a heading."""
    body = Markup("").join(ranked_list(run, run.ranked(query, TOP)) for query in queries)
    return Markup("<div><h3>{}</h3>{}</div>").format(title, body)


def columns(run: Measured, *parts: Markup) -> Markup:
    """Lists beside each other, or below where the pictures lie down and need the width."""
    kind = "lists wide" if lying(run.card.config.data) else "lists"
    return Markup('<div class="{}">{}</div>').format(kind, Markup("").join(parts))


def ranked_list(run: Measured, ranked: Ranked, title: str = "") -> Markup:
    """A query and its first items; right ones have a solid green frame and a tick, wrong ones a dashed red and a cross.

    Args:
        run: whose list it is.
        ranked: the list.
        title: in front of the average precision.
    """
    asked = run.query[ranked.query]
    heading = f"{title + ': ' if title else ''}identity {asked.pid}, average precision {ranked.average_precision:.1f}"
    cells = [_cell(run, asked, "query", "", f"cam {asked.camera}")]
    spread = float(np.ptp(ranked.scores)) if len(ranked.scores) else 0.0
    decimals = 2 if spread >= 0.05 else 3 if spread >= 0.005 else 5  # enough to tell the items apart
    for place, (item, score, hit) in enumerate(zip(ranked.items, ranked.scores, ranked.hits, strict=True), start=1):
        record = run.gallery[item]
        said = f"cam {record.camera}", f"{score:.{decimals}f}"
        cells.append(_cell(run, record, "hit" if hit else "miss", f"{place}", *said))
    return Markup('<div class="ranked"><h4>{}</h4><ol class="strip">{}</ol></div>').format(
        heading, Markup("").join(cells)
    )


def _cell(run: Measured, record: Record, kind: str, place: str, *said: str) -> Markup:
    data = run.card.config.data
    mark = {"query": "query", "hit": f"{place} ✓", "miss": f"{place} ✗"}[kind]
    means = {"query": "Query", "hit": f"Rank {place}, right", "miss": f"Rank {place}, wrong"}[kind]
    alt = f"{means}: identity {record.pid}, camera {record.camera}, {spectra_of(record, data)}"
    picture = stacked(sample(record, data), alt)
    if kind == "query":
        picture = labelled(picture, data)
    item = Markup('<li class="{}" title="{}"><span class="mark-text">{}</span>{}<span class="said">{}</span></li>')
    return item.format(kind, record.name, mark, picture, Markup("<br>").join(said))
