"""t-SNE of test features, and how tight and separate identities are (the paper's Figure 5)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from dmpt.pages.charts import Axis, Series, marks_key, scatter
from dmpt.pages.frame import pair
from dmpt.report.measured import Measured
from dmpt.retrieval.embeddings import Embeddings
from dmpt.retrieval.scores import as_vectors, blocks

IDENTITIES, ITEMS = 12, 20
SEED = 0


@dataclass(frozen=True)
class Picked:
    """Some test samples.

    Attributes:
        rows: of ``Measured.samples()``.
        pids: their identities.
    """

    rows: NDArray[np.int64]
    pids: NDArray[np.int64]


def pick(run: Measured) -> Picked:
    """At most twelve identities spread evenly over the numbers of those with two samples, and 20 samples of each.

    Of those that are asked for: a gallery's distractors are many persons of one number.
    """
    pids = np.array([record.pid for record in run.records()])
    names, counts = np.unique(pids, return_counts=True)
    enough = names[(counts > 1) & np.isin(names, run.query_labels.pids)]
    wanted = enough[np.unique(np.linspace(0, len(enough) - 1, min(IDENTITIES, len(enough))).round().astype(int))]
    rows = np.concatenate([np.flatnonzero(pids == pid)[:ITEMS] for pid in wanted]) if len(wanted) else np.arange(0)
    return Picked(rows, pids[rows])


def distances(items: Embeddings) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """1 - similarity of each item to all, some rows at a time ``(rows, N)``, in [0, 2]; 0 to itself."""
    for rows, scores in blocks(items, items):
        found = (1 - scores.astype(np.float64)).clip(0, 2)
        found[np.arange(len(found)), np.arange(rows.start, rows.stop)] = 0
        yield rows, found


def silhouette(items: Embeddings, pids: NDArray[np.int64]) -> float:
    """Mean silhouette by identity, cosine distance, in [-1, 1]; NaN where it is not defined."""
    names, group, counts = np.unique(pids, return_inverse=True, return_counts=True)
    if not 1 < len(names) < len(pids):
        return float("nan")
    order, starts = np.argsort(group, kind="stable"), np.cumsum(counts) - counts
    values = np.zeros(len(pids))  # of an identity that is seen once it is 0
    for rows, found in distances(items):
        sums = np.add.reduceat(found[:, order], starts, axis=1)
        own, each = group[rows], np.arange(len(found))
        inside = sums[each, own] / np.maximum(counts[own] - 1, 1)
        means = sums / counts
        means[each, own] = np.inf
        outside = means.min(axis=1)
        larger = np.maximum(np.maximum(inside, outside), np.finfo(float).tiny)
        values[rows] = np.where(counts[own] > 1, (outside - inside) / larger, 0)
    return float(values.mean())


def tsne(items: Embeddings) -> NDArray[np.float64]:
    """Two coordinates of each sample ``(N, 2)``; the same for the same features, zeros where all are equal.

    The exact method: it needs no more than a few seconds for 240 points, and its sums run in a fixed order. Samples
    that lack modalities have no common space, and are laid out by their distances alone.
    """
    from sklearn.manifold import TSNE

    perplexity = min(15.0, max(1.0, (len(items) - 1) / 3))
    options = {"perplexity": perplexity, "method": "exact", "random_state": SEED}
    vectors = as_vectors(items, items)
    if vectors is None:
        whole = np.concatenate([found for _, found in distances(items)])
        return np.asarray(TSNE(metric="precomputed", init="random", **options).fit_transform(whole))
    if not np.ptp(vectors[0], axis=0).any():  # PCA would divide by their variance
        return np.zeros((len(items), 2))
    return np.asarray(TSNE(init="pca", **options).fit_transform(vectors[0].astype(np.float64)))


def maps(runs: Sequence[Measured]) -> Markup:
    """A t-SNE per run, side by side: the same samples, the same colours, the silhouette below each."""
    picked = pick(runs[0])
    if len(picked.rows) < 4 or len(np.unique(picked.pids)) < 2:
        return Markup("<p>Too few test samples for a map.</p>")
    every = np.array([record.pid for record in runs[0].records()])
    asked = np.flatnonzero(np.isin(every, runs[0].query_labels.pids))
    figures = []
    for run in runs:
        features = run.samples()[1]
        shown, overall = silhouette(features[picked.rows], picked.pids), silhouette(features[asked], every[asked])
        said = f"silhouette by identity {shown:.2f}; over all {len(np.unique(every[asked]))} identities {overall:.2f}"
        chart = _map(tsne(features[picked.rows]), picked.pids, f"t-SNE of {run.name}: {said}")
        caption = Markup("<figcaption><strong>{}</strong>: {}</figcaption>").format(run.name, said)
        figures.append(Markup("<figure>{}{}</figure>").format(chart, caption))
    return pair(*figures) + marks_key([f"id {pid}" for pid in np.unique(picked.pids)])


def _map(points: NDArray[np.float64], pids: NDArray[np.int64], alt: str) -> Markup:
    low, high = points.min(axis=0), points.max(axis=0)
    margin = 0.05 * np.maximum(high - low, 1e-9)
    x, y = (Axis("", float(a), float(b)) for a, b in zip(low - margin, high + margin, strict=True))  # they have no unit
    groups = [Series(f"id {pid}", *points[pids == pid].T.tolist()) for pid in np.unique(pids)]
    return scatter(groups, x, y, alt)
