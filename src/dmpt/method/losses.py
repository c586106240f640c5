"""What training minimises (paper sections 3.2 and 3.5, Eq. 5, 6, 17).

Shapes: B samples of a batch, D feature width, C identities, d width of the text space, 3 modalities. Where a sample
lacks a modality, a mean is over those that exist, and what is absent is not read.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dmpt.method.heads import Heads, Seen
from dmpt.method.modalities import Features
from dmpt.method.network import Output

Reduction = Literal["mean", "sum"]


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.1) -> Tensor:
    """L_ce of one head with label smoothing (Szegedy et al. 2016).

    Args:
        logits: ``(B, C)``.
        labels: class indices ``(B,)``.
        smoothing: share of the target spread over all classes, in [0, 1].
    """
    return F.cross_entropy(logits, labels, label_smoothing=smoothing)


def batch_hard_triplet(features: Tensor, labels: Tensor) -> Tensor:
    """L_tri of one head: soft-margin batch-hard triplet loss (Hermans et al. 2017).

    For each anchor log(1 + exp(d(hardest positive) - d(hardest negative))), Euclidean distances of unnormalised
    features, mean over the anchors. An anchor without another image of its identity has distance 0 to its positive.

    Args:
        features: ``(B, D)``.
        labels: ``(B,)``, at least two identities.
    """
    # Not through the matrix product: |a|² + |b|² - 2ab loses the small distances of large features.
    distance = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
    same = labels[:, None] == labels[None, :]
    hardest_positive = distance.masked_fill(~same, -torch.inf).amax(dim=1)
    hardest_negative = distance.masked_fill(same, torch.inf).amin(dim=1)
    return F.softplus(hardest_positive - hardest_negative).mean()


def centre(features: Features, labels: Tensor, reduction: Reduction = "mean", normalise: bool = False) -> Tensor:
    """L_mae-c: L1 distance of each feature to the centre of its identity in the batch.

    Within each modality, then mean over samples and modalities.

    Args:
        features: ``(3, B, D)``; a centre is the mean of those that exist.
        labels: ``(B,)``.
        reduction: over D.
        normalise: L2-normalise the features first.
    """
    x, present = features.masked().x, features.present
    if normalise:
        x = F.normalize(x, dim=-1)
    same = (labels[:, None] == labels[None, :]).to(x.dtype)
    if present is not None:
        same = same * present[:, None, :]  # (3, B, B)
    centres = (same / same.sum(dim=-1, keepdim=True).clamp(min=1)) @ x  # (3, B, D), each sample's own centre
    distance = (x - centres).abs()
    distance = distance.mean(dim=-1) if reduction == "mean" else distance.sum(dim=-1)
    return features.existing(distance).mean()


def text_contrast(z: Features, text: Tensor, positive: Tensor, scale: float, reduction: Reduction = "mean") -> Tensor:
    """L_con (Eq. 5-6): -log softmax of the cosine to the text that describes the image.

    Printed is a sum of ratios over N texts of one modality; the logarithm and the means are ours, and with fixed
    prompts so are the negatives (docs/readings.md).

    Args:
        z: projected image features ``(3, B, d)``.
        text: the texts of every modality ``(n, d)``, or of each ``(3, n, d)``.
        positive: the row of ``text`` that describes each image, ``(3, B)``.
        scale: 1 / tau.
        reduction: over the modalities, each of which is a mean over its samples; Eq. 6 prints the sum. The mean is over
            samples and modalities at once.
    """
    logits = scale * F.normalize(z.x, dim=-1) @ F.normalize(text, dim=-1).transpose(-1, -2)  # (3, B, n)
    if reduction == "mean":
        return F.cross_entropy(z.existing(logits), z.existing(positive))
    losses = F.cross_entropy(logits.flatten(0, 1), positive.flatten(), reduction="none").view(positive.shape)
    here = torch.ones_like(losses) if z.present is None else z.present.to(losses)
    per_modality = (losses * here).sum(dim=1) / here.sum(dim=1).clamp(min=1)
    return per_modality.sum()  # Eq. 6


class TextTargets(NamedTuple):
    """What the fixed prompts of section 3.2 give the text loss.

    Attributes:
        features: of the six prompts, modality-major, person before vehicle, ``(6, d)``.
        positive: each modality's own row for the data set's object, ``(3,)``.
        scale: 1 / tau, the tower's own logit scale.
    """

    features: Tensor
    positive: Tensor
    scale: float

    def to(self, device: torch.device) -> "TextTargets":
        """On another device."""
        return TextTargets(self.features.to(device), self.positive.to(device), self.scale)


def text_modality(z: Features, targets: TextTargets, reduction: Reduction = "mean") -> Tensor:
    """L_con where the fixed prompts are the texts: the image must find its own modality's and object's.

    Args:
        z: projected image features ``(3, B, d)``.
        targets: the prompts.
        reduction: as for ``text_contrast``.
    """
    positive = targets.positive[:, None].expand(z.x.shape[:2])
    return text_contrast(z, targets.features, positive, targets.scale, reduction)


class Batch(NamedTuple):
    """What a term of the loss may look at.

    Attributes:
        output: of the network.
        heads: what each head sees and says.
        labels: class indices ``(B,)``.
    """

    output: Output
    heads: dict[str, Seen]
    labels: Tensor


class Term(NamedTuple):
    """A term of the loss: its name, its weight, and what it is of a batch."""

    name: str
    weight: float
    loss: Callable[[Batch], Tensor]


def over_heads(loss: Callable[[Seen], Tensor], reduction: Reduction = "mean") -> Callable[[Batch], Tensor]:
    """A loss of one head as a term over all of them; a head that sees no sample adds 0."""

    def term(batch: Batch) -> Tensor:
        each = torch.stack([loss(seen) if len(seen.labels) else seen.logits.sum() for seen in batch.heads.values()])
        return each.mean() if reduction == "mean" else each.sum()

    return term


class Objective:
    """The classifiers and L = L_ce + L_tri + L_mae-c + L_con (Eq. 17), or what stands in their place.

    Args:
        heads: which the network holds.
        terms: in their order.
    """

    def __init__(self, heads: Heads, terms: Sequence[Term]):
        self.heads = heads
        self.terms = tuple(terms)

    def __call__(self, output: Output, labels: Tensor) -> dict[str, Tensor]:
        """The weighted terms by name; their sum is the loss.

        Args:
            output: of the network, for the global batch.
            labels: class indices ``(B,)``.
        """
        batch = Batch(output, self.heads(output, labels), labels)
        return {name: weight * loss(batch) for name, weight, loss in self.terms}
