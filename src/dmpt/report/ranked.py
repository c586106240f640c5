"""Ranked lists: a query and what was found for it, in all spectra."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dmpt.data.records import Record
from dmpt.evaluation.evaluate import Evaluation
from dmpt.pages.frame import Section, render
from dmpt.pages.pictures import SPOKEN, listed, lying, spectra_of, stacked, thumbnails
from dmpt.retrieval.protocols import PROTOCOLS
from dmpt.retrieval.scores import blocks

_TOP = 8
"""Items of a list that are shown."""
_LISTS = 4
"""Best, and worst, ranked lists on a page."""


@dataclass(frozen=True)
class _Ranked:
    """One query's list."""

    items: NDArray[np.int64]  # rows of the gallery, best first, without what the protocol ignores
    scores: NDArray[np.float32]  # cosines over the modalities that both have
    hits: NDArray[np.bool_]  # which of them are the query's identity


def _ranked(run: Evaluation, query: int, top: int = _TOP) -> _Ranked:
    """The first ``top`` items of one query's list; equal scores by gallery row."""
    features, gallery, query_labels, labels = run.seen
    asked = query_labels[query : query + 1]
    kept = np.flatnonzero(~PROTOCOLS[run.metrics.protocol](asked, labels)[0])
    _, found = next(blocks(features[query : query + 1], gallery, match_copies=False))
    scores = found[0, kept]
    order = np.argsort(-scores, kind="stable")[:top]
    items = kept[order]
    return _Ranked(items, scores[order], labels.pids[items] == asked.pids[0])


def section(run: Evaluation) -> Section:
    """Best and worst lists: the queries of highest and lowest average precision, one per identity."""
    best, worst = _chosen(run, "best", _LISTS), _chosen(run, "worst", _LISTS)
    columns = [(title, [shown(run, query) for query in of]) for title, of in (("Best", best), ("Worst", worst))]
    data = run.opened.data
    body = render("report/lists.html", columns=columns, wide=lying(data), spectra=listed(data.modalities, SPOKEN))
    return Section("lists", "Best and worst ranked lists", body)


def _chosen(run: Evaluation, which: Literal["best", "worst"], count: int) -> list[int]:
    """Queries of the highest or lowest average precision, one per identity; equal ones by row.

    One per identity, since the queries of a lost identity look alike, and so do hundreds with a perfect list.
    """
    precision = run.metrics.average_precision
    order = np.argsort(-precision if which == "best" else precision, kind="stable")
    return one_per_identity(run, [int(q) for q in order if not np.isnan(precision[q])], count)


def one_per_identity(run: Evaluation, queries: Sequence[int], count: int) -> list[int]:
    """The first ``count`` queries of different identities."""
    first: dict[int, int] = {}
    for query in queries:
        first.setdefault(run.query[query].pid, query)
    return list(first.values())[:count]


def shown(run: Evaluation, query: int, title: str = "") -> dict[str, Any]:
    """A query and its first items, as ``report/ranked.html`` takes them.

    Args:
        run: whose list it is.
        query: row of the query.
        title: in front of the average precision.
    """
    found, asked = _ranked(run, query), run.query[query]
    heading = f"identity {asked.pid}, average precision {run.metrics.average_precision[query]:.1f}"
    spread = float(np.ptp(found.scores)) if len(found.scores) else 0.0
    decimals = 2 if spread >= 0.05 else 3 if spread >= 0.005 else 5  # enough to tell the items apart
    cells = [_cell(run, asked, "query", "query", "Query")]
    for place, (item, score, hit) in enumerate(zip(found.items, found.scores, found.hits, strict=True), start=1):
        kind, mark, word = ("hit", "✓", "right") if hit else ("miss", "✗", "wrong")
        cell = _cell(run, run.gallery[item], kind, f"{place} {mark}", f"Rank {place}, {word}")
        cells.append({**cell, "score": f"{score:.{decimals}f}"})
    return {"heading": f"{title}: {heading}" if title else heading, "cells": cells}


def _cell(run: Evaluation, record: Record, kind: str, mark: str, means: str) -> dict[str, Any]:
    data = run.opened.data
    alt = f"{means}: identity {record.pid}, camera {record.camera}, {spectra_of(record, data)}"
    picture = stacked(thumbnails(record, data), alt, data.modalities if kind == "query" else ())
    return {"kind": kind, "name": record.name, "mark": mark, "picture": picture, "camera": record.camera, "score": ""}
