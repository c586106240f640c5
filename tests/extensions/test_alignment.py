"""``loss.align`` against a slow transcription, and in training."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dmpt.evaluation.evaluate import evaluate
from dmpt.extensions.alignment import align
from dmpt.extensions.shared import shared_part
from dmpt.method.modalities import Features
from runs import fit, log, settings, toy, with_
from small import LABELS, PRESENT, error_of, seeded, small_images, small_model


def drawn(present: Tensor | None = PRESENT) -> Features:
    x = torch.randn(3, 6, 5, generator=seeded(2)).double()
    return Features(x.requires_grad_(), present)


def by_hand(x: Tensor, present: Tensor, scale: float) -> Tensor:
    """Anchor by anchor."""
    unit = {(m, i): x[m, i] / x[m, i].norm() for m in range(3) for i in range(6) if present[m, i]}
    losses = []
    for (m, i), own in unit.items():
        others = {key: torch.exp(scale * own @ u) for key, u in unit.items() if key[0] != m}
        positives = [key for key in others if LABELS[key[1]] == LABELS[i]]
        if positives:
            total = torch.stack(list(others.values())).sum()
            losses.append(-torch.stack([(others[key] / total).log() for key in positives]).mean())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("scale", [1.0, 10.0])
@pytest.mark.parametrize("present", [None, PRESENT])
def test_it_is_the_transcription_gradients_too(present: Tensor | None, scale: float) -> None:
    ours, theirs = drawn(present), drawn(present)
    loss = align(ours, LABELS, scale)
    expected = by_hand(theirs.x, torch.ones_like(PRESENT) if present is None else present, scale)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
    (gradient,), (wanted,) = torch.autograd.grad(loss, ours.x), torch.autograd.grad(expected, theirs.x)
    torch.testing.assert_close(gradient, wanted, rtol=1e-8, atol=1e-10)
    assert torch.autograd.gradcheck(lambda x: align(Features(x, present), LABELS, scale), (ours.x,))


def test_what_is_absent_is_not_read() -> None:
    x = drawn().x.detach()
    other = x.masked_fill(~PRESENT[..., None], torch.nan)
    assert align(Features(other, PRESENT), LABELS, 3.0) == align(Features(x, PRESENT), LABELS, 3.0)


def test_modalities_that_agree_cost_least() -> None:
    """One direction for each identity in all modalities; the best that 3 identities of 2 samples can be."""
    directions = torch.eye(3).double()[LABELS].expand(3, 6, 3)
    best = align(Features(directions), LABELS, 30.0).item()
    assert best == pytest.approx(math.log(4 + 8 * math.exp(-30)))  # two samples in two other modalities
    turned = torch.stack([directions[0], directions[1].roll(1, dims=-1), directions[2]])
    assert align(Features(turned), LABELS, 30.0).item() > best + 10


def test_without_a_pair_of_modalities_it_is_0_and_has_a_gradient() -> None:
    alone = torch.zeros_like(PRESENT)
    alone[0] = True
    parts = drawn(alone)
    loss = align(parts, LABELS, 10.0)
    (gradient,) = torch.autograd.grad(loss, parts.x)
    assert loss == 0
    assert not gradient.any()


@pytest.mark.parametrize("missing", [{}, {"shared": True}])
def test_the_term_is_of_the_space_in_which_modalities_meet(missing: dict[str, Any]) -> None:
    network, heads, config = model = small_model(missing=missing, loss={"align": 0.5, "metric_scale": 4.0})
    output = network(small_images(network.backbone, batch=6), PRESENT)
    part = shared_part(network)
    x = output.features.x if part is None else part.project(output.features.x)
    expected = 0.5 * align(Features(x, PRESENT), LABELS, 4.0)
    terms = model.objective()(output, LABELS)
    assert error_of(terms["align"], expected) < 1e-6
    assert "align" not in small_model().objective()(output, LABELS)
    assert heads is not None
    assert config.loss.align == 0.5


def test_a_run_with_the_presets_parts_trains_with_it(tmp_path: Path) -> None:
    """Low-rank updates per modality, one internal attention, dropout, distillation, and all sets on one scale."""
    config = with_(
        settings(toy(tmp_path / "data"), epochs=2),
        semantic={"length": 0},
        modality={"length": 0},
        bind={"external": False, "share": True},
        backbone={"tune": "lora"},
        lora={"where": "all", "rank": 2, "rank_per_modality": 1},
        missing={"dropout": 0.4, "view": "both", "standardise": "cut"},
        loss={"metric": "contrastive", "centre": 0.0, "align": 1.0},
    )
    trainer = fit(config, tmp_path / "run")
    losses = [line["losses"] for line in log(tmp_path / "run") if "losses" in line]
    assert all({"ce", "metric", "shared", "align", "distil"} == {*line} for line in losses)
    assert all(value == value for line in losses for value in line.values())
    moved = [name for name, p in trainer.network.trained().items() if ".own." in name and ".up." in name and p.any()]
    assert {name.split(".own.")[1][0] for name in moved} == {"0", "1", "2"}
    part = shared_part(trainer.network)
    assert part is not None
    assert (part.variance >= 0).all()
    found = evaluate(tmp_path / "run", without="all").missing
    assert found is not None
    assert len(found["any_to_any"]["pairs"]) == 49
