"""``dmpt evaluate --missing``: retrieval when modalities are absent at test.

M(RGB) means that RGB is missing, in query and gallery alike (TOP-ReID's six cases and their mean). Any-to-any: the
query is seen in one subset of modalities, the gallery in another; *matched* is the mean over pairs of the same subset,
*mismatched* over pairs of different ones, of which the *disjoint* have no modality in common. Matched and mismatched
are MDReID's words; that its means run over the same pairs is not certain. *Mixed* is a measurement of ours: each query
and each gallery item is seen in a subset of its own, drawn at random.

An image passes the tower once. What mixes modalities behind it is computed anew for each subset.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np

from dmpt.base.errors import UserError
from dmpt.data.missing import Subset, restrict
from dmpt.embed.extract import Pair, Seen
from dmpt.retrieval.embeddings import Embeddings, join
from dmpt.retrieval.metrics import MEASURES, evaluate
from dmpt.settings.modalities import MODALITIES

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


def views(records: Pair, modalities: Subset, cases: Sequence[Subset]) -> dict[Subset, Subset]:
    """What is left in each case (``parse``), after all ``modalities``; by it, what is missing.

    Raises:
        UserError: of query or gallery nothing would be left.
    """
    found: dict[Subset, Subset] = {modalities: ()}
    for missing in cases:
        kept = tuple(m for m in modalities if m not in missing)
        if not all(restrict(side, kept) for side in records):
            raise UserError(f"--missing {'+'.join(missing)}: the test set has no image of {' or '.join(kept)}")
        found[kept] = missing
    return found


def measure(seen: Mapping[Subset, Seen], cases: Mapping[Subset, Subset], protocol: str) -> dict[str, Any]:
    """The cases asked for; of several also their mean, and any-to-any.

    Args:
        seen: features and labels of query and gallery, by what is left.
        cases: by what is left, what is missing (``views``).
        protocol: a key of ``PROTOCOLS``.

    Returns:
        ``protocol``, ``modalities``, ``shared_part`` (whether one was trained), ``cases`` by name; of several cases
        also their ``mean`` and ``any_to_any``.

    Raises:
        UserError: no query has a valid match.
    """
    by_case = {}
    for kept, missing in cases.items():
        if missing:
            try:
                by_case[f"M({'+'.join(missing).upper()})"] = _score(seen[kept], seen[kept], protocol)
            except UserError as error:
                raise UserError(f"--missing {'+'.join(missing)}: {error}") from error
    whole = next(iter(cases))
    result: dict[str, Any] = {
        "protocol": protocol,
        "modalities": list(whole),
        "shared_part": seen[whole].gallery.shared is not None,
        "cases": by_case,
    }
    if len(by_case) > 1:
        result |= {"mean": _mean(list(by_case.values())), "any_to_any": _any_to_any(seen, protocol)}
    return result


def square(any_to_any: Mapping[str, Any], measure: str = "mAP") -> tuple[list[str], list[list[float]]]:
    """Any-to-any as a table: the subsets by name, single spectra first; rows are of queries, columns of galleries.

    Args:
        any_to_any: as ``measure`` returns it.
        measure: a key of ``MEASURES``.
    """
    found: dict[Subset, dict[Subset, float]] = {tuple(pair["query"]): {} for pair in any_to_any["pairs"]}
    for pair in any_to_any["pairs"]:
        found[tuple(pair["query"])][tuple(pair["gallery"])] = pair[measure]
    order = sorted(found, key=lambda kept: (len(kept), [MODALITIES.index(m) for m in kept]))
    return ["+".join(kept).upper() for kept in order], [[found[one][other] for other in order] for one in order]


def _any_to_any(seen: Mapping[Subset, Seen], protocol: str) -> dict[str, Any]:
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
