"""PromptIBind against a slow, literal transcription of Eq. 11-16."""

import math
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dmpt.method.bind import (
    ExternalInteraction,
    InteractionLayer,
    InternalInteraction,
    PromptIBind,
)
from dmpt.method.modalities import Features
from small import interaction_layer, redraw, seeded

WIDTH, HEADS, BATCH, SEMANTIC, PATCHES = 8, 2, 3, 2, 3
RGB, NIR, TIR = range(3)
PRESENT = torch.tensor([[True, True, False], [True, False, False], [True, True, True]])  # (modality, sample)


# --- Eq. 11-16 as printed: one number after another -------------------------------------------------------------------


def affine(linear: Any, x: Tensor) -> Tensor:
    y: Tensor = linear.weight @ x + linear.bias
    return y


def attended(query: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
    """One query's softmax-weighted sum of the values."""
    exponentials = [torch.exp((query * key).sum() / math.sqrt(len(query))) for key in keys]
    total = sum(exponentials, torch.zeros(()))
    return sum((e / total * v for e, v in zip(exponentials, values, strict=True)), torch.zeros_like(values[0]))


def literal_external(layer: ExternalInteraction, semantic: Tensor, present: Tensor | None) -> Tensor:
    """Ŝ ``(3, B, S, D)`` to S_b2m."""
    enriched = torch.empty_like(semantic)
    for b in range(semantic.shape[1]):
        members = [m for m in (RGB, NIR, TIR) if present is None or present[m, b]]
        bind = []  # S_bind W_b, row by row
        for s in range(semantic.shape[2]):
            rows = [affine(layer.to_bind[m], semantic[m, b, s]) for m in members]
            mean = sum(rows, torch.zeros_like(rows[0])) / len(members)  # Eq. 11
            bind.append(affine(layer.key, mean))  # Eq. 13
        for m, s in product((RGB, NIR, TIR), range(semantic.shape[2])):
            query = affine(layer.query[m], semantic[m, b, s])  # Eq. 13
            enriched[m, b, s] = semantic[m, b, s] + attended(query, bind, bind)  # Eq. 12 and 14
    return enriched


def literal_internal(layer: InternalInteraction, tokens: Tensor) -> Tensor:
    """One modality's tokens ``(B, N, D)``: x + MHSA(LN(x)), Eq. 15."""
    batch, _, width = tokens.shape
    size = width // HEADS
    out = torch.empty_like(tokens)
    for b in range(batch):
        projected = []
        for x in tokens[b]:
            mean = x.sum() / width
            variance = ((x - mean) ** 2).sum() / width
            normed = (x - mean) / torch.sqrt(variance + 1e-5) * layer.norm.weight + layer.norm.bias
            projected.append(affine(layer.qkv, normed))
        for n, x in enumerate(tokens[b]):
            of_heads = []
            for h in range(HEADS):
                q, k, v = (slice(part * width + h * size, part * width + (h + 1) * size) for part in range(3))
                of_heads.append(attended(projected[n][q], [p[k] for p in projected], [p[v] for p in projected]))
            out[b, n] = x + affine(layer.proj, torch.cat(of_heads))
    return out


def literal_layer(layer: InteractionLayer, tokens: Tensor, semantic: slice, present: Tensor | None) -> Tensor:
    """F of Eq. 16."""
    tokens = tokens.clone()
    if isinstance(layer.external, ExternalInteraction):
        tokens[:, :, semantic] = literal_external(layer.external, tokens[:, :, semantic], present)
    return torch.stack([literal_internal(layer.internal[m], tokens[m]) for m in (RGB, NIR, TIR)])


def literal_bind(bind: PromptIBind, tokens: Tensor, semantic: slice, present: Tensor | None) -> Tensor:
    for layer in bind.layers:
        tokens = literal_layer(layer, tokens, semantic, present)
    return tokens[:, :, 0]


# --- helpers ----------------------------------------------------------------------------------------------------------


def redrawn(module: nn.Module, std: float = 0.3) -> Any:
    """In float64; a spread at which attention is far from uniform."""
    module.double()
    redraw(module, seeded(3), std)
    return module.requires_grad_(False)


def a_bind(depth: int, external: bool = True) -> PromptIBind:
    return PromptIBind(interaction_layer(WIDTH, HEADS, external) for _ in range(depth))


def tokens_of(modality: int = 1, registers: int = 0, seed: int = 4) -> tuple[Tensor, slice]:
    """Tokens ``(3, B, N, D)`` in the order class token, registers, M, S, patches, and where S stands."""
    start = 1 + registers + modality
    count = start + SEMANTIC + PATCHES
    tokens = torch.randn(3, BATCH, count, WIDTH, generator=seeded(seed), dtype=torch.float64)
    return tokens, slice(start, start + SEMANTIC)


def shaken(tokens: Tensor, modality: int, where: slice) -> Tensor:
    """The same tokens but for some of one modality."""
    changed = tokens.clone()
    changed[modality, :, where] += torch.randn(changed[modality, :, where].shape, generator=seeded(5)).double()
    return changed


def assert_same(value: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)


masks = pytest.mark.parametrize("present", [None, PRESENT], ids=["all", "some"])


# --- equality with the transcription ----------------------------------------------------------------------------------


@masks
@pytest.mark.parametrize("std", [0.02, 0.3])
def test_external_interaction_is_equations_11_to_14(present: Tensor | None, std: float) -> None:
    layer = redrawn(ExternalInteraction(WIDTH), std)
    tokens, semantic = tokens_of()
    enriched = layer(Features(tokens[:, :, semantic], present))
    assert_same(enriched, literal_external(layer, tokens[:, :, semantic], present))
    assert (enriched - tokens[:, :, semantic]).abs().amin(dim=(2, 3)).gt(0).all()


@pytest.mark.parametrize("std", [0.02, 0.3])
def test_internal_interaction_is_equation_15(std: float) -> None:
    layer = redrawn(InternalInteraction(WIDTH, HEADS), std)
    x = tokens_of()[0][RGB]
    assert_same(layer(x), literal_internal(layer, x))


@masks
@pytest.mark.parametrize("external", [True, False])
@pytest.mark.parametrize("registers", [0, 2])
@pytest.mark.parametrize("modality", [0, 1, 2])
def test_a_layer_is_both_interactions(modality: int, registers: int, external: bool, present: Tensor | None) -> None:
    layer = redrawn(interaction_layer(WIDTH, HEADS, external))
    tokens, semantic = tokens_of(modality, registers)
    out, entered = layer(Features(tokens, present), semantic)
    assert_same(out, literal_layer(layer, tokens, semantic, present))
    enriched = tokens.clone()
    if external:
        enriched[:, :, semantic] = literal_external(layer.external, tokens[:, :, semantic], present)
    assert_same(entered, enriched)


@masks
@pytest.mark.parametrize("external", [True, False])
@pytest.mark.parametrize("registers", [0, 2])
@pytest.mark.parametrize("modality", [0, 1, 2])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_k_layers_are_equation_16(
    depth: int, modality: int, registers: int, external: bool, present: Tensor | None
) -> None:
    bind = redrawn(a_bind(depth, external))
    tokens, semantic = tokens_of(modality, registers)
    cls, enriched = bind(Features(tokens, present), semantic)
    assert_same(cls, literal_bind(bind, tokens, semantic, present))
    for layer in bind.layers[:-1]:
        tokens = literal_layer(layer, tokens, semantic, present)
    last = tokens[:, :, semantic]
    assert_same(enriched, literal_external(bind.layers[-1].external, last, present) if external else last)


def test_internal_interaction_alone_needs_no_semantic_prompts() -> None:
    bind = redrawn(a_bind(2, external=False))
    tokens, _ = tokens_of()
    assert_same(bind(Features(tokens), slice(2, 2))[0], literal_bind(bind, tokens, slice(2, 2), None))


def test_leaving_out_other_queries_does_not_change_the_class_token() -> None:
    layer = redrawn(interaction_layer(WIDTH, HEADS))
    tokens, semantic = tokens_of()
    cls, entered = layer(Features(tokens), semantic, cls_only=True)
    out, same = layer(Features(tokens), semantic)
    assert_same(cls, out[:, :, :1])
    assert torch.equal(entered, same)


# --- what is exchanged ------------------------------------------------------------------------------------------------


def moved(bind: PromptIBind, part: str, source: int, present: Tensor | None = None) -> Tensor:
    """How far each class token ``(3, B)`` moves when a part of one modality's tokens changes."""
    tokens, semantic = tokens_of(modality=2, registers=1)
    parts = {
        "cls": slice(0, 1),
        "registers": slice(1, 2),
        "modality": slice(2, 4),
        "semantic": semantic,
        "patches": slice(semantic.stop, None),
    }
    before, after = (bind(Features(x, present), semantic)[0] for x in (tokens, shaken(tokens, source, parts[part])))
    return (after - before).abs().amax(dim=-1)


def others(modality: int) -> list[int]:
    return [m for m in (RGB, NIR, TIR) if m != modality]


@pytest.mark.parametrize("source", [RGB, NIR, TIR])
@pytest.mark.parametrize("part", ["cls", "registers", "modality", "patches"])
def test_one_layer_exchanges_nothing_but_semantic_prompts(part: str, source: int) -> None:
    change = moved(redrawn(a_bind(1)), part, source)
    assert not change[others(source)].any()
    assert (change[source] > 1e-6).all()


@pytest.mark.parametrize("source", [RGB, NIR, TIR])
def test_one_layer_exchanges_semantic_prompts_of_all_modalities(source: int) -> None:
    assert (moved(redrawn(a_bind(1)), "semantic", source) > 1e-6).all()


def test_a_second_layer_brings_the_other_modalities_patches() -> None:
    assert (moved(redrawn(a_bind(2)), "patches", NIR) > 1e-9).all()


@pytest.mark.parametrize("part", ["semantic", "patches"])
@pytest.mark.parametrize("depth", [1, 3])
def test_without_external_interaction_modalities_stay_apart(depth: int, part: str) -> None:
    change = moved(redrawn(a_bind(depth, external=False)), part, TIR)
    assert not change[others(TIR)].any()
    assert (change[TIR] > 1e-6).all()


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("source", [RGB, NIR])
def test_an_absent_modality_tells_the_others_nothing(source: int, depth: int) -> None:
    change = moved(redrawn(a_bind(depth)), "semantic", source, PRESENT)
    there = PRESENT[source]
    assert not change[others(source)][:, ~there].any()
    assert (change[others(source)][:, there] > 1e-9).all()


def test_samples_of_a_batch_do_not_meet() -> None:
    bind = redrawn(a_bind(2))
    tokens, semantic = tokens_of()
    alone = [bind(Features(tokens[:, [b]]), semantic)[0] for b in range(BATCH)]
    assert_same(torch.cat(alone, dim=1), bind(Features(tokens), semantic)[0])


# --- beginning and size -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("external", [True, False])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_start_is_the_identity_on_class_tokens(depth: int, external: bool) -> None:
    tokens, semantic = tokens_of()
    cls, _ = a_bind(depth, external).double()(Features(tokens), semantic)
    assert torch.equal(cls, tokens[:, :, 0])


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("depth", [1, 2])
def test_parameter_counts_of_vit_base(depth: int) -> None:
    with torch.device("meta"):
        bind, alone = (
            PromptIBind(interaction_layer(768, 12, external) for _ in range(depth)) for external in (True, False)
        )
    for layer in bind.layers:
        assert count(layer.external) == 4_134_144
        assert sum(count(one.qkv) + count(one.proj) for one in layer.internal) == 7_087_104
        assert sum(count(one.norm) for one in layer.internal) == 4_608
        assert len([m for m in layer.external.modules() if isinstance(m, nn.Linear)]) == 7
    assert count(bind) == depth * (4_134_144 + 7_087_104 + 4_608)
    assert count(alone) == depth * (7_087_104 + 4_608)
