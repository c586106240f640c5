"""Identities for samples that nobody labelled: proposed, and written only when asked.

Average linkage on exact scores: two groups are one where their scores lie above the threshold in the mean. Such groups
share a pair above it, so only samples that hang together by such pairs are looked at together, and memory is bounded.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.cluster import AgglomerativeClustering

from dmpt.adapter.calibration import load
from dmpt.adapter.files import adapter_folder
from dmpt.base.errors import UserError
from dmpt.base.terminal import track
from dmpt.gallery.changes import Change, label
from dmpt.gallery.rows import to_embeddings
from dmpt.gallery.schema import Model
from dmpt.gallery.store import Gallery
from dmpt.retrieval.embeddings import Embeddings
from dmpt.retrieval.scores import blocks
from dmpt.runtime.exported import read

MOST = 100_000
"""Samples without a label that are compared with each other."""
_LARGEST = 10_000
"""Samples that hang together at most: their scores are a full matrix."""
_MOST_PAIRS = 20_000_000
_TOGETHER = 512
"""Samples compared with labelled ones at a time."""
_BLOCK = 8192
"""Labelled samples in memory at a time."""
_NEVER = -1e6
"""The margin of a pair whose set of common modalities has no threshold."""
Rows = NDArray[np.int64]
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Proposal:
    """Samples that seem to show one.

    Attributes:
        pid: what they would be called.
        keys: the samples.
        known: whether samples of the gallery are called so already.
        margin: how far their scores, with each other or with those of the known pid, lie above the threshold; the mean.
    """

    pid: str
    keys: tuple[str, ...]
    known: bool
    margin: float


def thresholds_of(model: Model, run: Path, fmr: float) -> list[float | None]:
    """What ``propose`` takes, of the calibration in a run or adapter folder.

    Args:
        model: of the gallery.
        run: holds the adapter that its vectors are of; or a file that was exported from it.
        fmr: share of strangers that may pass, in (0, 1).

    Raises:
        UserError: it is another adapter, it is not calibrated at the gallery's precision, or cannot carry the rate.
    """
    found = read(run).calibration if run.suffix == ".onnx" else load(adapter_folder(run))
    if found is None or (found.adapter, found.precision) != (model.adapter, model.precision):
        raise UserError(
            f"{run} has no calibration of the gallery's adapter {model.adapter[:12]} at precision {model.precision}; "
            "dmpt calibrate measures it, or give --threshold"
        )
    return [found.threshold(common, fmr) if found.rates(common) else None for common in range(8)]


def propose(gallery: Gallery, thresholds: Sequence[float | None], where: str | None = None) -> list[Proposal]:
    """Identities for samples without a pid, the largest first: known ones, and new ones of two samples or more.

    Args:
        gallery: to read, at its version.
        thresholds: the score above which two are the same, for each of the 8 sets of common modalities (bit m is
            modality m, 0 the shared parts); None = such pairs say nothing.
        where: a condition in SQL for the samples to label; None = all that have no pid.

    Raises:
        UserError: there are more samples than can be compared, or so many hang together that the threshold is too low.
    """
    limits = np.array([np.inf if limit is None else limit for limit in thresholds])
    condition = ["pid IS NULL"] if where is None else ["pid IS NULL", where]
    if (number := gallery.count(condition)) > MOST:
        raise UserError(f"{number} samples have no label; at most {MOST} are compared; take fewer with --where")
    if not number:
        return []
    table = gallery.read(where=condition)
    keys, items = table.column("key").to_pylist(), to_embeddings(table, str(gallery.path))
    groups = [group for whole in _hanging_together(items, limits) for group in _average(items, whole, limits)]
    known = _known(gallery, items, groups, limits)
    proposals, number = [], 0
    for group, (pid, margin) in zip(groups, known, strict=True):
        if pid is not None:
            proposals.append(Proposal(pid, tuple(keys[row] for row in group), True, margin))
    for group, (pid, _) in zip(groups, known, strict=True):
        if pid is None and len(group) > 1:
            own = _margins(items[group], items[group], limits)[np.triu_indices(len(group), 1)]
            number += 1
            name = f"new-{gallery.version}-{number}"
            proposals.append(Proposal(name, tuple(keys[row] for row in group), False, float(own.mean())))
    return sorted(proposals, key=lambda one: (-len(one.keys), one.pid))


def apply(gallery: Gallery, proposals: Sequence[Proposal]) -> Change:
    """Write what was proposed, as one version; a sample that was labelled meanwhile keeps its label.

    Raises:
        UserError: a sample was removed meanwhile, or the store refuses the write.
    """
    return label(gallery, {key: one.pid for one in proposals for key in one.keys}, only_unlabelled=True)


def _above(scores: NDArray[np.float32], codes: Rows, others: Rows, limits: Numbers) -> Numbers:
    """How far scores ``(Q, G)`` lie above the thresholds of their pairs."""
    margins: Numbers = scores - limits[codes[:, None] & others]
    return np.maximum(margins, _NEVER)


def _margins(items: Embeddings, others: Embeddings, limits: Numbers) -> Numbers:
    """Of each to each, ``(Q, G)``."""
    codes = items.codes
    found = blocks(items, others, match_copies=False, mixed=True)
    return np.concatenate([_above(scores, codes[rows], others.codes, limits) for rows, scores in found])


def _hanging_together(items: Embeddings, limits: Numbers) -> Iterator[Rows]:
    """Rows that a chain of pairs above the threshold connects, one alone too."""
    codes, first, second, total = items.codes, [], [], 0
    chunk = max(1, (64 << 20) // (8 * len(items)))
    found = blocks(items, items, chunk, match_copies=False, mixed=True)
    for rows, scores in track(found, "comparing", -(-len(items) // chunk)):
        one, two = np.nonzero(_above(scores, codes[rows], codes, limits) > 0)
        later = two > one + rows.start
        first.append((one + rows.start)[later])
        second.append(two[later])
        total += len(first[-1])
        if total > _MOST_PAIRS:
            raise UserError(f"more than {_MOST_PAIRS} pairs lie above the threshold; raise it, or use --where")
    pairs = np.concatenate(first), np.concatenate(second)
    graph = coo_array((np.ones(total, np.int8), pairs), shape=(len(items), len(items)))
    _, names = connected_components(graph, directed=False)
    order = np.argsort(names, kind="stable")
    for whole in np.split(order, np.flatnonzero(np.diff(names[order])) + 1):
        if len(whole) > _LARGEST:
            raise UserError(f"{len(whole)} samples hang together at this threshold; raise it, or use --where")
        yield whole


def _average(items: Embeddings, whole: Rows, limits: Numbers) -> list[Rows]:
    """Groups whose mean margin is above 0, by average linkage."""
    if len(whole) < 3:
        return [whole]
    margins = _margins(items[whole], items[whole], limits)
    distances = -(margins + margins.T) / 2  # a product's last digits are not symmetric
    lowest = distances.min()
    np.fill_diagonal(distances, lowest)
    model = AgglomerativeClustering(None, metric="precomputed", linkage="average", distance_threshold=-lowest)
    names = model.fit_predict(distances - lowest)
    return [whole[names == name] for name in np.unique(names)]


def _known(
    gallery: Gallery, items: Embeddings, groups: Sequence[Rows], limits: Numbers
) -> list[tuple[str | None, float]]:
    """For each group the known pid that is nearest, where their mean margin is above 0, and that margin."""
    labels = gallery.read(["pid"]).column("pid")
    order = pc.sort_indices(labels).to_numpy()[: len(labels) - labels.null_count]  # those without one are last
    names, numbers = np.unique(labels.take(order).to_numpy(zero_copy_only=False), return_inverse=True)
    sizes = np.bincount(numbers)
    best, margins = np.full(len(groups), -1), np.zeros(len(groups))
    open_sums = np.zeros(len(groups))  # with the samples of a pid of which more follow in the next block
    for start in track(range(0, len(order), _BLOCK), "comparing with known ones", -(-len(order) // _BLOCK)):
        rows, own = order[start : start + _BLOCK], numbers[start : start + _BLOCK]
        labelled, heads = _rows_of(gallery, rows), np.flatnonzero(np.r_[True, own[1:] != own[:-1]])
        pids, done = own[heads], 0
        goes_on = start + len(own) < len(numbers) and numbers[start + len(own)] == own[-1]
        for together in _batches(groups):
            where = slice(done, done := done + len(together))
            sums = np.add.reduceat(_margins(items[np.concatenate(together)], labelled, limits), heads, axis=1)
            sums = np.add.reduceat(sums, np.cumsum([0, *(len(group) for group in together[:-1])]), axis=0)
            sums[:, 0] += open_sums[where]
            open_sums[where] = sums[:, -1] if goes_on else 0
            means = sums / sizes[pids] / np.array([[len(group)] for group in together])
            means = means[:, : len(pids) - goes_on]
            if means.shape[1]:
                nearest = means.argmax(axis=1)
                found = means[np.arange(len(means)), nearest]
                better = found > margins[where]
                best[where][better], margins[where][better] = pids[nearest][better], found[better]
    return [(None if pid < 0 else str(names[pid]), float(margin)) for pid, margin in zip(best, margins, strict=True)]


def _rows_of(gallery: Gallery, places: Rows) -> Embeddings:
    """Vectors of some rows, by their places in the table's order."""
    dataset, metadata = gallery.dataset, gallery.schema.metadata  # which take loses unless places ascend
    table = gallery.call("reading", lambda: dataset.take(places.tolist()))
    return to_embeddings(table.replace_schema_metadata(metadata), str(gallery.path))


def _batches(groups: Sequence[Rows]) -> Iterator[list[Rows]]:
    """Whole groups, some ``_TOGETHER`` rows at a time."""
    batch, count = [], 0
    for group in groups:
        batch.append(group)
        count += len(group)
        if count >= _TOGETHER:
            yield batch
            batch, count = [], 0
    if batch:
        yield batch
