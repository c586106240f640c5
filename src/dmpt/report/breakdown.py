"""Where a number comes from: camera by camera, and spectrum by spectrum."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from dmpt.evaluation.evaluate import Evaluation
from dmpt.evaluation.missing import square
from dmpt.pages.frame import Section, render
from dmpt.pages.pictures import SPECTRA
from dmpt.retrieval.embeddings import Embeddings
from dmpt.retrieval.metrics import Metrics, evaluate, has_match
from dmpt.retrieval.protocols import Labels
from dmpt.settings.modalities import MODALITIES

_MEANS = {
    "matched": "query and gallery in one set of spectra",
    "mismatched": "in different ones",
    "disjoint": "of these, without a spectrum in common",
    "mixed": "each sample in a set of its own, drawn at random",
}


def camera_section(run: Evaluation) -> Section:
    """The table of camera pairs, a heat map whose cells say their number."""
    pairs = _by_cameras(run)
    cameras = sorted({camera for camera, _ in pairs})
    header = ["queries of", *(f"in camera {camera}" for camera in cameras)]
    body = render("report/cameras.html", header=header, cameras=cameras, pairs=pairs)
    return Section("cameras", "Camera by camera", body)


def spectra_section(run: Evaluation) -> Section:
    """What each modality feature is worth."""
    bind = run.opened.card.config.bind
    body = _spectra_table(_by_spectra(run), bound=bind.depth > 0 and bind.external)
    return Section("spectra", "What each spectrum contributes", body)


def any_to_any_section(run: Evaluation) -> Section | None:
    """Each set of spectra against each, a heat map whose cells say their number; None where it was not asked for."""
    if run.missing is None or "any_to_any" not in run.missing:
        return None
    found = run.missing["any_to_any"]
    names, values = square(found)
    said = [(name, found[key]["mAP"]) for key, name in _MEANS.items() if key in found]
    shown = {"names": names, "rows": list(zip(names, values, strict=True)), "means": said}
    body = render("report/any_to_any.html", shared=run.missing["shared_part"], **shown)
    return Section("any-to-any", "Any to any", body)


def _spectra_table(found: dict[tuple[int, ...], Metrics | None], bound: bool) -> Markup:
    """Bars with their numbers; where samples are incomplete, also how many queries each is of."""
    rows = [(" + ".join(SPECTRA[MODALITIES[m]] for m in chosen), numbers) for chosen, numbers in found.items()]
    counts = {numbers.valid_queries if numbers else 0 for numbers in found.values()}
    return render("report/spectra.html", rows=rows, differ=len(counts) > 1, bound=bound)


def _by_cameras(run: Evaluation) -> dict[tuple[int, int], Metrics | None]:
    """The numbers of one camera's queries in one camera's gallery, under the run's protocol."""
    query, gallery, asked, labels = run.seen
    cameras = sorted({*asked.cameras.tolist(), *labels.cameras.tolist()})
    found = {}
    for one, other in itertools.product(cameras, repeat=2):
        rows, columns = np.flatnonzero(asked.cameras == one), np.flatnonzero(labels.cameras == other)
        sides = query[rows], gallery[columns], asked[rows], labels[columns]
        found[one, other] = _numbers(*sides, run.metrics.protocol)
    return found


def _by_spectra(run: Evaluation) -> dict[tuple[int, ...], Metrics | None]:
    """The numbers of every choice of modalities, the single ones first, from the same features."""
    query, gallery, asked, labels = run.seen
    used, found = [MODALITIES.index(m) for m in run.opened.data.modalities], {}
    for chosen in itertools.chain.from_iterable(itertools.combinations(used, size) for size in (1, 2, 3)):
        (own, rows), (other, columns) = _chosen_features(query, chosen), _chosen_features(gallery, chosen)
        found[chosen] = _numbers(own, other, asked[rows], labels[columns], run.metrics.protocol)
    return found


def _chosen_features(items: Embeddings, chosen: Sequence[int]) -> tuple[Embeddings, NDArray[np.int64]]:
    """The items as far as they have the chosen modalities, and the rows of those that have any of them."""
    kept = np.isin(np.arange(items.present.shape[1]), chosen)
    present = items.present & kept
    cut = replace(items, features=items.features * kept[:, None], present=present)
    rows = np.flatnonzero(present.any(axis=1))
    return cut[rows], rows


def _numbers(
    query: Embeddings, gallery: Embeddings, query_labels: Labels, gallery_labels: Labels, protocol: str
) -> Metrics | None:
    """None where no query has anything to find."""
    valid = len(query) > 0 and has_match(query_labels, gallery_labels, protocol).any()
    return evaluate(query, gallery, query_labels, gallery_labels, protocol) if valid else None
