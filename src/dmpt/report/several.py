"""``dmpt report RUN RUN RUN ...``: the rows of a study side by side, as the paper's Figure 5 shows them."""

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from dmpt.pages.frame import count, paragraph, table, write_page
from dmpt.report.measured import Measured
from dmpt.report.provenance import caution, provenance
from dmpt.report.single import curve_section, map_section


def several(measured: Sequence[Measured], out: Path | None = None) -> Path:
    """Write a page about three runs or more on the same test data: numbers, curves, and a t-SNE of each.

    Args:
        measured: the runs, in the order of the page.
        out: the file; None = ``several.html`` in the last one's folder.

    Returns:
        The file.

    Raises:
        UserError: it cannot be written.
    """
    out = out or measured[-1].run / f"several{measured[-1].ending}.html"
    rows = [
        [one.name, *(f"{getattr(one.metrics, key):.1f}" for key in ("mAP", "rank1", "mINP")), count(one.trained)]
        for one in measured
    ]
    first = measured[0].metrics
    lead = Markup("").join(
        [
            paragraph(
                f"{len(measured)} runs, tested on {first.valid_queries} queries against {first.gallery} samples. "
                "Rates are percent."
            ),
            table(["", "mAP", "rank-1", "mINP", "trained parameters"], rows),
            *map(caution, measured),
            *map(provenance, measured),
        ]
    )
    sections = [curve_section(measured), map_section(measured)]
    write_page(out, f"{len(measured)} runs side by side", lead, sections)
    return out
