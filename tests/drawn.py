"""Drawn items, as rows of a gallery."""

from typing import Any

import numpy as np

from dmpt.gallery.schema import Model
from dmpt.retrieval.embeddings import Embeddings, unit

WIDTH = 8
_PREPROCESSING: dict[str, Any] = {"size": [32, 16], "modalities": ["rgb", "nir", "tir"]}


def model(shared: bool = False, width: int = WIDTH) -> Model:
    """Of a model that nobody trained."""
    table = np.linspace(0.5, 1, 16, dtype=np.float32).reshape(8, 2) if shared else None
    return Model("a" * 64, "fp32", _PREPROCESSING, width, width if shared else 0, table)


def drawn(
    count: int, *, seed: int = 0, width: int = WIDTH, shared: bool = False, present: Any = None, ids: int = 0
) -> Embeddings:
    """Items with any modalities; with ``ids`` each is near the others of its identity, row modulo ``ids``."""
    draw = np.random.default_rng(seed)
    features = draw.normal(size=(count, 3, width))
    if ids:
        features = draw.normal(size=(ids, 3, width))[np.arange(count) % ids] + 0.1 * features
    if present is None:
        present = draw.integers(1, 8, count)[:, None] >> np.arange(3) & 1 == 1
    features = (features * present[:, :, None]).reshape(count, -1)
    own = unit(draw.normal(size=(count, width)).astype(np.float32)) if shared else None
    table = model(True).standardisation if shared else None
    return Embeddings(unit(features.astype(np.float32)).reshape(count, 3, width), present, own, table)
