"""Prompts: against a literal transcription of Eq. 7-10, and their two forms against each other."""

import math
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dmpt.base.errors import UserError
from dmpt.method.backbone import Backbone
from dmpt.method.network import DMPT
from dmpt.method.prompts import ModalityPrompts, Prompts, SemanticPrompts, modality_words, pool
from dmpt.settings.config import ModalityConfig
from small import KINDS, WORD_WIDTH, error_of, redraw, seeded, small_backbone, small_images, small_network, small_words

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
        tokens += list(own.tokens[layer, 0 if network.config.semantic.share else modality])
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
        assert error_of(network.backbone(images, prompts, form, keep), expected) < 1e-13
        plain = network.backbone(images)
        assert (network.backbone(images, prompts, form)[:, :, 0] - plain[:, :, 0]).abs().amax(dim=-1).gt(1e-4).all()


@pytest.mark.parametrize("keep", [False, True])
def test_baked_prefixes_are_the_same_numbers(keep: bool) -> None:
    network = redrawn()
    assert network.prompts is not None
    images, prompts = small_images(network.backbone), network.prompts()
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
    backbone(images, [prompts], "token")
    lead, count = {"clip": 1, "registers": 5}[kind], prompts.shape[1]
    entering, embedded = seen[0], backbone.embed(images)
    assert torch.equal(entering[:, :, :lead], embedded[:, :, :lead])
    assert torch.equal(entering[:, :, lead : lead + count], prompts[:, None].expand(-1, images.shape[1], -1, -1))
    assert torch.equal(entering[:, :, lead + count :], embedded[:, :, lead:])
    kept = backbone(images, [prompts], "token", keep_prompts=True)
    dropped = torch.cat([kept[:, :, :lead], kept[:, :, lead + count :]], dim=2)
    assert torch.equal(dropped, backbone(images, [prompts], "token"))


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


def outputs_and_gradients(network: DMPT, images: Tensor) -> dict[str, Tensor]:
    """All that the network says, and the gradients that a random linear function of it gives every trained tensor."""
    network.zero_grad()
    output = network(images)
    assert output.projected is not None
    assert output.z is not None
    said = {"features": output.features, "projected": output.projected, "z": output.z}
    for name, (_, logits) in network.heads(output.features, output.projected).items():
        said[f"logits {name}"] = logits
    generator = seeded(7)
    sum((x * torch.randn(x.shape, generator=generator).to(x)).sum() for x in said.values()).backward()
    gradients = {}
    for name, parameter in network.trained().items():
        assert parameter.grad is not None, name
        gradients[f"gradient {name}"] = parameter.grad.clone()
    return {name: value.detach() for name, value in said.items()} | gradients


def by_form(network: DMPT, form: str) -> dict[str, Tensor]:
    object.__setattr__(network.config, "prompts", form)
    return outputs_and_gradients(network, small_images(network.backbone))


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


@pytest.mark.parametrize("k", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_baking_changes_nothing_and_training_forgets_it(kind: str, k: int) -> None:
    network = redrawn(kind, bind={"depth": k}).eval()
    images = small_images(network.backbone)
    expected = network(images).features
    network.bake()
    assert torch.equal(network(images).features, expected)
    network.train()
    redraw(network, seeded(8))
    network.eval()
    assert not torch.equal(network(images).features, expected)


def test_loading_forgets_what_was_baked() -> None:
    one, other = redrawn().eval(), small_network().double().eval()
    images = small_images(one.backbone)
    other.bake()
    other.load_own_state(one.own_state(), "adapter")
    assert torch.equal(other(images).features, one(images).features)


# --- semantic prompts -------------------------------------------------------------------------------------------------


def test_semantic_prompts_start_within_vpts_bound() -> None:
    torch.manual_seed(0)
    tokens = SemanticPrompts(layers=4, length=50, width=64, patch=16).tokens.detach()
    bound = math.sqrt(6 / (3 * 16 * 16 + 64))
    assert tokens.shape == (4, 3, 50, 64)
    assert bound * 0.999 < tokens.abs().max() <= bound
    assert tokens.std() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert abs(tokens.mean()) < bound / 50


def test_the_networks_semantic_prompts_take_the_towers_patch() -> None:
    for kind, patch in (("clip", 16), ("dino", 14)):
        network = small_network(kind, semantic={"length": 40})
        bound = math.sqrt(6 / (3 * patch * patch + 32))
        assert bound * 0.99 < network.get_parameter("prompts.semantic.tokens").abs().max() <= bound


def test_shared_semantic_prompts_are_one_set() -> None:
    shared = SemanticPrompts(2, 5, 8, 16, share=True)
    assert shared.tokens.shape == (2, 1, 5, 8)
    prompts = shared()
    assert prompts.shape == (2, 3, 5, 8)
    assert torch.equal(prompts[:, 0], prompts[:, 1])
    assert torch.equal(prompts[:, 0], prompts[:, 2])
    prompts.sum().backward()
    assert torch.equal(shared.tokens.grad, torch.full_like(shared.tokens, 3))
    own = SemanticPrompts(2, 5, 8, 16)()
    assert not torch.equal(own[:, 0], own[:, 1])


# --- modality prompts -------------------------------------------------------------------------------------------------


def test_one_group_of_words_is_their_mean() -> None:
    for words in small_words():
        torch.testing.assert_close(pool(words, 1), words.mean(dim=0, keepdim=True))


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5])
def test_more_groups_are_adaptive_averages(length: int) -> None:
    words = small_words()[1]
    groups = []
    for group in range(length):
        start, end = math.floor(group * len(words) / length), math.ceil((group + 1) * len(words) / length)
        groups.append(sum(words[start:end]) / (end - start))
    torch.testing.assert_close(pool(words, length), torch.stack(groups))


