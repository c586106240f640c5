"""``dmpt evaluate``: a trained run or adapter in, mAP and CMC out."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dmpt.adapter import folder as adapter
from dmpt.base.environment import environment
from dmpt.base.errors import UserError
from dmpt.base.files import write_text
from dmpt.data.check import keep_readable
from dmpt.data.layouts import load_dataset
from dmpt.data.missing import restrict
from dmpt.data.records import Dataset, Record, fingerprint
from dmpt.embed.extract import PRECISIONS, look
from dmpt.evaluation import missing
from dmpt.method.network import DMPT
from dmpt.retrieval.metrics import Metrics, measure
from dmpt.retrieval.metrics import evaluate as score
from dmpt.retrieval.protocols import Labels
from dmpt.retrieval.rerank import KReciprocal, rerank
from dmpt.settings.config import DataConfig


def retrieve(
    network: DMPT,
    data: DataConfig,
    query: Sequence[Record],
    gallery: Sequence[Record],
    protocol: str,
    precision: str = "fp32",
) -> Metrics:
    """Features of both sides, ranked under the protocol.

    Raises:
        UserError: no query has a valid match, or a feature is not finite.
    """
    seen = look(network, data, (query, gallery), precision)
    return score(seen.query, seen.gallery, seen.query_labels, seen.gallery_labels, protocol)


def adapter_folder(run: Path, which: str | None = None) -> Path:
    """The adapter inside a run folder, or the folder itself when it is an adapter.

    Args:
        run: what the user gave.
        which: ``last`` or ``best``; None = the one that training selected.

    Raises:
        UserError: there is none.
    """
    if (run / adapter.CARD).exists():
        if which not in (None, run.name):
            raise UserError(f"{run} is an adapter itself; give its run folder to choose {which}")
        return run
    # best exists only where training was told to select it
    candidates = [run / which] if which is not None else [run / "best", run / "last"]
    for folder in candidates:
        if (folder / adapter.TENSORS).exists() and (folder / adapter.CARD).exists():
            return folder
    raise UserError(f"{run} holds no trained adapter (looked for {', '.join(str(c) for c in candidates)}); train first")


@dataclass(frozen=True, eq=False)
class Opened:
    """A trained adapter and the data set that it is judged on, as they are before an image is read.

    Attributes:
        folder: the adapter's.
        network: on the device.
        card: its settings name the data folder and the loader processes of now, not of training.
        precision: compute precision, a key of ``PRECISIONS``.
        dataset: its test split may hold broken images (``test_records``).
        incomplete: what was left out in listing it.
    """

    folder: Path
    network: DMPT
    card: adapter.Card
    precision: str
    dataset: Dataset
    incomplete: list[str]

    @property
    def data(self) -> DataConfig:
        """Settings of the images."""
        return self.card.config.data


def open_adapter(
    run: Path,
    root: str | None,
    *,
    which: str | None = None,
    weights: str | None = None,
    precision: str | None = None,
    workers: int | None = None,
    skip_broken: bool = False,
) -> Opened:
    """Load an adapter and list its data set; arguments as those of ``evaluate``.

    Raises:
        UserError: something is missing or does not fit.
    """
    folder = adapter_folder(run, which)
    gpu = torch.cuda.is_available()
    if precision is None:
        trained_in = adapter.load_card(folder).config.train.precision
        precision = "fp32" if trained_in == "fp16" and not gpu else trained_in
    elif precision == "fp16" and not gpu:
        raise UserError("precision fp16 needs a GPU; use --precision bf16 or fp32")
    network, card = adapter.load(folder, weights, PRECISIONS[precision])
    data = card.config.data
    data = replace(data, root=root or data.root, workers=data.workers if workers is None else workers)
    if data.root is None:
        raise UserError("no data: give --data.root")
    incomplete: list[str] = []
    dataset = load_dataset(data.layout, data.root, data, incomplete if skip_broken else None)
    network.to("cuda" if gpu else "cpu")
    card = replace(card, config=replace(card.config, data=data))
    return Opened(folder, network, card, precision, dataset, incomplete)


def evaluate(
    run: Path,
    root: str | None = None,
    *,
    which: str | None = None,
    weights: str | None = None,
    precision: str | None = None,
    batch_size: int = 64,
    workers: int | None = None,
    skip_broken: bool = False,
    without: str | None = None,
    reranked: bool = False,
    per_query: bool = False,
) -> dict[str, Any]:
    """Evaluate an adapter on its data set's test split.

    Args:
        run: run folder or adapter folder.
        root: of the data; None = where training found it.
        which: ``last`` or ``best``; None = the one that training selected.
        weights: of the backbone, when they moved.
        precision: compute precision; None = that of training, or fp32 for fp16 without a GPU.
        batch_size: triplets per pass.
        workers: loader processes; None = as in training.
        skip_broken: leave out triplets with unreadable images, counted and listed.
        without: also with modalities missing: ``all`` cases, or one, e.g. ``rgb+nir``.
        reranked: also after k-reciprocal re-ranking.
        per_query: also each query's identity and average precision.

    Returns:
        The numbers, in percent, and where they come from. Those with modalities missing are under ``missing``, those
        after re-ranking under ``k_reciprocal_reranked``; the others are neither. Those of each query are lists under
        ``per_query``, None where there is nothing to find.

    Raises:
        UserError: something is missing or does not fit.
    """
    opened = open_adapter(
        run, root, which=which, weights=weights, precision=precision, workers=workers, skip_broken=skip_broken
    )
    network, data, dataset, precision = opened.network, opened.data, opened.dataset, opened.precision
    if without is not None:
        missing.parse(without, data.modalities)  # refused before an image is read
    records, unreadable = test_records(dataset, data, skip_broken)
    seen = look(network, data, records, precision, batch_size)
    sides = seen.query, seen.gallery, seen.query_labels, seen.gallery_labels
    metrics = score(*sides, dataset.protocol)
    result: dict[str, Any] = {
        **metrics.to_dict(),
        "skipped": [*opened.incomplete, *unreadable],
        "provenance": {
            "adapter": str(opened.folder),
            "which": opened.folder.name,
            "step": adapter.saved_step(opened.folder),
            "seed": opened.card.config.train.seed,
            "selected": opened.card.config.train.select,
            "chosen_by": adapter.chosen_by(opened.folder, opened.card),
            "data": dataset.name,
            "modalities": list(data.modalities),
            "data_fingerprint": fingerprint([*records[0], *records[1]]),
            "backbone_sha256": opened.card.backbone_sha256,
            "precision": precision,
            **environment(),
        },
    }
    if without is not None:
        result["missing"] = missing.measure(
            records,
            seen,
            data.modalities,
            without,
            dataset.protocol,
            lambda pair: look(network, data, pair, precision, batch_size),
        )
    if reranked:
        parameters = KReciprocal()
        again = measure(rerank(*sides[:2], parameters), *sides[2:], dataset.protocol)
        result["k_reciprocal_reranked"] = {"method": parameters.name, **again.to_dict()}
    if per_query:
        result["per_query"] = by_query(metrics, seen.query_labels)
    return result


def by_query(metrics: Metrics, queries: Labels) -> dict[str, list[Any]]:
    """``pids`` and ``average_precision`` of each query, percent; None where there is nothing to find."""
    found = [None if math.isnan(value) else value for value in metrics.average_precision.tolist()]
    return {"pids": queries.pids.tolist(), "average_precision": found}


def save(run: Path, result: dict[str, Any]) -> None:
    """Write ``metrics.json`` into the folder that was evaluated.

    Raises:
        UserError: it cannot be written.
    """
    write_text(run / "metrics.json", json.dumps(result, indent=2) + "\n")


def test_records(
    dataset: Dataset, data: DataConfig, skip_broken: bool
) -> tuple[tuple[Sequence[Record], Sequence[Record]], list[str]]:
    """Query and gallery whose images can be read, and the names that were skipped.

    Raises:
        UserError: there is no test split, it has nothing of the modalities in use, or an image is broken and
            ``skip_broken`` is off.
    """
    if not dataset.query or not dataset.gallery:
        raise UserError(f"data of layout {dataset.name} have no test images to search with and in; list them as test")
    for side, listed in (("query", dataset.query), ("gallery", dataset.gallery)):
        if not restrict(listed, data.modalities):
            used = " or ".join(data.modalities)
            raise UserError(f"data of layout {dataset.name}: no {side} triplet has {used}, which the model reads")
    gallery, skipped = keep_readable(restrict(dataset.gallery, data.modalities), data.value_range, skip_broken)
    if dataset.query is dataset.gallery:
        return (gallery, gallery), skipped
    query, more = keep_readable(restrict(dataset.query, data.modalities), data.value_range, skip_broken)
    return (query, gallery), [*skipped, *more]
