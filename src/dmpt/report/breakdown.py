"""Where a number comes from: camera by camera, and spectrum by spectrum."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from dmpt.pages.frame import table
from dmpt.pages.pictures import SPECTRA
from dmpt.report.measured import Features, Measured
from dmpt.retrieval.embeddings import unit
from dmpt.retrieval.metrics import evaluate, has_match
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


def chosen_features(features: Features, chosen: Sequence[int], width: int) -> Features:
    """The chosen modalities' part of the features ``(N, 3 width)``, normalised anew, ``(N, len(chosen) width)``."""
    part = np.concatenate([features[:, m * width : (m + 1) * width] for m in chosen], axis=1)
    return unit(part)


def modality_mAP(run: Measured) -> dict[tuple[int, ...], float]:
    """mAP, percent, of each choice of modalities, from the same features."""
    width = run.query_features.shape[1] // len(MODALITIES)  # twice the backbone's where the bind is part of it
    found = {}
    for chosen in subsets(run.card.config.data.modalities):
        query, gallery = (chosen_features(f, chosen, width) for f in (run.query_features, run.gallery_features))
        found[chosen] = evaluate(query, gallery, run.query_labels, run.gallery_labels, run.metrics.protocol).mAP
    return found


def modality_table(values: dict[tuple[int, ...], float]) -> Markup:
    """Bars with their numbers."""
    rows = []
    for chosen, value in values.items():
        name = " + ".join(SPECTRA[MODALITIES[m]] for m in chosen)
        bar = Markup('<span class="bar" style="--share:{:.1f}%"></span>').format(value)
        rows.append([name, bar, f"{value:.1f}"])
    return table(["modality features", "", "mAP"], rows, kind="bars")
