"""Similarity of every query to every gallery item, in blocks of bounded memory.

Of two items that may lack modalities it is the cosine over their common modalities, or of their shared parts where they
have none in common. A cosine over one feature spreads wider than one over three, and one of shared parts lies elsewhere
again; where training kept the statistics for it (``dmpt.extensions.shared``), they are brought to one scale.

A score depends on the two items alone, so whatever else is in the gallery reorders nothing.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from dmpt.retrieval.embeddings import Embeddings, Features, restricted, squared_lengths, unit
from dmpt.settings.modalities import MODALITIES

Block = tuple[slice, Features]
"""Rows of the query, and their scores, float32 (rows, G)."""

_CHUNK_BYTES = 128 << 20
_DECIMALS = 6
"""Scores over different modalities are rounded to this: beyond it is the noise of float32, which would order equal
items by which modalities they lack."""


def blocks(
    query: Embeddings, gallery: Embeddings, chunk: int | None = None, match_copies: bool = True, mixed: bool = False
) -> Iterator[Block]:
    """Scores of some queries at a time; the next step overwrites them.

    Args:
        query: Q items.
        gallery: G items.
        chunk: queries at a time, at least 1; None fits a block into 128 MiB.
        match_copies: copies in the gallery score bitwise equal. Looking for them reads the whole gallery once more.
        mixed: score as items do that lack different modalities, even where all have the same: what a threshold is for,
            since then no score depends on what else is there.
    """
    vectors = None if mixed else as_vectors(query, gallery)
    if vectors is None:
        found = _mixed(query, gallery, chunk or _chunk_rows(2 * len(gallery)))
        told: tuple[npt.NDArray[Any], ...] = (gallery.flat, gallery.present)
        told += () if gallery.shared is None else (gallery.shared,)
    else:
        found = _products(*vectors, chunk or _chunk_rows(len(gallery)))
        told = vectors[1:]
    copies, originals = _copies(*told) if match_copies else ([], [])
    for rows, scores in found:
        if copies:
            scores[:, copies] = scores[:, originals]
        yield rows, scores


def between(first: Embeddings, second: Embeddings) -> Features:
    """Scores of every two items, of the mixed form: float32 ``(N, M)``."""
    found = blocks(first, second, match_copies=False, mixed=True)
    return np.concatenate([scores.copy() for _, scores in found])


def as_vectors(query: Embeddings, gallery: Embeddings) -> tuple[Features, Features] | None:
    """Vectors whose dot product is the similarity, where all items of a side have the same modalities; else None.

    No standardisation is needed there: it is one increasing function for all pairs.
    """
    if (query.present != query.present[:1]).any() or (gallery.present != gallery.present[:1]).any():
        return None
    common = query.present[0] & gallery.present[0]
    if common.all():
        return query.flat, gallery.flat
    if not common.any():
        return query.common_space, gallery.common_space
    cut = (side.features[:, common].reshape(len(side), -1) for side in (query, gallery))
    return unit(next(cut)), unit(next(cut))


def exact(query: Embeddings, items: Embeddings) -> npt.NDArray[np.float64]:
    """Scores of one query with some items, the mixed form's, computed in float64: each depends on the two alone.

    Args:
        query: 1 item.
        items: N items; all of them are copied into float64.

    Returns:
        float64 ``(N,)``, rounded to six decimals.
    """
    scale, shift = _scale_and_shift(items)
    own, features = query.features[0].astype(np.float64), items.features.astype(np.float64)
    both = items.present & query.present[0]
    sets = items.codes & query.codes[0]
    products = np.einsum("nmd,md->nm", features, own)
    squares = np.einsum("nmd,nmd->nm", features, features)
    lengths = (squares * both).sum(axis=1) * (both @ np.einsum("md,md->m", own, own))
    spaces = items.common_space.astype(np.float64) @ query.common_space[0].astype(np.float64)
    cosine = np.where(sets == 0, spaces, (products * both).sum(axis=1) / np.sqrt(np.where(lengths > 0, lengths, 1)))
    scores: npt.NDArray[np.float64] = np.round(cosine * scale[sets] + shift[sets], _DECIMALS)
    return scores


def apart(query: Embeddings, items: Embeddings) -> list[dict[str, float]]:
    """What each common modality says alone: the scores of one query with N items, over it and nothing else.

    Args:
        query: 1 item.
        items: N items.

    Returns:
        Of each item a score, as ``exact`` gives it, by modality.
    """
    found: list[dict[str, float]] = [{} for _ in range(len(items))]
    for m, name in enumerate(MODALITIES):
        if query.present[0, m]:
            for row, score in enumerate(exact(restricted(query, [name]), items).tolist()):
                if items.present[row, m]:
                    found[row][name] = score
    return found


def _scale_and_shift(items: Embeddings) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Of each set of common modalities, (8,) each."""
    if items.standardisation is None:
        return np.ones(8), np.zeros(8)
    scale, shift = items.standardisation.T.astype(np.float64)
    return scale, shift


