"""k-reciprocal re-ranking (Zhong et al. 2017), only on request: its numbers go by its name.

It looks at all queries and the whole gallery at once, so a query's result depends on the other queries, and neighbours
from the query's own camera count, as in the code of its authors. Where the query set is the gallery, every image is
there twice. Never compare its numbers with plain ones.

The distance is 2 - 2 x similarity, for complete samples the squared Euclidean one of their features. Items that lack
modalities are compared over different modalities, on standardised scales: there it is no metric, and whether re-ranking
helps is to be measured.

Memory. The authors hold several (Q + G) x (Q + G) matrices; here only each item's neighbours are kept, some
(Q + G) x k2 x 2 k1 numbers, beside one block of scores (``scores``), one copy of all features and a few
rows of Q + G. Time grows with (Q + G)²: the product of all with all is computed twice, that of the queries with all
once, and each row is searched for neighbours.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dmpt.base.errors import UserError
from dmpt.retrieval.embeddings import Embeddings, join
from dmpt.retrieval.scores import Block, blocks

_Indices = npt.NDArray[np.int64]
_Sparse = tuple[_Indices, npt.NDArray[np.float64]]
"""Columns in ascending order and their weights: one row of the matrix V of the paper."""


@dataclass(frozen=True)
class KReciprocal:
    """Parameters of k-reciprocal re-ranking; the defaults are its authors'.

    Attributes:
        k1: neighbours that may be reciprocal.
        k2: neighbours whose encodings are averaged; 1 = none but the own.
        weight: lambda, share of the original distance.
    """

    k1: int = 20
    k2: int = 6
    weight: float = 0.3

    @property
    def name(self) -> str:
        """What its numbers go by."""
        return f"k-reciprocal re-ranking (k1={self.k1}, k2={self.k2}, lambda={self.weight})"


def rerank(
    query: Embeddings,
    gallery: Embeddings,
    parameters: KReciprocal | None = None,
    chunk: int | None = None,
) -> Iterator[Block]:
    """Scores for ``metrics.measure``: minus the re-ranked distance.

    Args:
        query: Q items.
        gallery: G items.
        parameters: None = the defaults.
        chunk: queries at a time; None as in ``scores.blocks``.

    Yields:
        One query at a time, float32 (1, G).

    Raises:
        UserError: a parameter is out of range.
    """
    p = parameters or KReciprocal()
    if p.k1 < 1 or p.k2 < 1 or not 0 <= p.weight <= 1:
        raise UserError(f"{p.name}: k1 and k2 must be at least 1, lambda between 0 and 1")
    everything = join(query, gallery)
    first = len(query)
    near = _neighbours(everything, max(p.k1 + 1, p.k2), chunk)
    expanded = [_expand(item, near, p.k1) for item in range(len(near))]
    codes, furthest = _encode(everything, expanded, chunk)
    del expanded
    if p.k2 > 1:
        codes = [_mean([codes[j] for j in near[i, : p.k2]]) for i in range(len(near))]
    starts, rows, weights = _columns(codes[first:], len(near))
    for block, scores in blocks(query, everything, chunk):  # with all, or another scale would hold (``as_vectors``)
        for index, row in enumerate(scores[:, first:], start=block.start):
            columns, own = codes[index]
            overlap = np.zeros(len(row))
            for column, weight in zip(columns, own, strict=True):
                part = slice(starts[column], starts[column + 1])
                overlap[rows[part]] += np.minimum(weight, weights[part])
            jaccard = 1 - overlap / (2 - overlap)
            original = np.maximum(2 - 2 * row.astype(np.float64), 0) / furthest[index]
            final = jaccard * (1 - p.weight) + original * p.weight
            yield slice(index, index + 1), -final[None].astype(np.float32)


def _neighbours(items: Embeddings, count: int, chunk: int | None) -> _Indices:
    """Of each item its nearest items, nearest first (complete ones begin with themselves); equal distances by index."""
    total = len(items)
    count = min(count, total)
    near = np.empty((total, count), dtype=np.int64)
    for block, scores in blocks(items, items, chunk):
        for index, row in enumerate(scores, start=block.start):
            candidates = np.flatnonzero(row >= np.partition(row, total - count)[total - count])
            near[index] = candidates[np.argsort(-row[candidates], kind="stable")][:count]
    return near


def _reciprocal(item: int, near: _Indices, k: int) -> _Indices:
    """R(item, k): those of its k nearest that have it among their k nearest; each is its own nearest besides."""
    forward = near[item, : k + 1]
    mutual: _Indices = forward[(near[forward, : k + 1] == item).any(axis=1)]
    return mutual


def _expand(item: int, near: _Indices, k1: int) -> _Indices:
    """R*(item, k1): its reciprocal neighbours, and those of each of them that shares enough with it; ascending."""
    own = _reciprocal(item, near, k1)
    found = [own]
    for candidate in own:
        more = _reciprocal(int(candidate), near, round(k1 / 2))
        if np.isin(more, own).sum() > 2 / 3 * len(more):
            found.append(more)
    return np.unique(np.concatenate(found))


def _encode(
    items: Embeddings, expanded: list[_Indices], chunk: int | None
) -> tuple[list[_Sparse], npt.NDArray[np.float64]]:
    """Each item's row of V, exp(-distance) over its expanded neighbours with sum 1, and the distance to its furthest.

    Distances are divided by that to the furthest.
    """
    codes: list[_Sparse] = []
    furthest = np.empty(len(items))
    for block, scores in blocks(items, items, chunk):
        for index, row in enumerate(scores, start=block.start):
            furthest[index] = max(2 - 2 * float(row.min()), float(np.finfo(np.float32).tiny))
            columns = expanded[index]
            weight = np.exp(-np.maximum(2 - 2 * row[columns].astype(np.float64), 0) / furthest[index])
            codes.append((columns, weight / weight.sum()))
    return codes, furthest


def _mean(codes: list[_Sparse]) -> _Sparse:
    """Mean of some rows of V."""
    columns, place = np.unique(np.concatenate([code[0] for code in codes]), return_inverse=True)
    weights = np.bincount(place, np.concatenate([code[1] for code in codes]), len(columns))
    return columns, weights / len(codes)


def _columns(codes: list[_Sparse], width: int) -> tuple[_Indices, _Indices, npt.NDArray[np.float64]]:
    """V by column: where each column's entries start, their rows, their weights."""
    columns = np.concatenate([code[0] for code in codes])
    rows = np.repeat(np.arange(len(codes)), [len(code[0]) for code in codes])
    order = np.argsort(columns, kind="stable")
    starts = np.searchsorted(columns[order], np.arange(width + 1))
    return starts, rows[order], np.concatenate([code[1] for code in codes])[order]
