"""The shared part: one space for all modalities, by which items without a common modality are compared.

Not in the paper. Each modality's enhanced class token is projected into one space; the shared part of a triplet is the
mean over the modalities it has. Trained with cross-entropy and triplet loss on triplets of many subsets (modality
dropout), what one modality shows of an identity must come to lie near what another shows.

Calibration. A cosine over the RGB slot and a cosine of shared parts have different spreads, and one gallery may hold
items of many subsets. So training keeps, as batch normalisation does, a running mean and variance of the cosine
between *different identities* for each set of common modalities. At test a cosine of one set is moved to the scale of
complete triplets, which have all modalities that the model uses: m + s (cos - m_set) / s_set. It is increasing, so it
changes no ranking in which all items have the same subset, and it leaves the cosine of complete triplets as it is.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmpt.method.modalities import MODALITY_COUNT, PerModality, mean_over_present
from dmpt.settings.modalities import MODALITIES

SETS = 2**MODALITY_COUNT
"""A set of common modalities is a number below: bit m stands for modality m. 0 = none in common, the shared parts."""
MOMENTUM = 0.1
FLAT = 1e-6
"""A smaller spread of cosines than this is rounding."""


class SharedPart(nn.Module):
    """Projections into one space, and the calibration of similarities.

    Args:
        width: D, of the features and of the shared part.
        modalities: those that a complete triplet has.

    Attributes:
        mean: of the cosines of each set, ``(8,)``.
        variance: of these, ``(8,)``; below 0 = never seen.
        complete: the set of all modalities.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, width: int, modalities: Sequence[str] = MODALITIES):
        super().__init__()
        self.project = PerModality(nn.Linear(width, width) for _ in range(MODALITY_COUNT))
        self.register_buffer("mean", torch.zeros(SETS))
        self.register_buffer("variance", torch.full((SETS,), -1.0))
        self.complete = sum(2 ** MODALITIES.index(modality) for modality in modalities)

    def forward(self, features: Tensor, present: Tensor | None = None) -> Tensor:
        """Shared part of each triplet ``(B, D)``.

        Args:
            features: ``(3, B, D)``; zeros where absent.
            present: bool ``(3, B)``; None = all.
        """
        return mean_over_present(self.project(features), present)

    @torch.no_grad()
    def observe(self, features: Tensor, present: Tensor | None, shared: Tensor, labels: Tensor) -> None:
        """Take a training batch into the running statistics.

        Args:
            features: of the global batch ``(3, B, D)``, zeros where absent.
            present: bool ``(3, B)``; None = all.
            shared: ``(B, D)``.
            labels: ``(B,)``.
        """
        cosine, common = similarity(features, present, shared)
        strangers = torch.ones_like(common, dtype=torch.bool).triu(1) & (labels[:, None] != labels[None, :])
        for which in range(SETS):
            seen = cosine[strangers & (common == which)]
            if len(seen) > 1:
                first = self.variance[which] < 0
                for running, new in ((self.mean, seen.mean()), (self.variance, seen.var())):
                    running[which] = torch.where(first, new, running[which].lerp(new.to(running), MOMENTUM))

    def calibration(self) -> Tensor:
        """Scale and shift that move the cosine of each set to the scale of complete triplets, ``(8, 2)`` on the CPU.

        A set that training never saw, or whose spread is nil, is only shifted or left alone.
        """
        mean, variance = self.mean.cpu().double(), self.variance.cpu().double()  # Apple's GPUs have no double
        spread = variance.clamp(min=0).sqrt()
        seen = (variance >= 0) & (variance[self.complete] >= 0)
        scale = torch.where(seen & (spread > FLAT), spread[self.complete] / spread.clamp(min=FLAT), 1.0)
        scale = torch.where(scale > 0, scale, 1.0)
        shift = torch.where(seen, mean[self.complete] - scale * mean, 0.0)
        exact = torch.arange(SETS) == self.complete
        return torch.stack([scale.masked_fill(exact, 1.0), shift.masked_fill(exact, 0.0)], dim=1).float()


def similarity(features: Tensor, present: Tensor | None, shared: Tensor | None) -> tuple[Tensor, Tensor]:
    """How similar the triplets of a batch are: the cosine over common slots, of shared parts where they have none.

    Args:
        features: ``(3, B, D)``, zeros where absent.
        present: bool ``(3, B)``; None = all.
        shared: ``(B, D)``; None = the mean of a triplet's slots takes its place.

    Returns:
        The cosine of each pair and the number of its set of common modalities, ``(B, B)`` both; without calibration.
    """
    if present is None:
        present = torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)
    products = features @ features.transpose(-1, -2)  # (3, B, B)
    squares = features.square().sum(dim=-1)
    joint = present[:, :, None] & present[:, None, :]
    bits = 2 ** torch.arange(MODALITY_COUNT, device=features.device)
    common = (joint * bits[:, None, None]).sum(dim=0)
    own = (squares[:, :, None] * joint).sum(dim=0)
    tiny = torch.finfo(own.dtype).tiny
    # Of pairs without a common slot the length is 0: 1 in its place, whose root has a gradient.
    cosine = products.sum(dim=0) / (own * own.T).masked_fill(common == 0, 1).clamp(min=tiny).sqrt()
    unit = F.normalize(features.sum(dim=0) if shared is None else shared, dim=-1)
    return torch.where(common == 0, unit @ unit.T, cosine), common
