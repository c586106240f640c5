"""``dmpt report``: one run from all sides, what changed between two, or the rows of a study side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from dmpt.evaluation.evaluate import Evaluation
from dmpt.pages.frame import Section, render, write_page
from dmpt.pages.pictures import SPOKEN, listed
from dmpt.report import attention, breakdown, calibration, changes, curves, embedding, ranked
from dmpt.retrieval.metrics import MEASURES


def report(
    runs: Sequence[Evaluation], out: Path | None = None, *, intro: str = "", commands: Sequence[str] = ()
) -> Path:
    """Write a page about runs on the same test data: what it shows depends on how many they are.

    Args:
        runs: in the order of the page. Of two the first is what is compared with.
        out: the file; None = ``report.html``, ``compare.html`` or ``several.html`` in the last run's folder.
        intro: one or two sentences on what a demo is; then the first run is "before" and the last "after".
        commands: what a demo's reader types next, one command each; lines that begin with ``#`` are said above them.

    Returns:
        The file.

    Raises:
        UserError: it cannot be written.
    """
    first, last = runs[0], runs[-1]
    if intro:
        kind, title = "demo", "What DMPT learned"
        sections = [
            curves.section(runs),
            ranked.section(last),
            embedding.section([first, last]),
            breakdown.spectra_section(last),
            attention.section(last),
            Section("next", "Now with your own data", render("report/next.html", commands=commands)),
        ]
    elif len(runs) == 1:
        kind, title = "report", f"Report of {last.name}"
        sections = [
            curves.section(runs),
            calibration.section(last),
            breakdown.camera_section(last),
            breakdown.spectra_section(last),
            *filter(None, [breakdown.any_to_any_section(last)]),
            ranked.section(last),
            embedding.section(runs),
            attention.section(last),
        ]
    elif len(runs) == 2:
        kind, title = "compare", f"{first.name} and {last.name} compared"
        sections = [changes.section(first, last), curves.section(runs), changes.list_section(first, last)]
    else:
        kind, title = "several", f"{len(runs)} runs side by side"
        sections = [curves.section(runs), embedding.section(runs)]
    out = out or last.run / f"{kind}{last.ending}.html"
    write_page(out, title, _lead(runs, intro), sections)
    return out


def _lead(runs: Sequence[Evaluation], intro: str) -> Markup:
    """What stands under the title: the numbers, what a reader should know first, and where they come from."""
    last = runs[-1]
    return render(
        "report/lead.html",
        intro=intro,
        runs=runs,
        last=last,
        measures=MEASURES,
        spectra=listed(last.opened.data.modalities, SPOKEN),
        cautions=[line for run in runs for line in _cautions(run)],
        origins=[(run, _origin(run)) for run in runs],
        **(changes.summary(*runs) if len(runs) == 2 else {}),
    )


def _cautions(run: Evaluation) -> list[str]:
    """What a reader of the numbers should know first."""
    said = []
    if run.provenance["chosen_by"] == "test":
        said.append(f"The checkpoint of {run.name} was chosen on this very test split: its numbers are optimistic.")
    if run.opened.apart:
        said.append(f"{run.name} is shown on {run.opened.apart}.")
    records, used = embedding.samples(run)[0], len(run.opened.data.modalities)
    if lacking := sum(len(record.paths) < used for record in records):
        said.append(
            f"{lacking} of {len(records)} test samples lack a spectrum. An empty frame stands in its place, "
            "and two samples are compared by the spectra that both have."
        )
    return said


def _origin(run: Evaluation) -> dict[str, Any]:
    """Where the numbers come from, in a reader's words; without the folders of this machine."""
    where, metrics, card, folder = run.provenance, run.metrics, run.opened.card, run.opened.folder
    config, trained_on = card.config, card.data
    return {
        "adapter": folder.resolve().name if folder == run.run else f"{run.run.resolve().name}/{folder.name}",
        "training step": where["step"],
        "seed": where["seed"],
        "checkpoint chosen by": where["chosen_by"],
        "test data": f"{where['data']}, {len({r.pid for r in run.gallery})} identities, "
        f"fingerprint {where['data_fingerprint']}",
        "missing or broken files (any split)": len(run.skipped),
        "protocol": f"{metrics.protocol}: {metrics.valid_queries} of {metrics.queries} queries valid, "
        f"gallery {metrics.gallery}",
        "trained on": f"{trained_on.get('name', 'unknown')}, {card.ids} identities, "
        f"fingerprint {trained_on.get('fingerprint', 'unknown')}",
        "backbone": config.backbone.name,
        "backbone weights": f"{'random values, ' * (config.backbone.weights == 'random')}sha256 {card.backbone_sha256}",
        "precision": where["precision"],
        "software": f"dmpt {where['dmpt']}, commit {where['commit'] or 'unknown'}, torch {where['torch']}, "
        f"timm {where['timm']}, Python {where['python']}",
        "licence": card.licence or "unknown",
    }
