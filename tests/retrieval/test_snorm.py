"""Normalised scores, against a transcription, item by item."""

import numpy as np
import pytest

from dmpt.retrieval.embeddings import Embeddings, plain, unit
from dmpt.retrieval.scores import blocks
from dmpt.retrieval.snorm import snorm, statistics

TABLE = np.linspace(0.5, 1.5, 16, dtype=np.float32).reshape(8, 2)


def items(count: int, seed: int, complete: bool = False) -> Embeddings:
    generator = np.random.default_rng(seed)
    present = generator.random((count, 3)) < 0.7
    present[~present.any(axis=1), 0] = True
    present |= complete
    features = generator.normal(size=(count, 3, 4)) * present[..., None]
    flat = unit(features.reshape(count, -1).astype(np.float32))
    shared = unit(generator.normal(size=(count, 5)).astype(np.float32))
    return Embeddings(flat.reshape(count, 3, 4), present, shared, TABLE)


def score(one: Embeddings, i: int, other: Embeddings, j: int, code: int) -> float:
    """Over the modalities of a set, which both have."""
    scale, shift = TABLE[code].astype(float)
    if code == 0:
        return float(one.shared[i] @ other.shared[j]) * scale + shift  # type: ignore[index]
    kept = [m for m in range(3) if code >> m & 1]
    a, b = (side.features[row][kept].ravel().astype(float) for side, row in ((one, i), (other, j)))
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) * scale + shift


@pytest.mark.parametrize("complete", [True, False])
def test_it_is_what_the_papers_say(complete: bool) -> None:
    first, second, cohort = items(6, 0), items(7, 1), items(30, 2, complete)
    ((_, raw),) = blocks(first, second, match_copies=False, mixed=True)
    common = first.codes[:, None] & second.codes
    found = snorm(raw, common, statistics(first, cohort), statistics(second, cohort))
    assert len(np.unique(common)) > 3
    for i in range(6):
        for j in range(7):
            code = int(common[i, j])
            able = [k for k in range(30) if cohort.codes[k] & code == code]
            views = []
            for side, row in ((first, i), (second, j)):
                with_strangers = [score(side, row, cohort, k, code) for k in able]
                views.append((score(first, i, second, j, code) - np.mean(with_strangers)) / np.std(with_strangers))
            assert found[i, j] == pytest.approx(np.mean(views), abs=2e-4)


def test_who_resembles_everybody_is_told_from_a_mate() -> None:
    """Dark frames: they all lie in one direction, and score high with each other."""
    generator = np.random.default_rng(0)
    people = np.repeat(generator.normal(size=(40, 16)), 4, axis=0) + 0.7 * generator.normal(size=(160, 16))
    dark = 4 * generator.random((160, 1)) * generator.normal(size=16)
    own = plain(unit((people + dark).astype(np.float32)))
    cohort = plain(
        unit((generator.normal(size=(200, 16)) + 4 * generator.random((200, 1)) * dark[:1]).astype(np.float32))
    )
    ((_, raw),) = blocks(own, own, match_copies=False, mixed=True)
    known = statistics(own, cohort)
    assert known.shape == (160, 2, 2)
    changed = snorm(raw, np.ones((160, 160), np.int64), known, known)
    pids = np.repeat(np.arange(40), 4)
    same, other = (pids[:, None] == pids) & ~np.eye(160, dtype=bool), pids[:, None] != pids
    passing = [float(np.mean(scores[same] > np.quantile(scores[other], 0.99))) for scores in (raw, changed)]
    assert passing[1] > passing[0] + 0.05


def test_a_modality_that_an_item_lacks_has_no_statistics() -> None:
    lacking = items(40, 0)
    known = statistics(lacking, items(10, 1, complete=True))
    for code in range(8):
        lacks = lacking.codes & code != code
        assert (known[lacks, code] == (0, 1)).all()
        assert (known[~lacks, code, 1] > 1e-6).all()
