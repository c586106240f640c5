"""What a score means: against counting, and against other people."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_pairs import pairs_of

from dmpt.base.errors import UserError
from dmpt.retrieval.calibration import Pairs, equal_error_rate, threshold_at, thresholds
from dmpt.retrieval.rates import Rates, rates_of

NAMES = ("rgb", "nir", "tir")


def drawn(seed: int, mates: int = 300, strangers: int = 5000, decimals: int = 6, count: int = 200) -> Pairs:
    generator = np.random.default_rng(seed)
    return pairs_of(
        np.round(generator.normal(2, 1, mates), decimals), np.round(generator.normal(size=strangers), decimals), count
    )


def test_a_table_is_what_counting_gives() -> None:
    pairs = drawn(0)
    table = rates_of(NAMES, pairs, draws=20)
    assert (table.mates, table.strangers, table.couples) == (300, 5000, pairs.couples)
    assert table.identities == len(set(pairs.first) | set(pairs.second))
    assert table.eer == equal_error_rate(np.sort(pairs.mates), np.sort(pairs.strangers))
    assert table.thresholds == tuple(thresholds(pairs, draws=20))
    assert [limit.fmr for limit in table.thresholds] == [0.1, 0.01, 0.001]
    for score, above, mates in zip(table.curve.scores, table.curve.strangers, table.curve.mates, strict=True):
        assert above == np.sum(pairs.strangers > score)
        assert mates == np.sum(pairs.mates > score)
    assert sum(table.histogram.strangers) == 5000
    assert sum(table.histogram.mates) == 300
    assert (table.histogram.low, table.histogram.high) == (pairs.scores.min(), pairs.scores.max())
    assert 60 < len(table.curve.scores) < 120
    table.check()


def test_a_couple_counts_once() -> None:
    first, second = np.array([0, 1, 2, 2, 1, 0]), np.array([1, 0, 0, 2, 2, 1])
    assert Pairs(np.zeros(6), first, second).couples == 3
    assert Pairs(np.zeros(1), np.array([4]), np.array([4])).couples == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 400), st.sampled_from([0, 1, 6]), st.floats(1e-4, 0.9))
def test_rates_of_any_score_are_conservative_and_agree_with_the_thresholds(
    seed: int, strangers: int, decimals: int, fmr: float
) -> None:
    pairs = drawn(seed, 20, strangers, decimals, count=30)
    table = rates_of(NAMES, pairs, draws=2)
    scores = np.random.default_rng(seed).choice(pairs.scores, 20)
    for score in (*scores, scores[0] + 1e-9, scores[0] - 1e-9, -99.0, 99.0):
        said = table.fmr(float(score))
        assert said >= (1 + np.sum(pairs.strangers >= score)) / (strangers + 1) - 1e-12
        assert table.least <= said <= 1
        limit = table.threshold(fmr)
        assert (limit is None) == (fmr < table.least)
        if limit is not None:
            assert (score > limit) == (said <= fmr)
    for rate in (0.1, 0.01):
        exact = threshold_at(np.sort(pairs.strangers), rate)
        if rate * pairs.couples >= 1 and exact is not None:
            assert table.threshold(rate) == exact
    assert table.threshold(table.least) is not None


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(-9, 9), min_size=5, max_size=25), st.sampled_from([0.3, 0.1, 0.05]))
def test_a_new_stranger_passes_with_that_probability_at_most(scores: list[int], fmr: float) -> None:
    """Of n + 1 strangers each is the new one once, as likely as any other; this holds for every n + 1 scores."""
    values = np.array(scores, np.float64)
    tables = (rates_of(NAMES, pairs_of(np.ones(1), np.delete(values, i)), draws=1) for i in range(len(values)))
    passed = [table.fmr(new) <= fmr for table, new in zip(tables, values, strict=True)]
    assert np.mean(passed) <= fmr + 1e-12


def test_so_few_people_carry_no_smaller_rate() -> None:
    table = rates_of(NAMES, drawn(0, strangers=50_000, count=10), draws=2)
    assert table.couples == 45
    assert table.least == 1 / 45
    assert table.fmr(99.0) == 1 / 45
    assert table.threshold(0.01) is None
    assert [limit.fmr for limit in table.thresholds] == [0.1]


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("curve", {"scores": ()}, "no points"),
        ("curve", {"strangers": (1,)}, "not as many"),
        ("curve", {"scores": (1.0, 1.0), "strangers": (2, 1), "mates": (2, 1)}, "do not ascend"),
        ("curve", {"scores": (1.0, 2.0), "strangers": (1, 2), "mates": (2, 1)}, "do not fall"),
        ("curve", {"scores": (1.0,), "strangers": (1,), "mates": (999,)}, "do not fall"),
        ("histogram", {"mates": ()}, "no bins"),
        ("histogram", {"low": 9e9}, "no bins"),
    ],
)
def test_what_no_pairs_can_give(part: str, change: dict[str, Any], said: str) -> None:
    table: Rates = rates_of(NAMES, drawn(0, strangers=100), draws=1)
    changed = replace(table, **{part: replace(getattr(table, part), **change)})
    with pytest.raises(UserError, match=said):
        changed.check()
