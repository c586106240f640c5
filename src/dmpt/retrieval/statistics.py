"""Is one method better than another, or was it the draw? A paired bootstrap over identities, and Holm's correction.

Queries of one identity stand or fall together, so identities are the unit that is drawn, with all their queries. Both
methods are measured on the same draw (paired). The gallery stays as it is: it is part of the benchmark. Where a method
has several training seeds they are drawn too, for each method on its own, so that a lucky seed counts as luck: of n
seeds, spread about their mean by sqrt(n / (n - 1)), without which the draw would vary less than seeds do. With three
seeds that differ much p is still too small (there is no bootstrap's answer to three numbers), and with one seed it
says nothing about seeds at all.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dmpt.base.errors import UserError

DRAWS = 10_000
# Draws times identities that are in memory at once, 64 MiB for each copy. Pieces are the same draws as the whole, but
# may round the last bit otherwise: DRAWS of up to 838 identities are one piece, as all results kept so far are.
_PIECE = 2**23


@dataclass(frozen=True)
class Comparison:
    """What speaks for a difference.

    Attributes:
        difference: mAP of the second method minus that of the first, means over seeds, percentage points.
        low: lower end of the 95 % percentile interval.
        high: its upper end.
        p: two-sided, the level at which that interval would begin to touch zero; at least 2 / (draws + 1), and that of
            a sign test in which all identities agree, 2^(1 - identities), which binds below some 14.
    """

    difference: float
    low: float
    high: float
    p: float


def bootstrap(
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    pids: NDArray[np.int64],
    draws: int = DRAWS,
    seed: int = 0,
) -> Comparison:
    """Compare two methods by the average precision of their queries.

    Args:
        first: ``(seeds, Q)``, percent; NaN where a query has nothing to find, then in both methods and all seeds.
        second: ``(seeds, Q)``; it may have another number of seeds.
        pids: identity of each query ``(Q,)``.
        draws: of identities and seeds.
        seed: of the draws.

    Returns:
        The comparison; the same whatever the order of queries and of seeds, up to rounding.

    Raises:
        UserError: the shapes or the queries with nothing to find do not agree.
    """
    valid = ~np.isnan(first).any(axis=0)
    if first.shape[1:] != second.shape[1:] or first.shape[1:] != pids.shape:
        raise UserError(f"cannot compare {first.shape[1]} with {second.shape[1]} queries; evaluate on the same data")
    if not all(np.array_equal(~np.isnan(row), valid) for row in (*first, *second)):
        raise UserError("cannot compare: other queries have something to find; evaluate on the same data")
    if not valid.any():
        raise UserError("cannot compare: no query has anything to find")
    _, unit = np.unique(pids[valid], return_inverse=True)
    count = np.bincount(unit)
    sums = [_by_identity(method[:, valid], unit) for method in (first, second)]
    observed = sums[1].mean(axis=0).sum() / count.sum() - sums[0].mean(axis=0).sum() / count.sum()
    generator = np.random.default_rng(seed)
    spread = [_spread(method) for method in sums]
    *totals, queries = _drawn_sums([*spread, count.astype(np.float64)], draws, generator)
    means = []
    for method, total in zip(spread, totals, strict=True):
        seeds = len(method)
        weight = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=draws) / seeds
        means.append(np.einsum("sr,rs->r", total, weight, optimize=True) / queries)
    drawn = means[1] - means[0]
    tail = min((drawn <= 0).sum(), (drawn >= 0).sum())
    low, high = np.quantile(drawn, [0.025, 0.975])
    p = min(1.0, max(2 * (1 + tail) / (1 + draws), 2.0 ** (1 - len(count))))
    return Comparison(float(observed), float(low), float(high), float(p))


def _drawn_sums(
    rows: Sequence[NDArray[np.float64]], draws: int, generator: np.random.Generator
) -> list[NDArray[np.float64]]:
    """Draw as many identities as there are, ``draws`` times, and sum each of the rows ``(..., identities)`` over them.

    Returns:
        ``(..., draws)`` for each of the rows.
    """
    identities = rows[0].shape[-1]
    pieces = []
    for start in range(0, draws, size := max(1, _PIECE // identities)):
        count = min(size, draws - start)
        chosen = generator.multinomial(identities, np.full(identities, 1 / identities), size=count).astype(np.float64)
        pieces.append([row @ chosen.T for row in rows])
    return [np.concatenate(piece, axis=-1) for piece in zip(*pieces, strict=True)]


def _spread(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Seeds ``(seeds, identities)`` as far from their mean as makes a draw's variance that of other seeds."""
    seeds, mean = len(sums), sums.mean(axis=0)
    return sums if seeds == 1 else mean + (sums - mean) * np.sqrt(seeds / (seeds - 1))


def _by_identity(method: NDArray[np.float64], unit: NDArray[np.int64]) -> NDArray[np.float64]:
    """Sums over each identity's queries ``(seeds, identities)``, the seeds from worst to best."""
    sums: NDArray[np.float64] = np.stack([np.bincount(unit, weights=row) for row in method])
    order = np.lexsort((*sums.T, sums.sum(axis=1)))
    return np.asarray(sums[order], dtype=np.float64)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction: p values that hold for the whole family at once.

    Args:
        p: raw values in [0, 1], in any order.

    Returns:
        The corrected ones in the same order: never smaller, at most 1, and in the order of the raw ones.
    """
    corrected, worst = [0.0] * len(p), 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        worst = max(worst, min(1.0, (len(p) - rank) * p[index]))
        corrected[index] = worst
    return corrected
