"""mAP, CMC and mINP of a query set against a gallery, without sorting any indices.

All three numbers follow from the ranks of the matches alone. So each row of scores is sorted by value only (numpy does
that with vector instructions, several times faster than an argsort) and the few matches are looked up in it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from dmpt.base.errors import UserError
from dmpt.retrieval.embeddings import Embeddings, Features, plain
from dmpt.retrieval.protocols import PROTOCOLS, Labels, Protocol
from dmpt.retrieval.scores import Block, blocks

_CMC_RANKS = 50
MEASURES = {"mAP": "mAP", "rank1": "rank-1", "rank5": "rank-5", "rank10": "rank-10", "mINP": "mINP"}
"""Attributes of ``Metrics`` that are one number, and what people call them."""


@dataclass(frozen=True)
class Metrics:
    """The numbers of one evaluation; all rates are percent in [0, 100], means over the valid queries.

    Attributes:
        mAP: mean of the average precision, rectangle rule: over the hits, hits so far / rank, then their mean.
        mINP: mean of (number of matches / rank of the last match), the cost of finding the hardest match.
        cmc: entry k-1 is the share of queries with a match among the first k items, k up to 50. A gallery of fewer
            items repeats its last value, which is 100.
        queries: number of queries.
        valid_queries: queries with at least one match that is not ignored; the others count in no mean.
        gallery: number of gallery items.
        protocol: the rule by which gallery items were ignored, a key of ``PROTOCOLS``.
        average_precision: of each query in percent, float64 (Q,); NaN for a query that is not valid.
    """

    mAP: float
    mINP: float
    cmc: tuple[float, ...]
    queries: int
    valid_queries: int
    gallery: int
    protocol: str
    average_precision: npt.NDArray[np.float64] = field(repr=False, compare=False)

    @property
    def rank1(self) -> float:
        """CMC at rank 1, percent."""
        return self.cmc[0]

    @property
    def rank5(self) -> float:
        """CMC at rank 5, percent."""
        return self.cmc[4]

    @property
    def rank10(self) -> float:
        """CMC at rank 10, percent."""
        return self.cmc[9]

    def to_dict(self) -> dict[str, Any]:
        """Everything but the per-query array, in types that JSON knows."""
        return {
            "protocol": self.protocol,
            **{measure: getattr(self, measure) for measure in MEASURES},
            "cmc": list(self.cmc),
            "queries": self.queries,
            "valid_queries": self.valid_queries,
            "gallery": self.gallery,
        }


def evaluate(
    query: Features | Embeddings,
    gallery: Features | Embeddings,
    query_labels: Labels,
    gallery_labels: Labels,
    protocol: str,
    chunk: int | None = None,
) -> Metrics:
    """Rank the gallery for every query and measure where the matches are.

    A gallery item is ranked by its similarity to the query (``scores``), highest first, after the items the protocol
    ignores are taken out; equal scores are ordered by gallery index, lower first, and bitwise equal gallery features
    always score equal. A match is a remaining item of the query's identity. Nothing is re-ranked.

    Args:
        query: float32 (Q, D), already L2-normalised, so that the dot product is the cosine; or embeddings, whose items
            may lack modalities.
        gallery: (G, D), likewise.
        query_labels: Q labels.
        gallery_labels: G labels.
        protocol: a key of ``PROTOCOLS``: "same_camera", "same_scene" or "none".
        chunk: queries ranked at once; None fits 128 MiB. It bounds the memory beside the features. BLAS may
            round a product differently in another chunk size; that is its only influence on the result.

    Returns:
        The metrics, in percent.

    Raises:
        UserError: empty or mismatched features or labels, values that are not finite, an unknown protocol or one that
            needs absent scenes, or no query with a match.
    """
    _rule(protocol)
    queries, items = _items("query", query, query_labels), _items("gallery", gallery, gallery_labels)
    _check(queries, items, chunk)
    return measure(blocks(queries, items, chunk), query_labels, gallery_labels, protocol)


def measure(scores_of: Iterable[Block], query_labels: Labels, gallery_labels: Labels, protocol: str) -> Metrics:
    """The metrics of given scores, the highest ranked first.

    Args:
        scores_of: finite scores of all queries, in blocks; they are overwritten.
        query_labels: Q labels.
        gallery_labels: G labels.
        protocol: a key of ``PROTOCOLS``.

    Raises:
        UserError: an unknown protocol or one that needs absent scenes, or no query with a match.
    """
    rule, queries, items = _rule(protocol), len(query_labels), len(gallery_labels)
    precision, inverse_penalty = np.full(queries, np.nan), np.full(queries, np.nan)
    first = np.full(queries, items + 1, dtype=np.int64)
    for rows, scores in scores_of:
        for index, row in enumerate(scores, start=rows.start):
            # One query at a time: its masks stay in the processor's cache, and cost no memory per chunk.
            labels = query_labels[index : index + 1]
            ignored = rule(labels, gallery_labels)[0]
            row[ignored] = -np.inf  # below every finite score: out of all counts
            matches = np.flatnonzero((gallery_labels.pids == labels.pids) & ~ignored)
            if matches.size:
                ranks = _match_ranks(row, matches)
                precision[index] = np.mean(np.arange(1, len(ranks) + 1) / ranks)
                inverse_penalty[index] = len(ranks) / ranks[-1]
                first[index] = ranks[0]
    valid = int(np.count_nonzero(first <= items))
    if valid == 0:
        raise _no_match(query_labels, gallery_labels, protocol)
    hits = np.searchsorted(np.sort(first), np.arange(1, _CMC_RANKS + 1), side="right")
    return Metrics(
        mAP=100 * float(np.nanmean(precision)),
        mINP=100 * float(np.nanmean(inverse_penalty)),
        cmc=tuple((100 * np.minimum(hits, valid) / valid).tolist()),
        queries=queries,
        valid_queries=valid,
        gallery=items,
        protocol=protocol,
        average_precision=100 * precision,
    )


def count_valid(query: Labels, gallery: Labels, protocol: str) -> int:
    """Queries with at least one match that is not ignored.

    Raises:
        UserError: there is none, or the protocol is unknown.
    """
    valid = int(np.count_nonzero(has_match(query, gallery, protocol)))
    if not valid:
        raise _no_match(query, gallery, protocol)
    return valid


def has_match(query: Labels, gallery: Labels, protocol: str) -> npt.NDArray[np.bool_]:
    """Which queries have at least one match that is not ignored.

    Returns:
        bool (Q,).

    Raises:
        UserError: the protocol is unknown, or needs absent scenes.
    """
    rule, found = _rule(protocol), np.zeros(len(query), dtype=np.bool_)
    # All items of one identity lie side by side, so that a query meets its own alone and not the whole gallery.
    order = np.argsort(gallery.pids, kind="stable")
    starts = np.searchsorted(gallery.pids[order], query.pids, side="left")
    ends = np.searchsorted(gallery.pids[order], query.pids, side="right")
    for row, (start, end) in enumerate(zip(starts, ends, strict=True)):
        found[row] = not rule(query[row : row + 1], gallery[order[start:end]]).all()
    return found


def _match_ranks(scores: Features, matches: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Ranks from 1, ascending, of items (P,) with finite scores, as a stable descending sort of all (G,) gives them."""
    wanted = scores[matches]
    ordered = np.sort(scores)
    upper = np.searchsorted(ordered, wanted, side="right")
    ranks = len(scores) - upper + 1
    # An equal score at a lower index goes first. Ties are rare, so they are counted one by one.
    for tied in np.flatnonzero(upper - np.searchsorted(ordered, wanted, side="left") > 1):
        ranks[tied] += np.count_nonzero(scores[: matches[tied]] == wanted[tied])
    ranks.sort()
    return ranks


