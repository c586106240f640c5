"""The k most similar items of a large gallery, exactly.

Scores are those of the mixed form (``scores``), so they depend on the two items alone. Products of float32 find the
candidates; those within reach of the k-th are scored again in float64. So neither the size of a block nor what else is
in the gallery changes a digit, and equal scores are told apart by position.

Rows lie grouped by the modalities that they have. Within a group one product is enough, whatever the query lacks: the
vectors are read once, and of items that have no modality in common with it only their shared parts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dmpt.base.errors import UserError
from dmpt.retrieval.embeddings import Embeddings, Features, squared_lengths
from dmpt.retrieval.scores import exact

_QUERIES = 64
"""Queries that share a pass over the vectors."""
_BLOCK_BYTES = 4 << 20
"""Of scores at a time: they stay in the processor's cache until they are looked at."""
_MARGIN = 4e-6
"""Beyond the rounding of float32 products, and of scores to six decimals; in cosines."""
_FEW = 0.25
"""Share of a block's rows below which they are copied together instead of scoring all of them."""
Places = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Rows:
    """Items that have the same modalities.

    Attributes:
        flat: float32 ``(N, 3 D)``, as ``Embeddings.flat``; it may be a memory map.
        space: float32 ``(N, d)``, as ``Embeddings.common_space``.
        squares: float32 ``(N, 3)``, squared length of each modality's feature.
        positions: int64 ``(N,)``, of the items in the gallery.
        code: which modalities they have, bit m for modality m.
    """

    flat: Features
    space: Features
    squares: Features
    positions: Places
    code: int

    def __len__(self) -> int:
        return len(self.flat)


@dataclass(frozen=True, eq=False)
class Vectors:
    """A gallery as a search reads it.

    Attributes:
        parts: rows of one set of modalities each; each position stands once, but for those that a mask leaves out.
        standardisation: as ``Embeddings.standardisation``.
    """

    parts: Sequence[Rows]
    standardisation: Features | None = None

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def _found(self, places: Places) -> tuple[Places, Places]:
        """Of each place its part, and its row in that."""
        starts = np.cumsum([0, *map(len, self.parts)])
        of = np.searchsorted(starts, places, side="right") - 1
        return of, places - starts[of]

    def positions(self, places: Places) -> Places:
        """Where items stand in the gallery, by their places: rows counted through all parts."""
        of, rows = self._found(places)
        positions = np.empty(len(places), np.int64)
        for index in np.unique(of):
            positions[of == index] = self.parts[index].positions[rows[of == index]]
        return positions

    def at(self, places: Places) -> Embeddings:
        """Some items, by their places."""
        of, own = self._found(places)
        width = self.parts[0].squares.shape[1]
        flat = np.empty((len(places), self.parts[0].flat.shape[1]), np.float32)
        space = np.empty((len(places), self.parts[0].space.shape[1]), np.float32)
        present = np.empty((len(places), width), np.bool_)
        for index in np.unique(of):
            part, here = self.parts[index], of == index
            rows = own[here]
            flat[here], space[here] = part.flat[rows], part.space[rows]
            present[here] = part.code >> np.arange(width) & 1
        return Embeddings(flat.reshape(len(places), width, -1), present, space, self.standardisation)


@dataclass(frozen=True, eq=False)
class Found:
    """The best items of Q queries, best first; of equal scores the lower position.

    Attributes:
        scores: float64 ``(Q, k)``, rounded to six decimals; NaN where there are fewer items.
        positions: int64 ``(Q, k)``, of the items in the gallery; -1 where there are fewer.
    """

    scores: npt.NDArray[np.float64]
    positions: Places


def grouped(items: Embeddings, positions: Places | None = None) -> Vectors:
    """Items in memory as a search reads them.

    Args:
        items: N items.
        positions: int64 ``(N,)``; None = 0 to N - 1.

    Raises:
        UserError: a feature is not finite.
    """
    refuse_not_finite(items, "gallery")
    positions = np.arange(len(items)) if positions is None else positions
    squares, space, codes = squared_lengths(items), items.common_space, items.codes
    parts = []
    for code in np.unique(codes):
        rows = np.flatnonzero(codes == code)
        cut = slice(None) if len(rows) == len(items) else rows
        parts.append(Rows(items.flat[cut], space[cut], squares[cut], positions[cut], int(code)))
    return Vectors(parts, items.standardisation)


def search(query: Embeddings, gallery: Vectors, k: int, mask: Mask | None = None) -> Found:
    """The k best items of each query.

    Args:
        query: Q items of the gallery's model.
        gallery: N items.
        k: at least 1; it may be more than N.
        mask: bool, by position: which items count; None = all.

    Raises:
        UserError: a query is not finite.
    """
    refuse_not_finite(query, "query")
    scores, positions = np.full((len(query), k), np.nan), np.full((len(query), k), -1)
    for start in range(0, len(query), _QUERIES):
        some = query[start : start + _QUERIES]
        for row, candidates in enumerate(_candidates(some, gallery, k, mask), start=start):
            found = rescored(query[row : row + 1], gallery, candidates)
            own = gallery.positions(candidates)
            order = np.lexsort((own, -found))[:k]
            scores[row, : len(order)] = found[order]
            positions[row, : len(order)] = own[order]
    return Found(scores, positions)


