"""A verdict by several shots, against a calibration whose rates are plain to see."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from dmpt.embed.verdict import judge
from dmpt.retrieval.embeddings import Embeddings, Features, averaged, join, unit
from items import items

ALL, RGB, TIR = (np.array(own, np.bool_) for own in ((1, 1, 1), (1, 0, 0), (0, 0, 1)))


@dataclass
class Plain:
    """Strangers' scores are spread evenly over [-1, 1]; sets that are not named have no rates."""

    sets: tuple[tuple[str, ...], ...] = (("rgb", "nir", "tir"), ("rgb",))
    least: float = 1e-6

    def fmr_between(self, first: Embeddings, second: Embeddings, scores: Features) -> npt.NDArray[np.float64]:
        rates = np.clip((1 - scores.astype(np.float64)) / 2, self.least, 1)
        names = np.array(["rgb", "nir", "tir"])
        for i, j in np.ndindex(rates.shape):
            if tuple(names[first.present[i] & second.present[j]].tolist()) not in self.sets:
                rates[i, j] = np.nan
        return rates

    def carries(self, common: tuple[str, ...], fmr: float) -> bool:
        return common in self.sets and fmr >= self.least


def judged(first: Embeddings, second: Embeddings, plain: Plain | None, fmr: float) -> Any:
    return judge(first, second, plain, fmr)  # type: ignore[arg-type]


def test_one_shot_each_is_the_rate_of_its_score() -> None:
    one, other = items(1, 1, ALL), items(1, 2, ALL)
    score = float(one.flat[0] @ other.flat[0])
    for fmr in ((1 - score) / 2 - 0.01, (1 - score) / 2 + 0.01):
        found = judged(one, other, Plain(), fmr)
        assert found.score == pytest.approx(score, abs=1e-6)
        assert found.fmr == pytest.approx((1 - score) / 2, abs=1e-6)
        assert found.same == (found.fmr <= fmr)
        assert found.modalities == ("rgb", "nir", "tir")


def test_the_best_pair_decides_and_every_pair_is_paid_for() -> None:
    first, second = items(3, 3, ALL), items(2, 4, ALL)
    scores = first.flat @ second.flat.T
    found = judged(first, second, Plain(), 0.5)
    assert found.score == pytest.approx(scores.max(), abs=1e-6)
    assert found.fmr == pytest.approx(min(1, 6 * (1 - scores.max()) / 2), abs=1e-5)
    swapped = judged(second, first, Plain(), 0.5)
    assert (swapped.score, swapped.fmr) == pytest.approx((found.score, found.fmr))


def test_pairs_without_rates_do_not_count() -> None:
    """TIR alone has none: neither its score nor its number has a part in it."""
    rgb, tir = items(2, 5, RGB), items(2, 6, TIR)
    whole = items(1, 7, ALL)
    found = judged(join(rgb, tir), whole, Plain(), 0.5)
    alone = judged(rgb, whole, Plain(), 0.5)
    assert (found.score, found.fmr, found.modalities) == (alone.score, alone.fmr, ("rgb",))
    for nothing in (judged(tir, whole, Plain(), 0.5), judged(rgb, whole, None, 0.5)):
        assert (nothing.same, nothing.fmr) == (None, None)
    # Without any, what has most in common says the score.
    assert judged(join(tir, whole), whole, None, 0.5).modalities == ("rgb", "nir", "tir")


def test_too_few_identities_can_affirm_but_not_deny() -> None:
    one, other = items(2, 8, ALL), items(3, 9, ALL)
    assert judged(one, other, Plain(least=0.01), 0.05).same is None  # 6 pairs would need 0.05 / 6
    assert judged(one, other, Plain(least=0.005), 0.05).same is False
    assert judged(one, one, Plain(least=0.01), 0.05).same is True


def test_averages_pass_more_strangers_than_a_threshold_of_single_shots_says_and_the_verdict_does_not() -> None:
    """Why shots are not averaged: people who differ little, shots that differ much."""
    rng = np.random.default_rng(0)
    people, shots, width, count = 300, 4, 24, 3

    def see(who: npt.NDArray[np.float64]) -> Embeddings:
        seen = 0.8 + 0.35 * who[:, None] + rng.standard_normal((len(who), shots, count * width))
        return Embeddings(
            unit(seen.reshape(-1, count * width).astype(np.float32)).reshape(-1, count, width),
            np.ones((len(who) * shots, count), np.bool_),
        )

    who = rng.standard_normal((people, count * width))
    one, other = see(who), see(np.roll(who, 1, axis=0))  # strangers, row by row

    def rows(person: int) -> slice:
        return slice(person * shots, (person + 1) * shots)

    single = np.sort(np.einsum("nd,nd->n", one.flat, other.flat))

    class Measured(Plain):
        def fmr_between(self, first: Embeddings, second: Embeddings, scores: Features) -> npt.NDArray[np.float64]:
            found = first.flat @ second.flat.T
            return (1 + len(single) - np.searchsorted(single, found)) / (1 + len(single))

    averages = [float(averaged(one[rows(p)]).flat[0] @ averaged(other[rows(p)]).flat[0]) for p in range(people)]
    assert np.mean(np.array(averages) > np.quantile(single, 0.9)) > 0.3
    verdicts = [judged(one[rows(p)], other[rows(p)], Measured(), 0.1).same for p in range(people)]
    assert np.mean(verdicts) <= 0.13  # two standard errors above
