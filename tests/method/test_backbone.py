"""The tower: a literal transcription of Eq. 7-10, the two forms of prompts, and what may stand in a map's place."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dmpt.method.backbone import Backbone
from dmpt.method.network import DMPT
from small import KINDS, WORD_WIDTH, error_of, redraw, seeded, small_backbone, small_images, small_network, through

FORMS = ("prefix", "token")
OFF: dict[str, Any] = {"bind": {"depth": 0}, "heads": "paper"}


def redrawn(kind: str = "clip", depth: int = 2, double: bool = True, **settings: Any) -> DMPT:
    network = small_network(kind, depth, **settings)
    redraw(network, seeded(6))
    return network.double() if double else network


# --- Eq. 7-10 ---------------------------------------------------------------------------------------------------------


def literal_prompts(network: DMPT, layer: int, modality: int) -> list[Tensor]:
    """[M_p, S_p] of one layer and modality, token by token."""
    assert network.prompts is not None
    tokens = []
    if (mapped := network.prompts.modality) is not None:
        linear: Any = mapped.map[layer]
        tokens += [linear.weight @ word + linear.bias for word in mapped.words[modality]]
    if (own := network.prompts.semantic) is not None:
        tokens += list(own.tokens[layer, 0 if own.tokens.shape[1] == 1 else modality])
    return tokens


def literal_tokens(network: DMPT, images: Tensor, keep: bool) -> Tensor:
    """Timm's own modules one after another; what a block makes of prompts is dropped, at the end only if not kept."""
    vit = network.backbone.vit
    streams = []
    for modality, stream in enumerate(images):
        x = vit.norm_pre(vit._pos_embed(vit.patch_embed(stream)))
        lead = vit.num_prefix_tokens
        for layer, block in enumerate(vit.blocks):
            prompts = literal_prompts(network, layer, modality)
            inserted = [prompt.expand(len(stream), 1, -1) for prompt in prompts]
            x = block(torch.cat([x[:, :lead], *inserted, x[:, lead:]], dim=1))
            if layer < len(vit.blocks) - 1 or not keep:
                x = torch.cat([x[:, :lead], x[:, lead + len(prompts) :]], dim=1)
        streams.append(x)
    return torch.stack(streams)


LENGTHS = [(1, 0), (0, 1), (5, 1), (5, 3)]  # (S, M)


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_both_forms_are_equations_7_to_10(kind: str, form: Any, keep: bool, lengths: tuple[int, int]) -> None:
    for depth, share in product((1, 3), (False, True) if lengths[0] else (False,)):
        semantic, modality = {"length": lengths[0], "share": share}, {"length": lengths[1]}
        network = redrawn(kind, depth, semantic=semantic, modality=modality, **OFF)
        assert network.prompts is not None
        images = small_images(network.backbone)
        expected = literal_tokens(network, images, keep)
        prompts = network.prompts()
        assert error_of(through(network.backbone, images, prompts, form, keep), expected) < 1e-13
        plain = through(network.backbone, images)
        assert (
            (through(network.backbone, images, prompts, form)[:, :, 0] - plain[:, :, 0])
            .abs()
            .amax(dim=-1)
            .gt(1e-4)
            .all()
        )


@pytest.mark.parametrize("keep", [False, True])
def test_baked_prefixes_are_the_same_numbers(keep: bool) -> None:
    network = redrawn()
    assert network.prompts is not None
    images, prompts = small_images(network.backbone).flatten(0, 1), network.prompts()
    prefixes = network.backbone.prefixes(prompts)
    baked = network.backbone(images, prompts, "prefix", keep, prefixes)
    assert torch.equal(baked, network.backbone(images, prompts, "prefix", keep))


@pytest.mark.parametrize("kind", ["clip", "registers"])
@torch.no_grad()
def test_prompts_enter_behind_cls_and_registers_and_after_norm_pre(kind: str) -> None:
    network = redrawn(kind, depth=1)
    backbone = network.backbone
    assert network.prompts is not None
    (prompts,), images = network.prompts(), small_images(backbone)
    seen: list[Tensor] = []
    backbone.vit.blocks[0].norm1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    backbone(images.flatten(0, 1), [prompts], "token")
    lead, count = {"clip": 1, "registers": 5}[kind], prompts.shape[1]
    entering, embedded = (x.unflatten(0, (3, 2)) for x in (seen[0], backbone.embed(images.flatten(0, 1))))
    assert torch.equal(entering[:, :, :lead], embedded[:, :, :lead])
    assert torch.equal(entering[:, :, lead : lead + count], prompts[:, None].expand(-1, images.shape[1], -1, -1))
    assert torch.equal(entering[:, :, lead + count :], embedded[:, :, lead:])
    kept = through(backbone, images, [prompts], "token", keep_prompts=True)
    dropped = torch.cat([kept[:, :, :lead], kept[:, :, lead + count :]], dim=2)
    assert torch.equal(dropped, through(backbone, images, [prompts], "token"))


# --- prefix = token ---------------------------------------------------------------------------------------------------


def switches() -> list[dict[str, Any]]:
    """Every combination that means something."""
    semantics = [{"length": 0}] + [{"length": s, "share": share} for s in (1, 5) for share in (False, True)]
    modalities = [{"length": 0}]
    modalities += [
        {"length": m, "source": source, "width": WORD_WIDTH} for m in (1, 3) for source in ("learned", "random")
    ]
    binds = [{"depth": 0}] + [{"depth": k, "external": external} for k in (1, 2) for external in (True, False)]
    return [
        {"semantic": semantic, "modality": modality, "bind": bind}
        for semantic, modality, bind in product(semantics, modalities, binds)
        if semantic["length"] or not bind.get("external")
    ]


