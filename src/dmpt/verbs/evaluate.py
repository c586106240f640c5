"""``dmpt evaluate``."""

import json
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from jsonargparse.typing import NonNegativeInt, PositiveInt

from dmpt.base.terminal import print_table, warn
from dmpt.verbs.parser import Parser, add_test_data, test_data_of


def add(parser: Parser) -> None:
    """Evaluate a run or adapter on the test split: mAP, CMC, mINP."""
    parser.add_argument("run", type=Path, help="Run folder or adapter folder.")
    add_test_data(parser)
    parser.add_argument(
        "--data.workers", type=NonNegativeInt, default=None, help="Loader processes; default: as in training."
    )
    parser.add_argument("--backbone.weights", type=str, default=None, help="Weights file, when it has moved.")
    parser.add_argument("--which", choices=["last", "best"], default=None, help="Default: the one training selected.")
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default=None, help="Default: as in training.")
    parser.add_argument("--batch-size", type=PositiveInt, default=64, help="Samples per pass.")
    parser.add_argument("--skip-broken", action="store_true", help="Leave out samples with unreadable images.")
    parser.add_argument(
        "--missing",
        type=str,
        default=None,
        help="Also with modalities missing: all six cases, their mean and any-to-any (all), or one case (rgb+nir).",
    )
    parser.add_argument("--rerank", action="store_true", help="Also after k-reciprocal re-ranking.")
    parser.add_argument("--json", action="store_true", help="Print JSON.")


def run(arguments: Namespace) -> None:
    """Run the verb ``evaluate``."""
    from dmpt.evaluation.evaluate import evaluate
    from dmpt.evaluation.opened import Conditions

    conditions = Conditions(
        data={**test_data_of(arguments), "workers": arguments["data.workers"]},
        which=arguments.which,
        weights=arguments["backbone.weights"],
        precision=arguments.precision,
        batch_size=arguments.batch_size,
        skip_broken=arguments.skip_broken,
    )
    evaluation = evaluate(arguments.run, conditions, without=arguments.missing, reranked=arguments.rerank)
    result = evaluation.to_dict()
    try:
        if arguments.json:
            print(json.dumps(result, indent=2))
        else:
            _show(result)
    finally:  # a pipe that nobody reads to its end, as of `| head`, loses no number either
        kept = evaluation.save()  # last: a folder that cannot be written to loses none
        if evaluation.opened.apart:
            warn(f"kept in {kept}")


def _show(result: dict[str, Any]) -> None:
    provenance = result["provenance"]
    _table(f"{provenance['data']}, {_counts(result)}", {"": result})
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
