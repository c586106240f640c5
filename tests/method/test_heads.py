"""BNNeck and classifiers: what each head sees, and what a sample without some modality is to it."""

from typing import Any

import pytest
import torch

from dmpt.method.heads import BNNeck, Heads
from dmpt.method.modalities import Features
from dmpt.method.network import Output
from dmpt.settings.modalities import MODALITIES
from small import LABELS, PRESENT, TEXT_WIDTH, error_of, redraw, seeded, small_images, small_model

WIDTH, IDS = 32, 4
SINGLE = {"rgb": WIDTH, "nir": WIDTH, "tir": WIDTH}
CONCAT = {"concat": 3 * WIDTH}
NECKS = {
    "concat": CONCAT,
    "modality": SINGLE,
    "concat+modality": CONCAT | SINGLE,
    "paper": CONCAT | SINGLE | {"projected": 3 * TEXT_WIDTH},
}


@pytest.mark.parametrize("setting", NECKS)
def test_heads_are_those_of_the_setting(setting: str) -> None:
    network, heads, _ = small_model(heads=setting)
    redraw(network, seeded(6))
    network.double().train()
    necks: dict[str, Any] = dict(heads.necks.items())
    assert {name: neck.norm.num_features for name, neck in necks.items()} == NECKS[setting]
    output, labels = network(small_images(network.backbone, batch=5)), torch.tensor([0, 1, 1, 3, 2])
    answers = heads(output, labels)
    own = output.features.x
    features = dict(zip(SINGLE, own, strict=True)) | {"concat": torch.cat(list(own), dim=-1)}
    if setting == "paper":
        assert output.projected is not None
        features["projected"] = torch.cat(list(output.projected.x), dim=-1)
    else:
        assert output.projected is None
    assert set(answers) == set(NECKS[setting])
    for name, (feature, logits, seen) in answers.items():
        assert torch.equal(feature, features[name])  # the triplet loss sees it before batch normalisation
        assert torch.equal(seen, labels)
        neck = necks[name]
        deviation = feature.var(dim=0, unbiased=False).add(neck.norm.eps).sqrt()
        normed = (feature - feature.mean(dim=0)) / deviation * neck.norm.weight
        assert error_of(logits, normed @ neck.classifier.weight.T) < 1e-12
        assert logits.shape == (5, IDS)


def test_batch_norms_bias_is_frozen_at_zero_and_classifiers_have_none() -> None:
    network, heads, _ = small_model(heads="paper")
    for name, neck in heads.necks.items():
        norm, classifier = neck.get_submodule("norm"), neck.get_submodule("classifier")
        assert not norm.get_parameter("bias").requires_grad
        assert not norm.get_parameter("bias").any()
        assert classifier.bias is None
        assert f"heads.necks.{name}.norm.weight" in network.trained()
        assert f"heads.necks.{name}.norm.bias" not in network.trained()


def test_classifiers_start_with_a_spread_of_a_thousandth() -> None:
    torch.manual_seed(0)
    weight = BNNeck(400, 300).classifier.weight.detach()
    assert float(weight.std()) == pytest.approx(0.001, rel=0.05)
    assert abs(float(weight.mean())) < 0.001 * 4 / 400


# --- samples that lack modalities -------------------------------------------------------------------------------------


def small_heads(setting: str = "concat+modality") -> Heads:
    heads = Heads(setting, WIDTH, None, IDS).double().train()
    redraw(heads, seeded(5), std=0.2)
    return heads


def test_heads_see_the_samples_they_can() -> None:
    heads = small_heads()
    features = torch.randn(3, 6, WIDTH, generator=seeded(3)).double()
    poisoned = features.masked_fill(~PRESENT[..., None], torch.nan)
    answers = heads(Output(Features(poisoned, PRESENT)), LABELS)
    complete = PRESENT.all(dim=0)
    expected = {name: (features[m][PRESENT[m]], LABELS[PRESENT[m]]) for m, name in enumerate(MODALITIES)}
    expected |= {"concat": (features.transpose(0, 1).flatten(1)[complete], LABELS[complete])}
    assert answers.keys() == expected.keys()
    for name, (feature, labels) in expected.items():
        assert torch.equal(answers[name].feature, feature)
        assert torch.equal(answers[name].labels, labels)
        moved = 0.9 * torch.zeros(feature.shape[1]) + 0.1 * feature.mean(dim=0)  # statistics of these rows alone
        assert error_of(heads.necks[name].get_buffer("norm.running_mean"), moved) < 1e-6


def test_a_head_without_a_pair_of_samples_sees_none_and_keeps_its_statistics() -> None:
    heads = small_heads()
    present = torch.ones(3, 6, dtype=torch.bool)
    present[2, 1:] = False  # one thermal image, one complete sample
    features = torch.randn(3, 6, WIDTH, generator=seeded(3)).double().requires_grad_()
    before = {name: value.clone() for name, value in heads.named_buffers()}
    answers = heads(Output(Features(features, present)), LABELS)
    for name in ("tir", "concat"):
        feature, logits, labels = answers[name]
        assert (len(feature), len(labels), logits.shape) == (0, 0, (0, IDS))
        for part in ("running_mean", "running_var", "num_batches_tracked"):
            assert torch.equal(before[f"necks.{name}.norm.{part}"], heads.get_buffer(f"necks.{name}.norm.{part}"))
        (gradient,) = torch.autograd.grad(logits.sum(), heads.necks[name].get_parameter("classifier.weight"))
        assert not gradient.any()  # a gradient of zero, so that processes have gradients for the same tensors
    for name in ("rgb", "nir"):
        assert torch.equal(answers[name].labels, LABELS)


@pytest.mark.parametrize(("modalities", "complete"), [(("rgb", "nir"), [0, 1, 5]), (("nir", "tir"), [0, 2, 5])])
def test_a_complete_sample_has_the_modalities_in_use(modalities: tuple[str, ...], complete: list[int]) -> None:
    present = torch.tensor([[1, 1, 0, 0, 1, 1], [1, 1, 1, 0, 0, 1], [1, 0, 1, 1, 0, 1]], dtype=torch.bool)
    heads = Heads("concat+modality", WIDTH, None, IDS, modalities).double().train()
    features = torch.randn(3, 6, WIDTH, generator=seeded(3)).double()
    answers = heads(Output(Features(features, present)), LABELS)
    assert list(answers) == ["concat", *modalities]
    used = [MODALITIES.index(name) for name in modalities]
    expected = features[used][:, complete].transpose(0, 1).flatten(1)
    assert torch.equal(answers["concat"].feature, expected)
