"""mAP, CMC and mINP against a literal oracle, and the invariants of a ranking."""

import json
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.retrieval import retrieval_average_precision

from dmpt.base.errors import UserError
from dmpt.retrieval.embeddings import Features
from dmpt.retrieval.metrics import Metrics, evaluate
from dmpt.retrieval.protocols import PROTOCOLS, Labels
from dmpt.retrieval.scores import _CHUNK_BYTES, _chunk_rows


class Case(NamedTuple):
    """Two sets small enough to rank by hand."""

    query: Features
    gallery: Features
    query_labels: Labels
    gallery_labels: Labels


class Expected(NamedTuple):
    """What the oracle finds, as fractions."""

    precision: list[float]
    inverse_penalty: list[float]
    first: list[int]


def labels(pids: list[int], cameras: list[int], scenes: list[int] | None = None) -> Labels:
    places = None if scenes is None else np.array(scenes, dtype=np.int64)
    return Labels(np.array(pids, dtype=np.int64), np.array(cameras, dtype=np.int64), places)


@st.composite
def cases(draw: st.DrawFn, most: int = 8) -> Case:
    """Integer features: every product is exact, so ties are real and chunks and scales cannot round."""
    width = draw(st.integers(1, 3))

    def side() -> tuple[Features, Labels]:
        count = draw(st.integers(1, most))
        values = draw(st.lists(st.integers(-2, 2), min_size=count * width, max_size=count * width))
        column = st.lists(st.integers(0, 2), min_size=count, max_size=count)
        return np.array(values, dtype=np.float32).reshape(count, width), labels(
            draw(column), draw(column), draw(column)
        )

    (query, query_labels), (gallery, gallery_labels) = side(), side()
    return Case(query, gallery, query_labels, gallery_labels)


def random_case(queries: int, items: int, width: int = 16, seed: int = 0) -> Case:
    rng = np.random.default_rng(seed)

    def side(count: int) -> tuple[Features, Labels]:
        features = rng.standard_normal((count, width), dtype=np.float32)
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        return features, Labels(*rng.integers(0, 5, (3, count)))

    (query, query_labels), (gallery, gallery_labels) = side(queries), side(items)
    return Case(query, gallery, query_labels, gallery_labels)


def oracle(case: Case, protocol: str) -> Expected:
    """Stable sort by score, take the ignored items out, walk down the list."""
    ignored = PROTOCOLS[protocol](case.query_labels, case.gallery_labels)
    found = Expected([], [], [])
    for row, feature in enumerate(case.query):
        scores = [float(feature @ item) for item in case.gallery]
        order = sorted(range(len(scores)), key=lambda item: (-scores[item], item))
        kept = [item for item in order if not ignored[row, item]]
        hits = [case.gallery_labels.pids[item] == case.query_labels.pids[row] for item in kept]
        ranks = [rank for rank, hit in enumerate(hits, start=1) if hit]
        if ranks:
            found.precision.append(sum(hit / rank for hit, rank in enumerate(ranks, start=1)) / len(ranks))
            found.inverse_penalty.append(len(ranks) / ranks[-1])
            found.first.append(ranks[0])
        else:
            found.precision.append(float("nan"))
    return found


def measure(case: Case, protocol: str, chunk: int | None = None) -> Metrics | None:
    """The metrics, or None where no query has a match."""
    try:
        return evaluate(*case, protocol, chunk)
    except UserError as error:
        if "no query has a match" not in str(error):
            raise
        return None


protocols = st.sampled_from(sorted(PROTOCOLS))


@pytest.mark.parametrize("most", [3, 8])
def test_agrees_with_the_oracle(most: int) -> None:
    @given(cases(most), protocols, st.sampled_from([None, 1, 2, 3, 100]))
    def check(case: Case, protocol: str, chunk: int | None) -> None:
        expected, got = oracle(case, protocol), measure(case, protocol, chunk)
        if got is None:
            assert not expected.first
            return
        np.testing.assert_allclose(got.average_precision, 100 * np.array(expected.precision))
        assert got.mAP == pytest.approx(100 * np.nanmean(expected.precision))
        assert got.mINP == pytest.approx(100 * np.mean(expected.inverse_penalty))
        shares = [100 * np.mean([first <= rank for first in expected.first]) for rank in range(1, 51)]
        assert got.cmc == pytest.approx(shares)
        assert (got.rank1, got.rank5, got.rank10) == pytest.approx((shares[0], shares[4], shares[9]))
        assert (got.queries, got.gallery) == (len(case.query), len(case.gallery))
        assert (got.valid_queries, got.protocol) == (len(expected.first), protocol)

    check()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_agrees_with_torchmetrics_and_the_oracle_on_a_longer_list(protocol: str) -> None:
    case = random_case(20, 300)
    ignored = PROTOCOLS[protocol](case.query_labels, case.gallery_labels)
    matches = case.query_labels.pids[:, None] == case.gallery_labels.pids
    scores = case.query @ case.gallery.T + 2  # torchmetrics counts no match whose score is zero or less
    expected = [
        100 * retrieval_average_precision(torch.tensor(score[~out]), torch.tensor(match[~out])).item()
        for score, match, out in zip(scores, matches, ignored, strict=True)
    ]
    got = evaluate(*case, protocol)
    np.testing.assert_allclose(got.average_precision, expected, rtol=1e-5)
    np.testing.assert_allclose(got.average_precision, 100 * np.array(oracle(case, protocol).precision))


