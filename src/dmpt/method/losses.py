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
from dmpt.towers.phrases import TextTargets

Reduction = Literal["mean", "sum"]


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.1) -> Tensor:
    """L_ce of one head: logits ``(B, C)``, labels ``(B,)``; label smoothing in [0, 1] (Szegedy et al. 2016)."""
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
    """L_mae-c: L1 distance of each feature to the centre of its identity in the batch, within each modality.

    Args:
        features: ``(3, B, D)``; a centre is the mean of those that exist, and so is the loss.
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
    return Features(distance, present).existing().mean()


def text_contrast(z: Features, text: Tensor, positive: Tensor, scale: float, reduction: Reduction = "mean") -> Tensor:
    """L_con: -log softmax of the cosine between an image and the text that describes it (Eq. 5-6).

    Printed is a sum of ratios over N texts of one modality; the logarithm and the means are ours, and with fixed
    prompts so are the negatives (docs/readings.md).

    Args:
        z: projected image features ``(3, B, d)``.
        text: the texts of every modality ``(n, d)``, or of each ``(3, n, d)``.
        positive: the row of ``text`` that describes each image, ``(3, B)``.
        scale: 1 / tau.
        reduction: over the modalities, each a mean over its samples; Eq. 6 prints the sum. Where samples lack
            modalities the mean is over all images.
    """
    logits = scale * F.normalize(z.x, dim=-1) @ F.normalize(text, dim=-1).transpose(-1, -2)  # Eq. 5: (3, B, n)
    if reduction == "mean":
        own, wanted = (Features(x, z.present).existing() for x in (logits, positive))
        return F.cross_entropy(own, wanted)  # Eq. 5, and a mean in the place of Eq. 6
    losses = Features(F.cross_entropy(logits.transpose(1, 2), positive, reduction="none"), z.present)
    count = losses.x.shape[1] if z.present is None else z.present.sum(dim=1).clamp(min=1)
    return (losses.masked().x.sum(dim=1) / count).sum()  # Eq. 6


def text_modality(z: Features, targets: TextTargets, reduction: Reduction = "mean") -> Tensor:
    """L_con with the fixed prompts as texts: z ``(3, B, d)`` must find its own modality's and object's."""
    features, positive = targets.features.to(z.x.device), targets.positive.to(z.x.device)
    return text_contrast(z, features, positive[:, None].expand(z.x.shape[:2]), targets.scale, reduction)


class Batch(NamedTuple):
    """What a term of the loss may look at: the network's output, what each head sees and says, labels ``(B,)``."""

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
    """The classifiers, and the terms of L = L_ce + L_tri + L_mae-c + L_con (Eq. 17) with their weights."""

    def __init__(self, heads: Heads, terms: Sequence[Term]):
        self.heads, self.terms = heads, tuple(terms)

    def __call__(self, output: Output, labels: Tensor) -> dict[str, Tensor]:
        """The weighted terms by name, of the global batch with labels ``(B,)``; their sum is L of Eq. 17."""
        batch = Batch(output, self.heads(output, labels), labels)
        return {name: weight * loss(batch) for name, weight, loss in self.terms}  # the summands of Eq. 17
