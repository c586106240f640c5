"""Scores to error rates, against counting by hand, scikit-learn's DET curve, and rates that other people then have."""

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_pairs import pairs_of
from sklearn.metrics import det_curve

from dmpt.base.errors import UserError
from dmpt.retrieval.calibration import (
    cross_camera_pairs,
    det,
    equal_error_rate,
    tar_at,
    threshold_at,
    thresholds,
    verification,
)
from dmpt.retrieval.embeddings import Embeddings, plain, unit
from dmpt.retrieval.protocols import Labels
from dmpt.retrieval.reached import reached

Floats = npt.NDArray[np.float64]
some_scores = st.lists(st.integers(-5, 5), min_size=1, max_size=30).map(lambda s: np.sort(np.array(s, np.float64)) / 5)


def people(identities: int, each: int, seed: int, cameras: int = 2, noise: float = 1.0) -> tuple[Embeddings, Labels]:
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(identities, 1, 16))
    vectors = centres + noise * generator.normal(size=(identities, each, 16))
    pids = np.repeat(np.arange(identities), each)
    return plain(unit(vectors.reshape(-1, 16).astype(np.float32))), Labels(pids, np.arange(len(pids)) % cameras)


def test_pairs_are_all_of_two_cameras_once() -> None:
    items, labels = people(5, 4, seed=0, cameras=3)
    found = cross_camera_pairs(items, labels)
    expected = []
    for a in range(len(items)):
        for b in range(a + 1, len(items)):
            if labels.cameras[a] != labels.cameras[b]:
                cosine = float(items.flat[a].astype(float) @ items.flat[b].astype(float))
                expected.append((cosine, labels.pids[a], labels.pids[b]))
    assert len(found.scores) == len(expected)
    np.testing.assert_allclose(found.scores, [score for score, *_ in expected], atol=2e-6)
    assert found.first.tolist() == [first for _, first, _ in expected]
    assert found.second.tolist() == [second for *_, second in expected]
    assert len(found.mates) + len(found.strangers) == len(expected)
    assert found.mates.mean() > found.strangers.mean() + 0.2


def test_a_score_does_not_depend_on_who_else_is_there() -> None:
    """Complete items beside one that lacks a modality score as they do alone."""
    generator = np.random.default_rng(0)
    features = unit(generator.normal(size=(6, 12)).astype(np.float32)).reshape(6, 3, 4)
    table = np.linspace(0.5, 1.5, 16, dtype=np.float32).reshape(8, 2)
    present = np.ones((6, 3), np.bool_)
    labels = Labels(np.array([0, 0, 1, 1, 2, 2]), np.array([0, 1, 0, 1, 0, 1]))
    complete = cross_camera_pairs(Embeddings(features, present, standardisation=table), labels)
    lacking, there = features.copy(), present.copy()
    lacking[5, 2], there[5, 2] = 0, False
    mixed = cross_camera_pairs(Embeddings(lacking, there, standardisation=table), labels)
    untouched = (complete.first != 2) & (complete.second != 2)
    assert untouched.sum() == 4
    assert (complete.scores[untouched] == mixed.scores[untouched]).all()


def test_verification_counts_the_pairs_across_cameras() -> None:
    (query, ql), (gallery, gl) = people(8, 3, seed=0, cameras=3), people(8, 5, seed=1, cameras=3)
    found = verification(query, gallery, ql, gl)
    scores = np.round(query.flat.astype(float) @ gallery.flat.T.astype(float), 6)
    across, same = ql.cameras[:, None] != gl.cameras, ql.pids[:, None] == gl.pids
    mates, strangers = np.sort(scores[across & same]), np.sort(scores[across & ~same])
    assert found is not None
    assert found.strangers == pytest.approx(np.median(strangers), abs=2e-6)
    assert found.mates == pytest.approx(np.median(mates), abs=2e-6)
    assert found.eer == pytest.approx(100 * equal_error_rate(mates, strangers), abs=0.2)
    assert set(found.tar) == {"10", "1", "0.1"}
    assert found.tar["10"] == pytest.approx(100 * tar_at(mates, strangers, 0.1), abs=1.5)
    fewer = verification(query, gallery, ql, gl, most=12 * 40)
    half = np.arange(0, 24, 2)
    assert fewer == verification(query[half], gallery, ql[half], gl)
    assert verification(query, query, Labels(np.arange(24), ql.cameras), Labels(np.arange(24), ql.cameras)) is None


