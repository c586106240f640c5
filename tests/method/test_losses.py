"""The terms of Eq. 17 against literal transcriptions, an oracle, and what must not change them."""

import math
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner
from pytorch_metric_learning.reducers import MeanReducer
from torch import Tensor

from dmpt.method.losses import (
    TextTargets,
    batch_hard_triplet,
    centre,
    cross_entropy,
    objective,
    text_identity,
    text_literal,
    text_modality,
)
from dmpt.method.network import Output
from small import TEXT_WIDTH, seeded, small_config, small_targets

IDS, WIDTH = 5, 7
Reduction = Literal["mean", "sum"]


# --- transcriptions ---------------------------------------------------------------------------------------------------


def dot(a: Tensor, b: Tensor) -> float:
    return sum(float(x) * float(y) for x, y in zip(a, b, strict=True))


def cosine(a: Tensor, b: Tensor) -> float:
    return dot(a, b) / math.sqrt(dot(a, a) * dot(b, b))


def softmax(scores: list[float], index: int) -> float:
    """Eq. 5's ratio: one exponential over the sum of all; the largest is taken out so that none overflows."""
    top = max(scores)
    return math.exp(scores[index] - top) / sum(math.exp(score - top) for score in scores)


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def literal_cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> float:
    """The target is (1 - ε) at the label and ε / C everywhere."""
    total = []
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        target = [smoothing / len(row) + (1 - smoothing) * (c == label) for c in range(len(row))]
        total.append(-sum(t * math.log(softmax(row, c)) for c, t in enumerate(target)))
    return mean(total)


def literal_triplet(features: Tensor, labels: Tensor) -> float:
    losses = []
    for a, anchor in enumerate(features):
        distance = [math.sqrt(dot(anchor - other, anchor - other)) for other in features]
        hardest = max(d for d, label in zip(distance, labels, strict=True) if label == labels[a])
        nearest = min(d for d, label in zip(distance, labels, strict=True) if label != labels[a])
        losses.append(math.log(1 + math.exp(hardest - nearest)))
    return mean(losses)


def literal_centre(features: Tensor, labels: Tensor, reduction: Reduction, normalise: bool) -> float:
    of_modalities = []
    for modality in features.tolist():
        if normalise:
            modality = [[x / math.sqrt(sum(y * y for y in row)) for x in row] for row in modality]
        distances = []
        for row, label in zip(modality, labels.tolist(), strict=True):
            own = [other for other, of in zip(modality, labels.tolist(), strict=True) if of == label]
            middle = [mean(list(column)) for column in zip(*own, strict=True)]
            parts = [abs(x - c) for x, c in zip(row, middle, strict=True)]
            distances.append(sum(parts) if reduction == "sum" else mean(parts))
        of_modalities.append(mean(distances))
    return mean(of_modalities)


def literal_text_modality(z: Tensor, text: Tensor, positive: Tensor, scale: float) -> float:
    """-log of Eq. 5's ratio, where the six fixed prompts are the N texts."""
    losses = []
    for m in range(3):
        for image in z[m]:
            scores = [cosine(image, one) * scale for one in text]
            losses.append(-math.log(softmax(scores, int(positive[m]))))
    return mean(losses)


def literal_text_identity(z: Tensor, text: Tensor, labels: Tensor, scale: float) -> float:
    """-log of Eq. 5's ratio, where each identity has its own text."""
    losses = []
    for m in range(3):
        for image, label in zip(z[m], labels, strict=True):
            scores = [cosine(image, one) * scale for one in text[m]]
            losses.append(-math.log(softmax(scores, int(label))))
    return mean(losses)


def literal_text_literal(z: Tensor, text: Tensor, identities: int, scale: float) -> float:
    """Eq. 5 in each modality, every t_m^i the same prompt; Eq. 6 adds them."""
    total = 0.0
    for m in range(3):
        for image in z[m]:
            scores = [cosine(image, text[m]) * scale for _ in range(identities)]
            total += softmax(scores, 0)
    return total


# --- helpers ----------------------------------------------------------------------------------------------------------


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64) * scale


@st.composite
def labels_of(draw_from: st.DrawFn, least: int = 1) -> Tensor:
    """Labels in any order, at least two identities, each at least so many times."""
    counts = draw_from(st.lists(st.integers(least, 3), min_size=2, max_size=IDS))
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    return torch.tensor(draw_from(st.permutations(labels)))


