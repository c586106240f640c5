"""What the network says of a list of items, and how similar two items are that may lack modalities.

An item is three modality features, of which some are absent, and a shared part. Two items are compared by the cosine
over their *common* modalities: for complete samples the paper's feature. Items that have none in common are compared by
their shared parts (``scores``).
"""

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from dmpt.settings.modalities import MODALITIES

Features = npt.NDArray[np.float32]
"""Of items, one a row."""


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Features of N items.

    Attributes:
        features: float32 ``(N, 3, D)``, of each modality in the order of ``MODALITIES``; zeros where absent, and those
            of an item together have length 1. Plain vectors are one feature (``plain``).
        present: bool ``(N, 3)``, at least one per item.
        shared: float32 ``(N, d)`` of length 1; None where no shared part was trained. Then the mean of its features
            takes its place: the modalities come from one backbone, but nothing was trained to align them.
        standardisation: float32 ``(8, 2)``, scale and shift of the cosine of each set of common modalities (bit m of
            the row is modality m, row 0 the shared parts); None = cosines as they are.
    """

    features: Features
    present: npt.NDArray[np.bool_]
    shared: Features | None = None
    standardisation: Features | None = None

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, rows: slice | npt.NDArray[np.int64]) -> "Embeddings":
        shared = None if self.shared is None else self.shared[rows]
        return replace(self, features=self.features[rows], present=self.present[rows], shared=shared)

    @property
    def flat(self) -> Features:
        """The modality features side by side, ``(N, 3 D)``: the paper's test feature where all are there."""
        return self.features.reshape(len(self), -1)

    @property
    def codes(self) -> npt.NDArray[np.int64]:
        """Which modalities each item has, bit m for modality m; ``(N,)``."""
        return self.present.astype(np.int64) @ (1 << np.arange(self.present.shape[1]))

    @property
    def common_space(self) -> Features:
        """The shared part, or what takes its place, ``(N, d)``, of length 1."""
        if self.shared is not None:
            return self.shared
        return unit(self.features.sum(axis=1))


def plain(vectors: Features) -> Embeddings:
    """Vectors of length 1, ``(N, D)``, as items of one feature: similarity is their dot product."""
    return Embeddings(vectors[:, None], np.ones((len(vectors), 1), np.bool_))


def join(*parts: Embeddings) -> Embeddings:
    """One list after the other; all of one model."""
    shared = [part.shared for part in parts if part.shared is not None]
    return replace(
        parts[0],
        features=np.concatenate([part.features for part in parts]),
        present=np.concatenate([part.present for part in parts]),
        shared=np.concatenate(shared) if len(shared) == len(parts) else None,
    )


def restricted(items: Embeddings, modalities: Collection[str]) -> Embeddings:
    """Items without the features of all other modalities; each must have one of these. Shared parts stay."""
    kept = items.present & np.array([name in modalities for name in MODALITIES])
    features = np.where(kept[:, :, None], items.features, np.float32(0))
    whole = unit(features.reshape(len(items), -1)).reshape(features.shape)
    return replace(items, features=whole, present=kept)


def averaged(shots: Embeddings) -> Embeddings:
    """Several shots of one person or vehicle as one item, which has every modality that one of them has.

    Of shots with the same modalities it is the mean of their vectors, at length 1. Of others a modality's feature is
    the mean over the shots that have it, each as long as it would be in a shot with one modality.

    It ranks well. But averages of strangers are more alike than their shots, so no rate that was calibrated on single
    shots holds for its scores (``embed.verdict`` says what does).
    """
    weights = np.sqrt(shots.present.sum(axis=1, dtype=np.float32))
    sums = np.einsum("n,nmd->md", weights, shots.features)
    features = sums / np.maximum(shots.present.sum(axis=0), 1)[:, None]
    shared = None if shots.shared is None else unit(shots.shared.mean(axis=0, keepdims=True))
    found: Features = unit(features.reshape(1, -1)).reshape(1, *features.shape).astype(np.float32)
    present: npt.NDArray[np.bool_] = np.logical_or.reduce(shots.present, axis=0, keepdims=True)
    return replace(shots, features=found, present=present, shared=shared)


def squared_lengths(items: Embeddings) -> Features:
    """Squared length of each modality's feature, ``(N, 3)``."""
    found: Features = np.einsum("nmd,nmd->nm", items.features, items.features)
    return found


def unit(vectors: Features) -> Features:
    """Rows of length 1; a row of zeros stays."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    divided: Features = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
    return divided
