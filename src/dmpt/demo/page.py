"""The page that ``dmpt demo`` ends with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from dmpt.base.errors import UserError
from dmpt.pages.frame import Section, count, paragraph, table, write_page
from dmpt.report.measured import check_same_data, measure
from dmpt.report.provenance import provenance
from dmpt.report.single import curve_section, list_section, look_section, map_section, modality_section


@dataclass(frozen=True)
class Row:
    """A line of the demo's table.

    Attributes:
        name: of the run or of something that has no run.
        mAP: percent.
        rank1: percent.
        trained: parameters.
    """

    name: str
    mAP: float
    rank1: float
    trained: int


def demo_page(
    out: Path,
    runs: Mapping[str, Path],
    rows: Sequence[Row],
    next_commands: Sequence[str],
    intro: str,
) -> None:
    """Write the demo's page: the parts of a report over all its runs.

    Args:
        out: the file.
        runs: run folders by the name that a reader sees, in the order of the story: the first is "before", the last
            "after", whose lists, spectra and attention are shown.
        rows: of the table; the last is set in bold.
        next_commands: what to type for own data, one command each; lines that begin with ``#`` are said above them.
        intro: one or two sentences on what this is.

    Raises:
        UserError: there is no run, a run is not finished, the runs' test data differ, or the file cannot be written.
    """
    if not runs:
        raise UserError("a demo page needs a run; train first")
    measured = [measure(folder, name=name) for name, folder in runs.items()]
    check_same_data(measured)
    before, after = measured[0], measured[-1]
    results = table(
        ["", "mAP, %", "rank-1, %", "trained parameters"],
        [[row.name, f"{row.mAP:.1f}", f"{row.rank1:.1f}", count(row.trained)] for row in rows],
        strong=len(rows) - 1,
    )
    lead = (
        paragraph(intro)
        + results
        + paragraph(
            f"Tested on {after.metrics.gallery} samples of identities that training never saw. Each query asks: "
            "who of these is the same, seen by another camera? mAP says how early all right answers come, rank-1 how "
            "often the very first is right."
        )
        + Markup("").join(provenance(run) for run in measured)
    )
    shown = [before, after] if before is not after else [after]
    sections = [
        curve_section(measured),
        list_section(after),
        map_section(shown),
        modality_section(after),
        look_section(after),
        _next_section(next_commands),
    ]
    write_page(out, "What DMPT learned", lead, sections)


def _next_section(commands: Sequence[str]) -> Section:
    return Section(
        "next",
        "Now with your own data",
        "These are the exact commands; put your folder in the place of DIR.",
        Markup("<pre><code>{}</code></pre>").format("\n".join(commands)),
    )