def rescored(query: Embeddings, gallery: Vectors, places: Places, chunk: int = 4096) -> npt.NDArray[np.float64]:
    """Exact scores of one query with some items; ``chunk`` of them are read at a time."""
    parts = [exact(query, gallery.at(places[start : start + chunk])) for start in range(0, len(places), chunk)]
    return np.concatenate(parts) if parts else np.empty(0)


def refuse_not_finite(items: Embeddings, what: str) -> None:
    """What holds NaN has no place in an order."""
    wrong = ~np.isfinite(items.flat).all(axis=1)
    if items.shared is not None:
        wrong |= ~np.isfinite(items.shared).all(axis=1)
    if wrong.any():
        raise UserError(f"{what} item {int(np.argmax(wrong))} holds NaN or infinity; embed it again")


def _candidates(query: Embeddings, gallery: Vectors, k: int, mask: Mask | None) -> list[Places]:
    """Places of the items that can be among the k best of each query."""
    margin = _MARGIN
    if gallery.standardisation is not None:
        margin *= max(1.0, float(np.abs(gallery.standardisation[:, 0]).max()))
    best = [(np.empty(0, np.float32), np.empty(0, np.int64)) for _ in range(len(query))]
    limits = np.full(len(query), -np.inf, np.float32)
    for places, scores in _blocks(query, gallery, mask):
        for row, own in enumerate(scores):
            hits = np.flatnonzero(own > limits[row])
            if len(hits):
                merged = np.concatenate([best[row][0], own[hits]])
                where = np.concatenate([best[row][1], hits + places if isinstance(places, int) else places[hits]])
                if len(merged) > k:
                    limits[row] = np.partition(merged, len(merged) - k)[len(merged) - k] - margin
                    near = merged > limits[row]
                    merged, where = merged[near], where[near]
                best[row] = merged, where
    return [where for _, where in best]


def _blocks(query: Embeddings, gallery: Vectors, mask: Mask | None) -> Iterator[tuple[int | Places, Features]]:
    """Where a block begins, or the places of its rows, and the scores of all queries with it, float32 ``(Q, rows)``.

    Scores of what does not count are minus infinity. The next step overwrites them.
    """
    rows = max(1, _BLOCK_BYTES // (4 * len(query)))
    buffer = np.empty(len(query) * rows, np.float32)
    start = 0
    for part in gallery.parts:
        score, copied = _Scorer(query, part, gallery.standardisation), max(1, _BLOCK_BYTES // part.flat[:1].nbytes)
        for first in range(0, len(part), rows):
            last = min(len(part), first + rows)
            live = None if mask is None else mask[part.positions[first:last]]
            count = last - first if live is None else int(np.count_nonzero(live))
            if not count:
                continue
            if live is not None and count < _FEW * len(live):
                chosen = first + np.flatnonzero(live)
                for few in np.split(chosen, range(copied, count, copied)):
                    yield start + few, score(few, buffer[: len(query) * len(few)].reshape(len(query), -1))
                continue
            scores = score(slice(first, last), buffer[: len(query) * (last - first)].reshape(len(query), -1))
            if live is not None and count < len(live):
                scores += np.where(live, np.float32(0), np.float32(-np.inf))
            yield start + first, scores
        start += len(part)


class _Scorer:
    """Scores of some queries with rows of one set of modalities."""

    def __init__(self, query: Embeddings, part: Rows, standardisation: Features | None):
        self._part, self._standardisation = part, standardisation
        common = query.codes & part.code
        self._sets = np.unique(common)
        self._common, self._sharing = common, np.flatnonzero(common)
        self._apart = np.flatnonzero(common == 0)
        modalities = query.present.shape[1]
        self._bits = np.arange(1 << modalities)[:, None] >> np.arange(modalities) & 1
        lengths = np.sqrt(np.einsum("qm,qm->q", squared_lengths(query), self._bits[common].astype(np.float32)))
        used = np.flatnonzero(np.bitwise_or.reduce(common) >> np.arange(modalities) & 1)
        width = query.features.shape[2]
        self._columns = slice(used[0] * width, (used[-1] + 1) * width) if len(used) else slice(0)
        scaled = query.flat / np.where(lengths > 0, lengths, 1)[:, None]
        self._flat = np.ascontiguousarray(scaled[self._sharing, self._columns])
        self._space = query.common_space[self._apart]

    def __call__(self, rows: slice | Places, out: Features) -> Features:
        """Into ``out``, float32 ``(Q, rows)``."""
        part = self._part
        for these, vectors, items in (
            (self._sharing, self._flat, part.flat[rows, self._columns] if len(self._sharing) else None),
            (self._apart, self._space, part.space[rows] if len(self._apart) else None),
        ):
            if items is not None and len(these) == len(out):
                np.matmul(vectors, items.T, out=out)
            elif items is not None:
                out[these] = vectors @ items.T
        for code in self._sets:
            own = slice(None) if len(self._sets) == 1 else self._common == code
            if code not in (0, part.code):  # of all that they have the length is 1
                out[own] /= np.sqrt(part.squares[rows] @ self._bits[code].astype(np.float32))
            if self._standardisation is not None:
                scale, shift = self._standardisation[code]
                out[own] = out[own] * scale + shift
        return out
