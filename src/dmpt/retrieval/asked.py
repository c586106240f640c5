"""Thresholds asked for against rates achieved: does a threshold that some identities give hold for others?

Half of the identities give the threshold, the other half try it, and all that again with other halves. A model whose
scores of strangers differ from person to person gives thresholds that do not hold, however well it ranks.
"""

from dataclasses import dataclass

import numpy as np

from dmpt.base.errors import UserError
from dmpt.retrieval.calibration import cross_camera_pairs, threshold_at
from dmpt.retrieval.embeddings import Embeddings
from dmpt.retrieval.protocols import Labels

_MOST = 3000
"""Items whose pairs are looked at: of more, those at equal distances."""


@dataclass(frozen=True)
class Achieved:
    """What became of thresholds that were asked for; rates are percent.

    Attributes:
        asked: the FMR that was asked for.
        fmr: the FMR of other identities at the thresholds, the mean over the draws.
        low: the 5th percentile of the draws.
        high: the 95th.
        tar: the share of these identities' mates that pass, the mean over the draws.
        draws: how many count: those whose strangers can carry the rate.
    """

    asked: float
    fmr: float
    low: float
    high: float
    tar: float
    draws: int


def achieved(items: Embeddings, labels: Labels, fmr: float = 0.01, draws: int = 20, seed: int = 0) -> Achieved | None:
    """The rates achieved; None where no half of the identities carries the rate.

    Args:
        items: N items of identities that training has not seen.
        labels: theirs; pairs are of different cameras.
        fmr: asked for, in (0, 1).
        draws: of the half that gives the threshold.
        seed: of the draws.

    Raises:
        UserError: there are no mates or no strangers across cameras, or fewer than four identities.
    """
    pairs = cross_camera_pairs(items, labels, _MOST)
    count = 1 + int(max(pairs.first.max(), pairs.second.max()))
    if count < 4:
        raise UserError(f"a threshold of half of the identities needs four; there are {count}")
    generator, found = np.random.default_rng(seed), []
    for _ in range(draws):
        gives = np.zeros(count, dtype=np.bool_)
        gives[generator.permutation(count)[: count // 2]] = True
        giving, trying = gives[pairs.first] & gives[pairs.second], ~gives[pairs.first] & ~gives[pairs.second]
        limit = threshold_at(np.sort(pairs.scores[giving & ~pairs.same]), fmr)
        strangers, mates = (pairs.scores[trying & which] for which in (~pairs.same, pairs.same))
        if limit is not None and len(strangers) and len(mates):
            found.append((100 * np.mean(strangers > limit), 100 * np.mean(mates > limit)))
    if not found:
        return None
    rates, tar = np.array(found).T
    low, high = np.quantile(rates, [0.05, 0.95])
    return Achieved(100 * fmr, float(rates.mean()), float(low), float(high), float(tar.mean()), len(found))
