"""``dmpt report``."""

from pathlib import Path

from jsonargparse import Namespace

from dmpt.base.errors import UserError
from dmpt.verbs.parser import Parser, add_test_data, test_data_of


def add(parser: Parser) -> None:
    """Write a page about a run, about what changed between two, or about more side by side (t-SNE, curves)."""
    parser.add_argument("run", type=Path, help="Run folder or adapter folder.")
    parser.add_argument(
        "others",
        nargs="*",
        type=Path,
        default=[],
        help="A second one: which queries got better or worse in it. Or more: numbers, curves and maps side by side.",
    )
    add_test_data(parser)
    parser.add_argument("--backbone.weights", type=str, default=None, help="Weights file, when it has moved.")
    parser.add_argument("--skip-broken", action="store_true", help="Leave out samples with unreadable images.")
    parser.add_argument(
        "--out",
        type=Path,
        default=None,
        help="Default: report.html in the run folder; compare.html in the second; several.html in the last; on other "
        "data than the run's a name of its own.",
    )


def run(arguments: Namespace) -> None:
    """Run the verb ``report``."""
    from dmpt.evaluation.opened import Conditions
    from dmpt.report.pages import report
    from dmpt.report.runs import evaluate_all

    out = arguments.out
    if out is not None and out.is_dir():  # now, not after the features
        raise UserError(f"--out {out} is a folder; give a file, for instance {out / 'report.html'}")
    runs = [arguments.run, *arguments.others]
    weights, skip = arguments["backbone.weights"], arguments.skip_broken
    conditions = Conditions(data=test_data_of(arguments), weights=weights, skip_broken=skip)
    page = report(evaluate_all(runs, conditions), out)
    print(f"{page}: open it in a browser")
