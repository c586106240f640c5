"""``dmpt report``."""

from pathlib import Path

from jsonargparse import Namespace

from dmpt.base.errors import UserError
from dmpt.verbs.parser import Parser


def add(parser: Parser) -> None:
    """Write a page about a run, about what changed between two, or about more side by side (t-SNE, curves)."""
    parser.add_argument("run", type=str, help="Run folder or adapter folder.")
    parser.add_argument(
        "others",
        nargs="*",
        type=str,
        default=[],
        help="A second one: which queries got better or worse in it. Or more: numbers, curves and maps side by side.",
    )
    parser.add_argument("--data.root", type=str, default=None, help="Data folder; default: where training found it.")
    parser.add_argument("--backbone.weights", type=str, default=None, help="Weights file, when it has moved.")
    parser.add_argument("--skip-broken", action="store_true", help="Leave out samples with unreadable images.")
    parser.add_argument(
        "--out",
        type=str,
        default=None,
        help="Default: report.html in the run folder; compare.html in the second; several.html in the last.",
    )


def run(arguments: Namespace) -> None:
    """Run the verb ``report``."""
    from dmpt.report.compare import compare
    from dmpt.report.measured import measure_all
    from dmpt.report.several import several
    from dmpt.report.single import report

    out = None if arguments.out is None else Path(arguments.out)
    if out is not None and out.is_dir():  # now, not after the features
        raise UserError(f"--out {out} is a folder; give a file, for instance {out / 'report.html'}")
    runs = [Path(run) for run in (arguments.run, *arguments.others)]
    options = {"weights": arguments["backbone.weights"], "skip_broken": arguments.skip_broken}
    measured = measure_all(runs, arguments["data.root"], **options)
    if len(measured) == 1:
        page = report(measured[0], out)
    elif len(measured) == 2:
        page = compare(measured[0], measured[1], out)
    else:
        page = several(measured, out)
    print(f"{page}: open it in a browser")
