"""Thresholds asked for against rates achieved: a slow transcription, and where the answer is known."""

import math

import numpy as np
import pytest

from dmpt.base.errors import UserError
from dmpt.retrieval.asked import achieved
from dmpt.retrieval.embeddings import Embeddings, plain, unit
from dmpt.retrieval.protocols import Labels


def people(identities: int, each: int, noise: float, lean: float = 0.0) -> tuple[Embeddings, Labels]:
    """Vectors around one of each identity; with ``lean`` some identities lie nearer to all others."""
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(identities, 1, 24)) + noise * generator.normal(size=(identities, each, 24))
    vectors[..., 0] += lean * generator.uniform(0, 1, (identities, 1))
    pids = np.repeat(np.arange(identities), each)
    return plain(unit(vectors.reshape(-1, 24).astype(np.float32))), Labels(pids, np.arange(len(pids)) % 3)


def test_it_is_the_transcription() -> None:
    items, labels = people(10, 6, noise=1.0)
    found = achieved(items, labels, fmr=0.1, draws=5, seed=4)
    generator, vectors, rates, passed = np.random.default_rng(4), items.flat.astype(float), [], []
    for _ in range(5):
        gives = set(generator.permutation(10)[:5].tolist())
        scores: dict[tuple[bool, bool], list[float]] = {(g, s): [] for g in (True, False) for s in (True, False)}
        for i in range(60):
            for j in range(i + 1, 60):
                own = {int(labels.pids[i]), int(labels.pids[j])}
                side = own <= gives if own & gives == own or not own & gives else None
                if labels.cameras[i] != labels.cameras[j] and side is not None:
                    scores[side, len(own) == 1].append(round(float(vectors[i] @ vectors[j]), 6))
        giving = sorted(scores[True, False])
        limit = giving[math.ceil((len(giving) + 1) * 0.9 - 1e-9) - 1]
        rates.append(100 * np.mean([s > limit for s in scores[False, False]]))
        passed.append(100 * np.mean([s > limit for s in scores[False, True]]))
    assert found is not None
    assert (found.asked, found.draws) == (10, 5)
    assert found.fmr == pytest.approx(np.mean(rates))
    assert found.tar == pytest.approx(np.mean(passed))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(rates, [0.05, 0.95])))


def test_a_threshold_holds_where_strangers_are_alike_and_scatters_where_they_are_not() -> None:
    even, uneven = (achieved(*people(60, 6, noise=0.3, lean=lean), draws=40) for lean in (0.0, 6.0))
    assert even is not None
    assert uneven is not None
    assert even.fmr == pytest.approx(1, abs=0.5)
    assert uneven.high - uneven.low > 1.5 * (even.high - even.low)


def test_so_few_identities_carry_nothing() -> None:
    assert achieved(*people(4, 3, noise=0.1)) is None
    with pytest.raises(UserError, match="needs four; there are 3"):
        achieved(*people(3, 3, noise=0.1))
