"""Similarity of every query to every gallery item, in blocks of bounded memory.

Of two items that may lack modalities it is the cosine over their common modalities, or of their shared parts where they
have none in common. A cosine over one feature spreads wider than one over three, and one of shared parts lies elsewhere
again; where training kept the statistics for it (``dmpt.extensions.shared``), they are brought to one scale.

A score depends on the two items alone, so whatever else is in the gallery reorders nothing.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from dmpt.retrieval.embeddings import Embeddings, unit

Features = npt.NDArray[np.float32]
Block = tuple[slice, Features]
"""Rows of the query, and their scores, float32 (rows, G)."""

CHUNK_BYTES = 128 << 20
DECIMALS = 6
"""Scores over different modalities are rounded to this: beyond it is the noise of float32, which would order equal
items by which modalities they lack."""


def blocks(query: Embeddings, gallery: Embeddings, chunk: int | None = None) -> Iterator[Block]:
    """Scores of some queries at a time; the next step overwrites them. Copies in the gallery score bitwise equal.

    Args:
        query: Q items.
        gallery: G items.
        chunk: queries at a time, at least 1; None fits ``CHUNK_BYTES``.
    """
    vectors = as_vectors(query, gallery)
    if vectors is None:
        found = mixed_similarities(query, gallery, chunk or chunk_rows(2 * len(gallery)))
        shared = [] if gallery.shared is None else [gallery.shared]
        copies, originals = _copies(gallery.flat, gallery.present, *shared)
    else:
        found = similarities(*vectors, chunk or chunk_rows(len(gallery)))
        copies, originals = _copies(vectors[1])
    for rows, scores in found:
        if copies:
            scores[:, copies] = scores[:, originals]
        yield rows, scores


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


def similarities(query: Features, gallery: Features, chunk: int) -> Iterator[Block]:
    """Dot products of query and gallery, some queries at a time.

    Args:
        query: float32 (Q, D).
        gallery: float32 (G, D).
        chunk: queries at a time, at least 1.

    Yields:
        A block; the next step overwrites its scores.
    """
    buffer = np.empty((min(chunk, len(query)), len(gallery)), dtype=np.float32)
    for start in range(0, len(query), chunk):
        rows = slice(start, min(start + chunk, len(query)))
        yield rows, np.matmul(query[rows], gallery.T, out=buffer[: rows.stop - start])


def mixed_similarities(query: Embeddings, gallery: Embeddings, chunk: int) -> Iterator[Block]:
    """Similarities where the items of a side have different modalities, some queries at a time.

    Absent features are zeros, so one product gives the sums over the common modalities. Row by row they are divided by
    the lengths over the common modalities: nothing but two products of a chunk grows with queries x gallery.

    Args:
        query: Q items.
        gallery: G items.
        chunk: queries at a time, at least 1.

    Yields:
        A block; the next step overwrites its scores.
    """
    scale, shift = (
        (np.ones(8), np.zeros(8)) if gallery.standardisation is None else gallery.standardisation.T.astype(float)
    )
    codes, query_codes, items = gallery.codes, query.codes, np.arange(len(gallery))
    query_lengths, gallery_lengths = _lengths(query), _lengths(gallery)
    common = {code: codes & code for code in np.unique(query_codes)}
    divisors = {code: gallery_lengths[items, sets] for code, sets in common.items()}
    features, spaces = (query.flat, gallery.flat.T), (query.common_space, gallery.common_space.T)
    buffers = [np.empty((min(chunk, len(query)), len(gallery)), dtype=np.float32) for _ in range(2)]
    for start in range(0, len(query), chunk):
        rows = slice(start, min(start + chunk, len(query)))
        scores, shared = (
            np.matmul(left[rows], right, out=buffer[: rows.stop - start])
            for (left, right), buffer in zip((features, spaces), buffers, strict=True)
        )
        for row, own, code, lengths in zip(scores, shared, query_codes[rows], query_lengths[rows], strict=True):
            sets = common[code]
            cosine = np.where(sets == 0, own, row / (lengths[sets] * divisors[code]))
            row[:] = np.round(cosine * scale[sets] + shift[sets], DECIMALS)
        yield rows, scores


def _lengths(items: Embeddings) -> npt.NDArray[np.float64]:
    """Length of each item over each set of modalities, (N, 8); 1 where that is 0."""
    squares = np.einsum("nmd,nmd->nm", items.features, items.features).astype(np.float64)
    members = np.arange(8)[:, None] >> np.arange(squares.shape[1]) & 1
    lengths = np.sqrt(squares @ members.T)
    return np.where(lengths > 0, lengths, 1)


def chunk_rows(gallery: int) -> int:
    """Queries scored at once against so many gallery items, at least 1."""
    return max(1, CHUNK_BYTES // chunk_bytes(1, gallery))


def chunk_bytes(rows: int, gallery: int) -> int:
    """Memory that ``evaluate`` takes beside the features for so many queries at once, in bytes."""
    return rows * gallery * np.dtype(np.float32).itemsize


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
