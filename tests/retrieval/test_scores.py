"""Similarity of items that may lack modalities, against a literal oracle."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmpt.base.errors import UserError
from dmpt.retrieval import scores as scores_module
from dmpt.retrieval.embeddings import Embeddings, join, plain, unit
from dmpt.retrieval.metrics import evaluate
from dmpt.retrieval.protocols import Labels
from dmpt.retrieval.scores import as_vectors, blocks
from items import SETS, WIDTH, items, oracle, some_labels


def scores(query: Embeddings, gallery: Embeddings, chunk: int | None = None) -> npt.NDArray[np.float32]:
    return np.concatenate([part.copy() for _, part in blocks(query, gallery, chunk)])


@given(st.integers(2, 9), st.integers(2, 12), st.booleans(), st.booleans(), st.integers(0, 999), st.integers(1, 9))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_mixed_items_score_as_the_oracle_says(
    queries: int, count: int, shared: bool, standardised: bool, seed: int, chunk: int
) -> None:
    query, gallery = (items(n, seed + i, None, shared, standardised) for i, n in enumerate((queries, count)))
    if as_vectors(query, gallery) is not None:
        return
    np.testing.assert_allclose(scores(query, gallery, chunk), oracle(query, gallery), atol=2e-6)


@pytest.mark.parametrize("one", SETS)
@pytest.mark.parametrize("other", SETS)
@pytest.mark.parametrize("shared", [True, False])
def test_items_of_one_subset_are_vectors(
    one: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_], shared: bool
) -> None:
    query, gallery = items(6, 1, one, shared), items(8, 2, other, shared)
    assert as_vectors(query, gallery) is not None
    got = scores(query, gallery)
    np.testing.assert_allclose(got, oracle(query, gallery), atol=2e-6)
    assert all(len(np.unique(row)) == 8 for row in got)  # disjoint subsets give no constant score


def test_complete_samples_rank_as_the_concatenated_feature() -> None:
    whole = np.ones(3, dtype=np.bool_)
    query, gallery = items(30, 1, whole, standardised=True), items(90, 2, whole, standardised=True)
    labels = some_labels(30), some_labels(90, 1)
    expected = evaluate(query.flat, gallery.flat, *labels, "same_camera")
    assert evaluate(query, gallery, *labels, "same_camera") == expected
    assert np.array_equal(scores(query, gallery), scores(plain(query.flat), plain(gallery.flat)))
    # and by the way of mixed items, which one more item without a modality makes them take
    mixed = scores(query, join(gallery, items(1, 3, SETS[0], standardised=True)))[:, :90]
    np.testing.assert_allclose(mixed, scores(query, gallery), atol=2e-6)


@pytest.mark.parametrize("standardised", [False, True])
@pytest.mark.parametrize("fewer", SETS[:-1])
def test_an_item_with_fewer_modalities_does_not_reorder_the_others(
    fewer: npt.NDArray[np.bool_], standardised: bool
) -> None:
    query, gallery = items(20, 1, standardised=standardised), items(60, 2, standardised=standardised)
    before = scores(query, gallery)
    cut = gallery.features[:1] * fewer[None, :, None]
    lesser = Embeddings(
        unit(cut.reshape(1, -1)).reshape(1, 3, WIDTH),
        fewer[None],
        gallery.shared[:1],
        gallery.standardisation,  # type: ignore[index]
    )
    after = scores(query, join(gallery, lesser))[:, :60]
    order = np.argsort(-before, axis=1, kind="stable")
    assert np.array_equal(np.argsort(-after, axis=1, kind="stable"), order)


@pytest.mark.parametrize("shared", [True, False])
def test_constant_features_score_as_chance(shared: bool) -> None:
    # Which modalities an item lacks tells its identity here; a ranking that saw the rounding of lengths would find it.
    count = 140
    labels = Labels(np.arange(count) % 7, np.arange(count) // 7 % 2)
    present = np.stack([SETS[pid] for pid in labels.pids])
    features = np.broadcast_to(np.random.default_rng(0).standard_normal((1, 3, WIDTH)), (count, 3, WIDTH))
    features = unit((features * present[:, :, None]).reshape(count, -1).astype(np.float32)).reshape(count, 3, WIDTH)
    space = np.full((count, 4), 0.5, dtype=np.float32) if shared else None
    same = Embeddings(features, present, space)
    if not shared:  # mean features of constant but different modalities are not constant; one vector for all three is
        features = unit((present[:, :, None] * np.ones((count, 3, WIDTH))).reshape(count, -1).astype(np.float32))
        same = Embeddings(features.reshape(count, 3, WIDTH), present)
    assert np.array_equal(scores(same, same), np.ones((count, count), dtype=np.float32))
    got = evaluate(same, same, labels, labels, "none")
    one = np.ones((count, 1), dtype=np.float32)
    assert got.mAP == evaluate(one, one, labels, labels, "none").mAP


def test_copies_in_a_mixed_gallery_rank_by_index() -> None:
    gallery = items(100, 1)
    twice = join(gallery, gallery)
    found = scores(items(20, 2), twice)
    assert np.array_equal(found[:, :100], found[:, 100:])


def test_views_of_a_list() -> None:
    every = items(10, 1, standardised=True)
    parts = join(every[:4], every[np.arange(4, 10)])
    assert np.array_equal(parts.features, every.features)
    assert np.array_equal(parts.present, every.present)
    assert np.array_equal(parts.common_space, every.common_space)
    assert parts.standardisation is every.standardisation
    assert len(every[:4]) == 4


def test_errors_of_embeddings() -> None:
    query, gallery = items(4, 1), items(6, 2)
    gallery.features[3, 0] = np.nan
    with pytest.raises(UserError, match="gallery features hold NaN"):
        evaluate(query, gallery, some_labels(4), some_labels(6), "none")
    with pytest.raises(UserError, match="4 query features but 5 query labels"):
        evaluate(query, items(6, 2), some_labels(5), some_labels(6), "none")


def test_copies_score_as_the_first_however_products_are_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    products = scores_module._products

    def uneven(query: Any, gallery: Any, chunk: int) -> Any:
        for rows, found in products(query, gallery, chunk):
            found += 1e-6 * np.arange(found.shape[1], dtype=np.float32)
            yield rows, found

    monkeypatch.setattr(scores_module, "_products", uneven)
    whole = np.ones(3, dtype=np.bool_)
    gallery = items(20, 1, whole)
    found = scores(items(5, 2, whole), join(gallery, gallery[:7]))
    assert np.array_equal(found[:, 20:], found[:, :7])
