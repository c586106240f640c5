"""Exchanges behind layers of the tower, against timm's own modules one after another."""

from typing import Any

import pytest
import torch

from dmpt.embed.attention import attention
from dmpt.method.modalities import Features
from small import NO_TEXT, error_of, redraw, seeded, small_images, small_network, through


@pytest.mark.parametrize("modality", [0, 2])
@pytest.mark.parametrize("form", ["prefix", "token"])
@torch.no_grad()
def test_exchange_at_several_depths_is_the_transcription(form: str, modality: int) -> None:
    bind, begins = {"layers": (1, 2)}, {"length": 2, "first_layer": modality}
    network = small_network("registers", 4, bind=bind, modality=begins, prompts=form, **NO_TEXT)
    redraw(network, seeded(6), 0.2)
    network.double().eval()
    images, vit = small_images(network.backbone), network.backbone.vit
    prompts: Any = network.prompts
    own_bind: Any = network.bind
    x = [vit.norm_pre(vit._pos_embed(vit.patch_embed(stream))) for stream in images]
    lead = vit.num_prefix_tokens
    for layer, block in enumerate(vit.blocks):
        semantic = prompts.semantic.tokens[layer]
        for m in range(3):
            mapped = [prompts.modality.map[layer - modality](prompts.modality.words[m])] if layer >= modality else []
            own = torch.cat([*mapped, semantic[m]]).expand(2, -1, -1)
            x[m] = block(torch.cat([x[m][:, :lead], own, x[m][:, lead:]], dim=1))
        end = lead + own.shape[1]
        if layer in (1, 2):
            interaction: Any = network.exchanges[str(layer)]
            enriched = interaction.external(Features(torch.stack([tokens[:, end - 5 : end] for tokens in x])))
            for m in range(3):
                whole = torch.cat([x[m][:, : end - 5], enriched[m], x[m][:, end:]], dim=1)
                x[m] = torch.cat([interaction.internal[m](whole)[:, :1], x[m][:, 1:]], dim=1)
        if layer < 3:
            x = [torch.cat([tokens[:, :lead], tokens[:, end:]], dim=1) for tokens in x]
    cls, _ = own_bind(Features(torch.stack(x)), slice(end - 5, end))
    features = network(images).features.x
    assert error_of(features, network.backbone.norm(cls)) < 1e-12
    assert error_of(network(images, baked=network.bake()).features.x, features) < 1e-12
    tokens, _ = attention(network, images)
    assert error_of(tokens, torch.stack(x)) < 1e-12
    without = through(network.backbone, images, prompts(), "prefix", True)
    assert (torch.stack(x) - without)[:, :, 0].abs().max() > 1e-3


@torch.no_grad()
def test_exchange_at_several_depths_leaves_absent_modalities_out() -> None:
    network = small_network("clip", 3, bind={"layers": (0, 1)}, **NO_TEXT)
    redraw(network, seeded(6), 0.2)
    network.double().eval()
    images = small_images(network.backbone, batch=3)
    present = torch.tensor([[True, True, True], [True, False, True], [True, True, False]])
    broken = images.masked_fill(~present[..., None, None, None], torch.nan)
    features = network(broken, present).features.x
    assert features.isfinite().all()
    assert error_of(features[:, :1], network(images[:, :1]).features.x) < 1e-12
    other = images.where(present[..., None, None, None], 7.0)
    assert torch.equal(network(other, present).features.x, features)
    whole = network(images).features.x
    assert error_of(features[0, 1:], whole[0, 1:]) > 1e-4  # the absent would have said something
