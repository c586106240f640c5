"""Learnable identities in the text prompts: the tower they pass, and the loss that trains them."""

from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from by_hand import IDS, draw, labels_of, literal_contrast, mean, near, seeds, some, widths
from clip_files import clip, save, save_config
from dmpt.base.errors import UserError
from dmpt.extensions.identity_text import IdentityText, text_identity
from dmpt.method.modalities import Features
from dmpt.settings.config import TextConfig
from dmpt.towers.phrases import PROMPTS
from small import LABELS, PRESENT, TEXT_WIDTH


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TextConfig:
    """A QuickGELU tower in open_clip's names."""
    monkeypatch.setenv("DMPT_CACHE", str(tmp_path / "cache"))
    return TextConfig(tower=save_config(tmp_path), weights=str(save(clip(), tmp_path, "safetensors")))


@torch.no_grad()
def test_identity_text_equals_encode_text(tiny: TextConfig) -> None:
    """With the embeddings of X itself in the places of X, it is the tower's answer to the written prompt."""
    model = clip()
    module = IdentityText(tiny, 2, "person")
    tokenizer = open_clip.SimpleTokenizer()
    module.tokens.copy_(model.token_embedding.weight[tokenizer.encode("X X X X")].expand_as(module.tokens))
    prompts = [prompt.replace("person", "X X X X person") for prompt in PROMPTS[::2]]
    expected = model.encode_text(tokenizer(prompts))
    torch.testing.assert_close(module(), expected[:, None].expand(3, 2, 32), atol=1e-5, rtol=1e-5)


def test_identity_text_trains_its_tokens_alone(tiny: TextConfig) -> None:
    torch.manual_seed(0)
    module = IdentityText(tiny, 5, "vehicle").train()
    assert list(dict(module.named_parameters())) == list(module.state_dict()) == ["tokens"]
    assert module.tokens.shape == (3, 5, 4, 48)
    assert module.tokens.std().item() == pytest.approx(0.02, rel=0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = module()
    assert features.dtype == torch.float32
    features.square().sum().backward()
    assert module.tokens.grad is not None
    assert bool((module.tokens.grad.abs().amax(dim=-1) > 0).all())
    tower = module._frozen[0]
    assert not tower.training
    assert all(parameter.grad is None for parameter in tower.parameters())
    module.double()
    assert module().dtype == torch.float64  # the tower follows


def test_identity_text_that_does_not_fit_the_context(tiny: TextConfig) -> None:
    with pytest.raises(UserError, match="at most 66"):
        IdentityText(replace(tiny, tokens=80), 1, "person")
    assert IdentityText(replace(tiny, tokens=66), 1, "person")().shape == (3, 1, 32)


# --- the loss ---------------------------------------------------------------------------------------------------------


@some
@given(labels_of(), seeds, widths, st.sampled_from([1.0, 14.3, 100.0]))
def test_text_loss_of_identities_is_the_transcription(labels: Tensor, seed: int, width: int, scale: float) -> None:
    z, text = draw(3, len(labels), width, seed=seed), draw(3, IDS, width, seed=seed + 1)
    losses = [
        literal_contrast(image, text[m], int(label), scale)
        for m in range(3)
        for image, label in zip(z[m], labels, strict=True)
    ]
    assert text_identity(Features(z), text, labels, scale).item() == near(mean(losses))


@some
@given(labels_of(), seeds, st.data())
def test_the_order_of_the_batch_changes_nothing_of_it(labels: Tensor, seed: int, data: st.DataObject) -> None:
    order = torch.tensor(data.draw(st.permutations(range(len(labels)))))
    z, texts = draw(3, len(labels), TEXT_WIDTH, seed=seed), draw(3, IDS, TEXT_WIDTH, seed=seed + 1)
    one = text_identity(Features(z), texts, labels, 10)
    assert text_identity(Features(z[:, order]), texts, labels[order], 10).item() == near(one.item())


@some
@given(seeds, st.sampled_from([1e-3, 0.5, 7.0, 1e4]))
def test_it_takes_the_direction_alone(seed: int, factor: float) -> None:
    z, texts = draw(3, 4, TEXT_WIDTH, seed=seed), draw(3, IDS, TEXT_WIDTH, seed=seed + 1)
    labels = torch.tensor([0, 0, 1, 3])
    expected = text_identity(Features(z), texts, labels, 20.0).item()
    assert text_identity(Features(z * factor), texts, labels, 20.0).item() == near(expected)
    assert text_identity(Features(z), texts * factor, labels, 20.0).item() == near(expected)


def test_it_is_of_the_modalities_there_are() -> None:
    z, texts = draw(3, 6, TEXT_WIDTH, seed=3).requires_grad_(), draw(3, IDS, TEXT_WIDTH, seed=5)
    own = [
        F.cross_entropy(10 * F.cosine_similarity(z[m, b], texts[m], dim=-1), LABELS[b])
        for m, b in PRESENT.nonzero().tolist()
    ]
    loss = text_identity(Features(z, PRESENT), texts, LABELS, 10)
    assert loss.item() == pytest.approx(torch.stack(own).mean().item())
    (gradient,) = torch.autograd.grad(loss, z)
    assert not gradient[~PRESENT].any()
