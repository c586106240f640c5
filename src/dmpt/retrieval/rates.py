"""What a score means between items that have one set of modalities in common: a table that answers for any score.

It is taken from pairs of calibration identities (``calibration``), whose scores are not kept: only how many lie above
some of them. Rates are conservative: of n strangers' scores, a new stranger's is above the k-th largest with the
probability k / (n + 1) at most, and no rate is said that is smaller than one couple of identities.
"""

import bisect
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from dmpt.base.errors import UserError
from dmpt.retrieval.calibration import RATES, Floats, Pairs, Threshold, equal_error_rate, thresholds
from dmpt.settings.modalities import MODALITIES
from dmpt.settings.numbers import Count, Finite, Positive, Share
from dmpt.settings.values import checked

_PER_DECADE = 24
"""Points of a curve in each factor of ten of the FMR."""
_BINS = 48


@dataclass(frozen=True)
class Curve:
    """Points of the DET curve.

    Attributes:
        scores: ascending, at least one.
        strangers: how many strangers' scores lie above each.
        mates: how many mates' scores do.
    """

    scores: tuple[Finite, ...]
    strangers: tuple[Count, ...]
    mates: tuple[Count, ...]


@dataclass(frozen=True)
class Histogram:
    """How many scores lie where, in bins of one width.

    Attributes:
        low: the lowest score.
        high: the highest.
        strangers: pairs of strangers in each bin.
        mates: pairs of mates.
    """

    low: Finite
    high: Finite
    strangers: tuple[Count, ...]
    mates: tuple[Count, ...]


@dataclass(frozen=True)
class Rates:
    """Error rates between items that have one set of modalities in common.

    Attributes:
        common: which; none = their shared parts were compared.
        pooled: the pairs are those of all sets, since this one alone had too few identities.
        identities: people or vehicles in the pairs.
        mates: pairs of one identity.
        strangers: pairs of two.
        couples: pairs of identities that met, of which the strangers are.
        eer: equal error rate, in [0, 1].
        thresholds: for the FMR that these identities carry, of ``calibration.RATES``.
        curve: what lies above which score.
        histogram: of the scores.
    """

    common: tuple[str, ...]
    pooled: bool
    identities: Positive
    mates: Positive
    strangers: Positive
    couples: Positive
    eer: Share
    thresholds: tuple[Threshold, ...]
    curve: Curve
    histogram: Histogram

    @property
    def least(self) -> float:
        """The smallest FMR that the identities carry, in (0, 1]."""
        return max((1 + self.curve.strangers[-1]) / (self.strangers + 1), 1 / self.couples)

    @property
    def usual(self) -> Threshold | None:
        """The threshold for an FMR of 1 %, or the next that the identities carry; None where they carry none."""
        carried = [limit for limit in self.thresholds if limit.fmr <= 0.01]
        return next(iter([*carried, *self.thresholds[-1:]]), None)

    def rate(self, above: int) -> float:
        """The FMR of a score that so many of the strangers exceed, at most; never below ``least``; in (0, 1]."""
        return max((1 + above) / (self.strangers + 1), self.least)

    def fmr(self, score: float) -> float:
        """The share of strangers that score as high, at most; never below ``least``; in (0, 1]."""
        place = bisect.bisect_left(self.curve.scores, score) - 1  # the last point that the score lies above
        return 1.0 if place < 0 else self.rate(self.curve.strangers[place])

    def threshold(self, fmr: float) -> float | None:
        """The score above which at most this share of strangers lies; None where the identities do not carry it.

        A score is above it exactly where ``fmr`` of the score is at most this.
        """
        if fmr < self.least:
            return None
        for score, above in zip(self.curve.scores, self.curve.strangers, strict=True):
            if (1 + above) / (self.strangers + 1) <= fmr:
                return score
        return None

    def check(self) -> None:
        """Refuse what no pairs can give.

        Raises:
            UserError: says what does not fit.
        """
        curve, bins = self.curve, self.histogram
        if not curve.scores or len({len(curve.scores), len(curve.strangers), len(curve.mates)}) > 1:
            raise UserError("the curve has no points, or not as many of each kind")
        if any(a >= b for a, b in pairwise(curve.scores)):
            raise UserError("the scores of the curve do not ascend")
        for above, count in ((curve.strangers, self.strangers), (curve.mates, self.mates)):
            if any(a < b for a, b in pairwise((count, *above))):
                raise UserError("the counts of the curve do not fall")
        if len(bins.strangers) != len(bins.mates) or not bins.strangers or bins.low > bins.high:
            raise UserError("the histogram has no bins, or not as many of each kind")


