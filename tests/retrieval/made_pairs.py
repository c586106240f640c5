"""Pairs with the scores that a test asks for."""

import numpy as np

from dmpt.retrieval.calibration import Floats, Pairs


def pairs_of(mates: Floats, strangers: Floats, count: int = 200) -> Pairs:
    """As many identities as asked for; the strangers are of many couples."""
    generator = np.random.default_rng(0)
    own = generator.integers(0, count, len(mates))
    first = generator.integers(0, count, len(strangers))
    second = (first + generator.integers(1, count, len(strangers))) % count
    return Pairs(np.concatenate([mates, strangers]), np.concatenate([own, first]), np.concatenate([own, second]))
