"""The bootstrap against a slow one and on known cases; Holm against its definition."""

import tracemalloc
from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dmpt.base.errors import UserError
from dmpt.retrieval import statistics
from dmpt.retrieval.statistics import DRAWS, bootstrap, holm

Array = NDArray[np.float64]


def made(
    effect: float, seed: int, seeds: int = 2, ids: int = 30, most: int = 5
) -> tuple[Array, Array, NDArray[np.int64]]:
    """Two methods: identities differ in how hard they are, and in what the second method does for them."""
    draw = np.random.default_rng(seed)
    pids = np.repeat(np.arange(ids) * 3 + 5, draw.integers(1, most + 1, ids))
    hard, gain = draw.normal(50, 15, 3 * ids + 5), draw.normal(effect, 6, 3 * ids + 5)
    first = hard[pids] + draw.normal(0, 3, (seeds, len(pids)))
    second = hard[pids] + gain[pids] + draw.normal(0, 3, (seeds, len(pids)))
    return first, second, pids


def slow(first: Array, second: Array, pids: NDArray[np.int64], draws: int) -> tuple[float, float, float, float]:
    """The same in plain loops, with draws of its own."""
    draw, names = np.random.default_rng(99), np.unique(pids)
    difference = float(second.mean() - first.mean())
    first, second = (
        np.stack([m.mean(0) + (row - m.mean(0)) * (len(m) / max(1, len(m) - 1)) ** 0.5 for row in m])
        for m in (first, second)
    )
    found = []
    for _ in range(draws):
        columns = np.concatenate([np.flatnonzero(pids == p) for p in draw.choice(names, len(names))])
        a = np.mean([first[s][columns].mean() for s in draw.integers(len(first), size=len(first))])
        b = np.mean([second[s][columns].mean() for s in draw.integers(len(second), size=len(second))])
        found.append(b - a)
    share = min(np.mean(np.array(found) <= 0), np.mean(np.array(found) >= 0))
    low, high = np.quantile(found, [0.025, 0.975])
    return difference, float(low), float(high), float(min(1, 2 * share))


@pytest.mark.parametrize(("effect", "seeds"), [(0.0, 1), (2.0, 3)])
def test_the_same_as_a_slow_bootstrap(effect: float, seeds: int) -> None:
    first, second, pids = made(effect, 1, seeds)
    fast, expected = bootstrap(first, second, pids), slow(first, second, pids, 1500)
    assert fast.difference == pytest.approx(expected[0])
    assert (fast.low, fast.high) == pytest.approx(expected[1:3], abs=0.35)
    assert fast.p == pytest.approx(expected[3], abs=0.06)


def test_the_same_where_identities_have_few_or_many_queries_and_seeds_differ() -> None:
    first, second, pids = made(6.0, 7, seeds=3, ids=6, most=40)
    scatter = np.random.default_rng(8).normal(0, 2, (2, 3, 1))
    first, second = first + scatter[0], second + scatter[1]
    fast, expected = bootstrap(first, second, pids), slow(first, second, pids, 4000)
    assert fast.difference == pytest.approx(expected[0])
    assert (fast.low, fast.high) == pytest.approx(expected[1:3], abs=0.35)


