"""The k best of a gallery, against sorting all scores."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmpt.base.errors import UserError
from dmpt.retrieval import search as module
from dmpt.retrieval.embeddings import Embeddings, join, plain
from dmpt.retrieval.scores import blocks, exact
from dmpt.retrieval.search import Found, Vectors, grouped, search
from items import items, oracle


def slow(query: Embeddings, gallery: Embeddings, k: int, mask: npt.NDArray[np.bool_] | None = None) -> list[list[int]]:
    """Positions by all scores, sorted."""
    counted = range(len(gallery)) if mask is None else np.flatnonzero(mask)
    scores = np.round(oracle(query, gallery), 6)
    return [sorted(counted, key=lambda item: (-row[item], item))[:k] for row in scores]


def same(one: Found, other: Found) -> bool:
    return np.array_equal(one.positions, other.positions) and np.array_equal(one.scores, other.scores, equal_nan=True)


def mixture(count: int, seed: int, shared: bool = True, standardised: bool = False) -> Embeddings:
    """Random items, some of them twice."""
    found = items(count, seed, None, shared, standardised)
    return join(found, found[: count // 2])


@given(
    st.integers(1, 9),
    st.integers(1, 40),
    st.integers(1, 70),
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, 0.05, 0.5]),
    st.sampled_from([4, 300, 1 << 20]),
    st.integers(0, 99),
)
@settings(max_examples=120, deadline=None, derandomize=True)
def test_the_best_are_those_of_sorting_all(
    queries: int, count: int, k: int, shared: bool, standard: bool, share: float | None, block: int, seed: int
) -> None:
    query, gallery = items(queries, seed, None, shared, standard), mixture(count, seed + 1, shared, standard)
    mask = None if share is None else np.random.default_rng(seed).random(len(gallery)) < share
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK_BYTES", block)
        patch.setattr(module, "_QUERIES", 4)
        found = search(query, grouped(gallery), k, mask)
    expected = slow(query, gallery, k, mask)
    values = oracle(query, gallery)
    for row, best in enumerate(expected):
        assert found.positions[row].tolist() == best + [-1] * (k - len(best))
        np.testing.assert_allclose(found.scores[row, : len(best)], values[row, best], atol=6e-7)
        assert np.isnan(found.scores[row, len(best) :]).all()


def test_scores_are_the_mixed_forms() -> None:
    query, gallery = items(7, 1, standardised=True), items(50, 2, standardised=True)
    found = search(query, grouped(gallery), 50)
    for rows, scores in blocks(query, gallery, mixed=True):
        for row, own in enumerate(scores, start=rows.start):
            np.testing.assert_allclose(found.scores[row], own[found.positions[row]], atol=1.5e-6)
    assert np.array_equal(found.scores[3, :1], exact(query[3:4], gallery[found.positions[3, :1]]))


def test_neither_blocks_nor_other_items_nor_queries_change_a_digit(monkeypatch: pytest.MonkeyPatch) -> None:
    query, gallery = items(9, 1), items(300, 2)
    found = search(query, grouped(gallery), 40)
    for block in (4, 100, 3000):
        monkeypatch.setattr(module, "_BLOCK_BYTES", block)
        assert same(search(query, grouped(gallery), 40), found)
    alone = [search(query[row : row + 1], grouped(gallery), 40) for row in range(9)]
    assert np.array_equal(np.concatenate([one.scores for one in alone]), found.scores)
    more = search(query, grouped(join(gallery, items(1, 3))), 41)
    for row in range(9):
        kept = more.positions[row] != 300
        assert np.array_equal(more.positions[row, kept][:40], found.positions[row])
        assert np.array_equal(more.scores[row, kept][:40], found.scores[row])


@pytest.mark.parametrize("share", [0.1, 0.9])
def test_a_mask_searches_what_it_leaves(share: float) -> None:
    query, gallery = items(5, 1), items(200, 2)
    left = np.flatnonzero(np.random.default_rng(0).random(200) < share)
    found = search(query, grouped(gallery), 9, np.isin(np.arange(200), left))
    alone = search(query, grouped(gallery[left], left), 9)
    assert same(found, alone)


def test_order_of_the_parts_says_nothing() -> None:
    query, gallery = items(5, 1), mixture(60, 2)
    whole = grouped(gallery)
    backwards = Vectors(whole.parts[::-1], whole.standardisation)
    assert len(whole.parts) > 3
    assert same(search(query, whole, 90), search(query, backwards, 90))


def test_equal_items_by_position() -> None:
    gallery = items(1, 2)[np.zeros(50, np.int64)]
    assert search(items(2, 1), grouped(gallery), 20).positions.tolist() == [list(range(20))] * 2


def test_vectors_of_one_feature() -> None:
    vectors = items(30, 1, np.ones(3, np.bool_)).flat
    found = search(plain(vectors[:4]), grouped(plain(vectors)), 1)
    assert found.positions[:, 0].tolist() == [0, 1, 2, 3]
    assert found.scores[:, 0].tolist() == [1.0] * 4


def test_nothing_to_find() -> None:
    found = search(items(2, 1), Vectors([]), 3)
    assert found.positions.tolist() == [[-1] * 3] * 2
    nothing = search(items(2, 1), grouped(items(9, 2)), 3, np.zeros(9, np.bool_))
    assert np.isnan(nothing.scores).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(value: float) -> None:
    query, gallery = items(4, 1), items(6, 2)
    broken = replace(query, features=query.features.copy())
    broken.features[2, 0] = value
    with pytest.raises(UserError, match="query item 2 holds NaN or infinity; embed it again"):
        search(broken, grouped(gallery), 3)
    gallery.shared[3, 1] = value  # type: ignore[index]
    with pytest.raises(UserError, match="gallery item 3 holds NaN"):
        grouped(gallery)
