"""``dmpt evaluate``."""

from pathlib import Path
from typing import Any

from dmpt.base.terminal import print_json, print_table, warn
from dmpt.evaluation.conditions import Conditions


def run(
    run: Path,
    /,
    conditions: Conditions,
    missing: str | None = None,
    rerank: bool = False,
    openset: bool = False,
    json: bool = False,
) -> None:
    """Evaluate a run or adapter on the test split: mAP, CMC, mINP, and how far strangers lie apart.

    Args:
        run: Run folder, adapter folder, or package:tiny.
        conditions: what is not as in training
        missing: Also with modalities missing: all six cases, their mean and any-to-any (all), or one case (rgb+nir).
        rerank: Also after k-reciprocal re-ranking.
        openset: Also open-set search: half of the identities are known, and probes come from a camera that is not.
        json: Print JSON.
    """
    from dmpt.evaluation.evaluate import evaluate

    evaluation = evaluate(run, conditions, without=missing, reranked=rerank, openset=openset)
    result = evaluation.to_dict()
    try:
        if json:
            print_json(result)
        else:
            _show(result)
    finally:  # a pipe that nobody reads to its end, as of `| head`, loses no number either
        kept = evaluation.save()  # last: a folder that cannot be written to loses none
        if kept and evaluation.opened.apart:
            warn(f"kept in {kept}")


def _show(result: dict[str, Any]) -> None:
    provenance = result["provenance"]
    _table(f"{provenance['data']}, {_counts(result)}", {"": result})
    if "verification" in result:
        pairs = result["verification"]
        print(
            f"different cameras: strangers score {pairs['strangers']:.3f} in the median, mates {pairs['mates']:.3f}; "
            f"equal error rate {pairs['eer']:.1f} %; "
            f"where 1 % of strangers pass, {pairs['tar']['1']:.1f} % of mates do"
        )
    for found in result.get("calibrated", ()):
        print(
            f"calibrated for {100 * found['asked']:g} % of strangers: {100 * found['fmr']:.2g} % of these pass "
            f"({100 * found['low']:.2g} to {100 * found['high']:.2g}), and {100 * found['tar']:.1f} % of mates"
        )
    if result.get("open_set") == []:
        print("open set: so few unknown probes cannot carry a rate of 10 % false alarms")
    for found in result.get("open_set", ()):
        print(
            f"open set: at {100 * found['far']:g} % false alarms, {found['mean']:.1f} % of known probes found at rank "
            f"{found['rank']} (DIR; ± {found['std']:.1f} over {found['draws']} draws)"
        )
    if "missing" in result:
        _show_missing(provenance["data"], result)
    if "k_reciprocal_reranked" in result:
        found = result["k_reciprocal_reranked"]
        _table(f"{provenance['data']}, after {found['method']}, {_counts(found)}", {"re-ranked": found})
    if result["skipped"]:
        print(f"skipped {len(result['skipped'])} missing or broken files (any split):", *result["skipped"], sep="\n  ")
    if provenance["chosen_by"] == "test":
        print("selected on this very test set: an optimistic number")


def _show_missing(data: str, result: dict[str, Any]) -> None:
    from dmpt.evaluation.missing import square

    found = result["missing"]
    rows = {"complete": result, **found["cases"]}
    if "mean" in found:
        rows["mean of the cases"] = found["mean"]
    _table(f"{data}, protocol {found['protocol']}: M(x) = x is missing in query and gallery", rows, valid=True)
    if "any_to_any" not in found:
        return
    pairs = found["any_to_any"]
    rows = {
        "matched: query and gallery in the same subset": pairs.get("matched"),
        "mismatched: in different ones": pairs.get("mismatched"),
        "of these, without a common modality": pairs.get("disjoint"),
        "mixed: each item in a random subset": pairs.get("mixed"),
    }
    title = f"{data}, protocol {found['protocol']}: any-to-any, means over pairs of subsets"
    _table(title, {name: row for name, row in rows.items() if row is not None})
    names, values = square(pairs)
    print_table(
        f"{data}, protocol {found['protocol']}: any-to-any, mAP; the query is seen in a row, the gallery in a column",
        ["", *names],
        [[name, *(f"{value:.1f}" for value in row)] for name, row in zip(names, values, strict=True)],
    )
    if not found["shared_part"]:
        print("no shared part was trained (missing.dropout): without a common modality mean features were compared")


def _counts(found: dict[str, Any]) -> str:
    return (
        f"protocol {found['protocol']}: {found['valid_queries']} of {found['queries']} queries valid, "
        f"gallery {found['gallery']}"
    )


def _table(title: str, rows: dict[str, dict[str, Any]], valid: bool = False) -> None:
    """Numbers by what they are of; the first column only where there is a name.

    Args:
        title: of the table.
        rows: numbers by name.
        valid: also how many queries each is of: where samples are incomplete, cases have their own.
    """
    from dmpt.retrieval.metrics import MEASURES

    named = any(rows)
    numbers = [[f"{row[key]:.1f}" for key in MEASURES] for row in rows.values()]
    header = list(MEASURES.values())
    if named:
        header, numbers = ["", *header], [[name, *row] for name, row in zip(rows, numbers, strict=True)]
    if valid:
        header.append("queries valid")
        for row, found in zip(numbers, rows.values(), strict=True):
            row.append(f"{found['valid_queries']} of {found['queries']}" if "queries" in found else "")
    print_table(title, header, numbers)