@given(cases(), protocols, st.integers(1, 8))
def test_chunk_changes_nothing(case: Case, protocol: str, chunk: int) -> None:
    whole, parts = measure(case, protocol), measure(case, protocol, chunk)
    assert whole == parts
    if whole is not None and parts is not None:
        np.testing.assert_array_equal(whole.average_precision, parts.average_precision)


@given(cases(), protocols, st.sampled_from([0.25, 2.0, 3.0]), st.sampled_from([0.5, 4.0]))
def test_scale_changes_nothing(case: Case, protocol: str, up: float, down: float) -> None:
    scaled = case._replace(query=case.query * np.float32(up), gallery=case.gallery * np.float32(down))
    assert measure(scaled, protocol) == measure(case, protocol)


@given(cases(), protocols, st.randoms(use_true_random=False))
def test_order_of_queries_changes_nothing(case: Case, protocol: str, random: Any) -> None:
    order = np.array(random.sample(range(len(case.query)), len(case.query)))
    shuffled = case._replace(query=case.query[order], query_labels=case.query_labels[order])
    before, after = measure(case, protocol), measure(shuffled, protocol)
    if before is None or after is None:
        assert before is after
        return
    np.testing.assert_array_equal(after.average_precision, before.average_precision[order])
    assert (after.mAP, after.mINP) == pytest.approx((before.mAP, before.mINP))
    assert after.cmc == before.cmc


@given(cases(), st.sampled_from(["same_camera", "same_scene"]), st.integers(0, 8), st.integers(-9, 9))
def test_an_ignored_item_changes_nothing(case: Case, protocol: str, place: int, value: int) -> None:
    own = case.query_labels[:1]
    alone = case._replace(query=case.query[:1], query_labels=own)
    others, place = alone.gallery_labels, min(place, len(alone.gallery))
    assert own.scenes is not None
    assert others.scenes is not None
    more = alone._replace(
        gallery=np.insert(alone.gallery, place, value, axis=0),
        gallery_labels=Labels(
            np.insert(others.pids, place, own.pids),
            np.insert(others.cameras, place, own.cameras),
            np.insert(others.scenes, place, own.scenes),
        ),
    )
    before, after = measure(alone, protocol), measure(more, protocol)
    if before is None or after is None:
        assert before is after
    else:
        assert after.to_dict() == before.to_dict() | {"gallery": before.gallery + 1}


@given(cases(), protocols)
def test_rates_are_ordered_and_bounded(case: Case, protocol: str) -> None:
    got = measure(case, protocol)
    if got is None:
        return
    assert 0 < got.mAP <= 100 + 1e-9
    assert 0 < got.mINP <= 100 + 1e-9
    assert list(got.cmc) == sorted(got.cmc)
    assert len(got.cmc) == 50
    # 50 entries reach past every gallery drawn here, and a valid query has a match somewhere.
    assert got.cmc[len(case.gallery) - 1] == got.cmc[-1] == 100
    # Both are 100 exactly when every match comes before every other item.
    assert (got.mAP == pytest.approx(100)) == (got.mINP == pytest.approx(100))


def test_perfect_ranking_is_100() -> None:
    query, query_labels = np.eye(4, dtype=np.float32), labels([0, 1, 2, 3], [0] * 4)
    gallery_labels = labels(np.arange(4).repeat(3).tolist(), [1] * 12)
    got = evaluate(query, query.repeat(3, axis=0), query_labels, gallery_labels, "same_camera")
    assert (got.mAP, got.rank1, got.rank5, got.rank10, got.mINP) == (100, 100, 100, 100, 100)


def test_precision_is_the_rectangle_one() -> None:
    # Hits at ranks 1, 3 and 4; the trapezoid rule of the first Market-1501 code would give 0.767.
    query, gallery = np.ones((1, 1), dtype=np.float32), np.array([[4], [3], [2], [1]], dtype=np.float32)
    got = evaluate(query, gallery, labels([1], [0]), labels([1, 2, 1, 1], [1] * 4), "same_camera")
    assert got.mAP == pytest.approx(100 * (1 / 1 + 2 / 3 + 3 / 4) / 3)
    assert got.mINP == pytest.approx(75)


