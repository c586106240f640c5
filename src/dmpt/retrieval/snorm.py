"""Score normalisation: a score as far above what either item scores with strangers, in their own spreads (s-norm).

The strangers are a *cohort*, some samples of training identities. An item that resembles everybody, as in a dark frame,
scores high with the cohort too. Symmetric: the mean of both items' views. Over each set of common modalities an item
has statistics of its own, since its scores over them have a scale of their own.
"""

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from dmpt.retrieval.embeddings import Embeddings
from dmpt.retrieval.scores import blocks

COHORT = 400
"""Samples of it, at most; more change little (speaker verification takes 200 to 400)."""
_FLAT = 1e-6  # a smaller spread of scores than this is rounding
Statistics = npt.NDArray[np.float64]
"""Of N items, mean and standard deviation of the scores with the cohort over each set of common modalities (bit m of
the row is modality m), ``(N, 8, 2)``; of sets that an item lacks 0 and 1."""


def statistics(items: Embeddings, cohort: Embeddings) -> Statistics:
    """What each item scores with strangers."""
    sets = 1 << items.present.shape[1]
    found = np.tile([0.0, 1.0], (len(items), sets, 1))
    for code in range(sets):
        rows = np.flatnonzero(items.codes & code == code)
        others = np.flatnonzero(cohort.codes & code == code)
        if len(rows) and len(others):
            for here, scores in blocks(_cut(items[rows], code), cohort[others], match_copies=False, mixed=True):
                exact = scores.astype(np.float64)
                found[rows[here], code, 0] = exact.mean(axis=1)
                found[rows[here], code, 1] = np.maximum(exact.std(axis=1), _FLAT)
    return found


def snorm(
    scores: npt.NDArray[np.floating], common: npt.NDArray[np.int64], first: Statistics, second: Statistics
) -> npt.NDArray[np.float64]:
    """Scores in units of what their items score with strangers.

    Args:
        scores: of the mixed form, ``(N, M)``.
        common: the set of modalities that each two have in common, ``(N, M)``.
        first: of the N items.
        second: of the M items.
    """
    one = first[np.arange(len(first))[:, None], common]
    other = second[np.arange(len(second)), common]
    parts = ((scores - side[..., 0]) / side[..., 1] for side in (one, other))
    found: npt.NDArray[np.float64] = (next(parts) + next(parts)) / 2
    return found


def _cut(items: Embeddings, code: int) -> Embeddings:
    """As if they had these modalities alone; none of them = their shared parts are what is left to compare."""
    kept = (code >> np.arange(items.present.shape[1]) & 1).astype(np.bool_)
    features = items.features * kept[:, None] if code else items.features
    return replace(items, features=features, present=items.present & kept)
