"""``dmpt report``."""

from collections.abc import Sequence
from pathlib import Path

from dmpt.adapter.packaged import is_shipped
from dmpt.base.errors import UserError
from dmpt.evaluation.conditions import Conditions


def run(
    run: Path,
    others: Sequence[Path] = (),
    /,
    *,
    conditions: Conditions,
    missing: bool = False,
    out: Path | None = None,
) -> None:
    """Write a page about a run, about what changed between two, or about more side by side (t-SNE, curves).

    Args:
        run: Run folder, adapter folder, or package:tiny.
        others: A second one: which queries got better or worse in it. Or more: numbers, curves and maps side by side.
        conditions: what is not as in training
        missing: Of one run, also any-to-any: the query seen in some spectra, the gallery in others, as a map.
        out: Default: report.html in the run folder; compare.html in the second; several.html in the last; on other
            data than the run's a name of its own.
    """
    from dmpt.report.pages import report
    from dmpt.report.runs import evaluate_all

    if missing and others:
        raise UserError("--missing is for a page about one run; give one, or leave it out")
    if out is not None and out.is_dir():  # now, not after the features
        raise UserError(f"--out {out} is a folder; give a file, for instance {out / 'report.html'}")
    if out is None and is_shipped((run, *others)[-1]):
        raise UserError("an adapter that comes with dmpt keeps no pages; say with --out where this one goes")
    page = report(evaluate_all([run, *others], conditions, missing), out)
    print(f"{page}: open it in a browser")