def test_scene_rule_gives_another_number_than_camera_rule() -> None:
    # As in MSVR310: the query's own camera saw the vehicle in another scene, and another camera in the same scene.
    query, gallery = np.ones((1, 1), dtype=np.float32), np.array([[0.9], [0.5], [0.2]], dtype=np.float32)
    sets = labels([1], [0], [0]), labels([1, 2, 1], [0, 0, 1], [1, 2, 0])
    found = {name: evaluate(query, gallery, *sets, name).mAP for name in PROTOCOLS}
    assert found == pytest.approx({"same_camera": 50, "same_scene": 100, "none": 100 * (1 + 2 / 3) / 2})


def test_queries_without_a_match_are_counted_not_averaged() -> None:
    query, gallery = np.ones((3, 1), dtype=np.float32), np.ones((2, 1), dtype=np.float32)
    got = evaluate(query, gallery, labels([1, 2, 3], [0, 0, 0]), labels([1, 2], [1, 0]), "same_camera")
    assert (got.mAP, got.queries, got.valid_queries) == (100, 3, 1)
    np.testing.assert_array_equal(got.average_precision, [100, np.nan, np.nan])


@pytest.mark.parametrize("queries", [1, 5, 64])
@pytest.mark.parametrize("items", [3, 33, 1001])
def test_constant_features_rank_in_index_order(queries: int, items: int) -> None:
    # BLAS alone fails here: the last columns of a product are summed in another order than the others.
    feature, last = random_case(1, 1, width=100).query, labels([0] * (items - 1) + [1], [1] * items)
    query, gallery = feature.repeat(queries, axis=0), feature.repeat(items, axis=0)
    got = evaluate(query, gallery, labels([1] * queries, [0] * queries), last, "same_camera")
    np.testing.assert_allclose(got.average_precision, 100 / items)


def test_copies_in_the_gallery_rank_by_index() -> None:
    items = random_case(1, 200, width=100).gallery
    twice, pids, nobody = np.concatenate([items, items[:101]]), list(range(200)), [-1] * 200
    first, second = labels(pids + nobody[:101], [1] * 301), labels(nobody + pids[:101], [1] * 301)
    query = items[:50], labels(pids[:50], [0] * 50)
    assert evaluate(query[0], twice, query[1], first, "same_camera").rank1 == 100
    np.testing.assert_array_equal(evaluate(query[0], twice, query[1], second, "same_camera").average_precision, 50)


def test_two_runs_are_equal() -> None:
    case = random_case(40, 500)
    assert evaluate(*case, "same_camera") == evaluate(*case, "same_camera")


def test_to_dict_is_json() -> None:
    found = evaluate(*random_case(5, 60), "same_scene").to_dict()
    assert json.loads(json.dumps(found)) == found
    assert {"mAP", "rank1", "rank5", "rank10", "mINP", "cmc", "protocol", "valid_queries"} <= found.keys()


@pytest.mark.parametrize("items", [1, 15_913, 100_000, 10**9])
def test_chunk_keeps_to_its_budget(items: int) -> None:
    rows = _chunk_rows(items)
    assert rows >= 1
    assert rows == 1 or 4 * rows * items <= _CHUNK_BYTES


def broken(side: str, row: int, value: float) -> Case:
    case = random_case(4, 6)
    getattr(case, side)[row:, 2] = value
    return case


small = random_case(4, 6)
apart = small._replace(gallery_labels=labels([9] * 6, [0] * 6))
one_camera = small._replace(query_labels=labels([1] * 4, [0] * 4), gallery_labels=labels([1] * 6, [0] * 6))


@pytest.mark.parametrize(
    ("case", "protocol", "chunk", "message"),
    [
        (small, "market", None, "unknown protocol 'market'; choose one of same_camera, same_scene, none"),
        (small, "none", 0, "chunk is 0; rank at least 1"),
        (small._replace(query=small.query[0]), "none", None, r"query features have shape \(16,\)"),
        (small._replace(query=small.query[:0]), "none", None, "the query is empty"),
        (small._replace(gallery=small.gallery[:0]), "none", None, "the gallery is empty"),
        (small._replace(gallery=small.gallery[:5]), "none", None, "5 gallery features but 6 gallery labels"),
        (small._replace(gallery=small.gallery[:, :9]), "none", None, "16 wide, gallery features 9; extract both"),
        (broken("query", 3, np.nan), "none", None, "1 of 4 query features hold NaN.*the first in row 3"),
        (broken("gallery", 2, -np.inf), "none", None, "4 of 6 gallery features hold NaN.*the first in row 2"),
        (broken("gallery", 1, 1e30), "none", None, "5 of 6 gallery features hold.*too large.*row 1"),
        (apart, "none", None, "none of the . query identities is in the gallery; .*same split"),
        (
            one_camera,
            "same_camera",
            None,
            "'same_camera' ignores every gallery item.*dmpt check lists them: add images",
        ),
    ],
)
def test_errors_name_the_trouble(case: Case, protocol: str, chunk: int | None, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        evaluate(*case, protocol, chunk)
    assert "\n" not in str(caught.value)
