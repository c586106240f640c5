"""A run's numbers, and where they come from."""

from typing import Any

from markupsafe import Markup

from dmpt.pages.frame import count, folded, note, tiles
from dmpt.report.measured import Measured
from dmpt.retrieval.metrics import MEASURES


def numbers(run: Measured) -> Markup:
    """A run's numbers as tiles."""
    values = {name: f"{getattr(run.metrics, key):.1f}" for key, name in MEASURES.items()}
    return tiles({**values, "trained": count(run.trained)})


def provenance(run: Measured) -> Markup:
    """Where the numbers come from, folded."""
    rows = Markup("").join(
        Markup("<div><dt>{}</dt><dd>{}</dd></div>").format(name, _plain(value))
        for name, value in run.provenance.items()
    )
    return folded(f"Where the numbers of {run.name} come from", Markup("<dl>{}</dl>").format(rows))


def caution(run: Measured) -> Markup:
    """What a reader of the numbers should know first; empty where there is nothing."""
    said = []
    if run.provenance["checkpoint chosen by"] == "test":
        said.append(f"The checkpoint of {run.name} was chosen on this very test split: its numbers are optimistic.")
    if run.apart:
        said.append(f"{run.name} is shown on {run.apart}.")
    records, used = run.records(), len(run.card.config.data.modalities)
    if lacking := sum(len(record.paths) < used for record in records):
        said.append(
            f"{lacking} of {len(records)} test samples lack a spectrum. An empty frame stands in its place, "
            "and two samples are compared by the spectra that both have."
        )
    return Markup("").join(map(note, said))


def _plain(value: Any) -> str:
    return "none" if value is None else str(value)