seeds = st.integers(0, 2**31)
widths = st.integers(1, 6)
spreads = st.sampled_from([0.01, 1.0, 5.0])
some = settings(max_examples=30, deadline=None, derandomize=True)


def near(value: Any) -> Any:
    return pytest.approx(value, rel=1e-10, abs=1e-12)


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
    assert centre(features, labels, reduction, normalise).item() == near(expected)


@some
@given(seeds, st.integers(1, 4), widths, st.sampled_from([1.0, 14.3, 100.0]))
def test_text_loss_of_modalities_is_the_transcription(seed: int, batch: int, width: int, scale: float) -> None:
    z, text = draw(3, batch, width, seed=seed), draw(6, width, seed=seed + 1)
    positive = torch.randint(6, (3,), generator=seeded(seed))
    expected = literal_text_modality(z, text, positive, scale)
    assert text_modality(z, text, positive, scale).item() == near(expected)


@some
@given(labels_of(), seeds, widths, st.sampled_from([1.0, 14.3, 100.0]))
def test_text_loss_of_identities_is_the_transcription(labels: Tensor, seed: int, width: int, scale: float) -> None:
    z, text = draw(3, len(labels), width, seed=seed), draw(3, IDS, width, seed=seed + 1)
    expected = literal_text_identity(z, text, labels, scale)
    assert text_identity(z, text, labels, scale).item() == near(expected)


@some
@given(seeds, st.integers(1, 6), st.integers(1, 200), widths, st.sampled_from([1.0, 100.0]))
def test_equation_5_as_printed_is_a_constant(seed: int, batch: int, ids: int, width: int, scale: float) -> None:
    z, text = draw(3, batch, width, seed=seed).requires_grad_(), draw(3, width, seed=seed + 1).requires_grad_()
    value = text_literal(z, text, ids, scale)
    assert value.item() == near(3 * batch / ids)
    assert value.item() == near(literal_text_literal(z.detach(), text.detach(), ids, scale))
    for gradient in torch.autograd.grad(value, (z, text)):
        assert gradient.abs().max() < 1e-10


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
    assert centre(draw(3, 4, WIDTH), torch.arange(4)).item() == 0


# --- what must not change them ----------------------------------------------------------------------------------------


@some
@given(labels_of(), seeds, st.data())
def test_the_order_of_the_batch_changes_nothing(labels: Tensor, seed: int, data: st.DataObject) -> None:
    order = torch.tensor(data.draw(st.permutations(range(len(labels)))))
    count = len(labels)
    features, z = draw(3, count, WIDTH, seed=seed), draw(3, count, TEXT_WIDTH, seed=seed + 1)
    logits, texts = draw(count, IDS, seed=seed + 2), draw(3, IDS, TEXT_WIDTH, seed=seed + 3)
    fixed, positive = texts[:2].flatten(0, 1)[:6], torch.tensor([0, 2, 4])

    def terms(index: Tensor) -> list[float]:
        f, own = features[:, index], labels[index]
        values = [
            cross_entropy(logits[index], own),
            batch_hard_triplet(f[0], own),
            centre(f, own),
            centre(f, own, "sum", True),
            text_modality(z[:, index], fixed, positive, 10),
            text_identity(z[:, index], texts, own, 10),
            text_literal(z[:, index], texts[:, 0], IDS, 10),
        ]
        return [value.item() for value in values]

    assert terms(order) == near(terms(torch.arange(count)))


@some
@given(seeds, st.sampled_from([1e-3, 0.5, 7.0, 1e4]))
def test_text_losses_take_the_direction_alone(seed: int, factor: float) -> None:
    z, labels = draw(3, 4, TEXT_WIDTH, seed=seed), torch.tensor([0, 0, 1, 3])
    fixed, texts = draw(6, TEXT_WIDTH, seed=seed + 1), draw(3, IDS, TEXT_WIDTH, seed=seed + 2)
    positive = torch.tensor([1, 3, 5])
    for loss, text, target in ((text_modality, fixed, positive), (text_identity, texts, labels)):
        expected = loss(z, text, target, 20.0).item()
        assert loss(z * factor, text, target, 20.0).item() == near(expected)
        assert loss(z, text * factor, target, 20.0).item() == near(expected)


