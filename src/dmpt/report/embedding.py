"""t-SNE of test features, and how tight and separate identities are (the paper's Figure 5)."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmpt.data.records import Record
from dmpt.evaluation.evaluate import Evaluation
from dmpt.pages.charts import Axis, Series, marks_key, scatter
from dmpt.pages.frame import Section, render
from dmpt.retrieval.embeddings import Embeddings, join
from dmpt.retrieval.scores import as_vectors, blocks

_IDENTITIES, _ITEMS = 12, 20
_SEED = 0


def section(runs: Sequence[Evaluation]) -> Section:
    """A t-SNE per run, side by side: the same samples, the same colours, the silhouette below each."""
    rows, pids = _pick(runs[0])
    names = np.unique(pids)
    maps = [_map(run, rows, pids) for run in runs] if len(rows) >= 4 and len(names) > 1 else []
    key = marks_key([f"id {pid}" for pid in names])
    return Section("map", "Map of the features", render("report/map.html", maps=maps, key=key))


def samples(run: Evaluation) -> tuple[list[Record], Embeddings]:
    """Every test sample once, with its features: benchmarks list a query's copy in the gallery too."""
    there = {_sight(record) for record in run.gallery}
    alone = [row for row, record in enumerate(run.query) if _sight(record) not in there]
    records = [*(run.query[row] for row in alone), *run.gallery]
    return records, join(run.seen.query[np.array(alone, dtype=np.int64)], run.seen.gallery)


def _pick(run: Evaluation) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of ``samples``, and their identities: at most twelve, spread evenly, and at most 20 samples of each."""
    # Of those that are asked for and were seen twice: a gallery's distractors are many persons of one number.
    pids = np.array([record.pid for record in samples(run)[0]])
    names, counts = np.unique(pids, return_counts=True)
    enough = names[(counts > 1) & np.isin(names, run.seen.query_labels.pids)]
    wanted = enough[spread(len(enough), _IDENTITIES)]
    rows = np.concatenate([np.flatnonzero(pids == pid)[:_ITEMS] for pid in wanted]) if len(wanted) else np.arange(0)
    return rows, pids[rows]


def spread(count: int, wanted: int) -> NDArray[np.int64]:
    """At most so many places of a list of ``count``, from its first to its last."""
    return np.unique(np.linspace(0, count - 1, min(wanted, count)).round().astype(np.int64))


def _distances(items: Embeddings) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """1 - similarity of each item to all, some rows at a time ``(rows, N)``, in [0, 2]; 0 to itself."""
    for rows, scores in blocks(items, items):
        found = (1 - scores.astype(np.float64)).clip(0, 2)
        found[np.arange(len(found)), np.arange(rows.start, rows.stop)] = 0
        yield rows, found


def _silhouette(items: Embeddings, pids: NDArray[np.int64]) -> float:
    """Mean silhouette by identity, cosine distance, in [-1, 1]; NaN where it is not defined."""
    names, group, counts = np.unique(pids, return_inverse=True, return_counts=True)
    if not 1 < len(names) < len(pids):
        return float("nan")
    order, starts = np.argsort(group, kind="stable"), np.cumsum(counts) - counts
    values = np.zeros(len(pids))  # of an identity that is seen once it is 0
    for rows, found in _distances(items):
        sums = np.add.reduceat(found[:, order], starts, axis=1)
        own, each = group[rows], np.arange(len(found))
        inside = sums[each, own] / np.maximum(counts[own] - 1, 1)
        means = sums / counts
        means[each, own] = np.inf
        outside = means.min(axis=1)
        larger = np.maximum(np.maximum(inside, outside), np.finfo(float).tiny)
        values[rows] = np.where(counts[own] > 1, (outside - inside) / larger, 0)
    return float(values.mean())


def _tsne(items: Embeddings) -> NDArray[np.float64]:
    """Two coordinates of each sample ``(N, 2)``; the same for the same features, zeros where all are equal."""
    from sklearn.manifold import TSNE

    # The exact method needs no more than a few seconds for 240 points, and its sums run in a fixed order.
    perplexity = min(15.0, max(1.0, (len(items) - 1) / 3))
    options = {"perplexity": perplexity, "method": "exact", "random_state": _SEED}
    vectors = as_vectors(items, items)
    if vectors is None:  # samples that lack modalities have no common space
        whole = np.concatenate([found for _, found in _distances(items)])
        return np.asarray(TSNE(metric="precomputed", init="random", **options).fit_transform(whole))
    if not np.ptp(vectors[0], axis=0).any():  # PCA would divide by their variance
        return np.zeros((len(items), 2))
    return np.asarray(TSNE(init="pca", **options).fit_transform(vectors[0].astype(np.float64)))


def _map(run: Evaluation, rows: NDArray[np.int64], pids: NDArray[np.int64]) -> dict[str, Any]:
    """A run's name, the chart, and the silhouettes in words."""
    records, features = samples(run)
    every = np.array([record.pid for record in records])
    asked = np.flatnonzero(np.isin(every, run.seen.query_labels.pids))
    some, overall = _silhouette(features[rows], pids), _silhouette(features[asked], every[asked])
    said = f"silhouette by identity {some:.2f}; over all {len(np.unique(every[asked]))} identities {overall:.2f}"
    points = _tsne(features[rows])
    low, high = points.min(axis=0), points.max(axis=0)
    margin = 0.05 * np.maximum(high - low, 1e-9)
    x, y = (Axis("", float(a), float(b)) for a, b in zip(low - margin, high + margin, strict=True))  # they have no unit
    groups = [Series(f"id {pid}", *points[pids == pid].T.tolist()) for pid in np.unique(pids)]
    return {"name": run.name, "said": said, "chart": scatter(groups, x, y, f"t-SNE of {run.name}: {said}")}


def _sight(record: Record) -> tuple[str, int, int, int | None]:
    """What copies of a sample in two folders share."""
    return record.name, record.pid, record.camera, record.scene
