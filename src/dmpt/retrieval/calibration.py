"""From a score to an error rate: how often strangers score above a threshold, and how often mates below it.

Pairs are of different cameras, as they are where a threshold is used. FMR is the share of pairs of strangers above the
threshold, FNMR the share of mates not above it; TAR = 1 - FNMR (ISO/IEC 19795-1). Both are rates of one comparison: a
search among N strangers has a false match with the probability 1 - (1 - FMR)^N, or so (``retrieval.openset``).

Identities are what is drawn from the world, not pairs: intervals are of a bootstrap over identities, and a rate below
one of their pairs is refused.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dmpt.base.errors import UserError
from dmpt.retrieval.embeddings import Embeddings
from dmpt.retrieval.protocols import Labels
from dmpt.retrieval.scores import blocks

RATES = (0.1, 0.01, 0.001, 0.0001)
"""FMR that thresholds are asked for."""
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Pairs:
    """Scored pairs of items.

    Attributes:
        scores: float64 ``(N,)``; higher is more alike.
        first: identity of the one item, ``(N,)``, counted from 0.
        second: of the other.
    """

    scores: Floats
    first: npt.NDArray[np.int64]
    second: npt.NDArray[np.int64]

    @property
    def same(self) -> npt.NDArray[np.bool_]:
        """Which are mates, ``(N,)``."""
        found: npt.NDArray[np.bool_] = self.first == self.second
        return found

    @property
    def couples(self) -> int:
        """How many pairs of two identities met."""
        first, second = self.first[~self.same], self.second[~self.same]
        low, high = np.minimum(first, second), np.maximum(first, second)
        return len(np.unique(low * (1 + high.max(initial=0)) + high))

    @property
    def mates(self) -> Floats:
        """Scores of one identity with itself."""
        return self.scores[self.same]

    @property
    def strangers(self) -> Floats:
        """Scores of two identities."""
        return self.scores[~self.same]


@dataclass(frozen=True)
class Threshold:
    """A score, and what it means: items are the same where their score is *above* it.

    Attributes:
        fmr: what was asked for, in (0, 1).
        threshold: the score.
        low: lower end of its 95 % interval over identities.
        high: upper end.
        tar: share of mates above the threshold, in [0, 1].
        fmr_low: lower end of the 95 % interval of the FMR that other identities would have at this threshold.
        fmr_high: upper end.
    """

    fmr: float
    threshold: float
    low: float
    high: float
    tar: float
    fmr_low: float
    fmr_high: float


@dataclass(frozen=True)
class Verification:
    """How far mates and strangers of different cameras lie apart.

    Attributes:
        strangers: median score of strangers: near 1 it takes many decimals to tell people apart.
        mates: median score of mates.
        eer: equal error rate, percent.
        tar: by FMR in percent, the share of mates that pass where so many of these strangers do, percent.
    """

    strangers: float
    mates: float
    eer: float
    tar: dict[str, float]


def verification(
    query: Embeddings, gallery: Embeddings, query_labels: Labels, gallery_labels: Labels, most: int = 20_000_000
) -> Verification | None:
    """Rates of the pairs of a test split, for comparing models; None where either kind of pair is not there.

    Args:
        query: Q items.
        gallery: G items.
        query_labels: theirs.
        gallery_labels: theirs.
        most: pairs that are looked at: of larger splits queries at equal distances count.
    """
    rows = np.arange(0, len(query), max(1, math.ceil(len(query) * len(gallery) / most)))
    chosen = query_labels[rows]
    mates, strangers = [], []
    for here, block in blocks(query[rows], gallery, match_copies=False, mixed=True):
        own = chosen[here]
        across = own.cameras[:, None] != gallery_labels.cameras
        same = own.pids[:, None] == gallery_labels.pids
        mates.append(block[across & same])
        strangers.append(block[across & ~same])
    of_mates, of_strangers = (np.concatenate(part).astype(np.float64) for part in (mates, strangers))
    if not len(of_mates) or not len(of_strangers):
        return None
    return Verification(
        strangers=float(np.median(of_strangers)),
        mates=float(np.median(of_mates)),
        eer=100 * equal_error_rate(of_mates, of_strangers),
        tar={f"{100 * rate:g}": 100 * tar_at(of_mates, of_strangers, rate) for rate in RATES[:3]},
    )


def cross_camera_pairs(items: Embeddings, labels: Labels) -> Pairs:
    """Every two items of different cameras, once.

    Scores are the mixed form's, which do not depend on what else is there (``scores.blocks``).

    Raises:
        UserError: there are no mates or no strangers across cameras.
    """
    _, identities = np.unique(labels.pids, return_inverse=True)
    scores, first, second = [], [], []
    for rows, block in blocks(items, items, match_copies=False, mixed=True):
        for index, row in enumerate(block, start=rows.start):
            other = index + 1 + np.flatnonzero(labels.cameras[index + 1 :] != labels.cameras[index])
            scores.append(row[other].astype(np.float64))
            first.append(np.full(len(other), identities[index]))
            second.append(identities[other])
    pairs = Pairs(np.concatenate(scores), np.concatenate(first), np.concatenate(second))
    mates = int(pairs.same.sum())
    if not 0 < mates < len(pairs.scores):
        raise UserError(
            f"calibration needs pairs of different cameras, of the same identity and of strangers; there are {mates} "
            f"and {len(pairs.scores) - mates}; give more identities, each seen by two cameras or more"
        )
    return pairs


def threshold_at(strangers: Floats, fmr: float) -> float | None:
    """The score above which at most a share ``fmr`` of new strangers lies; None where so few cannot say.

    The conservative quantile: the k-th smallest of n scores, k = ⌈(n + 1) (1 - fmr)⌉. The next stranger lies above it
    with at most that probability.
    """
    k = math.ceil((len(strangers) + 1) * (1 - fmr) - 1e-9)
    return None if k > len(strangers) else float(np.partition(strangers, k - 1)[k - 1])


def det(mates: Floats, strangers: Floats) -> tuple[Floats, Floats, Floats]:
    """The DET curve: ascending thresholds, FMR and FNMR at each; FMR falls from below 1 to 0, FNMR rises to 1."""
    thresholds = np.unique(np.concatenate([mates, strangers]))
    fmr = 1 - np.searchsorted(np.sort(strangers), thresholds, side="right") / len(strangers)
    fnmr = np.searchsorted(np.sort(mates), thresholds, side="right") / len(mates)
    return thresholds, fmr, fnmr


def equal_error_rate(mates: Floats, strangers: Floats) -> float:
    """The rate in [0, 1] at which FMR and FNMR meet: the mean of the two where they are closest."""
    _, fmr, fnmr = det(mates, strangers)
    best = int(np.argmin(np.abs(fmr - fnmr)))
    return float(fmr[best] + fnmr[best]) / 2


def tar_at(mates: Floats, strangers: Floats, fmr: float) -> float:
    """Share of mates above the score that exactly a share ``fmr`` of these strangers exceeds, at most; in [0, 1].

    For comparing models on one set; a threshold for other people is ``threshold_at``'s.
    """
    above = math.floor(len(strangers) * fmr + 1e-9)
    if above >= len(strangers):
        return 1.0
    place = len(strangers) - 1 - above
    return float(np.mean(mates > np.partition(strangers, place)[place]))


def thresholds(pairs: Pairs, rates: Sequence[float] = RATES, draws: int = 200, seed: int = 0) -> list[Threshold]:
    """A threshold for each rate that the identities can carry.

    Args:
        pairs: of calibration identities, which training has not seen.
        rates: FMR, each in (0, 1).
        draws: of identities, for the intervals.
        seed: of the draws.
    """
    count = int(max(pairs.first.max(), pairs.second.max())) + 1
    met = np.zeros((count, count))  # pairs of items of each two identities
    np.add.at(met, (pairs.first, pairs.second), 1)
    same = pairs.same
    strangers, first, second = pairs.scores[~same], pairs.first[~same], pairs.second[~same]
    couples = pairs.couples
    order = np.argsort(-strangers, kind="stable")
    ranked, first, second = strangers[order], first[order], second[order]
    np.fill_diagonal(met, 0)
    generator = np.random.default_rng(seed)
    weights = generator.multinomial(count, np.full(count, 1 / count), size=draws).astype(np.float64)
    totals = np.einsum("di,ij,dj->d", weights, met, weights, optimize=True)
    found = []
    for rate in rates:
        score = threshold_at(strangers, rate)
        if score is None or rate * couples < 1:
            continue
        above = int(np.searchsorted(-ranked, -score, side="left"))
        drawn, achieved = [], []
        for own, total in zip(weights, totals, strict=True):
            if total == 0:  # one identity alone was drawn
                continue
            passed = np.cumsum(own[first] * own[second])
            achieved.append((passed[above - 1] if above else 0.0) / total)
            drawn.append(ranked[min(int(np.searchsorted(passed, rate * total, side="right")), len(ranked) - 1)])
        low, high = np.quantile(drawn, [0.025, 0.975])
        fmr_low, fmr_high = np.quantile(achieved, [0.025, 0.975])
        tar = float(np.mean(pairs.mates > score))
        found.append(Threshold(rate, score, float(low), float(high), tar, float(fmr_low), float(fmr_high)))
    return found
