"""What thresholds come to among other identities than those that they were measured on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dmpt.retrieval.calibration import Threshold, cross_camera_pairs, intervals
from dmpt.retrieval.embeddings import Embeddings
from dmpt.retrieval.protocols import Labels

_MOST = 6000
"""Items, whose pairs are 18 million; of more, those at equal distances count."""


@dataclass(frozen=True)
class Reached:
    """A threshold, and how many pass it here.

    Attributes:
        asked: the FMR that it is for, in (0, 1).
        threshold: the score.
        fmr: share of these strangers above it, in [0, 1].
        low: lower end of the 95 % interval of that share over identities.
        high: upper end.
        tar: share of these mates above it, in [0, 1].
    """

    asked: float
    threshold: float
    fmr: float
    low: float
    high: float
    tar: float


def reached(limits: Sequence[Threshold], items: Embeddings, labels: Labels, draws: int = 200) -> list[Reached]:
    """The rates of pairs of different cameras at some thresholds.

    Args:
        limits: of a calibration, for what these items have in common.
        items: N items, all of the same modalities.
        labels: theirs.
        draws: of identities, for the intervals.

    Raises:
        UserError: there are no mates or no strangers across cameras.
    """
    pairs = cross_camera_pairs(items, labels, _MOST)
    strangers = pairs[np.flatnonzero(~pairs.same)]
    strangers = strangers[np.argsort(-strangers.scores)]
    spread = intervals(strangers, {limit.fmr: limit.threshold for limit in limits}, draws) if limits else {}
    return [
        Reached(
            asked=limit.fmr,
            threshold=limit.threshold,
            fmr=float(np.mean(strangers.scores > limit.threshold)),
            low=float(spread[limit.fmr][2]),
            high=float(spread[limit.fmr][3]),
            tar=float(np.mean(pairs.mates > limit.threshold)),
        )
        for limit in limits
    ]
