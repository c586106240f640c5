"""``dmpt reproduce``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dmpt.base.errors import UserError
from dmpt.base.terminal import print_json, print_table
from dmpt.settings.config import Config


def run(
    cell: str | None = None,
    /,
    *,
    list: bool = False,
    config: Config,
    out: Path | None = None,
    resume: bool = False,
    skip_broken: bool = False,
    json: bool = False,
) -> None:
    """Train and evaluate one cell of the paper's tables; print ours, the paper's and the difference.

    Args:
        cell: Its name; see --list.
        list: Name all cells, with the paper's numbers.
        config: settings
        out: Run folder; a finished run is only evaluated.
        resume: Go on with the unfinished run in --out.
        skip_broken: Leave out samples with unreadable images.
        json: Print JSON.
    """
    if list:
        _list(json)
        return
    if cell is None:
        raise UserError("give a cell: dmpt reproduce CELL --data.root DIR --out RUN; --list names them all")
    if out is None:
        raise UserError("give --out, the run folder to write")
    from dmpt.paper.reproduce import compare
    from dmpt.training.state import is_finished
    from dmpt.training.train import fit
    from dmpt.training.trainer import Trainer

    trainer = Trainer(config, out, resume or is_finished(out), skip_broken)
    fit(trainer)  # of a finished run it only writes the adapter anew, which a kill may have come before
    if not trainer.main:
        return
    result = compare(cell, config, out, trainer, skip_broken)
    if json:
        print_json(result)
    else:
        _show(result)


def preset(given: Mapping[str, Any]) -> dict[str, Any]:
    """A cell's settings: what flags and files then override."""
    from dmpt.paper.cells import find, settings
    from dmpt.settings.values import dotted

    return dotted(settings(find(given["cell"]))) if "cell" in given else {}


def _list(as_json: bool) -> None:
    from dataclasses import asdict

    from dmpt.paper.cells import cells

    if as_json:
        print_json({name: asdict(cell) for name, cell in cells().items()})
        return
    rows = [
        [name, *_percent(cell.paper), cell.where, " ".join(f"--{k} {v}" for k, v in cell.change.items())]
        for name, cell in cells().items()
    ]
    print_table("the paper's numbers", ["cell", *_measures(), "printed in", "changed in its settings"], rows)


def _show(result: dict[str, Any]) -> None:
    provenance = result["provenance"]
    print_table(
        f"{result['cell']} ({result['where']}), protocol {result['protocol']}, seed {provenance['seed']}, "
        f"{result['valid_queries']} of {result['queries']} queries valid, gallery {result['gallery']}",
        ["", *_measures()],
        [
            ["ours", *_percent(result["ours"])],
            ["paper", *_percent(result["paper"])],
            ["difference", *_percent(result["difference"], "+.1f")],
        ],
    )
    if result["deviations"]:
        print("not the paper's setting:", *result["deviations"], sep="\n  ")


def _measures() -> list[str]:
    """The columns of the paper's tables."""
    from dmpt.paper.cells import PRINTED
    from dmpt.retrieval.metrics import MEASURES

    return [MEASURES[measure] for measure in PRINTED]


def _percent(numbers: dict[str, float], form: str = ".1f") -> list[str]:
    from dmpt.paper.cells import PRINTED

    return [format(numbers[key], form) if key in numbers else "-" for key in PRINTED]
