"""Whether an exported graph says what torch says, in int8 nearly: on pictures, with all that can be missing."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from dmpt.base.errors import UserError
from dmpt.data.images import Pixels, resize
from dmpt.retrieval.embeddings import Embeddings
from dmpt.runtime.exported import Exported
from dmpt.runtime.runtime import Encode, Images, Present
from dmpt.settings.modalities import MODALITIES
from dmpt.synthetic.world import World

LIMIT = 1e-4
"""How far a number of a vector of length 1 may lie from torch's."""
LIMIT_INT8 = 0.5
"""How far a vector of int8 may lie from that of fp32, as a share of how far two samples lie apart in the median."""
SAMPLES = 7


def drawn(found: Exported) -> list[dict[str, Pixels]]:
    """Samples as ``dmpt synth`` draws them, somewhat larger than the model takes them."""
    height, width = (max(32, side * 5 // 4) for side in found.data.size)
    world = World("vehicle" if found.object == "vehicle" else "person", seed=24, size=(height, width))
    shots = [world.shoot(1 + number % 3, 1 + number % 4, number) for number in range(SAMPLES)]
    grey = [{"rgb": one.rgb, "nir": one.nir[..., None], "tir": one.tir[..., None]} for one in shots]
    return [
        {name: np.broadcast_to(own, (height, width, 3)).transpose(2, 0, 1) for name, own in one.items()} for one in grey
    ]


def difference(found: Exported, encode: Encode, reference: Encode, samples: Sequence[Mapping[str, Pixels]]) -> float:
    """The largest difference between a graph's numbers and torch's.

    Batches of 1, 2 and 7, with every subset of modalities; where one is absent the graph is fed what is no picture:
    NaN, or white.

    Args:
        found: what the graph takes.
        encode: the graph.
        reference: the network in torch, in fp32, which takes normalised images.
        samples: uint8 ``(3, H, W)`` of every modality that the graph takes, of any size.

    Raises:
        UserError: it is above ``LIMIT``; says where.
    """
    worst = 0.0
    for given, images, present in _cases(found, samples):
        apart = _apart(encode(given, present), reference(images, present))
        if not apart <= LIMIT:  # NaN too
            raise UserError(
                f"what was exported differs from torch by {apart:.2g}, more than {LIMIT:g} ({_where(found, present)}); "
                "nothing is written; tell us with which settings the run was trained"
            )
        worst = max(worst, apart)
    return worst


def moved(found: Exported, encode: Encode, reference: Encode, samples: Sequence[Mapping[str, Pixels]]) -> float:
    """How far a vector of int8 lies at most from that of fp32, as a share of how far two samples lie apart.

    Batches, subsets and what is fed are those of ``difference``, as are the arguments. A vector that is not of length
    1, that is no number, or that says something of an absent modality, is infinitely far.

    Raises:
        UserError: it is above ``LIMIT_INT8``; says where.
    """
    _, images = _levels(found, samples)
    whole = np.repeat([[name in found.inputs] for name in MODALITIES], len(samples), axis=1)
    vectors, worst = reference(images, whole).flat, 0.0
    pairs = np.triu_indices(len(vectors), 1)
    spread = float(np.median(np.linalg.norm(vectors[pairs[0]] - vectors[pairs[1]], axis=1)))
    for given, images, present in _cases(found, samples):
        share = _furthest(encode(given, present), reference(images, present)) / max(spread, 1e-9)
        if not share <= LIMIT_INT8:
            raise UserError(
                f"int8 moves a vector by {share:.2g} of what two samples lie apart, more than {LIMIT_INT8:g} "
                f"({_where(found, present)}); nothing is written; export without --int8"
            )
        worst = max(worst, share)
    return worst


def _cases(found: Exported, samples: Sequence[Mapping[str, Pixels]]) -> Iterator[tuple[Images, Images, Present]]:
    """What the graph is fed, normalised images, and which are there: all that there is to compare on."""
    pixels, normalised = _levels(found, samples)
    for rows, present in _batches(found.inputs, len(samples)):
        images = normalised[:, rows]
        given = images.copy() if found.input == "normalised" else pixels[:, rows]
        given[~present] = 255 if found.input == "uint8" else np.nan
        images[~present] = 0
        yield given, images, present


def _levels(found: Exported, samples: Sequence[Mapping[str, Pixels]]) -> tuple[Images, Images]:
    """Pixels of the model's size, 0..255, and the same normalised, ``(3, N, 3, H, W)``."""
    pixels = np.zeros((len(MODALITIES), len(samples), 3, *found.data.size), np.float32)
    for m, name in enumerate(MODALITIES):
        if name in found.inputs:
            pixels[m] = [resize(np.ascontiguousarray(one[name]), found.data.size) for one in samples]
    scale = [np.array([255 * value for value in own or ()], np.float32) for own in (found.data.mean, found.data.std)]
    mean, std = (own[:, None, None] for own in scale)
    return pixels, (pixels - mean) / std


def _where(found: Exported, present: Present) -> str:
    lacking = [name for m, name in enumerate(MODALITIES) if name in found.inputs and not present[m].all()]
    return f"a batch of {present.shape[1]}" + (f", without {' and '.join(lacking)}" if lacking else "")


def _batches(inputs: Sequence[str], samples: int) -> Iterator[tuple[list[int], NDArray[np.bool_]]]:
    """Rows of the samples, and which modalities of theirs are there, ``(3, B)``: each subset in each size of batch."""
    subsets = [kept for size in range(len(inputs), 0, -1) for kept in combinations(inputs, size)]
    masks = np.array([[name in kept for name in MODALITIES] for kept in subsets])
    for size in (1, 2, SAMPLES):
        for first in range(0, len(masks), size):
            numbers = np.arange(first, first + size)
            yield (numbers % samples).tolist(), masks[numbers % len(masks)].T


def _apart(found: Embeddings, expected: Embeddings) -> float:
    """The largest difference; NaN where one is none, or one alone has shared parts."""
    if (found.shared is None) != (expected.shared is None):
        return float("nan")
    parts = [found.features - expected.features]
    if found.shared is not None and expected.shared is not None:
        parts.append(found.shared - expected.shared)
    return float(np.max([np.abs(part).max() for part in parts]))


def _furthest(found: Embeddings, expected: Embeddings) -> float:
    """The largest distance of two vectors; see ``moved``."""
    if (found.shared is None) != (expected.shared is None):
        return math.inf
    sides = [(found.flat, expected.flat)]
    if found.shared is not None and expected.shared is not None:
        sides.append((found.shared, expected.shared))
    lengths = np.concatenate([np.linalg.norm(own, axis=1) for own, _ in sides])
    if not np.abs(lengths - 1).max() < 1e-3 or found.features[~found.present].any():  # NaN too
        return math.inf
    return max(float(np.linalg.norm(own - exact, axis=1).max()) for own, exact in sides)
