"""Prompts from a layer on: equations, both forms, and where autograd stops."""

from typing import Any

import pytest
import torch
from torch import Tensor

from dmpt.base.errors import UserError
from dmpt.method.network import DMPT
from dmpt.paper import parameters as params
from runs import settings, with_
from small import error_of, redraw, seeded, small_images, small_network

DEPTH = 4
FIRSTS: list[tuple[int, int | None]] = [(1, None), (3, None), (2, 0), (0, 2), (1, 3)]


def network_of(first: int, modality: int | None = None, **more: Any) -> DMPT:
    semantic = {"length": 5, "first_layer": first}
    network = small_network(
        "registers", DEPTH, semantic=semantic, modality={"length": 2, "first_layer": modality}, heads="paper", **more
    )
    redraw(network, seeded(6), 0.1)
    return network.double()


def literal(network: DMPT, images: Tensor, semantic: int, modality: int) -> Tensor:
    """Timm's own modules one after another."""
    vit, prompts = network.backbone.vit, network.prompts
    assert prompts is not None
    assert prompts.semantic is not None
    assert prompts.modality is not None
    streams = []
    for m, stream in enumerate(images):
        x = vit.norm_pre(vit._pos_embed(vit.patch_embed(stream)))
        lead = vit.num_prefix_tokens
        for layer, block in enumerate(vit.blocks):
            own: list[Tensor] = []
            if layer >= modality:
                own += list(prompts.modality.map[layer - modality](prompts.modality.words[m]))
            if layer >= semantic:
                own += list(prompts.semantic.tokens[layer - semantic, m])
            inserted = [prompt.expand(len(stream), 1, -1) for prompt in own]
            x = block(torch.cat([x[:, :lead], *inserted, x[:, lead:]], dim=1))
            if layer < DEPTH - 1:
                x = torch.cat([x[:, :lead], x[:, lead + len(own) :]], dim=1)
        streams.append(x)
    return torch.stack(streams)


@pytest.mark.parametrize("first", FIRSTS, ids=str)
@pytest.mark.parametrize("form", ["prefix", "token"])
@torch.no_grad()
def test_prompts_enter_from_their_layer_on(first: tuple[int, int | None], form: Any) -> None:
    network = network_of(*first, prompts=form)
    images = small_images(network.backbone)
    semantic, modality = first[0], first[0] if first[1] is None else first[1]
    expected = literal(network, images, semantic, modality)
    assert network.prompts is not None
    prompts = network.prompts()
    assert [p is None for p in prompts] == [layer < min(semantic, modality) for layer in range(DEPTH)]
    assert error_of(network.backbone(images, prompts, form, True), expected) < 1e-12
    without = network.backbone(images, prompts, form)
    lead = network.backbone.leading
    assert error_of(without, torch.cat([expected[:, :, :lead], expected[:, :, lead + 7 :]], dim=2)) < 1e-12
    network.eval()
    features = network(images).features
    network.bake()
    assert error_of(network(images).features, features) < 1e-12
    gazed, probabilities = network.backbone.attention(images, prompts)
    assert error_of(gazed, expected) < 1e-12
    assert probabilities.shape[-1] == expected.shape[2]


@pytest.mark.parametrize("first", FIRSTS, ids=str)
def test_both_forms_have_the_same_gradients(first: tuple[int, int | None]) -> None:
    gradients = []
    for form in ("prefix", "token"):
        network = network_of(*first, prompts=form)
        network(small_images(network.backbone)).features.square().sum().backward()
        gradients.append({n: p.grad for n, p in network.trained().items() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() >= {"prompts.semantic.tokens"}
    assert all(error_of(value, gradients[1][name]) < 1e-9 for name, value in gradients[0].items())


@pytest.mark.parametrize("form", ["prefix", "token"])
def test_layers_below_run_without_autograd(form: str) -> None:
    """Backward ends at the first layer with prompts, and forward keeps nothing of what is below."""
    kept: dict[int, int] = {}
    for first in range(DEPTH):
        network = network_of(first, prompts=form)
        entering: list[bool] = []

        def note(_: Any, inputs: tuple[Tensor], where: list[bool] = entering) -> None:
            where.append(inputs[0].requires_grad)

        for block in network.backbone.vit.blocks:
            block.norm2.register_forward_pre_hook(note)
        count = 0

        def count_bytes(tensor: Tensor) -> Tensor:
            nonlocal count
            count += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count_bytes, lambda tensor: tensor):
            features = network(small_images(network.backbone)).features
        kept[first] = count
        assert entering == [layer >= first for layer in range(DEPTH)]
        features.sum().backward()
        assert all(p.grad is not None for n, p in network.trained().items() if n.startswith("prompts."))
    assert kept[0] > 1.2 * kept[1] > 1.4 * kept[2] > 1.6 * kept[3] > 0


@torch.no_grad()
def test_a_missing_modality_is_left_out_here_too() -> None:
    network = network_of(2).eval()
    images = small_images(network.backbone, batch=3)
    present = torch.tensor([[True, True, True], [True, False, True], [True, True, False]])
    broken = images.masked_fill(~present[..., None, None, None], torch.nan)
    one = network(broken, present).features
    assert one.isfinite().all()
    network.bake()
    assert error_of(network(broken, present).features, one) < 1e-12
    assert error_of(network(images[:, :1]).features, one[:, :1]) < 1e-12


@pytest.mark.parametrize("kind", ["semantic", "modality"])
def test_a_layer_that_does_not_exist_is_refused(kind: str) -> None:
    with pytest.raises(UserError, match=f"{kind}.first_layer is 2, but the tower has 2 layers.*at most 1"):
        small_network(**{kind: {"first_layer": 2}})
    with pytest.raises(UserError, match=f"{kind}.first_layer is -1; it must be at least 0"):
        small_network(**{kind: {"first_layer": -1}})


def test_fewer_layers_have_fewer_parameters(tmp_path: Any) -> None:
    config = settings(tmp_path)
    count = {
        first: {
            c["name"]: c["count"]
            for c in params.count_parameters(with_(config, semantic={"first_layer": first}), 4)["components"]
        }
        for first in (0, 1)
    }
    for name in ("semantic prompts S", "modality prompts: mapping P"):
        assert count[0][name] == 2 * count[1][name]
