"""``dmpt report RUN RUN RUN ...``: the rows of a study side by side, as the paper's Figure 5 shows them."""

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from dmpt.report.measured import check_same_data, measure, names
from dmpt.report.page import caution, count, paragraph, provenance, table, write_page
from dmpt.report.single import curve_section, map_section


def several(
    runs: Sequence[Path],
    out: Path | None = None,
    root: str | None = None,
    *,
    weights: str | None = None,
    skip_broken: bool = False,
) -> Path:
    """Write a page about three runs or more on the same test data: numbers, curves, and a t-SNE of each.

    Args:
        runs: run or adapter folders, in the order of the page.
        out: the file; None = ``several.html`` in the last of them.
        root: of the data; None = where each training found it.
        weights: of the backbone, when they moved.
        skip_broken: leave out triplets with unreadable images.

    Returns:
        The file.

    Raises:
        UserError: the runs were tested on different data; something is missing, does not fit, or cannot be written.
    """
    out = out or runs[-1] / "several.html"
    measured = [
        measure(run, root, name=name, weights=weights, skip_broken=skip_broken)
        for run, name in zip(runs, names(runs), strict=True)
    ]
    check_same_data(measured)
    rows = [
        [one.name, *(f"{getattr(one.metrics, key):.1f}" for key in ("mAP", "rank1", "mINP")), count(one.trained)]
        for one in measured
    ]
    first = measured[0].metrics
    lead = Markup("").join(
        [
            paragraph(
                f"{len(measured)} runs, tested on {first.valid_queries} queries against {first.gallery} triplets. "
                "Rates are percent."
            ),
            table(["", "mAP", "rank-1", "mINP", "trained parameters"], rows),
            *map(caution, measured),
            *map(provenance, measured),
        ]
    )
    sections = [curve_section(measured, {one.name: one.run for one in measured}), map_section(measured)]
    write_page(out, f"{len(measured)} runs side by side", lead, sections)
    return out