def _products(query: Features, gallery: Features, chunk: int) -> Iterator[Block]:
    """Dot products of query (Q, D) and gallery (G, D), ``chunk`` queries at a time."""
    buffer = np.empty((min(chunk, len(query)), len(gallery)), dtype=np.float32)
    for start in range(0, len(query), chunk):
        rows = slice(start, min(start + chunk, len(query)))
        yield rows, np.matmul(query[rows], gallery.T, out=buffer[: rows.stop - start])


def _mixed(query: Embeddings, gallery: Embeddings, chunk: int) -> Iterator[Block]:
    """Similarities where the items of a side have different modalities, ``chunk`` queries at a time.

    Absent features are zeros, so one product gives the sums over the common modalities. Row by row they are divided by
    the lengths over the common modalities: nothing but two products of a chunk grows with queries x gallery.
    """
    scale, shift = _scale_and_shift(gallery)
    codes, query_codes, items = gallery.codes, query.codes, np.arange(len(gallery))
    query_lengths, gallery_lengths = _lengths(query), _lengths(gallery)
    common = {code: codes & code for code in np.unique(query_codes)}
    divisors = {code: gallery_lengths[items, sets] for code, sets in common.items()}
    of_features = _products(query.flat, gallery.flat, chunk)
    of_spaces = _products(query.common_space, gallery.common_space, chunk)
    for (rows, scores), (_, shared) in zip(of_features, of_spaces, strict=True):
        for row, own, code, lengths in zip(scores, shared, query_codes[rows], query_lengths[rows], strict=True):
            sets = common[code]
            cosine = np.where(sets == 0, own, row / (lengths[sets] * divisors[code]))
            row[:] = np.round(cosine * scale[sets] + shift[sets], _DECIMALS)
        yield rows, scores


def _lengths(items: Embeddings) -> npt.NDArray[np.float64]:
    """Length of each item over each set of modalities, (N, 8); 1 where that is 0."""
    squares = squared_lengths(items).astype(np.float64)
    members = np.arange(8)[:, None] >> np.arange(squares.shape[1]) & 1
    lengths = np.sqrt(squares @ members.T)
    return np.where(lengths > 0, lengths, 1)


def _chunk_rows(gallery: int) -> int:
    """Queries scored at once against so many gallery items, at least 1."""
    return max(1, _CHUNK_BYTES // (gallery * np.dtype(np.float32).itemsize))


def _copies(*features: npt.NDArray[np.generic]) -> tuple[list[int], list[int]]:
    """Rows (of all of ``features``, each (N, ...)) that repeat an earlier row bit by bit, and that row of each.

    BLAS sums the edges of a matrix in another order than its middle. Copies of one image would get scores that differ
    in the last bit, and their order would depend on the machine; so they are given the score of the first.
    """
    seen: dict[int, int] = {}
    hashes = (hash(tuple(values.tobytes() for values in parts)) for parts in zip(*features, strict=True))
    pairs = [(row, seen.setdefault(value, row)) for row, value in enumerate(hashes)]
    equal = [
        (row, first)
        for row, first in pairs
        if row != first and all(np.array_equal(part[row], part[first]) for part in features)
    ]
    return [row for row, _ in equal], [first for _, first in equal]
