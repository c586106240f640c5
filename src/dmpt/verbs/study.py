"""``dmpt study``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from jsonargparse.typing import PositiveInt

from dmpt.base.errors import UserError
from dmpt.verbs.parser import Parser, add_settings, config_of


def add(parser: Parser) -> None:
    """Run a table of the paper's argument on any data: what is missing is run, then table and plot are written."""
    parser.add_argument("study", type=str, nargs="?", default=None, help="Its name, as the first argument; see --list.")
    parser.add_argument("--list", action="store_true", help="Name all studies.")
    parser.add_argument(
        "--on", type=str, default=None, help="Data: one of studies/data/ or configs/, or a file; default: the study's."
    )
    parser.add_argument("--seeds", type=PositiveInt, default=None, help="How many, counted on from --train.seed.")
    parser.add_argument("--rows", type=str, default=None, help="Only these, separated by semicolons.")
    parser.add_argument("--jobs", type=PositiveInt, default=1, help="Runs at a time; they share the cores.")
    parser.add_argument("--dry-run", action="store_true", help="List the runs, with an estimate of their time.")
    parser.add_argument("--table", action="store_true", help="Only rebuild table, plot and provenance from results.")
    parser.add_argument("--out", type=Path, default=Path("runs/studies"), help="Run folders go to OUT/STUDY/DATA/ROW.")
    parser.add_argument("--results", type=Path, default=Path("results"), help="Numbers go to RESULTS/STUDY.")
    add_settings(parser)
    parser.preset = "study", _preset


def _preset(name: str, given: Mapping[str, str]) -> dict[str, Any]:
    """The settings of the study's data, and its own for all rows: what the flags then override."""
    from dmpt.study.data import find_data
    from dmpt.study.definition import find

    study = find(name)
    return find_data(given.get("--on", study.data[0])).settings | study.base


def run(arguments: Namespace) -> None:
    """Run the verb ``study``."""
    from dmpt.study.data import find_data
    from dmpt.study.definition import find, studies

    if arguments.list:
        for name in studies():
            print(f"{name:<16} {find(name).caption} ({find(name).mirrors})")
        return
    if arguments.study is None:
        raise UserError("give a study: dmpt study NAME; --list names them all")
    from dmpt.study.plan import make
    from dmpt.study.run import dry_run, study
    from dmpt.study.table import write

    chosen = find(arguments.study)
    data = find_data(arguments.on or chosen.data[0])
    out, results = arguments.out / chosen.name, arguments.results / chosen.name
    rows = [name.strip() for name in (arguments.rows or "").split(";") if name.strip()]
    if arguments.rows is not None and not rows:
        raise UserError("--rows is empty; name rows, separated by semicolons, or leave it out")
    base = config_of(arguments)
    if arguments.table:
        print(write(chosen, results))
    elif arguments.dry_run:
        seeds = arguments.seeds or chosen.seeds
        plan = make(chosen, data.name, base, seeds=seeds, only=rows, out=out)
        print(*dry_run(plan, results), sep="\n")
    else:
        options = {"out": out, "results": results, "seeds": arguments.seeds, "rows": rows, "jobs": arguments.jobs}
        print(study(chosen, data, base, **options).read_text(encoding="utf-8"))
