"""Thin products in the place of PromptIBind's linear maps."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from dmpt.extensions.low_rank import LowRankLinear
from dmpt.extensions.readings import OneForAll
from dmpt.method.bind import ExternalInteraction, InteractionLayer, InternalInteraction, PromptIBind
from dmpt.method.modalities import Features, PerModality
from small import error_of, redraw, seeded


@torch.no_grad()
def test_a_low_rank_map_is_linear_with_a_thin_product() -> None:
    linear = LowRankLinear(8, 12, 3).double()
    x = torch.randn(2, 5, 8, generator=seeded()).double()
    assert linear.weight.shape == (12, 8)
    assert torch.linalg.matrix_rank(linear.weight) == 3
    assert error_of(linear(x), F.linear(x, linear.weight, linear.bias)) < 1e-14


@torch.no_grad()
def test_it_starts_with_the_spread_of_a_full_one() -> None:
    torch.manual_seed(0)
    wide = LowRankLinear(400, 300, 50)  # as nn.Linear: U(-b, b) of variance 1 / (3 inputs)
    assert float(wide.weight.var()) == pytest.approx(1 / (3 * 400), rel=0.1)
    assert float(wide.bias.var()) == pytest.approx(1 / (3 * 400), rel=0.2)


@torch.no_grad()
def test_low_rank_attention_of_the_class_token_is_that_of_all() -> None:
    layer = InternalInteraction(8, 2, partial(LowRankLinear, rank=3))
    redraw(layer, seeded(), 0.5)
    layer.double()
    x = torch.randn(2, 5, 8, generator=seeded(1)).double()
    assert error_of(layer(x, cls_only=True), layer(x)[:, :1]) < 1e-12


@pytest.mark.parametrize("share", [False, True])
@torch.no_grad()
def test_the_start_is_the_identity_on_the_class_tokens_of_a_low_rank_bind(share: bool) -> None:
    linear, kind = partial(LowRankLinear, rank=4), OneForAll if share else PerModality
    bind = PromptIBind(
        InteractionLayer(
            ExternalInteraction(8, linear), kind(InternalInteraction(8, 2, linear) for _ in range(1 if share else 3))
        )
        for _ in range(2)
    )
    tokens = torch.randn(3, 2, 7, 8, generator=seeded(1))
    cls, enriched = bind(Features(tokens), slice(2, 4))
    assert torch.equal(cls, tokens[:, :, 0])
    assert error_of(enriched, tokens[:, :, 2:4]) > 1e-3
