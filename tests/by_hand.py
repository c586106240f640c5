"""Losses written out, one number after another, and what they are tried on."""

import math
from typing import Any, Literal

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from small import seeded

IDS = 5


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


def literal_centre(features: Tensor, labels: Tensor, reduction: Literal["mean", "sum"], normalise: bool) -> float:
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


def literal_contrast(image: Tensor, texts: Tensor, own: int, scale: float) -> float:
    """-log of Eq. 5's ratio for one image."""
    return -math.log(softmax([cosine(image, text) * scale for text in texts], own))


# --- what is drawn ----------------------------------------------------------------------------------------------------


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
