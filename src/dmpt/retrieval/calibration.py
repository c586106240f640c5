"""From a score to an error rate: how often strangers score above a threshold, and how often mates below it.

Pairs are of different cameras, as they are where a threshold is used. FMR is the share of pairs of strangers above the
threshold, FNMR the share of mates not above it; TAR = 1 - FNMR (ISO/IEC 19795-1). Both are rates of one comparison: a
search among N strangers has a false match with the probability 1 - (1 - FMR)^N, or so (``retrieval.openset``).

Identities are what is drawn from the world, not pairs: intervals are of a bootstrap over identities, and a rate below
one of their pairs is refused.

Where scores are asked for in ascending order, they have been sorted once for all that is read off them.
"""

import bisect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dmpt.base.errors import UserError
from dmpt.retrieval.embeddings import Embeddings
from dmpt.retrieval.protocols import Labels
from dmpt.retrieval.scores import blocks

RATES = (0.1, 0.01, 0.001, 0.0001)
"""FMR that thresholds are asked for."""
_REACH = 3.0
"""Times the highest rate: so far down are the strangers' scores gone through for each draw, and further where a draw
needs it."""
Floats = npt.NDArray[np.float64]
Scores = npt.NDArray[np.floating]
Rows = npt.NDArray[np.int64]
Change = Callable[[slice, npt.NDArray[np.float32]], Scores]


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

    def __getitem__(self, rows: Rows) -> "Pairs":
        return Pairs(self.scores[rows], self.first[rows], self.second[rows])

    @property
    def same(self) -> npt.NDArray[np.bool_]:
        """Which are mates, ``(N,)``."""
        found: npt.NDArray[np.bool_] = self.first == self.second
        return found

    @property
    def identities(self) -> int:
        """How many identities there are in the pairs."""
        return len(np.union1d(self.first, self.second))

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
        strangers.append(block[across > same])
    of_mates, of_strangers = (np.concatenate(part) for part in (mates, strangers))
    if not len(of_mates) or not len(of_strangers):
        return None
    for scores in (of_mates, of_strangers):
        scores.sort()
    return Verification(
        strangers=_median(of_strangers),
        mates=_median(of_mates),
        eer=100 * equal_error_rate(of_mates, of_strangers),
        tar={f"{100 * rate:g}": 100 * tar_at(of_mates, of_strangers, rate) for rate in RATES[:3]},
    )