@pytest.mark.parametrize("labels", [Labels(np.arange(6), np.arange(6) % 2), Labels(np.zeros(6, int), np.arange(6) % 2)])
def test_pairs_of_both_kinds_are_needed(labels: Labels) -> None:
    items, _ = people(3, 2, seed=0)
    with pytest.raises(
        UserError, match=r"of the same identity and of strangers; there are [09] and [09]; give more id"
    ):
        cross_camera_pairs(items, labels)


@given(some_scores, st.sampled_from([0.5, 0.25, 0.1, 0.01]))
def test_a_threshold_is_the_conservative_quantile(strangers: Floats, fmr: float) -> None:
    found, n = threshold_at(strangers, fmr), len(strangers)
    if found is None:
        assert (n + 1) * fmr < 1
        return
    assert found in strangers
    assert (np.sum(strangers > found) + 1) / (n + 1) <= fmr + 1e-9 or np.sum(strangers > found) == 0
    lower = strangers[strangers < found]
    if len(lower):  # no lower score would do
        assert (np.sum(strangers > lower.max()) + 1) / (n + 1) > fmr - 1e-9


def test_a_new_stranger_is_above_it_as_often_as_asked() -> None:
    """Over many draws of 99 calibration scores and a new one; the plain quantile of 99 would be passed more often."""
    generator = np.random.default_rng(0)
    passed = [generator.normal() > threshold_at(np.sort(generator.normal(size=99)), 0.1) for _ in range(20_000)]  # type: ignore[operator]
    assert np.mean(passed) == pytest.approx(0.1, abs=0.006)


@given(some_scores, some_scores)
def test_the_det_curve_is_scikit_learns(mates: Floats, strangers: Floats) -> None:
    limits = np.unique([*mates, *strangers])
    fmr, fnmr = det(mates, strangers, limits)
    for limit, one, other in zip(limits, fmr, fnmr, strict=True):
        assert one == pytest.approx(np.mean(strangers > limit))
        assert other == pytest.approx(np.mean(mates <= limit))
    truth = np.concatenate([np.ones(len(mates)), np.zeros(len(strangers))])
    theirs = det_curve(truth, np.concatenate([mates, strangers]))
    points = {(round(a, 9), round(b, 9)) for a, b in zip(fmr, fnmr, strict=True)}
    # they accept at the threshold, we above it: theirs at one score is ours at the next lower one
    ends = {(1.0, 0.0), (0.0, 1.0)}
    assert {(round(a, 9), round(b, 9)) for a, b, _ in zip(*theirs, strict=True)} <= points | ends
    nearest = int(np.argmin(np.abs(fmr - fnmr)))
    assert equal_error_rate(mates, strangers) == (fmr[nearest] + fnmr[nearest]) / 2


def test_rates_that_can_be_counted() -> None:
    mates, strangers = np.array([0.3, 0.4, 0.8, 0.9]), np.array([0.1, 0.2, 0.5, 0.7])
    assert equal_error_rate(mates, strangers) == 0.5
    assert tar_at(mates, strangers, 0.25) == 0.5  # one stranger of four, 0.7, may pass: above 0.5
    assert tar_at(mates, strangers, 0.5) == 1.0
    assert tar_at(mates, strangers, 0.0) == 0.5
    assert tar_at(mates, strangers, 1.0) == 1.0
    assert equal_error_rate(np.array([1.0, 2.0]), np.array([-1.0, 0.0])) == 0.0


