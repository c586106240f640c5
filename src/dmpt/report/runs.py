"""The runs that a page is about: evaluated on one test split, by names that tell them apart."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

from dmpt.adapter.files import adapter_folder
from dmpt.base.errors import UserError, one_line
from dmpt.base.terminal import console
from dmpt.data.records import same_data, short
from dmpt.evaluation.conditions import USUAL, Conditions
from dmpt.evaluation.evaluate import Evaluation, evaluate


def evaluate_all(runs: Sequence[Path], conditions: Conditions = USUAL, missing: bool = False) -> list[Evaluation]:
    """Each run or adapter on the same test data, also with modalities ``missing``.

    Raises:
        UserError: they were tested on different data; something is missing or does not fit.
    """
    for run in runs:  # refused before the features of another are looked at
        adapter_folder(run, conditions.which)
    found = []
    for run, name in zip(runs, _names(runs), strict=True):
        console.print(f"{one_line(name)}: features of the test samples")
        found.append(replace(evaluate(run, conditions, without="all" if missing else None), name=name))
    _check_same_data(found)
    return found


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders' names, with as much of their paths as makes them differ; what all end with is left out."""
    parts = [folder.resolve().parts for folder in folders]
    if len(parts) == 1:
        return [parts[0][-1]]
    from_the_end = zip(*(part[::-1] for part in parts), strict=False)
    alike = sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, from_the_end))
    tails = [part[: len(part) - alike] for part in parts]
    for length in range(1, max(map(len, tails), default=0) + 1):
        found = ["/".join(tail[-length:]) for tail in tails]
        if len(set(found)) == len(found):
            return found
    return [f"{folder.name} ({number})" for number, folder in enumerate(folders, 1)]


def _check_same_data(runs: Sequence[Evaluation]) -> None:
    """Refuse runs that were not tested on the same records by the same protocol.

    Raises:
        UserError: the fingerprints or protocols differ.
    """
    first = runs[0]
    for other in runs[1:]:
        prints = [run.provenance["data_fingerprint"] for run in (first, other)]
        if not same_data(*prints):
            raise UserError(
                f"{first.run} and {other.run} were tested on different data (fingerprints "
                f"{' and '.join(map(short, prints))}); "
                "give runs of one data set, or the --data.root that both share"
            )
        if other.metrics.protocol != first.metrics.protocol:
            raise UserError(
                f"{first.run} is judged by protocol {first.metrics.protocol}, {other.run} by {other.metrics.protocol}; "
                "train them with one data.protocol"
            )
