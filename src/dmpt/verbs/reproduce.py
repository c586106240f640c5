"""``dmpt reproduce``."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from dmpt.base.errors import UserError
from dmpt.base.terminal import print_table
from dmpt.verbs.parser import Parser, add_settings, config_of


def add(parser: Parser) -> None:
    """Train and evaluate one cell of the paper's tables; print ours, the paper's and the difference."""
    parser.add_argument("cell", type=str, nargs="?", default=None, help="Its name, as the first argument; see --list.")
    parser.add_argument("--list", action="store_true", help="Name all cells, with the paper's numbers.")
    add_settings(parser)
    parser.add_argument("--out", type=Path, default=None, help="Run folder; a finished run is only evaluated.")
    parser.add_argument("--resume", action="store_true", help="Go on with the unfinished run in --out.")
    parser.add_argument("--skip-broken", action="store_true", help="Leave out samples with unreadable images.")
    parser.add_argument("--json", action="store_true", help="Print JSON.")
    parser.preset = "cell", _preset


def _preset(name: str, flags: Mapping[str, str]) -> dict[str, Any]:
    """A cell's settings: what the flags then override."""
    from dmpt.paper.cells import find, settings
    from dmpt.settings.values import dotted

    return dotted(settings(find(name)))


def run(arguments: Namespace) -> None:
    """Run the verb ``reproduce``."""
    if arguments.list:
        _list(arguments.json)
        return
    if arguments.cell is None:
        raise UserError("give a cell: dmpt reproduce CELL --data.root DIR --out RUN; --list names them all")
    if arguments.out is None:
        raise UserError("give --out, the run folder to write")
    from dmpt.paper.reproduce import compare
    from dmpt.training.state import is_finished
    from dmpt.training.train import fit
    from dmpt.training.trainer import Trainer

    config, out = config_of(arguments), arguments.out
    trainer = Trainer(config, out, arguments.resume or is_finished(out), arguments.skip_broken)
    fit(trainer)  # of a finished run it only writes the adapter anew, which a kill may have come before
    if not trainer.main:
        return
    result = compare(arguments.cell, config, out, trainer, arguments.skip_broken)
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        _show(result)


def _list(as_json: bool) -> None:
    from dataclasses import asdict

    from dmpt.paper.cells import cells

    if as_json:
        print(json.dumps({name: asdict(cell) for name, cell in cells().items()}, indent=2))
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
