"""Where a number comes from: camera by camera, and spectrum by spectrum."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from dmpt.pages.frame import table
from dmpt.pages.pictures import SPECTRA
from dmpt.report.measured import Measured
from dmpt.retrieval.embeddings import Embeddings
from dmpt.retrieval.metrics import Metrics, evaluate, has_match
from dmpt.settings.modalities import MODALITIES


@dataclass(frozen=True)
class CameraPairs:
    """mAP of queries of one camera in the gallery of one camera.

    Attributes:
        cameras: in ascending order.
        mAP: percent ``(from, to)``; NaN where no query has anything to find.
        queries: valid queries ``(from, to)``.
    """

    cameras: list[int]
    mAP: NDArray[np.float64]
    queries: NDArray[np.int64]


def camera_pairs(run: Measured) -> CameraPairs:
    """Rank each camera's queries in each camera's gallery, under the run's protocol."""
    query, gallery, protocol = run.query_labels, run.gallery_labels, run.metrics.protocol
    cameras = sorted({*query.cameras.tolist(), *gallery.cameras.tolist()})
    shape = len(cameras), len(cameras)
    result = CameraPairs(cameras, np.full(shape, np.nan), np.zeros(shape, np.int64))
    for (i, a), (j, b) in itertools.product(enumerate(cameras), repeat=2):
        rows, columns = np.flatnonzero(query.cameras == a), np.flatnonzero(gallery.cameras == b)
        valid = int(has_match(query[rows], gallery[columns], protocol).sum())
        if valid:
            metrics = evaluate(
                run.query_features[rows],
                run.gallery_features[columns],
                query[rows],
                gallery[columns],
                protocol,
            )
            result.mAP[i, j], result.queries[i, j] = metrics.mAP, valid
    return result


def camera_table(pairs: CameraPairs) -> Markup:
    """A heat map whose cells say their number."""
    rows = []
    for i, camera in enumerate(pairs.cameras):
        cells = [Markup('<th scope="row">camera {}</th>').format(camera)]
        for value, count in zip(pairs.mAP[i], pairs.queries[i], strict=True):
            if np.isnan(value):
                cells.append(Markup('<td class="none" title="nothing to find">–</td>'))
            else:
                cell = Markup('<td style="--heat:{:.0f}%" title="{} queries">{:.1f}</td>')
                cells.append(cell.format(value, count, value))
        rows.append(Markup("<tr>{}</tr>").format(Markup("").join(cells)))
    head = Markup("").join(Markup('<th scope="col">in camera {}</th>').format(c) for c in pairs.cameras)
    return Markup(
        '<div class="scroll"><table class="heat"><thead><tr><th scope="col">queries of</th>{}</tr></thead>'
        "<tbody>{}</tbody></table></div>"
    ).format(head, Markup("").join(rows))


def subsets(modalities: Sequence[str]) -> list[tuple[int, ...]]:
    """Every choice of them, by their modalities, the single ones first."""
    numbers = [MODALITIES.index(m) for m in modalities]
    return [chosen for size in (1, 2, 3) for chosen in itertools.combinations(numbers, size)]


def chosen_features(items: Embeddings, chosen: Sequence[int]) -> tuple[Embeddings, NDArray[np.int64]]:
    """The items as far as they have the chosen modalities, and the rows of those that have any of them."""
    kept = np.isin(np.arange(items.present.shape[1]), chosen)
    present = items.present & kept
    cut = replace(items, features=items.features * kept[:, None], present=present)
    rows = np.flatnonzero(present.any(axis=1))
    return cut[rows], rows


def by_spectra(run: Measured) -> dict[tuple[int, ...], Metrics | None]:
    """The numbers of each choice of modalities, from the same features; None where no query has anything to find."""
    found: dict[tuple[int, ...], Metrics | None] = {}
    query_labels, gallery_labels, protocol = run.query_labels, run.gallery_labels, run.metrics.protocol
    for chosen in subsets(run.card.config.data.modalities):
        query, rows = chosen_features(run.query_features, chosen)
        gallery, columns = chosen_features(run.gallery_features, chosen)
        labels = query_labels[rows], gallery_labels[columns]
        valid = len(rows) > 0 and has_match(*labels, protocol).any()
        found[chosen] = evaluate(query, gallery, *labels, protocol) if valid else None
    return found


def modality_table(values: dict[tuple[int, ...], Metrics | None]) -> Markup:
    """Bars with their numbers; where samples are incomplete, also how many queries each is of."""
    counts = {0 if found is None else found.valid_queries for found in values.values()}
    rows = []
    for chosen, found in values.items():
        value = 0.0 if found is None else found.mAP
        name = " + ".join(SPECTRA[MODALITIES[m]] for m in chosen)
        bar = Markup('<span class="bar" style="--share:{:.1f}%"></span>').format(value)
        row = [name, bar, "–" if found is None else f"{value:.1f}"]
        rows.append([*row, f"{found.valid_queries if found else 0}"] if len(counts) > 1 else row)
    header = ["modality features", "", "mAP", "queries valid"]
    return table(header[: len(rows[0])], rows, kind="bars")
