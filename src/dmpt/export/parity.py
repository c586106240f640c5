"""Whether an exported graph says what torch says: on pictures, with everything that can be missing."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from dmpt.base.errors import UserError
from dmpt.data.images import Pixels, resize
from dmpt.retrieval.embeddings import Embeddings
from dmpt.runtime.exported import Exported
from dmpt.runtime.runtime import Encode
from dmpt.settings.modalities import MODALITIES
from dmpt.synthetic.world import World

LIMIT = 1e-4
"""How far a number of a vector of length 1 may lie from torch's."""
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
    levels = np.zeros((len(MODALITIES), len(samples), 3, *found.data.size), np.float32)
    for m, name in enumerate(MODALITIES):
        if name in found.inputs:
            levels[m] = [resize(np.ascontiguousarray(one[name]), found.data.size) for one in samples]
    scale = [np.array([255 * value for value in own or ()], np.float32) for own in (found.data.mean, found.data.std)]
    mean, std = (own[:, None, None] for own in scale)
    worst = 0.0
    for rows, present in _batches(found.inputs, len(samples)):
        pixels = levels[:, rows]
        images = (pixels - mean) / std
        given = images.copy() if found.input == "normalised" else pixels
        given[~present] = 255 if found.input == "uint8" else np.nan
        images[~present] = 0
        apart = _apart(encode(given, present), reference(images, present))
        if not apart <= LIMIT:  # NaN too
            lacking = [name for m, name in enumerate(MODALITIES) if name in found.inputs and not present[m].all()]
            where = f"a batch of {len(rows)}" + (f", without {' and '.join(lacking)}" if lacking else "")
            raise UserError(
                f"what was exported differs from torch by {apart:.2g}, more than {LIMIT:g} ({where}); nothing is "
                "written; tell us with which settings the run was trained"
            )
        worst = max(worst, apart)
    return worst


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
