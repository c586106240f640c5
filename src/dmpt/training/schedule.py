"""The learning rate over a run (section 4.2)."""

import math

from dmpt.settings.config import Config


def learning_rate(done: float, config: Config) -> float:
    """Linear warm-up, then cosine, when the share ``done`` of the run is done, in [0, 1)."""
    recipe = config.train
    if done < recipe.warmup:
        factor = recipe.warmup_from + (1 - recipe.warmup_from) * done / recipe.warmup
    else:
        angle = math.pi * (done - recipe.warmup) / (1 - recipe.warmup) if recipe.warmup < 1 else 0.0
        factor = recipe.final + (1 - recipe.final) * (1 + math.cos(angle)) / 2
    return recipe.lr * factor
