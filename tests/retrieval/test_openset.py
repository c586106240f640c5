"""Open set: against a slow transcription, and where the answer is known."""

import numpy as np
import pytest

from dmpt.base.errors import UserError
from dmpt.retrieval.embeddings import Embeddings, plain, unit
from dmpt.retrieval.openset import open_set
from dmpt.retrieval.protocols import Labels


def people(identities: int, each: int, noise: float, seed: int = 0) -> tuple[Embeddings, Labels]:
    generator = np.random.default_rng(seed)
    vectors = generator.normal(size=(identities, 1, 24)) + noise * generator.normal(size=(identities, each, 24))
    pids = np.repeat(np.arange(identities), each)
    return plain(unit(vectors.reshape(-1, 24).astype(np.float32))), Labels(pids, np.arange(len(pids)) % 3)


def test_who_is_told_apart_is_found() -> None:
    found = open_set(*people(60, 6, noise=0.01), far=(0.1,))
    assert [(each.far, each.rank, each.mean, each.std, each.draws) for each in found] == [
        (0.1, 1, 100.0, 0.0, 20),
        (0.1, 10, 100.0, 0.0, 20),
    ]


def test_noise_is_found_no_more_often_than_strangers_raise_alarms() -> None:
    """Vectors that say nothing: the right one of 30 is first, and above the threshold, by chance."""
    generator = np.random.default_rng(0)
    items = plain(unit(generator.normal(size=(360, 24)).astype(np.float32)))
    labels = Labels(np.repeat(np.arange(60), 6), np.arange(360) % 3)
    (found,) = open_set(items, labels, far=(0.1,), ranks=(1,), draws=50)
    assert found.mean < 2


def test_it_is_the_transcription() -> None:
    items, labels = people(12, 6, noise=1.0)
    found = open_set(items, labels, far=(0.25, 0.5), ranks=(1, 3), draws=6, seed=4)
    generator = np.random.default_rng(4)
    expected: dict[tuple[float, int], list[float]] = {}
    vectors = items.flat.astype(float)
    for _ in range(6):
        known = set(generator.permutation(12)[:6].tolist())
        camera = generator.choice([0, 1, 2])
        gallery = [i for i in range(72) if labels.cameras[i] != camera and labels.pids[i] in known]
        alarms, hits = [], []
        for probe in (i for i in range(72) if labels.cameras[i] == camera):
            best: dict[int, float] = {}
            for i in gallery:
                score = round(float(vectors[probe] @ vectors[i]), 6)
                best[labels.pids[i]] = max(best.get(labels.pids[i], -9.0), score)
            if labels.pids[probe] in known:
                mine = best[labels.pids[probe]]
                hits.append((1 + sum(other > mine for other in best.values()), mine))
            else:
                alarms.append(max(best.values()))
        for far in (0.25, 0.5):
            k = int(np.ceil((len(alarms) + 1) * (1 - far)))
            limit = sorted(alarms)[k - 1]
            for rank in (1, 3):
                right = [place <= rank and mine > limit for place, mine in hits]
                expected.setdefault((far, rank), []).append(100 * float(np.mean(right)))
    assert {(each.far, each.rank) for each in found} == set(expected)
    for each in found:
        own = expected[each.far, each.rank]
        assert (each.mean, each.std, each.draws) == (pytest.approx(np.mean(own)), pytest.approx(np.std(own)), 6)
        assert 0 < each.mean < 100


def test_rates_that_the_probes_cannot_carry_are_left_out() -> None:
    assert {each.far for each in open_set(*people(20, 6, noise=0.5))} == {0.1}  # 20 unknown probes a draw


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (Labels(np.arange(8) // 2, np.zeros(8, np.int64)), "there are 1 and 4"),
        (Labels(np.arange(8) // 4, np.arange(8) % 2), "there are 2 and 2"),
    ],
)
def test_two_cameras_and_four_identities_are_needed(labels: Labels, said: str) -> None:
    items = plain(unit(np.ones((8, 4), np.float32)))
    with pytest.raises(UserError, match=f"needs two cameras and four identities; {said}"):
        open_set(items, labels)
