"""``dmpt evaluate --missing``: retrieval when modalities are absent at test.

M(RGB) means that RGB is missing, in query and gallery alike (TOP-ReID's six cases and their mean). Any-to-any: the
query is seen in one subset of modalities, the gallery in another; *matched* is the mean over pairs of the same subset,
*mismatched* over pairs of different ones, of which the *disjoint* have no modality in common. Matched and mismatched
are MDReID's words; that its means run over the same pairs is not certain. *Mixed* is a measurement of ours: each query
and each gallery item is seen in a subset of its own, drawn at random.

The interaction mixes modalities, so features are computed anew for each subset.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np

from dmpt.base.errors import UserError
from dmpt.data.missing import Subset, restrict
from dmpt.embed.extract import Pair, Seen
from dmpt.retrieval.embeddings import Embeddings, join
from dmpt.retrieval.metrics import MEASURES, evaluate

_MIXED_SEED = 0


def parse(text: str, modalities: Subset) -> list[Subset]:
    """What is missing in each case asked for.

    Args:
        text: ``all``, or modalities joined by ``+``.
        modalities: those the model uses.

    Raises:
        UserError: an unknown modality, or none would be left.
    """
    sizes = range(1, len(modalities))  # rgb, nir, tir, rgb+nir, ...: the order of the tables
    rest = [case for size in sizes for case in combinations(modalities, size)]
    if text == "all" and rest:
        return rest
    asked = text.lower().split("+")
    for case in rest:
        if sorted(case) == sorted(asked):
            return [case]
    choices = ", ".join("+".join(case) for case in rest) or "nothing, for it uses one modality"
    raise UserError(f"--missing {text}: of this model can be missing: {choices}; or give all")


def measure(
    records: Pair,
    complete: Seen,
    modalities: Subset,
    cases: Sequence[Subset],
    protocol: str,
    look: Callable[[Pair], Seen],
) -> dict[str, Any]:
    """The cases asked for; of several also their mean, and any-to-any.

    Args:
        records: query and gallery; one list for both where they are one.
        complete: features with all modalities.
        modalities: those in use.
        cases: what is missing in each (``parse``).
        protocol: a key of ``PROTOCOLS``.
        look: features and labels of query and gallery, which may be one list.

    Returns:
        ``protocol``, ``modalities``, ``shared_part`` (whether one was trained), ``cases`` by name; of several cases
        also their ``mean`` and ``any_to_any``.

    Raises:
        UserError: no query has a valid match.
    """
    seen, by_case = {modalities: complete}, {}
    for missing in cases:
        kept = tuple(m for m in modalities if m not in missing)
        query = restrict(records[0], kept)
        gallery = query if records[0] is records[1] else restrict(records[1], kept)
        if not query or not gallery:
            raise UserError(f"--missing {'+'.join(missing)}: the test set has no image of {' or '.join(kept)}")
        seen[kept] = look((query, gallery))
        try:
            by_case[f"M({'+'.join(missing).upper()})"] = _score(seen[kept], seen[kept], protocol)
        except UserError as error:
            raise UserError(f"--missing {'+'.join(missing)}: {error}") from error
    result: dict[str, Any] = {
        "protocol": protocol,
        "modalities": list(modalities),
        "shared_part": complete.gallery.shared is not None,
        "cases": by_case,
    }
    if len(cases) > 1:
        result |= {"mean": _mean(list(by_case.values())), "any_to_any": _any_to_any(seen, protocol)}
    return result


def _any_to_any(seen: dict[Subset, Seen], protocol: str) -> dict[str, Any]:
    """Every subset of the query against every subset of the gallery.

    Returns:
        ``pairs``, the means ``matched``, ``mismatched`` and ``disjoint``, and where every item has every modality
        ``mixed`` and ``mixed_unstandardised``.

    Raises:
        UserError: no query has a valid match.
    """
    pairs = [
        {"query": list(one), "gallery": list(other), **_score(seen[one], seen[other], protocol)}
        for one in seen
        for other in seen
    ]
    groups = {
        "matched": [pair for pair in pairs if pair["query"] == pair["gallery"]],
        "mismatched": [pair for pair in pairs if pair["query"] != pair["gallery"]],
        "disjoint": [pair for pair in pairs if not set(pair["query"]) & set(pair["gallery"])],
    }
    result: dict[str, Any] = {name: _mean(group) for name, group in groups.items() if group}
    whole = next(iter(seen.values()))
    if all(len(one.query) == len(whole.query) and len(one.gallery) == len(whole.gallery) for one in seen.values()):
        rng = np.random.default_rng(_MIXED_SEED)
        query = _shuffle([one.query for one in seen.values()], rng)
        gallery = _shuffle([one.gallery for one in seen.values()], rng)
        mixed = whole._replace(query=query, gallery=gallery)
        result["mixed"] = _score(mixed, mixed, protocol)
        raw = mixed._replace(gallery=replace(gallery, standardisation=None))
        result["mixed_unstandardised"] = _score(raw, raw, protocol)
    return result | {"pairs": pairs}


def _shuffle(views: list[Embeddings], rng: np.random.Generator) -> Embeddings:
    """Of each item one of its views."""
    choice = rng.integers(0, len(views), len(views[0]))
    rows = [np.flatnonzero(choice == view) for view in range(len(views))]
    joined = join(*(view[own] for view, own in zip(views, rows, strict=True)))
    return joined[np.argsort(np.concatenate(rows))]


def _score(query: Seen, gallery: Seen, protocol: str) -> dict[str, Any]:
    found = evaluate(query.query, gallery.gallery, query.query_labels, gallery.gallery_labels, protocol).to_dict()
    return {key: found[key] for key in (*MEASURES, "valid_queries", "queries")}


def _mean(found: list[dict[str, Any]]) -> dict[str, float]:
    return {key: float(np.mean([one[key] for one in found])) for key in MEASURES}