def test_more_groups_than_words_are_refused() -> None:
    with pytest.raises(UserError, match=r"modality\.length is 4.*3 tokens"):
        modality_words(ModalityConfig(length=4), small_words())


@pytest.mark.parametrize("length", [1, 3])
def test_permuted_words_are_rolled_among_modalities(length: int) -> None:
    words = modality_words(ModalityConfig(length=length, source="words"), small_words())
    permuted = modality_words(ModalityConfig(length=length, source="permuted"), small_words())
    assert words.shape == permuted.shape == (3, length, WORD_WIDTH)
    for modality in range(3):
        assert torch.equal(permuted[modality], words[(modality - 1) % 3])
        assert not torch.equal(permuted[modality], words[modality])


@pytest.mark.parametrize("source", ["learned", "random"])
def test_controls_without_words_have_their_own_width(source: Any) -> None:
    torch.manual_seed(0)
    vectors = modality_words(ModalityConfig(length=7, source=source, width=200), None)
    assert vectors.shape == (3, 7, 200)
    assert vectors.std() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("source", ["words", "permuted", "random", "learned"])
def test_words_are_a_buffer_unless_learned(source: str) -> None:
    network = small_network(modality={"length": 2, "source": source})
    learned = source == "learned"
    name = "prompts.modality.words"
    assert (name in network.trained()) is learned
    assert (name in dict(network.named_buffers())) is not learned
    assert name in network.own_state()
    before = network.own_state()[name].clone()
    optimizer = torch.optim.Adam(network.trained().values())
    network(small_images(network.backbone)).features.square().sum().backward()
    optimizer.step()
    assert torch.equal(network.own_state()[name], before) is not learned


def test_the_mapping_is_one_linear_per_layer_shared_by_the_modalities() -> None:
    words = torch.randn(3, 2, 6, generator=seeded())
    mapped = ModalityPrompts(words, layers=4, width=8)
    assert {name: tuple(p.shape) for name, p in mapped.named_parameters()} == {
        f"map.{layer}.{part}": shape for layer in range(4) for part, shape in (("weight", (8, 6)), ("bias", (8,)))
    }
    prompts = mapped()
    assert prompts.shape == (4, 3, 2, 8)
    for layer, modality in product(range(4), range(3)):
        torch.testing.assert_close(prompts[layer, modality], mapped.map[layer](words[modality]))


@pytest.mark.parametrize(("semantic", "modality"), [(5, 2), (5, 0), (0, 2)])
def test_modality_prompts_come_before_semantic_ones(semantic: int, modality: int) -> None:
    own = SemanticPrompts(4, semantic, 8, 16) if semantic else None
    mapped = ModalityPrompts(torch.randn(3, modality, 6), 4, 8) if modality else None
    layers = Prompts(own, mapped, layers=4)()
    assert [tuple(layer.shape) for layer in layers] == [(3, modality + semantic, 8)] * 4
    for index, layer in enumerate(layers):
        if mapped is not None:
            assert torch.equal(layer[:, :modality], mapped()[index])
        if own is not None:
            assert torch.equal(layer[:, modality:], own()[index])


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
        value, reference = getattr(output, name), getattr(expected, name)
        assert value.dtype == torch.float32
        assert error_of(value, reference) < 0.05
        assert nn.functional.cosine_similarity(value, reference, dim=-1).min() > 0.999
    output.features.square().sum().backward()
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
    assert network.heads.training
    before = {name: value.clone() for name, value in network.backbone.state_dict().items()}
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    network(small_images(network.backbone)).features.square().sum().backward()
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
    (network(small_images(network.backbone)).features * weights).sum().backward()
    for name, parameter in network.backbone.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
    backbone.keep_in(torch.bfloat16)  # trained tensors stay in float32
    assert {p.dtype for p in backbone.parameters()} == {torch.float32}


@torch.no_grad()
def test_another_precision_forgets_what_was_baked() -> None:
    network = small_network(text={"loss": "off"}).eval()
    redraw(network, seeded(6), 0.2)
    network.bake()
    network.double()
    images = small_images(network.backbone)
    features = network(images).features
    network.bake()
    assert error_of(features, network(images).features) < 1e-12
