"""Forms of the metric loss against transcriptions and pytorch-metric-learning."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import SupConLoss, TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner
from pytorch_metric_learning.reducers import MeanReducer
from torch import Tensor

from by_hand import draw, labels_of, seeds, some
from dmpt.base.errors import UserError
from dmpt.extensions.metric_losses import metric_loss
from dmpt.method.heads import Seen
from dmpt.method.losses import batch_hard_triplet
from dmpt.method.modalities import Features
from dmpt.method.network import Output
from dmpt.settings.config import LossConfig
from small import objective_of, seeded, small_config

scales = st.sampled_from([1.0, 10.0, 30.0])
FORMS = ("normalised", "contrastive")


def loss_of(form: Any, features: Tensor, labels: Tensor, scale: float) -> Tensor:
    return metric_loss(LossConfig(metric=form, metric_scale=scale), features, labels)


def rows(labels: Tensor, seed: int) -> Tensor:
    """Features ``(B, 6)`` of samples with these labels."""
    return draw(len(labels), 6, seed=seed, scale=3)


def assert_same(own: Tensor, of_own: Tensor, expected: Tensor, of_expected: Tensor) -> None:
    """Values and gradients."""
    torch.testing.assert_close(own, expected, rtol=1e-7, atol=1e-8)
    (gradient,), (wanted,) = torch.autograd.grad(own, of_own), torch.autograd.grad(expected, of_expected)
    torch.testing.assert_close(gradient, wanted, rtol=1e-6, atol=1e-7)


@some
@given(labels_of(2), seeds, scales)
def test_contrastive_is_pytorch_metric_learnings(labels: Tensor, seed: int, scale: float) -> None:
    ours, theirs = (rows(labels, seed).requires_grad_() for _ in range(2))
    oracle = SupConLoss(temperature=1 / scale, reducer=MeanReducer())
    assert_same(loss_of("contrastive", ours, labels, scale), ours, oracle(theirs, labels), theirs)


@some
@given(labels_of(2), seeds, scales)
def test_normalised_is_pytorch_metric_learnings(labels: Tensor, seed: int, scale: float) -> None:
    ours, theirs = (rows(labels, seed).requires_grad_() for _ in range(2))
    distance = LpDistance(normalize_embeddings=False)
    oracle = TripletMarginLoss(margin=0, smooth_loss=True, distance=distance, reducer=MeanReducer())
    stretched = scale * theirs / theirs.norm(dim=1, keepdim=True)
    expected = oracle(stretched, labels, BatchHardMiner(distance=distance)(stretched, labels))
    assert_same(loss_of("normalised", ours, labels, scale), ours, expected, theirs)


def test_contrastive_is_the_transcription() -> None:
    labels = torch.tensor([0, 1, 0, 1, 0, 2])
    features, scale = rows(labels, 1), 5.0
    unit = [row / row.norm() for row in features]
    losses = []
    for a in range(6):
        weights = {j: math.exp(scale * float(unit[a] @ unit[j])) for j in range(6) if j != a}
        own = [j for j in weights if labels[j] == labels[a]]
        losses.append(-sum(math.log(weights[j] / sum(weights.values())) for j in own) / max(1, len(own)))
    assert loss_of("contrastive", features, labels, scale).item() == pytest.approx(sum(losses) / 6)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("labels", [[0, 0, 1, 1], [0, 1, 2, 3], [0, 0, 0, 1]], ids=str)
def test_gradients_are_finite_where_features_are_one_or_without_a_partner(form: str, labels: list[int]) -> None:
    for features in (torch.ones(4, 5), torch.randn(4, 5, generator=seeded()), torch.zeros(4, 5)):
        own = features.clone().requires_grad_()
        loss_of(form, own, torch.tensor(labels), 10.0).backward()
        assert own.grad is not None
        assert own.grad.isfinite().all()


@pytest.mark.parametrize("form", FORMS)
def test_shrinking_features_changes_nothing(form: str) -> None:
    """The way in which the unnormalised triplet loss comes to rest at log 2."""
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    features = rows(labels, 3)
    assert loss_of(form, features * 1e-3, labels, 10.0).item() == pytest.approx(
        loss_of(form, features, labels, 10.0).item(), rel=1e-9
    )
    assert batch_hard_triplet(features * 1e-3, labels).item() == pytest.approx(math.log(2), abs=0.01)


@pytest.mark.parametrize("form", FORMS)
def test_the_form_reaches_the_objective(form: str) -> None:
    labels = torch.tensor([0, 0, 1, 1])
    features = torch.randn(3, 4, 7, generator=seeded())
    logits = torch.randn(4, 2, generator=seeded(1))
    heads = {name: Seen(x, logits, labels) for name, x in zip(("rgb", "nir"), features, strict=False)}
    config = small_config(loss={"metric": form, "metric_scale": 4.0, "metric_weight": 2.0}, text={"loss": "off"})
    terms = objective_of(config, heads)(Output(Features(features)), labels)
    expected = [loss_of(form, x, labels, 4.0).item() for x in features[:2]]
    assert terms["metric"].item() == pytest.approx(2 * sum(expected) / 2)
    assert list(terms) == ["ce", "metric", "centre"]


def test_the_default_is_the_unnormalised_triplet() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    features = rows(labels, 2)
    assert torch.equal(metric_loss(LossConfig(), features, labels), batch_hard_triplet(features, labels))


def test_a_scale_of_0_is_refused() -> None:
    with pytest.raises(UserError, match=r"loss\.metric_scale is 0; it must be a number above 0"):
        small_config(loss={"metric_scale": 0})
