"""``dmpt evaluate``: a trained run or adapter in, mAP and CMC out."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dmpt.adapter import folder as adapter
from dmpt.base.environment import environment
from dmpt.base.files import write_text
from dmpt.data.records import Record, fingerprint
from dmpt.embed.extract import look
from dmpt.evaluation import missing
from dmpt.evaluation.beside import ending
from dmpt.evaluation.opened import open_adapter, test_records
from dmpt.method.network import DMPT
from dmpt.retrieval.metrics import Metrics, measure
from dmpt.retrieval.metrics import evaluate as score
from dmpt.retrieval.protocols import Labels
from dmpt.retrieval.rerank import KReciprocal, rerank
from dmpt.settings.config import DataConfig

PRIVATE = ("adapter", "command")
"""What provenance says of this machine's paths."""


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


def evaluate(
    run: Path,
    root: str | None = None,
    *,
    data: Mapping[str, Any] | None = None,
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
        data: settings of the data that are not those of training, by their names in ``DataConfig``, e.g. ``layout``;
            None counts as not given. Those of another layout have its object and protocol.
        which: ``last`` or ``best``; None = the one that training selected.
        weights: of the backbone, when they moved.
        precision: compute precision; None = that of training, or fp32 for fp16 without a GPU.
        batch_size: samples per pass.
        workers: loader processes; None = as in training.
        skip_broken: leave out samples with unreadable images, counted and listed.
        without: also with modalities missing: ``all`` cases, or one, e.g. ``rgb+nir``.
        reranked: also after k-reciprocal re-ranking.
        per_query: also each query's identity and average precision.

    Returns:
        The numbers, in percent, and where they come from. Those with modalities missing are under ``missing``, those
        after re-ranking under ``k_reciprocal_reranked``; the others are neither. Those of each query are lists under
        ``per_query``, None where there is nothing to find. ``provenance`` says under ``apart`` why they are not the
        run's own, as of data that it was not trained beside.

    Raises:
        UserError: something is missing or does not fit.
    """
    opened = open_adapter(
        run,
        root,
        data=data,
        which=which,
        weights=weights,
        precision=precision,
        workers=workers,
        skip_broken=skip_broken,
    )
    network, images, dataset, precision = opened.network, opened.data, opened.dataset, opened.precision
    if without is not None:
        missing.parse(without, images.modalities)  # refused before an image is read
    records, unreadable = test_records(dataset, images, skip_broken)
    seen = look(network, images, records, precision, batch_size)
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
            "history": list(opened.card.history),
            "data": dataset.name,
            "object": dataset.object,
            "apart": opened.apart,
            "modalities": list(images.modalities),
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
            images.modalities,
            without,
            dataset.protocol,
            lambda pair: look(network, images, pair, precision, batch_size),
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


def save(run: Path, result: dict[str, Any]) -> Path:
    """Write ``metrics.json`` into the folder that was evaluated, or a file of their own for numbers that stand apart.

    An adapter is there to be shared: in its folder the file names no path of this machine.

    Returns:
        The file.

    Raises:
        UserError: it cannot be written.
    """
    where = result["provenance"]
    path = run / f"metrics{ending(where, result['protocol'])}.json"
    if (run / adapter.CARD).exists():
        where = {key: value for key, value in where.items() if key not in PRIVATE}
        result = {**result, "skipped": len(result["skipped"]), "provenance": where}
    write_text(path, json.dumps(result, indent=2) + "\n")
    return path
