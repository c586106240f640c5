"""Open set: is this person in the gallery at all, and who? DIR at FAR, which NIST calls 1 - FNIR at FPIR.

Half of the identities are known: the gallery holds them. Probes come from a camera that the gallery lacks, of known and
of unknown people. A probe raises an alarm when its best score is above a threshold. FAR (FPIR) is the share of unknown
probes that do; DIR at rank k the share of known probes that do *and* have their identity among the first k.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dmpt.base.errors import UserError
from dmpt.retrieval.calibration import threshold_at
from dmpt.retrieval.embeddings import Embeddings
from dmpt.retrieval.protocols import Labels
from dmpt.retrieval.scores import blocks

FAR = (0.01, 0.1)
RANKS = (1, 10)


@dataclass(frozen=True)
class OpenSet:
    """DIR at a FAR and a rank over several draws of who is known.

    Attributes:
        far: share of unknown probes that raise an alarm, in (0, 1).
        rank: within which the identity must stand; identities are ranked by their best item.
        mean: of DIR over the draws, percent.
        std: its standard deviation over the draws, percentage points.
        draws: how many draws count: those whose unknown probes can carry the rate.
    """

    far: float
    rank: int
    mean: float
    std: float
    draws: int


def open_set(
    items: Embeddings,
    labels: Labels,
    far: Sequence[float] = FAR,
    ranks: Sequence[int] = RANKS,
    draws: int = 20,
    seed: int = 0,
) -> list[OpenSet]:
    """DIR at each FAR and rank.

    Args:
        items: of identities that training has not seen; all of them, of query and gallery.
        labels: theirs.
        far: rates, each in (0, 1).
        ranks: each at least 1.
        draws: of the half that is known, and of the camera of the probes.
        seed: of the draws.

    Raises:
        UserError: fewer than two cameras or four identities.
    """
    identities, own = np.unique(labels.pids, return_inverse=True)
    cameras = np.unique(labels.cameras)
    if len(cameras) < 2 or len(identities) < 4:
        raise UserError(
            f"open-set evaluation needs two cameras and four identities; there are {len(cameras)} and {len(identities)}"
        )
    generator = np.random.default_rng(seed)
    found: dict[tuple[float, int], list[float]] = {(rate, rank): [] for rate in far for rank in ranks}
    for _ in range(draws):
        known = np.zeros(len(identities), dtype=np.bool_)
        known[generator.permutation(len(identities))[: len(identities) // 2]] = True
        here = labels.cameras == generator.choice(cameras)
        gallery, probes = np.flatnonzero(known[own] & ~here), np.flatnonzero(here)
        if not len(gallery) or not len(probes):
            continue
        best = best_of_each(items[probes], items[gallery], own[gallery], len(identities))
        mine = best[np.arange(len(probes)), own[probes]]
        mated, unmated = np.isfinite(mine), ~known[own[probes]]
        top, place = best.max(axis=1), 1 + np.sum(best > mine[:, None], axis=1)
        for rate in far:
            limit = threshold_at(np.sort(top[unmated]), rate)
            if limit is None or not mated.any():
                continue
            for rank in ranks:
                # the identity's own score has to be above the threshold: it is what the alarm would name
                found[rate, rank].append(100 * float(np.mean((place[mated] <= rank) & (mine[mated] > limit))))
    return [
        OpenSet(rate, rank, float(np.mean(each)), float(np.std(each)), len(each))
        for (rate, rank), each in found.items()
        if each
    ]


def best_of_each(
    probes: Embeddings, gallery: Embeddings, identities: npt.NDArray[np.int64], count: int
) -> npt.NDArray[np.float64]:
    """Each probe's best score with each identity ``(P, count)``; minus infinity where the gallery has none of it."""
    best = np.full((len(probes), count), -np.inf)
    for rows, scores in blocks(probes, gallery, match_copies=False, mixed=True):
        for identity in np.unique(identities):
            best[rows, identity] = scores[:, identities == identity].max(axis=1)
    return best
