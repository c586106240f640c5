"""t-SNE of test features, and how tight and separate identities are (the paper's Figure 5)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from dmpt.pages.charts import Axis, Series, marks_key, scatter
from dmpt.pages.frame import pair
from dmpt.report.measured import Features, Measured

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
    records, _ = run.samples()
    pids = np.array([record.pid for record in records])
    names, counts = np.unique(pids, return_counts=True)
    enough = names[(counts > 1) & np.isin(names, run.query_labels.pids)]
    wanted = enough[np.unique(np.linspace(0, len(enough) - 1, min(IDENTITIES, len(enough))).round().astype(int))]
    rows = np.concatenate([np.flatnonzero(pids == pid)[:ITEMS] for pid in wanted]) if len(wanted) else np.arange(0)
    return Picked(rows, pids[rows])


def silhouette(features: Features, pids: NDArray[np.int64]) -> float:
    """Mean silhouette by identity, cosine distance, in [-1, 1]; NaN where it is not defined."""
    from sklearn.metrics import silhouette_score

    groups = len(np.unique(pids))
    if not 1 < groups < len(pids):
        return float("nan")
    return float(silhouette_score(features.astype(np.float64), pids, metric="cosine"))


def tsne(features: Features) -> NDArray[np.float64]:
    """Two coordinates of each sample ``(N, 2)``; the same for the same features, zeros where all are equal.

    The exact method: it needs no more than a few seconds for 240 points, and its sums run in a fixed order.
    """
    from sklearn.manifold import TSNE

    if not np.ptp(features, axis=0).any():  # PCA would divide by their variance
        return np.zeros((len(features), 2))
    perplexity = min(15.0, max(1.0, (len(features) - 1) / 3))
    model = TSNE(perplexity=perplexity, init="pca", method="exact", random_state=SEED)
    return np.asarray(model.fit_transform(features.astype(np.float64)))


def maps(runs: Sequence[Measured]) -> Markup:
    """A t-SNE per run, side by side: the same samples, the same colours, the silhouette below each."""
    picked = pick(runs[0])
    if len(picked.rows) < 4 or len(np.unique(picked.pids)) < 2:
        return Markup("<p>Too few test samples for a map.</p>")
    every = np.array([record.pid for record in runs[0].samples()[0]])
    asked = np.isin(every, runs[0].query_labels.pids)
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
