"""``dmpt results``."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from dmpt.base.errors import UserError
from dmpt.base.terminal import print_json, print_table, stderr

if TYPE_CHECKING:
    from dmpt.paper.published import Row


def run(dataset: str, runs: Sequence[Path] = (), missing: bool = False, json: bool = False) -> None:
    """Print published numbers with their sources, and those of our runs beside them.

    Args:
        dataset: Data set.
        runs: Run folders that dmpt evaluate has seen.
        missing: Instead: with modalities missing at test.
        json: Print JSON.
    """
    from dmpt.paper.published import ours, published

    names = dict.fromkeys(row.dataset for row in published() if row.dataset != "any")
    if dataset not in names:
        raise UserError(f"--dataset {dataset}: nothing is published for it; there are {', '.join(names)}")
    rows = published(dataset)
    for folder in runs:
        every = ours(folder)
        found = [row for row in every if row.dataset == dataset]
        if not found:
            on = " and ".join(dict.fromkeys(row.dataset for row in every))
            stderr.write(f"left out: {folder} was evaluated on {on}\n")
        elif missing and not any(row.missing for row in found):
            stderr.write(f"left out: {folder} was evaluated with all modalities alone\n")
        else:
            rows += found
    rows = [row for row in rows if bool(row.missing) == missing]
    rows.sort(key=lambda row: (row.missing not in ("", "mean"), -(row.mAP or 0)))  # a mean decides where it is known
    if json:
        print_json([asdict(row) for row in rows])
    elif missing:
        _show_missing(dataset, rows)
    else:
        _show(dataset, rows)


def _show(dataset: str, rows: "list[Row]") -> None:
    """What can be compared in one table, what stands apart in another."""
    header = ["mAP", "R-1", "R-5", "R-10", "method", "backbone", "trained M", "source", ""]
    name = _titled(dataset)
    for title, apart in ((name, False), (f"{name}, not to be compared with the above", True)):
        chosen = [row for row in rows if bool(row.apart) == apart]
        if chosen:
            print_table(
                title,
                header,
                [
                    [
                        *(_number(value) for value in (row.mAP, row.rank1, row.rank5, row.rank10)),
                        f"{row.method}, {row.venue}" if row.venue else row.method,
                        row.backbone,
                        "" if row.trained_M is None else f"{row.trained_M:g}",
                        row.source,
                        _remark(row),
                    ]
                    for row in chosen
                ],
            )
    print(
        "Every other method whose code is public takes its best epoch on the test set; ours is the last one, unless "
        "its line says otherwise.\nsecond hand: a note that was not checked here."
    )
    if all(row.method != "ours" for row in rows):
        print(f"ours: not yet run here; dmpt results --dataset {dataset} --runs RUN puts evaluated runs beside these.")


def _show_missing(dataset: str, rows: "list[Row]") -> None:
    """One line per method, one column per case: mAP/rank-1."""
    from dmpt.paper.published import CASES

    if not rows:
        print(f"nothing is published for {dataset}")
        return
    table: dict[tuple[str, str, str, str], dict[str, str]] = {}
    for row in rows:
        cell = _number(row.mAP) + ("" if row.rank1 is None else f"/{row.rank1:.1f}")
        table.setdefault((row.method, row.backbone, _remark(row), row.source), {})[row.missing] = cell
    used = [case for case in CASES if any(case in cases for cases in table.values())]
    lines = [
        [method, *(cases.get(case, "-") for case in used), backbone, source, note]
        for (method, backbone, note, source), cases in table.items()
    ]
    heads = [case if case in ("mean", "mismatched") else f"M({case})" for case in used]
    title = f"{_titled(dataset)}, mAP/rank-1; M(x): x is missing"
    print_table(title, ["method", *heads, "backbone", "source", ""], lines)


def _titled(dataset: str) -> str:
    """Its name and the protocol of its numbers."""
    from dmpt.paper.published import facts_of

    facts = facts_of(dataset)
    return dataset if facts is None else f"{dataset}, protocol {facts.protocol}"


def _remark(row: "Row") -> str:
    return "; ".join(text for text in (row.apart, row.note) if text)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
