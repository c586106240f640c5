"""Both kinds of prompts: where they start, what they are made of, and their order."""

import math
from itertools import product

import pytest
import torch

from dmpt.base.errors import UserError
from dmpt.method.prompts import ModalityPrompts, Prompts, SemanticPrompts, pool
from small import seeded, small_images, small_network, small_words

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
    words = small_words()
    torch.testing.assert_close(pool(words, 1), torch.stack([own.mean(dim=0, keepdim=True) for own in words]))


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5])
def test_more_groups_are_adaptive_averages(length: int) -> None:
    words = [own for own in small_words() if len(own) >= length]
    expected = []
    for own in words:
        ends = [(math.floor(g * len(own) / length), math.ceil((g + 1) * len(own) / length)) for g in range(length)]
        expected.append(torch.stack([own[start:end].sum(dim=0) / (end - start) for start, end in ends]))
    torch.testing.assert_close(pool(words, length), torch.stack(expected))


def test_more_groups_than_words_are_refused() -> None:
    with pytest.raises(UserError, match=r"modality\.length is 4.*3 tokens"):
        pool(small_words(), 4)


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
    network(small_images(network.backbone)).features.x.square().sum().backward()
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
