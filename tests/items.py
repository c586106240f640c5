"""Random items and labels, as retrieval takes them."""

import numpy as np
import numpy.typing as npt

from dmpt.retrieval.embeddings import Embeddings, unit
from dmpt.retrieval.protocols import Labels

WIDTH = 5
SETS = [np.array([code >> m & 1 for m in range(3)], dtype=np.bool_) for code in range(1, 8)]


def items(
    count: int, seed: int, present: npt.NDArray[np.bool_] | None = None, shared: bool = True, standardised: bool = False
) -> Embeddings:
    """Random items; each in a random subset unless ``present`` says."""
    rng = np.random.default_rng(seed)
    if present is None:
        present = np.stack([SETS[i] for i in rng.integers(0, 7, count)])
    present = np.broadcast_to(present, (count, 3)).copy()
    features = rng.standard_normal((count, 3, WIDTH)) * rng.uniform(0.3, 3, (count, 3, 1)) + 0.5
    features = unit((features * present[:, :, None]).reshape(count, -1).astype(np.float32)).reshape(count, 3, WIDTH)
    space = unit(rng.standard_normal((count, 4)).astype(np.float32)) if shared else None
    scale = None
    if standardised:
        scale = np.random.default_rng(99).uniform(0.5, 2, (8, 2)).astype(np.float32)
        scale[7] = 1, 0  # complete samples stay as they are
    return Embeddings(features, present, space, scale)


def oracle(query: Embeddings, gallery: Embeddings) -> npt.NDArray[np.float64]:
    """Pair by pair: the cosine of what both have, or of the shared parts."""
    found = np.empty((len(query), len(gallery)))
    for i in range(len(query)):
        for j in range(len(gallery)):
            both = [m for m in range(3) if query.present[i, m] and gallery.present[j, m]]
            if both:
                one, other = (side.features[k][both].ravel().astype(float) for side, k in ((query, i), (gallery, j)))
            elif query.shared is not None and gallery.shared is not None:
                one, other = query.shared[i].astype(float), gallery.shared[j].astype(float)
            else:
                one, other = (side.features[k].astype(float).sum(axis=0) for side, k in ((query, i), (gallery, j)))
            value = one @ other / (np.linalg.norm(one) * np.linalg.norm(other))
            if gallery.standardisation is not None:
                scale, shift = gallery.standardisation[sum(2**m for m in both)]
                value = scale * value + shift
            found[i, j] = value
    return found


def some_labels(count: int, seed: int = 0) -> Labels:
    rng = np.random.default_rng(seed)
    return Labels(rng.integers(0, 5, count), rng.integers(0, 3, count))
