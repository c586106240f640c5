"""``dmpt report RUN``: one run from all sides."""

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from dmpt.pages.frame import Section, figure, pair, paragraph, write_page
from dmpt.pages.pictures import SPOKEN, listed
from dmpt.report import curves, ranked
from dmpt.report.attention import attention_section
from dmpt.report.breakdown import by_spectra, camera_pairs, camera_table, modality_table
from dmpt.report.embedding import maps
from dmpt.report.measured import Measured
from dmpt.report.provenance import caution, numbers, provenance

LISTS = 4
"""Best, and worst, ranked lists on a page."""


def report(measured: Measured, out: Path | None = None) -> Path:
    """Write a report of one run.

    Args:
        measured: the run.
        out: the file; None = ``report.html`` in the run folder.

    Returns:
        The file.

    Raises:
        UserError: it cannot be written.
    """
    out = out or measured.run / f"report{measured.ending}.html"
    metrics, data = measured.metrics, measured.card.config.data
    lead = Markup("").join(
        [
            paragraph(
                f"{measured.card.config.backbone.name} adapted to re-identify a {measured.card.object} across "
                f"cameras, tested on the {data.layout} layout's test split: {metrics.valid_queries} queries against "
                f"{metrics.gallery} samples of {listed(data, SPOKEN)} pictures. Rates are percent."
            ),
            numbers(measured),
            caution(measured),
            provenance(measured),
        ]
    )
    sections = [
        curve_section([measured]),
        camera_section(measured),
        modality_section(measured),
        list_section(measured),
        map_section([measured]),
        look_section(measured),
    ]
    write_page(out, f"Report of {measured.name}", lead, sections)
    return out


def curve_section(measured: Sequence[Measured]) -> Section:
    """CMC and losses; of a single run every term of the loss."""
    parts = [
        figure(
            curves.cmc(measured),
            "CMC: how often a right match is among the first k. Steep and early is good; the left end is rank-1.",
        )
    ]
    single = measured[0].run if len(measured) == 1 else None
    loss = curves.losses(single) if single else curves.total_losses({run.name: run.run for run in measured})
    if loss is not None:
        what = "Each term as it enters the total" if single else "Total loss of each run that was trained"
        parts.append(
            figure(loss, f"{what}. It should fall and level off; a jump or a rise asks for a smaller train.lr.")
        )
    chosen = curves.selection(single) if single else None
    if chosen is not None:
        parts.append(figure(chosen, "mAP measured during training, by which the best checkpoint is kept."))
    body = pair(*parts)
    if loss is None:
        body += Markup("<p>No training steps were logged here.</p>")
    what = "How well it finds, and how training went."
    return Section("curves", "Curves", what, body)


def camera_section(run: Measured) -> Section:
    """The per-camera-pair table."""
    return Section(
        "cameras",
        "Camera by camera",
        "mAP of the queries of one camera (row) searched in one camera's gallery alone (column). A pale cell is a pair "
        "of views that the model does not bridge; a dash means that the protocol leaves nothing to find there.",
        camera_table(camera_pairs(run)),
    )


def modality_section(run: Measured) -> Section:
    """What each modality feature is worth."""
    what = (
        "The feature has a part per spectrum. Here some parts are left out of the comparison, on the same features. "
        "A last row above all others means that the spectra know different things."
    )
    found = by_spectra(run)
    if len({numbers.valid_queries if numbers else 0 for numbers in found.values()}) > 1:
        what += " Each row is of the samples that have any of its spectra, so rows are of different queries."
    bind = run.card.config.bind
    if bind.depth and bind.external:
        what += (
            " Each part has seen the other spectra through the bind prompt, so this is not what a camera of one "
            "spectrum alone would give."
        )
    return Section("spectra", "What each spectrum contributes", what, modality_table(found))


def list_section(run: Measured) -> Section:
    """Best and worst lists."""
    best, worst = (ranked.chosen(run, which, LISTS) for which in ("best", "worst"))
    body = ranked.columns(run, ranked.lists(run, best, "Best"), ranked.lists(run, worst, "Worst"))
    return Section(
        "lists",
        "Best and worst ranked lists",
        "Left the query, then what was found, the most similar first; top to bottom "
        f"{listed(run.card.config.data, SPOKEN)}. ✓ and a solid frame: the right identity; ✗ and a dashed frame: "
        "another one. Below, the camera and the similarity. The queries of highest and lowest average "
        "precision, one per identity.",
        body,
    )


def map_section(runs: Sequence[Measured]) -> Section:
    """t-SNE."""
    what = (
        "Each mark is a test sample, each colour and shape an identity. Good features form one tight island per "
        "identity; distances between islands mean little. The silhouette measures it on the features themselves: 1 is "
        "tight and far apart, 0 overlapping, below 0 mixed up."
    )
    return Section("map", "Map of the features", what, maps(runs))


def look_section(run: Measured) -> Section:
    """Prompt-to-patch attention."""
    return Section(
        "attention",
        "Where the class token looks" if run.network.prompts is None else "Where the prompts look",
        "Attention of the last frozen block, the mean over its attention heads, from each kind of token to the "
        "picture's patches: dark purple little, orange and yellow much. A map of one colour looks nowhere in "
        "particular; maps that differ show that the tokens gather different things. The table says how the class "
        "token, which becomes the feature, divides its attention; an even look would give every token the same.",
        attention_section(run),
    )
