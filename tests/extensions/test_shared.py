"""The shared part, the statistics of its cosines, and its term of the loss."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dmpt.extensions.metric_losses import metric_loss
from dmpt.extensions.shared import _SETS, SharedPart, shared_part
from dmpt.method.heads import BNNeck, Seen
from dmpt.method.losses import batch_hard_triplet, cross_entropy
from dmpt.method.modalities import Features
from dmpt.method.network import Output
from runs import fit, settings, toy, with_
from small import (
    LABELS,
    PRESENT,
    Small,
    error_of,
    objective_of,
    redraw,
    seeded,
    small_config,
    small_images,
    small_model,
    small_network,
)

WIDTH, IDS = 32, 4
DROPOUT: dict[str, Any] = {"dropout": 0.4}


def test_the_shared_part_is_the_mean_over_the_modalities_there_are() -> None:
    part = SharedPart(WIDTH).double()
    features = torch.randn(3, 6, WIDTH, generator=seeded(0)).double()
    shared = part(Features(features, PRESENT).masked())
    for b in range(6):
        own = [part.project[m](features[m, b]) for m in range(3) if PRESENT[m, b]]
        assert error_of(shared[b], torch.stack(own).mean(dim=0)) < 1e-12


def test_without_dropout_there_is_no_shared_part() -> None:
    assert shared_part(small_network()) is None
    assert shared_part(small_network(missing={"shared": True})) is not None
    assert shared_part(small_network(missing={"dropout": 0.2, "shared": False})) is None


def test_the_network_knows_what_a_complete_sample_has() -> None:
    part = shared_part(small_network(missing=DROPOUT, data={"modalities": ["rgb", "nir"]}))
    assert part is not None
    assert part.complete == 3


# --- its term of the loss ---------------------------------------------------------------------------------------------


def spoken(**loss: Any) -> tuple[SharedPart, BNNeck, Any]:
    """A shared part, its neck, and the loss of these and of one head."""
    part, neck = SharedPart(WIDTH), BNNeck(WIDTH, IDS)
    redraw(neck, seeded(1), 0.5)
    rgb = Seen(torch.randn(6, WIDTH, generator=seeded(5)), torch.randn(6, IDS, generator=seeded(6)), LABELS)
    config = small_config(text={"loss": "off"}, missing=DROPOUT, loss=loss)
    return part, neck, objective_of(config, {"rgb": rgb}, shared=(part, neck))


def said() -> Output:
    features = Features(torch.randn(3, 6, WIDTH, generator=seeded(2)), PRESENT).masked()
    return Output(features, also={"shared": torch.randn(6, WIDTH, generator=seeded(3))})


def test_the_shared_part_has_the_forms_and_weights_of_the_heads() -> None:
    form = {
        "ce": 2.0,
        "metric_weight": 3.0,
        "shared": 1.5,
        "smoothing": 0.3,
        "metric": "normalised",
        "metric_scale": 4.0,
    }
    _, neck, objective = spoken(**form)
    output = said()
    ce = cross_entropy(neck(output.also["shared"]), LABELS, 0.3)
    triplet = metric_loss(small_config(loss=form).loss, output.also["shared"], LABELS)
    assert objective(output, LABELS)["shared"].item() == pytest.approx(1.5 * (2 * ce + 3 * triplet).item())


def test_the_weight_of_the_shared_part() -> None:
    def terms(**loss: float) -> dict[str, Tensor]:
        return spoken(**loss)[2](said(), LABELS)

    assert terms(shared=2.5)["shared"].item() == pytest.approx(2.5 * terms()["shared"].item())
    assert "shared" not in terms(shared=0)
    assert terms(shared=0)["ce"] == terms()["ce"]


def test_its_statistics_are_taken_on_the_way() -> None:
    part, _, objective = spoken()
    assert (part.variance < 0).all()
    objective(said(), LABELS)
    other = SharedPart(WIDTH)
    other.observe(said().features, said().also["shared"], LABELS)
    assert torch.equal(part.mean, other.mean)
    assert torch.equal(part.variance, other.variance)
    assert (part.variance >= 0).any()


def test_a_head_without_a_pair_of_samples_adds_nothing() -> None:
    network, heads, config = small_model(
        ids=IDS, heads="concat+modality", missing=DROPOUT, text={"loss": "off"}, modality={"source": "learned"}
    )
    redraw(network.double(), seeded(5), std=0.2)
    network.train()
    present = torch.ones(3, 6, dtype=torch.bool)
    present[2, 1:] = False  # one thermal image, one complete sample
    features = torch.randn(3, 6, WIDTH, generator=seeded(3)).double().requires_grad_()
    shared = torch.randn(6, WIDTH, generator=seeded(4)).double()
    output = Output(Features(features, present), also={"shared": shared})
    logits = {
        name: heads.necks[name](x) for name, x in (("rgb", features[0]), ("nir", features[1]), ("shared", shared))
    }
    ce = [cross_entropy(logits[name], LABELS) for name in ("rgb", "nir")]
    triplet = [batch_hard_triplet(features[m], LABELS) for m in (0, 1)]
    before = heads.get_buffer("necks.tir.norm.running_mean").clone()
    terms = Small(network, heads, config).objective()(output, LABELS)
    assert torch.equal(before, heads.get_buffer("necks.tir.norm.running_mean"))
    assert terms["ce"].item() == pytest.approx(sum(x.item() for x in ce) / 4)
    assert terms["metric"].item() == pytest.approx(sum(x.item() for x in triplet) / 4)
    own = cross_entropy(logits["shared"], LABELS) + batch_hard_triplet(shared, LABELS)
    assert terms["shared"].item() == pytest.approx(own.item())
    torch.stack(list(terms.values())).sum().backward()
    assert features.grad is not None
    assert not features.grad[2, 1:].any()


# --- standardisation --------------------------------------------------------------------------------------------------


def test_running_statistics_are_those_of_different_identities() -> None:
    part = SharedPart(WIDTH)
    present = torch.rand(3, 40, generator=seeded(1)) > 0.4
    present[0] |= ~present.any(dim=0)
    labels = torch.arange(40) % 5
    features = (torch.randn(3, 40, WIDTH, generator=seeded(2)) + 1).masked_fill(~present[..., None], 0)
    shared = torch.randn(40, WIDTH, generator=seeded(3))
    part.observe(Features(features, present), shared, labels)
    found: dict[int, list[float]] = {}
    for i in range(40):
        for j in range(i + 1, 40):
            if labels[i] != labels[j]:
                both = [m for m in range(3) if present[m, i] and present[m, j]]
                one, other = (features[both, x].flatten() for x in (i, j)) if both else (shared[i], shared[j])
                which = sum(2**m for m in both)
                found.setdefault(which, []).append(float(F.cosine_similarity(one, other, dim=0)))
    assert len(found) == 8
    for which, values in found.items():
        assert float(part.mean[which]) == pytest.approx(sum(values) / len(values), abs=1e-5)
        assert float(part.variance[which]) == pytest.approx(float(torch.tensor(values).var()), rel=1e-3)
    first = part.mean.clone()
    part.observe(Features(features * 0 + 1), shared, labels)  # all the same: cosine 1
    assert float(part.mean[_SETS - 1]) == pytest.approx(0.9 * float(first[_SETS - 1]) + 0.1, abs=1e-5)
    assert torch.equal(part.mean[1 : _SETS - 1], first[1 : _SETS - 1])


@torch.no_grad()
def test_whole_samples_cut_down_stand_for_every_set() -> None:
    """Against pairs that are cut down one by one; nothing of a sample that lacks the modalities is taken."""
    part = SharedPart(WIDTH)
    present = torch.ones(3, 20, dtype=torch.bool)
    present[0, :4] = False
    labels = torch.arange(20) % 5
    features = (torch.randn(3, 20, WIDTH, generator=seeded(2)) + 1).masked_fill(~present[..., None], 0)
    part.observe_cut(Features(features, present), torch.zeros(20, WIDTH), labels)
    found: dict[int, list[float]] = {}
    subsets = [[m for m in range(3) if code >> m & 1] for code in range(1, 8)]
    for i in range(20):
        for j in range(i + 1, 20):
            for one, other in ((a, b) for a in subsets for b in subsets):
                there = present[one, i].all() and present[other, j].all() and labels[i] != labels[j]
                if there and one == other:
                    both = (features[one, x].flatten() for x in (i, j))
                    found.setdefault(sum(2**m for m in one), []).append(float(F.cosine_similarity(*both, dim=0)))
                elif there and not {*one} & {*other}:
                    spaces = [
                        torch.stack([part.project[m](features[m, x]) for m in own]).mean(dim=0)
                        for own, x in ((one, i), (other, j))
                    ]
                    found.setdefault(0, []).append(float(F.cosine_similarity(*spaces, dim=0)))
    assert len(found) == 8
    for which, values in found.items():
        assert float(part.mean[which]) == pytest.approx(sum(values) / len(values), abs=1e-5)
        assert float(part.variance[which]) == pytest.approx(float(torch.tensor(values).var()), rel=1e-3)


def test_the_setting_says_which_statistics_are_taken() -> None:
    for standardise, seen in (("seen", 1), ("cut", 8)):
        network, heads, config = small_model(missing={"shared": True, "standardise": standardise})
        output = network(small_images(network.backbone, batch=6))
        Small(network, heads, config).objective()(output, LABELS)
        part = shared_part(network)
        assert part is not None
        assert int((part.variance >= 0).sum()) == seen


@pytest.mark.parametrize(("modalities", "complete"), [(("rgb", "nir", "tir"), 7), (("rgb", "nir"), 3), (("tir",), 4)])
def test_standardisation_moves_every_set_to_the_scale_of_complete_samples(
    modalities: tuple[str, ...], complete: int
) -> None:
    part = SharedPart(WIDTH, modalities)
    assert torch.equal(part.standardisation(), torch.tensor([[1.0, 0.0]]).expand(8, 2))  # nothing was seen
    part.mean.copy_(torch.linspace(-0.2, 0.5, 8))
    part.variance.copy_(torch.linspace(0.04, 0.01, 8))
    part.variance[2] = -1  # never seen
    scale, shift = part.standardisation().T
    assert (scale[complete], shift[complete]) == (1, 0)
    assert (scale[2], shift[2]) == (1, 0)
    for which in {0, 1, 3, 4, 5, 6, 7} - {complete}:
        mean, spread = part.mean[which], part.variance[which].sqrt()
        assert scale[which] * mean + shift[which] == pytest.approx(float(part.mean[complete]), abs=1e-6)
        assert scale[which] * spread == pytest.approx(float(part.variance[complete].sqrt()), abs=1e-6)
    part.variance.zero_()  # constant features
    assert torch.equal(part.standardisation()[:, 0], torch.ones(8))


def test_statistics_are_kept_of_the_sets_that_training_saw(tmp_path: Path) -> None:
    config = with_(settings(toy(tmp_path / "data"), epochs=1), missing={"dropout": 1.0})
    part = shared_part(fit(config, tmp_path / "run").network)
    assert part is not None
    seen = (part.variance >= 0).nonzero().flatten().tolist()
    assert 0 in seen
    assert set(seen) <= {0, 1, 2, 4}  # one modality is left of each sample