def _rule(protocol: str) -> Protocol:
    """Look a protocol up by name."""
    if protocol not in PROTOCOLS:
        raise UserError(f"unknown protocol '{protocol}'; choose one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[protocol]


def _items(side: str, features: Features | Embeddings, labels: Labels) -> Embeddings:
    """One side as embeddings, whose number fits its labels."""
    if not isinstance(features, Embeddings):
        features = np.asarray(features, dtype=np.float32)
        if features.ndim != 2:
            raise UserError(f"{side} features have shape {features.shape}; give one row per item, (items, width)")
        features = plain(features)
    if len(features) == 0:
        raise UserError(f"the {side} is empty; check its folder and file names")
    if len(features) != len(labels):
        raise UserError(
            f"{len(features)} {side} features but {len(labels)} {side} labels; give one label per feature row"
        )
    return features


def _check(query: Embeddings, gallery: Embeddings, chunk: int | None) -> None:
    """Refuse what cannot be ranked: widths first, then values."""
    if chunk is not None and chunk < 1:
        raise UserError(f"chunk is {chunk}; rank at least 1 query at a time, or leave it out")
    pairs = [(query.flat, gallery.flat)]
    if query.shared is not None or gallery.shared is not None:
        pairs.append((query.common_space, gallery.common_space))
    for one, other in pairs:
        if one.shape[1] != other.shape[1]:
            raise UserError(
                f"query features are {one.shape[1]} wide, gallery features {other.shape[1]}; "
                "extract both with the same model and the same modalities"
            )
        for side, features in (("query", one), ("gallery", other)):
            # A squared norm is finite only if the row is, and then so is every product; it needs no mask of all values.
            bad = np.flatnonzero(~np.isfinite(np.einsum("nd,nd->n", features, features)))
            if bad.size:
                raise UserError(
                    f"{len(bad)} of {len(features)} {side} features hold NaN, infinity or values too large to square, "
                    f"the first in row {bad[0]} (from 0); look at that image, or extract in float32"
                )


def _no_match(query_labels: Labels, gallery_labels: Labels, protocol: str) -> UserError:
    """Say why no query has a match."""
    pids = np.unique(query_labels.pids)
    if not np.isin(pids, gallery_labels.pids).any():
        return UserError(
            f"no query has a match: none of the {len(pids)} query identities is in the gallery; "
            "take query and gallery from the same split"
        )
    return UserError(
        f"no query has a match: protocol '{protocol}' ignores every gallery item of each query's identity, for "
        "instance because each identity is seen by one camera only; dmpt check lists them: add images of a second one"
    )