def test_renaming_identities_changes_neither_triplet_nor_centre() -> None:
    labels, renamed = torch.tensor([0, 1, 0, 2, 1, 2]), torch.tensor([9, 4, 9, 0, 4, 0])
    features = draw(3, 6, WIDTH)
    assert torch.equal(batch_hard_triplet(features[0], labels), batch_hard_triplet(features[0], renamed))
    assert torch.equal(centre(features, labels), centre(features, renamed))


def test_centre_with_normalisation_takes_the_direction_alone() -> None:
    features, labels = draw(3, 6, WIDTH), torch.tensor([0, 0, 0, 1, 1, 1])
    scaled = features * torch.rand(3, 6, 1, generator=seeded()).double().add(0.1)
    assert centre(scaled, labels, normalise=True).item() == near(centre(features, labels, normalise=True).item())


# --- Eq. 17 -----------------------------------------------------------------------------------------------------------

LABELS = torch.tensor([0, 0, 1, 1, 4, 4])
HEAD_WIDTHS = {"concat": 3 * WIDTH, "rgb": WIDTH, "nir": WIDTH}


def material() -> tuple[Output, dict[str, tuple[Tensor, Tensor]], TextTargets, Tensor]:
    """What the network, its heads and the text tower might say."""
    count = len(LABELS)
    output = Output(draw(3, count, WIDTH, seed=1), z=draw(3, count, TEXT_WIDTH, seed=2))
    heads = {
        name: (draw(count, width, seed=10 + i), draw(count, IDS, seed=20 + i))
        for i, (name, width) in enumerate(HEAD_WIDTHS.items())
    }
    targets = small_targets()
    targets = TextTargets(targets.features.double(), targets.positive, targets.scale)
    return output, heads, targets, draw(3, IDS, TEXT_WIDTH, seed=3)


def terms_of(**sections: Any) -> dict[str, float]:
    output, heads, targets, texts = material()
    terms = objective(small_config(**sections), output, heads, LABELS, targets, texts)
    return {name: term.item() for name, term in terms.items()}


def literal_terms(text: str) -> dict[str, float]:
    """All weights 1."""
    output, heads, targets, texts = material()
    assert output.z is not None
    text_terms = {
        "modality": literal_text_modality(output.z, targets.features, targets.positive, targets.scale),
        "identity": literal_text_identity(output.z, texts, LABELS, targets.scale),
        "literal": 3 * len(LABELS) / IDS,
    }
    return {
        "ce": mean([literal_cross_entropy(logits, LABELS, 0.1) for _, logits in heads.values()]),
        "triplet": mean([literal_triplet(feature, LABELS) for feature, _ in heads.values()]),
        "centre": literal_centre(output.features, LABELS, "mean", False),
        "text": text_terms[text],
    }


@pytest.mark.parametrize("text", ["modality", "identity", "literal"])
def test_the_objective_is_equation_17(text: str) -> None:
    terms, expected = terms_of(text={"loss": text}), literal_terms(text)
    assert terms == near(expected)
    assert sum(terms.values()) == near(sum(expected.values()))


@pytest.mark.parametrize("name", ["ce", "triplet", "centre", "text"])
def test_each_weight_scales_its_own_term(name: str) -> None:
    expected = literal_terms("modality")
    expected[name] *= 2.5
    assert terms_of(loss={name: 2.5}) == near(expected)


@pytest.mark.parametrize("name", ["ce", "triplet", "centre", "text"])
def test_a_term_of_weight_0_is_absent(name: str) -> None:
    expected = {term: value for term, value in literal_terms("modality").items() if term != name}
    assert terms_of(loss={name: 0}) == near(expected)


def test_the_text_term_is_absent_when_off() -> None:
    output, heads, _, _ = material()
    terms = objective(small_config(text={"loss": "off"}), Output(output.features), heads, LABELS)
    assert list(terms) == ["ce", "triplet", "centre"]


@pytest.mark.parametrize(("reduction", "normalise"), [("sum", False), ("mean", True), ("sum", True)])
def test_forms_of_terms_reach_the_objective(reduction: Reduction, normalise: bool) -> None:
    output, heads, _, _ = material()
    terms = terms_of(loss={"centre_reduction": reduction, "centre_normalise": normalise, "smoothing": 0.3})
    assert terms["centre"] == near(literal_centre(output.features, LABELS, reduction, normalise))
    assert terms["ce"] == near(mean([literal_cross_entropy(logits, LABELS, 0.3) for _, logits in heads.values()]))
