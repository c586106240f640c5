"""The terms of Eq. 17 against literal transcriptions, an oracle, and what must not change them."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner
from pytorch_metric_learning.reducers import MeanReducer
from torch import Tensor

from by_hand import (
    IDS,
    draw,
    labels_of,
    literal_centre,
    literal_contrast,
    literal_cross_entropy,
    literal_triplet,
    mean,
    near,
    seeds,
    some,
    spreads,
    widths,
)
from dmpt.method.heads import Seen
from dmpt.method.losses import (
    Batch,
    Objective,
    Reduction,
    Term,
    batch_hard_triplet,
    centre,
    cross_entropy,
    over_heads,
    text_contrast,
    text_modality,
)
from dmpt.method.modalities import Features
from dmpt.method.network import Output
from dmpt.towers.phrases import TextTargets
from small import LABELS, PRESENT, TEXT_WIDTH, seeded

WIDTH = 7


# --- each term --------------------------------------------------------------------------------------------------------


@some
@given(labels_of(), seeds, st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_cross_entropy_is_the_transcription(labels: Tensor, seed: int, smoothing: float) -> None:
    logits = draw(len(labels), IDS, seed=seed, scale=3)
    assert cross_entropy(logits, labels, smoothing).item() == near(literal_cross_entropy(logits, labels, smoothing))


@some
@given(labels_of(), seeds, widths, spreads)
def test_triplet_is_the_transcription(labels: Tensor, seed: int, width: int, spread: float) -> None:
    features = draw(len(labels), width, seed=seed, scale=spread)
    assert batch_hard_triplet(features, labels).item() == near(literal_triplet(features, labels))


@some
@given(labels_of(least=2), seeds, widths, spreads)
def test_triplet_is_pytorch_metric_learnings(labels: Tensor, seed: int, width: int, spread: float) -> None:
    distance = LpDistance(normalize_embeddings=False)
    oracle = TripletMarginLoss(margin=0, smooth_loss=True, distance=distance, reducer=MeanReducer())
    mined, own = (draw(len(labels), width, seed=seed, scale=spread).requires_grad_() for _ in range(2))
    expected = oracle(mined, labels, BatchHardMiner(distance=distance)(mined, labels))
    value = batch_hard_triplet(own, labels)
    torch.testing.assert_close(value, expected, rtol=1e-7, atol=1e-7)
    (gradient,), (wanted,) = torch.autograd.grad(value, own), torch.autograd.grad(expected, mined)
    torch.testing.assert_close(gradient, wanted, rtol=1e-6, atol=1e-7)


@some
@given(labels_of(), seeds, widths, st.sampled_from(["mean", "sum"]), st.booleans())
def test_centre_is_the_transcription(
    labels: Tensor, seed: int, width: int, reduction: Reduction, normalise: bool
) -> None:
    features = draw(3, len(labels), width, seed=seed)
    expected = literal_centre(features, labels, reduction, normalise)
    assert centre(Features(features), labels, reduction, normalise).item() == near(expected)


@some
@given(seeds, st.integers(1, 4), widths, st.sampled_from([1.0, 14.3, 100.0]))
def test_text_loss_of_modalities_is_the_transcription(seed: int, batch: int, width: int, scale: float) -> None:
    z, text = draw(3, batch, width, seed=seed), draw(6, width, seed=seed + 1)
    positive = torch.randint(6, (3,), generator=seeded(seed))
    targets = TextTargets(text, positive, scale)
    losses = [[literal_contrast(image, text, int(positive[m]), scale) for image in z[m]] for m in range(3)]
    assert text_modality(Features(z), targets).item() == near(mean([mean(own) for own in losses]))
    assert text_modality(Features(z), targets, "sum").item() == near(sum(mean(own) for own in losses))  # Eq. 6


# --- special values ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_triplet_of_identical_features_is_log_2_with_a_finite_gradient(offset: float) -> None:
    features = torch.full((4, WIDTH), offset, requires_grad=True)
    loss = batch_hard_triplet(features, torch.tensor([0, 0, 1, 1]))
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2))
    assert features.grad is not None
    assert features.grad.isfinite().all()


def test_triplet_keeps_small_distances_of_large_features() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    small = (draw(6, WIDTH, scale=0.25) * 64).round() / 64  # exact in float32 at 1e4 too
    large = (small + 1e4).float().requires_grad_()
    assert torch.equal(large.detach().double() - 1e4, small)
    loss = batch_hard_triplet(large, labels)
    assert loss.item() == pytest.approx(batch_hard_triplet(small, labels).item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, large)
    (expected,) = torch.autograd.grad(batch_hard_triplet(small.requires_grad_(), labels), small)
    torch.testing.assert_close(gradient, expected.float(), rtol=1e-4, atol=1e-6)


def test_an_anchor_without_a_partner_is_its_own_positive() -> None:
    features = torch.tensor([[0.0], [3.0], [4.0]])
    expected = mean([math.log(1 + math.exp(d)) for d in (0 - 3, 1 - 3, 1 - 4)])
    assert batch_hard_triplet(features, torch.tensor([0, 1, 1])).item() == pytest.approx(expected)


def test_far_apart_features_do_not_overflow() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    features = torch.tensor([[0.0], [1e6], [1.0], [1e6 + 1]], requires_grad=True)
    loss = batch_hard_triplet(features, labels)
    loss.backward()
    assert loss.item() == pytest.approx(1e6 - 1, rel=1e-6)
    assert features.grad is not None
    assert features.grad.isfinite().all()


def test_one_sample_per_identity_is_its_own_centre() -> None:
    assert centre(Features(draw(3, 4, WIDTH)), torch.arange(4)).item() == 0


# --- what must not change them ----------------------------------------------------------------------------------------


@some
@given(labels_of(), seeds, st.data())
def test_the_order_of_the_batch_changes_nothing(labels: Tensor, seed: int, data: st.DataObject) -> None:
    order = torch.tensor(data.draw(st.permutations(range(len(labels)))))
    count = len(labels)
    features, z = draw(3, count, WIDTH, seed=seed), draw(3, count, TEXT_WIDTH, seed=seed + 1)
    logits = draw(count, IDS, seed=seed + 2)
    targets = TextTargets(draw(6, TEXT_WIDTH, seed=seed + 3), torch.tensor([0, 2, 4]), 10)

    def terms(index: Tensor) -> list[float]:
        f, own = Features(features[:, index]), labels[index]
        values = [
            cross_entropy(logits[index], own),
            batch_hard_triplet(f.x[0], own),
            centre(f, own),
            centre(f, own, "sum", True),
            text_modality(Features(z[:, index]), targets),
        ]
        return [value.item() for value in values]

    assert terms(order) == near(terms(torch.arange(count)))


@some
@given(seeds, st.sampled_from([1e-3, 0.5, 7.0, 1e4]), st.booleans())
def test_text_losses_take_the_direction_alone(seed: int, factor: float, own: bool) -> None:
    """Texts of all modalities, and of each its own."""
    z, text = draw(3, 4, TEXT_WIDTH, seed=seed), draw(3, 6, TEXT_WIDTH, seed=seed + 1)
    text, positive = text if own else text[0], torch.tensor([1, 3, 5])[:, None].expand(3, 4)
    expected = text_contrast(Features(z), text, positive, 20.0).item()
    assert text_contrast(Features(z * factor), text, positive, 20.0).item() == near(expected)
    assert text_contrast(Features(z), text * factor, positive, 20.0).item() == near(expected)


def test_renaming_identities_changes_neither_triplet_nor_centre() -> None:
    labels, renamed = torch.tensor([0, 1, 0, 2, 1, 2]), torch.tensor([9, 4, 9, 0, 4, 0])
    features = Features(draw(3, 6, WIDTH))
    assert torch.equal(batch_hard_triplet(features.x[0], labels), batch_hard_triplet(features.x[0], renamed))
    assert torch.equal(centre(features, labels), centre(features, renamed))


def test_centre_with_normalisation_takes_the_direction_alone() -> None:
    features, labels = draw(3, 6, WIDTH), torch.tensor([0, 0, 0, 1, 1, 1])
    scaled = features * torch.rand(3, 6, 1, generator=seeded()).double().add(0.1)
    one, other = (centre(Features(x), labels, normalise=True).item() for x in (scaled, features))
    assert one == near(other)


# --- samples that lack modalities -------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_centre_loss_is_of_the_modalities_there_are(reduction: Reduction, normalise: bool) -> None:
    features = draw(3, 6, WIDTH, seed=3)
    poisoned = features.masked_fill(~PRESENT[..., None], torch.nan)
    total = count = 0.0
    for m in range(3):  # one modality's own rows, as if it were the only one
        own = PRESENT[m]
        total += float(centre(Features(features[m, own][None]), LABELS[own], reduction, normalise)) * int(own.sum())
        count += int(own.sum())
    got = centre(Features(poisoned, PRESENT), LABELS, reduction, normalise)
    assert got.item() == pytest.approx(total / count)


def test_the_text_loss_is_of_the_modalities_there_are() -> None:
    z = draw(3, 6, TEXT_WIDTH, seed=3).requires_grad_()
    targets = TextTargets(draw(6, TEXT_WIDTH, seed=4), torch.tensor([0, 2, 4]), 10)
    losses: list[list[Tensor]] = [[], [], []]
    for m, b in PRESENT.nonzero().tolist():
        logits = 10 * F.cosine_similarity(z[m, b], targets.features, dim=-1)
        losses[m].append(F.cross_entropy(logits, targets.positive[m]))
    loss = text_modality(Features(z, PRESENT), targets)
    assert loss.item() == pytest.approx(torch.stack([one for own in losses for one in own]).mean().item())
    summed = text_modality(Features(z, PRESENT), targets, "sum")
    assert summed.item() == pytest.approx(sum(torch.stack(own).mean().item() for own in losses))
    for value in (loss, summed):
        (gradient,) = torch.autograd.grad(value, z, retain_graph=True)
        assert not gradient[~PRESENT].any()
        assert gradient[PRESENT].any(dim=-1).all()


# --- Eq. 17 -----------------------------------------------------------------------------------------------------------

HEAD_WIDTHS = {"concat": 3 * WIDTH, "rgb": WIDTH, "nir": WIDTH}


def seen_by_heads() -> dict[str, Seen]:
    """What heads might see and say; one sees but some samples, one none."""
    found = {}
    for i, (name, width) in enumerate(HEAD_WIDTHS.items()):
        rows = slice(None) if name != "nir" else slice(1, 5)
        found[name] = Seen(draw(6, width, seed=10 + i)[rows], draw(6, IDS, seed=20 + i)[rows], LABELS[rows])
    return found | {"tir": Seen(draw(0, WIDTH), draw(0, IDS).requires_grad_(), LABELS[:0])}


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_loss_over_heads_counts_each_head_once(reduction: Reduction) -> None:
    """However many samples it sees; one that sees none adds 0, with a gradient."""
    heads = seen_by_heads()
    batch = Batch(Output(Features(draw(3, 6, WIDTH))), heads, LABELS)
    ce = over_heads(lambda seen: cross_entropy(seen.logits, seen.labels), reduction)(batch)
    expected = [literal_cross_entropy(seen.logits, seen.labels, 0.1) for seen in heads.values() if len(seen.labels)]
    assert len(expected) == 3
    assert ce.item() == near(sum(expected) / (4 if reduction == "mean" else 1))
    (gradient,) = torch.autograd.grad(ce, heads["tir"].logits)
    assert gradient.shape == (0, IDS)


def test_the_objective_is_its_weighted_terms_by_name() -> None:
    heads, output = seen_by_heads(), Output(Features(draw(3, 6, WIDTH, seed=1)))
    asked = []

    def look(*given: Any) -> dict[str, Seen]:
        asked.append(given)
        return heads

    terms = [
        Term("triplet", 0.5, over_heads(lambda seen: batch_hard_triplet(seen.feature, seen.labels))),
        Term("centre", 3.0, lambda batch: centre(batch.output.features, batch.labels)),
    ]
    found = Objective(look, terms)(output, LABELS)  # type: ignore[arg-type]
    assert asked == [(output, LABELS)]  # the heads look once, whatever the number of terms
    assert list(found) == ["triplet", "centre"]
    expected = [literal_triplet(seen.feature, seen.labels) for seen in heads.values() if len(seen.labels)]
    assert found["triplet"].item() == near(0.5 * sum(expected) / 4)
    assert found["centre"].item() == near(3 * literal_centre(output.features.x, LABELS, "mean", False))