def rates_of(
    common: Sequence[str], pairs: Pairs, pooled: bool = False, rates: Sequence[float] = RATES, draws: int = 200
) -> Rates:
    """What the scores of pairs say.

    Args:
        common: the modalities that items of a pair have in common.
        pairs: with mates and strangers among them.
        pooled: whether they are pairs of other sets too.
        rates: FMR of the thresholds.
        draws: of identities, for their intervals.
    """
    strangers, mates = np.sort(pairs.strangers), np.sort(pairs.mates)
    low, high = (float(pick(strangers[end], mates[end])) for pick, end in ((min, 0), (max, -1)))
    counts = [np.histogram(scores, _BINS, (low, high))[0].tolist() for scores in (strangers, mates)]
    return Rates(
        common=tuple(common),
        pooled=pooled,
        identities=pairs.identities,
        mates=len(mates),
        strangers=len(strangers),
        couples=pairs.couples,
        eer=equal_error_rate(mates, strangers),
        thresholds=tuple(thresholds(pairs, rates, draws)),
        curve=_curve(strangers, mates, pairs.couples, rates),
        histogram=Histogram(low, high, *map(tuple, counts)),
    )


def _curve(strangers: Floats, mates: Floats, couples: int, rates: Sequence[float]) -> Curve:
    """Points at the conservative quantiles of ascending scores."""
    count = len(strangers)
    places = (math.ceil((count + 1) * (1 - rate) - 1e-9) for rate in _rates(max(1 / couples, 1 / (count + 1)), rates))
    scores = np.unique(strangers[[min(max(place, 1), count) - 1 for place in places]])
    above = [len(sides) - np.searchsorted(sides, scores, side="right") for sides in (strangers, mates)]
    return Curve(tuple(scores.tolist()), *(tuple(each.tolist()) for each in above))


def _rates(least: float, rates: Sequence[float]) -> Iterator[float]:
    """FMR of the points: those asked for, and evenly in its logarithm down to the least that is carried."""
    yield from (rate for rate in rates if rate >= least)
    yield from (
        10 ** (-step / _PER_DECADE) for step in range(1, math.floor(-math.log10(least) * _PER_DECADE + 1e-9) + 1)
    )
    yield least


def read_rates(content: Any, where: str) -> tuple[Rates, ...]:
    """Rates as JSON holds them, one for each set of modalities.

    Raises:
        UserError: they are damaged.
    """
    if not isinstance(content, list):
        raise UserError(f"{where} is no list")
    tables = []
    for number, each in enumerate(content):
        here = f"{where}[{number}]"
        if not isinstance(each, Mapping) or not isinstance(each.get("thresholds"), list):
            raise UserError(f"{here} has no thresholds")
        limits = tuple(checked(Threshold, limit, f"{here}.thresholds") for limit in each["thresholds"])
        table = checked(Rates, {**each, "thresholds": limits}, here)
        try:
            table.check()
        except UserError as error:
            raise UserError(f"{here}: {error}") from error
        tables.append(table)
    sets = [table.common for table in tables]
    if len(set(sets)) < len(sets) or any(own != tuple(m for m in MODALITIES if m in own) for own in sets):
        raise UserError(f"{where} name a set of modalities twice, or one that there is not")
    return tuple(tables)
