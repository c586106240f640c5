"""k-reciprocal re-ranking against whole matrices and loops, as the paper writes it."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmpt.base.errors import UserError
from dmpt.retrieval.embeddings import Embeddings, plain, unit
from dmpt.retrieval.metrics import evaluate, measure
from dmpt.retrieval.protocols import Labels
from dmpt.retrieval.rerank import KReciprocal, rerank
from dmpt.retrieval.scores import blocks

Array = npt.NDArray[np.float32]


def drawn(count: int, width: int, seed: int, clusters: int = 6) -> Array:
    """Unit vectors in clusters."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((clusters, width))
    values = centres[rng.integers(0, clusters, count)] + 0.7 * rng.standard_normal((count, width))
    return unit(values.astype(np.float32))


def oracle(query: Array, gallery: Array, k1: int, k2: int, weight: float) -> npt.NDArray[np.float64]:
    """Re-ranked distances: sets, dictionaries and dense rows."""
    items = np.concatenate([query, gallery]).astype(np.float64)
    total = len(items)
    raw = [[float(np.square(a - b).sum()) for b in items] for a in items]
    distance = [[value / max(row) for value in row] for row in raw]
    order = [sorted(range(total), key=lambda j, i=i: (distance[i][j], j)) for i in range(total)]  # type: ignore[misc]

    def reciprocal(i: int, k: int) -> set[int]:
        return {j for j in order[i][: k + 1] if i in order[j][: k + 1]}

    v = np.zeros((total, total))
    for i in range(total):
        own = reciprocal(i, k1)
        expanded = set(own)
        for j in own:
            more = reciprocal(j, int(np.around(k1 / 2)))
            if 3 * len(more & own) > 2 * len(more):
                expanded |= more
        for j in expanded:
            v[i, j] = np.exp(-distance[i][j])
        v[i] /= v[i].sum()
    v = np.array([v[order[i][:k2]].mean(axis=0) for i in range(total)])
    final = np.zeros((len(query), len(gallery)))
    for i in range(len(query)):
        for j in range(len(gallery)):
            one, other = v[i], v[len(query) + j]
            jaccard = 1 - np.minimum(one, other).sum() / np.maximum(one, other).sum()
            final[i, j] = (1 - weight) * jaccard + weight * distance[i][len(query) + j]
    return final


def reranked(query: Embeddings, gallery: Embeddings, p: KReciprocal, chunk: int | None = None) -> Array:
    return -np.concatenate([scores.copy() for _, scores in rerank(query, gallery, p, chunk)])


@given(
    st.integers(1, 8),
    st.integers(1, 25),
    st.integers(1, 12),
    st.integers(1, 7),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_agrees_with_the_oracle(queries: int, items: int, k1: int, k2: int, weight: float, seed: int) -> None:
    values = drawn(queries + items, 5, seed)
    query, gallery = values[:queries], values[queries:]
    got = reranked(plain(query), plain(gallery), KReciprocal(k1, k2, weight))
    np.testing.assert_allclose(got, oracle(query, gallery, k1, k2, weight), atol=2e-5)


def test_chunk_changes_nothing_beyond_rounding() -> None:
    values = plain(drawn(60, 8, 1))
    whole = reranked(values[:20], values[20:], KReciprocal())
    np.testing.assert_allclose(reranked(values[:20], values[20:], KReciprocal(), chunk=7), whole, atol=1e-5)


def test_weight_1_is_the_plain_ranking() -> None:
    values = plain(drawn(80, 8, 2))
    labels = Labels(np.arange(80) % 6, np.arange(80) // 6 % 2)
    query, gallery, ql, gl = values[:30], values[30:], labels[:30], labels[30:]
    ranking = evaluate(query, gallery, ql, gl, "same_camera")
    same = measure(rerank(query, gallery, KReciprocal(weight=1.0)), ql, gl, "same_camera")
    assert same.mAP == pytest.approx(ranking.mAP)
    assert same.cmc == ranking.cmc


def test_clusters_gain() -> None:
    rng = np.random.default_rng(3)
    who = np.arange(120) % 10
    values = plain(unit((rng.standard_normal((10, 8))[who] + 0.6 * rng.standard_normal((120, 8))).astype("float32")))
    labels = Labels(who, np.arange(120) // 10 % 2)
    before = evaluate(values[:40], values[40:], labels[:40], labels[40:], "none").mAP
    assert measure(rerank(values[:40], values[40:]), labels[:40], labels[40:], "none").mAP > before + 2


def test_embeddings_of_complete_samples_are_their_vectors() -> None:
    values = drawn(40, 9, 4)
    items = Embeddings(values.reshape(40, 3, 3), np.ones((40, 3), dtype=np.bool_))
    p, vectors = KReciprocal(5, 3, 0.3), plain(values)
    np.testing.assert_array_equal(reranked(items[:10], items[10:], p), reranked(vectors[:10], vectors[10:], p))


def test_sides_that_lack_different_modalities_are_on_one_scale() -> None:
    """Queries without one and a complete gallery can be ranked as they are, but not mixed with each other."""
    features = drawn(90, 4, 5).reshape(30, 3, 4)
    features[:10, 2] = 0
    present = np.ones((30, 3), dtype=np.bool_)
    present[:10, 2] = False
    standardisation = np.array([[0.5 + 0.1 * code, 0.02 * code] for code in range(8)], dtype=np.float32)
    items = Embeddings(unit(features.reshape(30, 12)).reshape(30, 3, 4), present, drawn(30, 5, 6), standardisation)
    scores = np.concatenate([block.copy() for _, block in blocks(items[:10], items, 30, match_copies=False)])
    distances = 2 - 2 * scores.astype(np.float64)
    expected = distances[:, 10:] / distances.max(axis=1, keepdims=True)
    got = reranked(items[:10], items[10:], KReciprocal(5, 3, weight=1.0))
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_identical_items_do_not_break_it() -> None:
    values = plain(unit(np.ones((30, 4), dtype=np.float32)))
    assert np.isfinite(reranked(values[:5], values[5:], KReciprocal())).all()


@pytest.mark.parametrize("p", [KReciprocal(k1=0), KReciprocal(k2=0), KReciprocal(weight=1.5)])
def test_parameters_are_checked(p: KReciprocal) -> None:
    with pytest.raises(UserError, match="k1 and k2 must be at least 1, lambda between 0 and 1"):
        next(rerank(plain(drawn(4, 3, 0)), plain(drawn(4, 3, 1)), p))


@pytest.mark.parametrize("k1", [7, 11])
def test_half_of_an_odd_number_is_rounded_as_its_authors_do(k1: int) -> None:
    values = drawn(24, 5, 0)
    got = reranked(plain(values[:6]), plain(values[6:]), KReciprocal(k1, 1, 0.0))
    np.testing.assert_allclose(got, oracle(values[:6], values[6:], k1, 1, 0.0), atol=2e-5)