def outputs_and_gradients(network: DMPT) -> dict[str, Tensor]:
    """All that the network says, and the gradients that a random linear function of it gives every trained tensor."""
    network.zero_grad()
    output = network(small_images(network.backbone))
    assert output.projected is not None
    assert output.z is not None
    said = {"features": output.features.x, "projected": output.projected.x, "z": output.z.x}
    for name, seen in network.heads(output, torch.tensor([0, 1])).items():
        said[f"logits {name}"] = seen.logits
    generator = seeded(7)
    sum((x * torch.randn(x.shape, generator=generator).to(x)).sum() for x in said.values()).backward()
    gradients = {}
    for name, parameter in network.trained().items():
        assert parameter.grad is not None, name
        gradients[f"gradient {name}"] = parameter.grad.clone()
    return {name: value.detach() for name, value in said.items()} | gradients


def by_form(network: DMPT, form: Any) -> dict[str, Tensor]:
    network.form = form
    return outputs_and_gradients(network)


def assert_forms_agree(network: DMPT) -> None:
    """Within 1e-10 in float64 and 1e-5 in float32 of a tensor's largest value.

    At this spread the bind prompt's rows are nearly equal, and the gradient of W_m is made of their differences: in
    float32 it has two digits fewer.
    """
    token, prefix = by_form(network, "token"), by_form(network, "prefix")
    network.double()
    token64, prefix64 = by_form(network, "token"), by_form(network, "prefix")
    for name in token:
        assert error_of(prefix64[name], token64[name]) < 1e-10, name
        tolerance = 1e-4 if ".external.query." in name else 1e-5
        assert error_of(prefix[name], token[name]) < tolerance, name


CASES = [
    pytest.param(kind, settings, marks=[] if kind == "clip" else pytest.mark.long, id=f"{kind}-{settings}")
    for kind, settings in product(KINDS, switches())
]
DEPTHS = {"clip": 2, "imagenet": 1, "dino": 2, "registers": 3, "qk_norm": 2}


@pytest.mark.parametrize(("kind", "settings"), CASES)
def test_prefix_is_token_in_outputs_and_gradients(kind: str, settings: dict[str, Any]) -> None:
    assert_forms_agree(redrawn(kind, DEPTHS[kind], double=False, heads="paper", **settings).eval())


@pytest.mark.parametrize("depth", [1, 3, 4])
@pytest.mark.parametrize("k", [0, 1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_prefix_is_token_at_every_depth(kind: str, k: int, depth: int) -> None:
    permuted = {"length": 3, "source": "permuted"}
    network = redrawn(kind, depth, double=False, heads="paper", bind={"depth": k}, modality=permuted)
    assert_forms_agree(network.eval())


@pytest.mark.parametrize("k", [0, 1])
def test_prefix_is_token_for_a_tower_that_is_trained(k: int) -> None:
    network = small_network(backbone={"tune": "full"}, bind={"depth": k}, heads="paper").eval()
    redraw(network.prompts, seeded(6))
    if network.bind is not None:
        redraw(network.bind, seeded(7))
    assert any(name.startswith("backbone.vit.patch_embed") for name in network.trained())
    assert_forms_agree(network)


# --- precision and training mode --------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_close_and_keeps_trained_tensors_in_float32(kind: str, form: str) -> None:
    network = redrawn(kind, double=False, prompts=form, heads="paper")
    images = small_images(network.backbone)
    expected = network(images)
    network.backbone.keep_in(torch.bfloat16)
    for name, parameter in network.backbone.vit.named_parameters():
        assert parameter.dtype == (torch.float32 if name.startswith("norm.") else torch.bfloat16), name
    assert all(parameter.dtype == torch.float32 for parameter in network.trained().values())
    with torch.autocast("cpu", torch.bfloat16):
        output = network(images)
    for name in ("features", "projected", "z"):
        value, reference = getattr(output, name).x, getattr(expected, name).x
        assert value.dtype == torch.float32
        assert error_of(value, reference) < 0.05
        assert nn.functional.cosine_similarity(value, reference, dim=-1).min() > 0.999
    output.features.x.square().sum().backward()
    for name, parameter in network.trained().items():
        if name.startswith(("prompts", "bind")):
            assert parameter.grad is not None, name
            assert parameter.grad.dtype == torch.float32
            assert parameter.grad.isfinite().all()
            assert parameter.grad.any(), name


def modes(backbone: Backbone) -> set[bool]:
    return {module.training for module in backbone.modules()}


def test_a_frozen_tower_stays_in_evaluation_mode_and_gets_no_gradient() -> None:
    network = redrawn()
    network.train()
    assert modes(network.backbone) == {False}
    assert network.get_submodule("heads").training
    before = {name: value.clone() for name, value in network.backbone.state_dict().items()}
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    network(small_images(network.backbone)).features.x.square().sum().backward()
    optimizer.step()
    for name, parameter in network.backbone.named_parameters():
        assert not parameter.requires_grad
        assert parameter.grad is None, name
    assert all(torch.equal(value, before[name]) for name, value in network.backbone.state_dict().items())
    assert not any(name.startswith("backbone") for name in network.trained())


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_tower_trains(kind: str) -> None:
    backbone = small_backbone(kind, tune="full")
    assert modes(backbone.train()) == {True}
    assert modes(backbone.eval()) == {False}
    network = small_network(kind, backbone={"tune": "full"}, semantic={"length": 0}, modality={"length": 0}, **OFF)
    weights = torch.randn(3, 2, 32, generator=seeded(9))
    (network(small_images(network.backbone)).features.x * weights).sum().backward()
    for name, parameter in network.backbone.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
    backbone.keep_in(torch.bfloat16)  # trained tensors stay in float32
    assert {p.dtype for p in backbone.parameters()} == {torch.float32}