def test_thresholds_hold_for_other_people() -> None:
    """Asked 10 and 1 %: twenty times other people, whose rates lie in the interval that was promised, mostly."""
    inside, achieved = 0, []
    for seed in range(20):
        own = cross_camera_pairs(*people(60, 4, seed=seed))
        others = cross_camera_pairs(*people(60, 4, seed=1000 + seed)).strangers
        found = {t.fmr: t for t in thresholds(own, (0.1, 0.01), draws=100)}
        assert set(found) == {0.1, 0.01}
        for each in found.values():
            rate = np.mean(others > each.threshold)
            inside += each.fmr_low - 1e-9 <= rate <= each.fmr_high + 1e-9
            achieved.append(rate / each.fmr)
            assert each.low <= each.threshold <= each.high
            assert each.tar == np.mean(own.mates > each.threshold)
    assert inside >= 28
    assert np.mean(achieved) == pytest.approx(1, abs=0.15)


def test_the_interval_is_a_slow_bootstraps() -> None:
    """Identities drawn one by one, their pairs listed one by one."""
    pairs = cross_camera_pairs(*people(8, 4, seed=3))
    (found,) = thresholds(pairs, (0.1,), draws=50, seed=7)
    generator = np.random.default_rng(7)
    drawn, achieved = [], []
    for own in generator.multinomial(8, np.full(8, 1 / 8), size=50):
        listed = [
            score
            for score, a, b in zip(pairs.scores, pairs.first, pairs.second, strict=True)
            if a != b
            for _ in range(own[a] * own[b])
        ]
        descending = sorted(listed, reverse=True)
        drawn.append(descending[math.floor(0.1 * len(listed) + 1e-9)])
        achieved.append(np.mean(np.array(listed) > found.threshold))
    np.testing.assert_allclose([found.low, found.high], np.quantile(drawn, [0.025, 0.975]), atol=1e-9)
    np.testing.assert_allclose([found.fmr_low, found.fmr_high], np.quantile(achieved, [0.025, 0.975]), atol=1e-9)


def test_rates_that_so_few_people_cannot_carry_are_left_out() -> None:
    strangers = np.random.default_rng(0).normal(size=50_000)
    few, many = pairs_of(np.ones(50), strangers, count=10), pairs_of(np.ones(50), strangers, count=200)
    assert [t.fmr for t in thresholds(few, draws=10)] == [0.1]  # 45 couples of people: 0.022 each
    assert [t.fmr for t in thresholds(many, draws=10)] == [0.1, 0.01, 0.001, 0.0001]


def test_what_a_threshold_reaches_among_others_is_counted() -> None:
    items, labels = people(30, 4, seed=1)
    limits = thresholds(cross_camera_pairs(items, labels), (0.1, 0.01))
    others, theirs = people(24, 4, seed=2, cameras=3)
    found = reached(limits, others, theirs)
    assert [each.asked for each in found] == [0.1, 0.01]
    for each in found:
        strangers, mates = [], []
        for a in range(len(others)):
            for b in range(a + 1, len(others)):
                if theirs.cameras[a] != theirs.cameras[b]:
                    above = float(others.flat[a].astype(float) @ others.flat[b].astype(float)) > each.threshold
                    (mates if theirs.pids[a] == theirs.pids[b] else strangers).append(above)
        assert each.fmr == pytest.approx(np.mean(strangers), abs=1e-9)
        assert each.tar == pytest.approx(np.mean(mates), abs=1e-9)
        assert each.low <= each.fmr <= each.high
        assert each.low < each.high
    own = reached(limits, items, labels)
    assert all(each.fmr <= each.asked for each in own)
    assert [each.tar for each in own] == [limit.tar for limit in limits]


def test_where_most_strangers_pass_a_threshold_it_is_said() -> None:
    items, labels = people(20, 4, seed=3)
    (limit,) = thresholds(cross_camera_pairs(items, labels), (0.1,))
    (low,) = reached([replace(limit, threshold=-1.0)], items, labels)
    assert (low.fmr, low.low, low.high, low.tar) == (1, 1, 1, 1)
