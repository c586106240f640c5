"""Other readings, controls and small variants of the paper's parts."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from by_hand import IDS, cosine, draw, labels_of, near, seeds, softmax, some, widths
from dmpt.base.errors import UserError
from dmpt.extensions.readings import LearnedAbsent, NoExchange, OneForAll, text_literal, words_for_prompts
from dmpt.method.bind import (
    ExternalInteraction,
    InteractionLayer,
    InternalInteraction,
    Linear,
    PromptIBind,
)
from dmpt.method.modalities import Features
from dmpt.method.prompts import pool
from dmpt.towers.phrases import TextTargets
from small import (
    NO_TEXT,
    PRESENT,
    TEXT_WIDTH,
    WORD_WIDTH,
    error_of,
    interaction_layer,
    redraw,
    seeded,
    small_images,
    small_model,
    small_network,
    small_words,
    through,
)

WIDTH = 32


# --- modality.source --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["words", "attribute"])
def test_words_are_pooled(source: str) -> None:
    assert torch.equal(words_for_prompts(source, 2, 999, small_words()), pool(small_words(), 2))


def test_more_prompts_than_words_are_refused() -> None:
    with pytest.raises(UserError, match=r"modality\.length is 4.*3 tokens"):
        words_for_prompts("words", 4, WORD_WIDTH, small_words())


@pytest.mark.parametrize("length", [1, 3])
def test_permuted_words_are_rolled_among_modalities(length: int) -> None:
    words, permuted = (words_for_prompts(source, length, 512, small_words()) for source in ("words", "permuted"))
    assert words.shape == permuted.shape == (3, length, WORD_WIDTH)
    for modality in range(3):
        assert torch.equal(permuted[modality], words[(modality - 1) % 3])
        assert not torch.equal(permuted[modality], words[modality])


@pytest.mark.parametrize("source", ["learned", "random"])
def test_controls_without_words_have_their_own_width(source: str) -> None:
    torch.manual_seed(0)
    vectors = words_for_prompts(source, 7, 200, None)
    assert vectors.shape == (3, 7, 200)
    assert vectors.std() == pytest.approx(0.02, rel=0.05)


# --- bind -------------------------------------------------------------------------------------------------------------


def test_without_exchange_prompts_stay_as_they_are() -> None:
    semantic, layer = torch.randn(3, 6, 5, 8, generator=seeded()), NoExchange()
    assert layer(Features(semantic, PRESENT)) is semantic
    assert not list(layer.parameters())


def shared_bind(depth: int = 2) -> PromptIBind:
    return PromptIBind(
        InteractionLayer(ExternalInteraction(8), OneForAll([InternalInteraction(8, 2)])) for _ in range(depth)
    )


@torch.no_grad()
def test_shared_attention_is_one_layer_three_times() -> None:
    bind, full = shared_bind(), PromptIBind(interaction_layer(8, 2) for _ in range(2))
    redraw(bind, seeded(), 0.3)
    own = bind.state_dict()
    full.load_state_dict(
        {
            n: own[n if ".internal." not in n else ".".join([*n.split(".")[:3], "0", *n.split(".")[4:]])]
            for n in full.state_dict()
        }
    )
    tokens = Features(torch.randn(3, 2, 7, 8, generator=seeded(1)))
    for one, other in zip(bind(tokens, slice(2, 4)), full(tokens, slice(2, 4)), strict=True):
        assert error_of(one, other) < 1e-6
    assert sum(".internal." in name for name in own) == sum(".internal." in n for n in full.state_dict()) // 3


@torch.no_grad()
def test_the_start_of_a_shared_bind_is_the_identity_on_class_tokens() -> None:
    tokens = torch.randn(3, 2, 7, 8, generator=seeded(1))
    assert torch.equal(shared_bind()(Features(tokens), slice(2, 4))[0], tokens[:, :, 0])


def test_learned_tokens_stand_for_the_absent_modality_in_the_bind() -> None:
    plain, learned = ExternalInteraction(WIDTH).double(), LearnedAbsent(WIDTH, Linear, 5).double()
    redraw(learned, seeded(1), std=0.3)
    plain.load_state_dict({n: t for n, t in learned.state_dict().items() if n != "absent"})
    semantic = torch.randn(3, 6, 5, WIDTH, generator=seeded(2)).double()
    filled = semantic.clone()
    for m, b in (~PRESENT).nonzero().tolist():
        filled[m, b] = learned.absent[m, 0]
    poisoned = Features(semantic.masked_fill(~PRESENT[..., None, None], torch.nan), PRESENT)
    whole = plain(Features(semantic))
    assert error_of(learned(poisoned), plain(Features(filled))) < 1e-12
    assert error_of(learned(Features(semantic)), whole) < 1e-12
    cut = Features(semantic, PRESENT)
    assert learned(cut)[0, 2].sub(plain(cut)[0, 2]).abs().max() > 0.1
    learned(Features(semantic)).sum().backward()  # a complete share of a batch gives them a gradient too, of zero
    assert learned.absent.grad is not None
    assert not learned.absent.grad.any()


def test_learned_tokens_start_as_small_as_words() -> None:
    torch.manual_seed(0)
    layer = LearnedAbsent(200, Linear, 7)
    assert layer.absent.shape == (3, 1, 7, 200)
    assert float(layer.absent.detach().std()) == pytest.approx(0.02, rel=0.05)


# --- feature and neck -------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_cls_and_bind_is_the_class_token_beside_the_mean_enriched_prompt() -> None:
    network = small_network(feature="cls+bind", **NO_TEXT)
    redraw(network, seeded(6), 0.2)
    network.double()
    images = small_images(network.backbone)
    assert network.prompts is not None
    assert network.bind is not None
    tokens = through(network.backbone, images, network.prompts(), "token", True)
    layer: Any = network.bind.layers[0]
    enriched = layer.external(Features(tokens[:, :, 2:7]))
    tokens = torch.cat([tokens[:, :, :2], enriched, tokens[:, :, 7:]], dim=2)
    cls = torch.stack([attention(x)[:, 0] for attention, x in zip(layer.internal, tokens, strict=True)])
    features = network(images).features.x
    assert features.shape == (3, 2, 2 * WIDTH)
    assert error_of(features[..., :WIDTH], network.backbone.norm(cls)) < 1e-12
    assert error_of(features[..., WIDTH:], network.backbone.norm(enriched.mean(dim=2))) < 1e-12


@torch.no_grad()
def test_cls_and_bind_leaves_absent_modalities_empty() -> None:
    network = small_network(feature="cls+bind", **NO_TEXT).eval()
    images = small_images(network.backbone, batch=3)
    present = torch.tensor([[True, True, True], [True, False, True], [True, True, False]])
    features = network(images.masked_fill(~present[..., None, None, None], torch.nan), present).features.x
    assert features.isfinite().all()
    assert (features.abs().sum(dim=-1) > 0).equal(present)


@torch.no_grad()
def test_cls_and_bind_projects_the_class_token_alone() -> None:
    network = small_network(feature="cls+bind", heads="paper", text={"z": "after"})
    redraw(network, seeded(6), 0.2)
    output = network.double()(small_images(network.backbone))
    assert output.projected is not None
    assert output.z is not None
    expected = output.features.x[..., :WIDTH] @ network.get_parameter("projection.weight").T
    for found in (output.projected, output.z):
        assert error_of(found.x, expected) < 1e-12


@pytest.mark.parametrize("heads", ["concat+modality", "concat", "modality"])
@pytest.mark.parametrize("modalities", [["rgb", "nir", "tir"], ["rgb", "tir"]], ids=str)
@torch.no_grad()
def test_neck_after_is_batch_norm_then_length_1(heads: str, modalities: list[str]) -> None:
    network, own_heads, _ = small_model(heads=heads, neck="after", data={"modalities": modalities}, **NO_TEXT)
    generator = seeded(4)
    for name, tensor in own_heads.named_buffers():
        if "running" in name:
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    redraw(own_heads, generator, 1.0)
    network.double().eval()
    images = small_images(network.backbone, batch=3)
    present = torch.ones(3, 3, dtype=torch.bool)
    present[1] = "nir" in modalities
    present[0, 2] = False
    features = network(images, present).features
    used = [i for i, m in enumerate(("rgb", "nir", "tir")) if m in modalities]
    expected = torch.zeros_like(features.x)
    for place, m in enumerate(used):
        neck: Any = own_heads.necks["concat" if "concat" in heads else modalities[place]]
        part = slice(place * WIDTH, (place + 1) * WIDTH) if "concat" in heads else slice(None)
        norm = neck.norm
        mean, variance = norm.running_mean[part], norm.running_var[part]
        expected[m] = (features.x[m] - mean) / (variance + norm.eps).sqrt() * norm.weight[part] + norm.bias[part]
    expected *= present[..., None]
    assert error_of(network.at_test(features).x, expected) < 1e-12
    joined = F.normalize(expected.transpose(0, 1).flatten(1), dim=-1)
    assert error_of(network.test_feature(features), joined) < 1e-12
    assert error_of(network.embed(images, present), joined) < 1e-12


# --- text.loss literal ------------------------------------------------------------------------------------------------


def literal_text(z: Tensor, text: Tensor, identities: int, scale: float) -> float:
    """Eq. 5 in each modality, every t_m^i the same prompt; Eq. 6 adds them."""
    total = 0.0
    for m in range(3):
        for image in z[m]:
            scores = [cosine(image, text[m]) * scale for _ in range(identities)]
            total += softmax(scores, 0)
    return total


def fixed(text: Tensor, scale: float) -> TextTargets:
    """Prompts of each modality ``(3, d)`` among those of another object."""
    return TextTargets(torch.stack([text + 1, text], dim=1).flatten(0, 1), torch.tensor([1, 3, 5]), scale)


@some
@given(seeds, st.integers(1, 6), st.integers(1, 200), widths, st.sampled_from([1.0, 100.0]))
def test_equation_5_as_printed_is_a_constant(seed: int, batch: int, ids: int, width: int, scale: float) -> None:
    z, text = draw(3, batch, width, seed=seed).requires_grad_(), draw(3, width, seed=seed + 1).requires_grad_()
    value = text_literal(Features(z), fixed(text, scale), ids)
    assert value.item() == near(3 * batch / ids)
    assert value.item() == near(literal_text(z.detach(), text.detach(), ids, scale))
    for gradient in torch.autograd.grad(value, (z, text)):
        assert gradient.abs().max() < 1e-10


@some
@given(labels_of(), seeds, st.data())
def test_the_order_of_the_batch_changes_nothing_of_it(labels: Tensor, seed: int, data: st.DataObject) -> None:
    order = torch.tensor(data.draw(st.permutations(range(len(labels)))))
    z, targets = draw(3, len(labels), TEXT_WIDTH, seed=seed), fixed(draw(3, TEXT_WIDTH, seed=seed + 1), 10)
    one, other = (text_literal(Features(x), targets, IDS).item() for x in (z, z[:, order]))
    assert one == near(other)


def test_the_literal_loss_counts_the_modalities_there_are() -> None:
    z, targets = draw(3, 6, TEXT_WIDTH, seed=3), fixed(draw(3, TEXT_WIDTH), 10)
    assert text_literal(Features(z, PRESENT), targets, IDS).item() == near(int(PRESENT.sum()) / IDS)
