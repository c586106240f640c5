"""PK batches: properties that hold for any labels, and the errors."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmpt.base.errors import UserError
from dmpt.data.sampler import PKSampler, shard
from dmpt.data.seeds import seed_for


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[int], int, int, int, int]:
    """Labels, P, K, seed, epoch."""
    counts = draw(st.lists(st.integers(1, 12), min_size=2, max_size=8))
    labels = [7 * identity for identity, count in enumerate(counts) for _ in range(count)]
    labels = draw(st.permutations(labels))
    ids = draw(st.integers(2, len(counts)))
    return labels, ids, draw(st.integers(2, 5)), draw(st.integers(0, 2**40)), draw(st.integers(0, 1000))


@given(cases())
@settings(max_examples=60, deadline=None)
def test_batches_are_p_identities_of_k(case: tuple[list[int], int, int, int, int]) -> None:
    labels, ids, instances, seed, epoch = case
    draws = PKSampler(labels, ids, instances, seed).epoch(epoch)
    batches = [[draw % len(labels) for draw in batch] for batch in draws]
    assert batches
    used: list[int] = []
    for batch, drawn in zip(batches, draws, strict=True):
        assert len(batch) == ids * instances
        assert len(set(drawn)) == len(drawn)  # repeats are draws of their own
        groups = [batch[start : start + instances] for start in range(0, len(batch), instances)]
        identities = [{labels[index] for index in group} for group in groups]
        assert all(len(identity) == 1 for identity in identities)
        assert len(set.union(*identities)) == ids
        for group in groups:
            available = labels.count(labels[group[0]])
            assert len(set(group)) == min(instances, available)  # fewer than K: all of them, then repeats
            used += set(group)
    assert len(used) == len(set(used))  # no sample twice in an epoch, but to fill its group
    # Drawn until fewer than P identities have groups left.
    left = {label: max(1, labels.count(label) // instances) for label in set(labels)}
    for batch in batches:
        for index in batch[::instances]:
            left[labels[index]] -= 1
    assert min(left.values()) >= 0
    assert sum(count > 0 for count in left.values()) < ids


@given(cases())
@settings(max_examples=20, deadline=None)
def test_an_epoch_is_a_pure_function(case: tuple[list[int], int, int, int, int]) -> None:
    labels, ids, instances, seed, epoch = case
    sampler = PKSampler(labels, ids, instances, seed)
    sampler.epoch(epoch + 1)
    state = torch.get_rng_state(), random.getstate()
    batches = sampler.epoch(epoch)
    assert torch.equal(torch.get_rng_state(), state[0])
    assert random.getstate() == state[1]
    assert batches == sampler.epoch(epoch) == PKSampler(labels, ids, instances, seed).epoch(epoch)


def test_seed_and_epoch_matter() -> None:
    labels = [i // 10 for i in range(100)]
    sampler = PKSampler(labels, 4, 4, 0)
    assert sampler.epoch(0) != sampler.epoch(1)
    assert sampler.epoch(0) != PKSampler(labels, 4, 4, 1).epoch(0)


def test_number_of_batches_is_chance() -> None:
    labels = [0] * 6 + [1] * 2 + [2] * 2  # groups 3, 1, 1: two batches, unless 1 and 2 meet first
    sampler = PKSampler(labels, 2, 2, 0)
    assert {len(sampler.epoch(epoch)) for epoch in range(30)} == {1, 2}


def test_every_sample_has_its_turn() -> None:
    labels = [i // 5 for i in range(20)]
    sampler = PKSampler(labels, 4, 4, 0)
    assert {index for epoch in range(40) for batch in sampler.epoch(epoch) for index in batch} == set(range(20))


def test_too_few_identities() -> None:
    with pytest.raises(UserError, match=r"has 3 identities, train\.ids asks for 4"):
        PKSampler([0, 0, 1, 2], 4, 2, 0)
    for labels in ([], [5, 5, 5]):
        with pytest.raises(UserError, match=f"identities in the training set: {len(set(labels))}"):
            PKSampler(labels, 2, 2, 0)


@given(st.lists(st.integers(), min_size=0, max_size=6), st.integers(1, 6))
def test_shards_concatenate_to_the_batch(part: list[int], world: int) -> None:
    batch = [x + k for k in range(world) for x in part]
    parts = [shard(batch, rank, world) for rank in range(world)]
    assert [index for part in parts for index in part] == batch
    assert {len(part) for part in parts} == {len(batch) // world}


def test_shard_refuses_a_rest() -> None:
    with pytest.raises(UserError, match="64 samples does not divide among 3 processes"):
        shard(range(64), 0, 3)


def test_seeds_are_the_same_on_every_machine() -> None:
    assert seed_for("batches", 0, 1) == 5748444871990026201
    assert len({seed_for(*parts) for parts in [(1, 23), (12, 3), (1, 2, 3), ("1", 23)]}) == 4
