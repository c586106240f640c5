"""A drawn world in which a tiny CLIP can learn something in a few minutes of one core."""

from pathlib import Path

import pytest

from dmpt.demo.demo import _Scale
from dmpt.evaluation.evaluate import evaluate
from dmpt.synthetic.cached import world

SMALL = _Scale(100, 60, 8)
"""200 steps."""
MARGIN = 3.0
"""MAP, percent; less than what training gained here with any of three seeds (docs/world.md)."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world of a seed that the demo does not use."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DMPT_CACHE", str(tmp_path_factory.mktemp("cache")))
        return world(train_ids=SMALL.train_ids, test_ids=SMALL.test_ids, seed=11)


def score(run: Path) -> float:
    """MAP on the test split, percent."""
    return evaluate(run).metrics.mAP
