"""Whether two are the same, by all shots of the one and of the other.

Every shot is compared with every shot, and the pair decides whose score strangers reach least often. The best of k
pairs is reached more often than one pair, up to k times: so its rate is multiplied by k (Bonferroni), which holds
however alike the shots are. Averaged vectors would not do: averages of strangers are more alike than their shots are,
and a threshold of single shots passes many more of them than it says (docs/own_cameras.md has numbers).
"""

from dataclasses import dataclass

import numpy as np

from dmpt.adapter.calibration import Calibration
from dmpt.retrieval.embeddings import Embeddings
from dmpt.retrieval.scores import between
from dmpt.settings.modalities import names_of


@dataclass(frozen=True)
class Verdict:
    """How alike two are.

    Attributes:
        score: of the best pair of shots: cosine over their common modalities, on one scale (``retrieval.scores``).
        modalities: which those two have in common; none = their shared parts were compared, or, of a model without
            them, the mean of their features, which nothing was trained to align: no rate is known.
        same: whether it is one identity, at the FMR that was asked for; None without calibration, or where its
            identities are too few to deny it.
        fmr: the share of strangers, with as many shots, that score as high, at most; None without calibration. Where
            the calibration normalises scores it is that of the normalised one.
    """

    score: float
    modalities: tuple[str, ...]
    same: bool | None = None
    fmr: float | None = None


def judge(first: Embeddings, second: Embeddings, calibration: Calibration | None, fmr: float) -> Verdict:
    """What the shots of two say.

    Args:
        first: shots of the one, at least one.
        second: shots of the other.
        calibration: of the model; pairs of shots whose common modalities it has no rates for do not count.
        fmr: the share of strangers that may pass, in (0, 1).
    """
    scores = between(first, second)
    both = first.present[:, None] & second.present
    rates = np.full(scores.shape, np.nan) if calibration is None else calibration.fmr_between(first, second, scores)
    pairs = int(np.isfinite(rates).sum())
    # Without rates those count that have most in common.
    order = np.lexsort((-scores.ravel(), (rates if pairs else -both.sum(axis=-1)).ravel()))  # NaN comes last
    one, other = np.unravel_index(order[0], scores.shape)
    score = float(scores[one, other])
    common = names_of(int(first.codes[one] & second.codes[other]))
    if calibration is None or not pairs:
        return Verdict(score, common)
    found = min(1.0, pairs * float(rates[one, other]))
    denied = False if calibration.carries(common, fmr / pairs) else None
    return Verdict(score, common, True if found <= fmr else denied, found)
