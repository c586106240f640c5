"""int8: eight-bit weights and activations, and what they cost on a test split."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dmpt.adapter.calibration import Calibration
from dmpt.base.errors import UserError, one_line
from dmpt.base.terminal import track, warn
from dmpt.data.images import read_record
from dmpt.data.records import Dataset, Record, fingerprint, labels_of
from dmpt.embed.embedder import Embedder
from dmpt.export.quiet import quiet
from dmpt.retrieval.calibration import RATES, Pairs, cross_camera_pairs, threshold_at
from dmpt.retrieval.embeddings import Embeddings, join
from dmpt.retrieval.metrics import evaluate
from dmpt.retrieval.rates import rates_of
from dmpt.runtime.runtime import need

_BATCH = 64


@dataclass(frozen=True)
class Rate:
    """What int8 makes of a threshold that was taken in fp32.

    Attributes:
        threshold: the score.
        fmr: share of strangers above it, in [0, 1], in fp32.
        fmr_int8: in int8.
        tar: share of mates above it, in fp32.
        tar_int8: in int8.
    """

    threshold: float
    fmr: float
    fmr_int8: float
    tar: float
    tar_int8: float


@dataclass(frozen=True)
class Cost:
    """What a test split gives before and after, in percent but for the rates.

    Attributes:
        data: what it is of.
        queries: how many searched.
        mAP: in fp32.
        mAP_int8: in int8.
        rank1: in fp32.
        rank1_int8: in int8.
        cosine: the lowest between an item's two vectors.
        rates: at thresholds for 10 %, 1 % and 0.1 % of its pairs of different cameras, where it carries them.
        batch: the largest difference that it makes to a number of a vector whether the graph is given one sample or 64
            of them. ``dmpt`` gives it one at a time; other programs may not.
        moved: how far a vector lies at most from that of fp32, with every subset of modalities, as a share of how far
            two samples lie apart in the median.
    """

    data: str
    queries: int
    mAP: float
    mAP_int8: float
    rank1: float
    rank1_int8: float
    cosine: float
    rates: tuple[Rate, ...]
    batch: float
    moved: float = 0.0


def quantise(path: Path, out: Path) -> None:
    """Weights in 8 bits, a scale for each channel; activations are scaled as they come.

    Raises:
        UserError: ONNX Runtime's tools are not there, or cannot do it.
    """
    try:
        import onnx
        import onnxruntime as ort
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError as error:
        raise need("onnxruntime and onnx", "onnx") from error
    folded, options = out.with_name(f"folded-{out.name}"), ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folded)
    try:
        # What is made of weights alone, a product of two say, must be one weight to be quantised.
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        graph = onnx.load(folded).graph
        # Small products of each modality: its kernel takes no three of them at once, and they are small.
        stacked = {tensor.name for tensor in graph.initializer if len(tensor.dims) != 2}
        spared = [node.name for node in graph.node if node.op_type == "MatMul" and node.input[1] in stacked]
        with quiet():  # it warns of a step that is done above
            quantize_dynamic(folded, out, per_channel=True, weight_type=QuantType.QInt8, nodes_to_exclude=spared)
    except Exception as error:  # its errors have no common class
        raise UserError(f"ONNX Runtime cannot make this model int8: {one_line(str(error))[:300]}") from error


class Measured(NamedTuple):
    """The cost, and what the scores of int8 mean, of pairs with all that the graph takes; None where too few say it."""

    cost: Cost
    calibration: Calibration | None


def measure(
    before: Embedder,
    after: Embedder,
    together: Embedder,
    query: Sequence[Record],
    gallery: Sequence[Record],
    dataset: Dataset,
) -> Measured:
    """Embed a test split with both, and compare.

    Args:
        before: in fp32.
        after: in int8.
        together: the same, but that samples which are embedded at once share a run of the graph.
        query: samples to search with.
        gallery: samples to search in; the same object where the two are one.
        dataset: that they are of.

    Raises:
        UserError: a picture does not decode, or no query can find anything.
    """
    sides = [gallery] if query is gallery else [query, gallery]
    exact, coarse = ([_features(model, side) for side in sides] for model in (before, after))
    labels = labels_of(query), labels_of(gallery)
    one, other = (evaluate(own[0], own[-1], *labels, dataset.protocol) for own in (exact, coarse))
    first = gallery[:_BATCH]
    batch = float(np.abs(_features(together, first).flat - coarse[-1].flat[: len(first)]).max())
    cosine = min(float(np.einsum("nd,nd->n", a.flat, b.flat).min()) for a, b in zip(exact, coarse, strict=True))
    everyone = [record for side in sides for record in side]
    whole = np.array([row for row, one in enumerate(everyone) if {*after.modalities} <= one.paths.keys()], np.int64)
    records = [everyone[row] for row in whole]
    rates, calibration = tuple[Rate, ...](), None
    try:
        pairs, again = (cross_camera_pairs(join(*own)[whole], labels_of(records)) for own in (exact, coarse))
    except UserError as error:
        warn(f"no rates of int8: {error}")
    else:
        rates, calibration = _rates(pairs, again), _calibration(after, again, dataset, records)
    said = Cost(dataset.name, one.queries, one.mAP, other.mAP, one.rank1, other.rank1, cosine, rates, batch)
    return Measured(said, calibration)


def _rates(pairs: Pairs, again: Pairs) -> tuple[Rate, ...]:
    """What passes thresholds that were taken before."""
    strangers, found = np.sort(pairs.strangers), []
    for rate in RATES[:3]:
        limit = threshold_at(strangers, rate) if rate * pairs.couples >= 1 else None
        if limit is not None:
            fmr, fmr_int8 = (float(np.mean(own.strangers > limit)) for own in (pairs, again))
            tar, tar_int8 = (float(np.mean(own.mates > limit)) for own in (pairs, again))
            found.append(Rate(limit, fmr, fmr_int8, tar, tar_int8))
    return tuple(found)


def _calibration(model: Embedder, pairs: Pairs, dataset: Dataset, records: Sequence[Record]) -> Calibration | None:
    """Of int8 itself: its scores are others than those that the adapter was calibrated on."""
    table = rates_of(model.modalities, pairs)
    if not table.thresholds:
        return None
    return Calibration(
        adapter=model.adapter,
        precision="int8",
        data=dataset.name,
        fingerprint=fingerprint(records),
        split="test",
        views="camera",
        identities=pairs.identities,
        items=len(records),
        tables=(table,),
    )


def _features(model: Embedder, records: Sequence[Record]) -> Embeddings:
    starts = range(0, len(records), _BATCH)
    parts = []
    for start in track(starts, f"features, {model.precision}", len(starts)):
        read = [read_record(one, model.value_range) for one in records[start : start + _BATCH]]
        pictures = {
            name: [one[name].transpose(1, 2, 0) if name in one else None for one in read]
            for name in model.modalities
            if any(name in one for one in read)
        }
        parts.append(model.embed(**pictures))  # type: ignore[arg-type]
    return join(*parts)