@pytest.mark.parametrize("piece", [1, 100, 1000])
def test_pieces_are_the_draws_of_the_whole(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, pids = made(1.0, 4, seeds=3)
    whole = bootstrap(first, second, pids, draws=999)
    monkeypatch.setattr(statistics, "_PIECE", piece)
    pieces = bootstrap(first, second, pids, draws=999)
    assert astuple(pieces) == pytest.approx(astuple(whole), rel=1e-12)
    assert pieces.p == whole.p


def test_memory_does_not_grow_with_draws_times_identities(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "_PIECE", 2**17)
    first, second, pids = made(1.0, 4, ids=1000)
    tracemalloc.start()
    try:
        bootstrap(first, second, pids, draws=2000)
        assert tracemalloc.get_traced_memory()[1] < 2**23  # of 16 MB for each copy of all draws
    finally:
        tracemalloc.stop()


def test_kept_results_are_the_same_to_the_last_bit() -> None:
    """Study tables of earlier versions rest on one product over all draws."""
    first, second, pids = made(1.0, 5, seeds=3, ids=50)
    generator, totals = np.random.default_rng(0), []
    count = np.bincount(np.unique(pids, return_inverse=True)[1])
    chosen = generator.multinomial(len(count), np.full(len(count), 1 / len(count)), size=DRAWS).astype(np.float64)
    for method in (first, second):
        sums = statistics._spread(statistics._by_identity(method, np.unique(pids, return_inverse=True)[1]))
        weight = generator.multinomial(3, np.full(3, 1 / 3), size=DRAWS) / 3
        totals.append(np.einsum("rs,ri,si->r", weight, chosen, sums, optimize=True) / (chosen @ count))
    found = bootstrap(first, second, pids)
    assert [found.low, found.high] == np.quantile(totals[1] - totals[0], [0.025, 0.975]).tolist()


def test_a_seed_that_differs_widens_the_interval() -> None:
    first, second, pids = made(0.0, 2, 2)
    calm = bootstrap(first, second, pids)
    second[0] += 10
    second[1] -= 10
    assert bootstrap(first, second, pids).high - bootstrap(first, second, pids).low > calm.high - calm.low + 5


def test_identities_are_drawn_with_all_their_queries() -> None:
    """A copy of every query says nothing new, so it must not narrow the interval."""
    first, second, pids = made(1.0, 3)
    once = bootstrap(first, second, pids)
    twice = bootstrap(np.tile(first, 5), np.tile(second, 5), np.tile(pids, 5))
    assert (twice.low, twice.high, twice.p) == pytest.approx((once.low, once.high, once.p))


def test_equal_methods_have_p_all_over_the_range() -> None:
    p = np.array([bootstrap(*made(0.0, seed, 1, 40), draws=800).p for seed in range(200)])
    assert 0.02 < np.mean(p < 0.1) < 0.2
    assert 0.38 < np.mean(p < 0.5) < 0.62


def test_seeds_that_differ_are_no_difference_of_methods() -> None:
    """Equal methods whose seeds scatter by 1: with ten of them p is what it says, with three nearly."""

    def share_below(seeds: int) -> float:
        found = []
        for trial in range(150):
            first, second, pids = made(0.0, 1000 + trial, seeds, 40)
            second = first.mean(axis=0) + (second - second.mean(axis=0))  # the same method
            scatter = np.random.default_rng(trial).normal(0, 1, (2, seeds, 1))
            found.append(bootstrap(first + scatter[0], second + scatter[1], pids, draws=400).p)
        return float(np.mean(np.array(found) < 0.1))

    assert 0.04 < share_below(10) < 0.18
    assert share_below(3) < 0.2


def test_known_differences() -> None:
    first, second, pids = made(20.0, 4)
    large = bootstrap(first, second, pids)
    assert large.p == pytest.approx(2 / 10_001)
    assert 0 < large.low < large.difference < large.high
    assert bootstrap(first, first, pids).p > 0.5
    assert bootstrap(first[:1], first[:1], pids) == bootstrap(first[:1], first[:1].copy(), pids)
    assert bootstrap(first[:1], first[:1], pids).p == 1
    there, back = bootstrap(first[:1], second[:1], pids), bootstrap(second[:1], first[:1], pids)
    assert (back.low, back.high, back.p) == pytest.approx((-there.high, -there.low, there.p))


@pytest.mark.parametrize(("identities", "p"), [(1, 1.0), (2, 0.5), (8, 2**-7), (40, 2 / 10_001)])
def test_few_identities_show_little_however_well_they_agree(identities: int, p: float) -> None:
    """No smaller than in the sign test, in which each identity has one vote."""
    pids = np.repeat(np.arange(identities), 3)
    first = np.full((1, len(pids)), 50.0)
    assert bootstrap(first, first + 1 + pids / 100, pids).p == pytest.approx(p)


@given(st.integers(0, 2**32 - 1))
def test_order_does_not_matter(seed: int) -> None:
    first, second, pids = made(1.0, 5, 3, 10)
    draw = np.random.default_rng(seed)
    queries, one, other = draw.permutation(len(pids)), draw.permutation(3), draw.permutation(3)
    a = bootstrap(first, second, pids, 200)
    b = bootstrap(first[one][:, queries], second[other][:, queries], pids[queries], 200)
    assert (a.difference, a.low, a.high, a.p) == pytest.approx((b.difference, b.low, b.high, b.p))


def test_queries_with_nothing_to_find_do_not_count() -> None:
    first, second, pids = made(1.0, 6)
    nothing = np.full((2, 4), np.nan)
    with_them = np.append(first, nothing, 1), np.append(second, nothing, 1), np.append(pids, [5, 5, 999, 999])
    assert bootstrap(*with_them) == bootstrap(first, second, pids)
    second[0, 0] = np.nan
    with pytest.raises(UserError, match="other queries have something to find"):
        bootstrap(first, second, pids)
    with pytest.raises(UserError, match="evaluate on the same data"):
        bootstrap(first[:, 1:], second, pids)


VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=8)


@given(VALUES)
def test_holm(p: list[float]) -> None:
    found = holm(p)
    order = np.argsort(p, kind="stable")
    steps = [(len(p) - i) * p[k] for i, k in enumerate(order)]
    for i, k in enumerate(order):  # the definition: the largest step so far
        assert found[k] == pytest.approx(min(1, max(steps[: i + 1])))
    assert all(raw <= after <= 1 for raw, after in zip(p, found, strict=True))
    assert all(found[a] <= found[b] for a in range(len(p)) for b in range(len(p)) if p[a] <= p[b])


@given(VALUES, st.floats(0, 1))
def test_holm_grows_with_the_family(p: list[float], more: float) -> None:
    assert all(a <= b for a, b in zip(holm(p), holm([*p, more])[:-1], strict=True))


def test_holm_of_nothing() -> None:
    assert holm([]) == []
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