def cross_camera_pairs(items: Embeddings, labels: Labels, most: int | None = None) -> Pairs:
    """Every two items of different cameras, once.

    Scores are the mixed form's, which do not depend on what else is there (``scores.blocks``).

    Args:
        items: N items.
        labels: theirs.
        most: items that are looked at: of more, those at equal distances count; None = all.

    Raises:
        UserError: there are no mates or no strangers across cameras.
    """
    if most is not None:
        some = np.arange(0, len(items), -(-len(items) // most))
        items, labels = items[some], labels[some]
    _, identities = np.unique(labels.pids, return_inverse=True)
    rows = np.arange(len(items))
    scores, one, other = across(items, items, labels.cameras, rows, rows)
    pairs = Pairs(scores, identities[one], identities[other])
    mates = int(pairs.same.sum())
    if not 0 < mates < len(pairs.scores):
        raise UserError(
            f"calibration needs pairs of different cameras, of the same identity and of strangers; there are {mates} "
            f"and {len(pairs.scores) - mates}; give more identities, each seen by two cameras or more"
        )
    return pairs


def across(
    first: Embeddings, second: Embeddings, views: Rows, one: Rows, other: Rows, change: Change | None = None
) -> tuple[Floats, Rows, Rows]:
    """Pairs of different cameras whose first item stands earlier in a list than the second.

    Args:
        first: some items of the list.
        second: some again, maybe seen otherwise.
        views: camera of each item of the list (or scene), ``(N,)``.
        one: where in it the first are.
        other: where the second are.
        change: of scores, some rows of ``first`` at a time.

    Returns:
        The pairs' scores, and where in the list their items are; each ``(P,)``.
    """
    found: list[tuple[Floats, Rows, Rows]] = []
    for rows, block in blocks(first, second, match_copies=False, mixed=True):
        here = one[rows, None]
        met = (here < other) & (views[here] != views[other])
        row, column = np.nonzero(met)
        scores = block if change is None else change(rows, block)
        found.append((scores[met].astype(np.float64), one[rows][row], other[column]))
    return joined(found)


def joined(parts: Sequence[tuple[Floats, Rows, Rows]]) -> tuple[Floats, Rows, Rows]:
    """Pairs of several lists as one."""
    scores, first, second = zip(*parts, strict=True)
    return np.concatenate(scores), np.concatenate(first), np.concatenate(second)


def threshold_at(strangers: Scores, fmr: float) -> float | None:
    """The score above which at most a share ``fmr`` of new strangers lies; None where so few cannot say.

    The conservative quantile: the k-th smallest of n ascending scores, k = ⌈(n + 1) (1 - fmr)⌉. The next stranger lies
    above it with at most that probability.
    """
    k = math.ceil((len(strangers) + 1) * (1 - fmr) - 1e-9)
    return None if k > len(strangers) else float(strangers[k - 1])


def det(mates: Scores, strangers: Scores, thresholds: npt.ArrayLike) -> tuple[Floats, Floats]:
    """The DET curve at some thresholds: FMR, which falls, and FNMR, which rises; of ascending scores."""
    fmr, fnmr = (np.searchsorted(side, thresholds, side="right") / len(side) for side in (strangers, mates))
    return 1 - fmr, fnmr


def equal_error_rate(mates: Scores, strangers: Scores) -> float:
    """The rate in [0, 1] at which FMR and FNMR meet, of ascending scores: the mean of the two where they are closest.

    With each higher score FMR falls or FNMR rises, so they are closest at the first score at which FNMR is the higher
    one, or at the last before.
    """

    def crossed(score: np.floating) -> bool:
        fmr, fnmr = det(mates, strangers, score)
        return bool(fmr - fnmr < 0)

    places = [(side, bisect.bisect_left(side, True, key=crossed)) for side in (mates, strangers)]
    near = (
        [side[place - 1] for side, place in places if place],
        [side[place] for side, place in places if place < len(side)],
    )
    rates = [det(mates, strangers, pick(scores)) for pick, scores in zip((max, min), near, strict=True) if scores]
    fmr, fnmr = min(rates, key=lambda both: abs(both[0] - both[1]))
    return float(fmr + fnmr) / 2


def tar_at(mates: Scores, strangers: Scores, fmr: float) -> float:
    """Share of mates above the score that exactly a share ``fmr`` of these strangers exceeds, at most; in [0, 1].

    Of ascending scores. For comparing models on one set; a threshold for other people is ``threshold_at``'s.
    """
    above = math.floor(len(strangers) * fmr + 1e-9)
    if above >= len(strangers):
        return 1.0
    limit = strangers[len(strangers) - 1 - above]
    return float(len(mates) - np.searchsorted(mates, limit, side="right")) / len(mates)


def _median(scores: Scores) -> float:
    """Of ascending scores."""
    return float(scores[[(len(scores) - 1) // 2, len(scores) // 2]].astype(np.float64).mean())


def thresholds(pairs: Pairs, rates: Sequence[float] = RATES, draws: int = 200, seed: int = 0) -> list[Threshold]:
    """A threshold for each rate that the identities can carry.

    Args:
        pairs: of calibration identities, which training has not seen.
        rates: FMR, each in (0, 1).
        draws: of identities, for the intervals.
        seed: of the draws.
    """
    same = pairs.same
    order = np.argsort(-pairs.scores[~same])
    strangers = pairs[np.flatnonzero(~same)[order]]
    mates, couples = pairs.scores[same], strangers.couples
    scores = {rate: threshold_at(strangers.scores[::-1], rate) for rate in rates if rate * couples >= 1}
    carried = {rate: score for rate, score in scores.items() if score is not None}
    found = intervals(strangers, carried, draws, seed) if carried else {}
    return [
        Threshold(rate, carried[rate], low, high, float(np.mean(mates > carried[rate])), fmr_low, fmr_high)
        for rate, (low, high, fmr_low, fmr_high) in found.items()
    ]


def intervals(strangers: Pairs, carried: Mapping[float, float], draws: int, seed: int = 0) -> dict[float, list[float]]:
    """By FMR, ends of the 95 % intervals of its threshold among these pairs, and of their FMR at the one given.

    Args:
        strangers: in descending order of their scores.
        carried: thresholds by FMR, one or more.
        draws: of identities.
        seed: of the draws.
    """
    ranked, first, second = strangers.scores, strangers.first, strangers.second
    count = int(max(first.max(), second.max())) + 1
    met = np.zeros((count, count))  # pairs of items of each two identities
    np.add.at(met, (first, second), 1)
    there = np.flatnonzero((met + met.T).any(axis=1))
    weights = np.zeros((draws, count))
    weights[:, there] = np.random.default_rng(seed).multinomial(
        len(there), np.full(len(there), 1 / len(there)), size=draws
    )
    totals = np.einsum("di,ij,dj->d", weights, met, weights, optimize=True)
    above = {rate: int(np.searchsorted(-ranked, -score, side="left")) for rate, score in carried.items()}
    drawn, achieved = ({rate: list[float]() for rate in carried} for _ in range(2))
    reach = max(math.ceil(_REACH * max(carried) * len(ranked)), *above.values())
    for own, total in zip(weights, totals, strict=True):
        if total == 0:  # one identity alone was drawn
            continue
        passed = np.cumsum(own[first[:reach]] * own[second[:reach]])
        if passed[-1] <= max(carried) * total:
            passed = np.cumsum(own[first] * own[second])
        for rate in carried:
            achieved[rate].append((passed[above[rate] - 1] if above[rate] else 0.0) / total)
            place = int(np.searchsorted(passed, rate * total, side="right"))
            drawn[rate].append(ranked[min(place, len(ranked) - 1)])
    ends = [0.025, 0.975]
    return {rate: [*np.quantile(drawn[rate], ends), *np.quantile(achieved[rate], ends)] for rate in carried}
