"""What modules do for each modality, and over those that are there."""

import torch
from torch import Tensor, nn

from dmpt.settings.modalities import MODALITIES

MODALITY_COUNT = len(MODALITIES)


class PerModality(nn.ModuleList):
    """A module for each modality, in the order of ``MODALITIES``."""

    def forward(self, x: Tensor) -> Tensor:
        """``(3, ...)`` to ``(3, ...)``, each by its own."""
        return torch.stack([module(own) for module, own in zip(self, x, strict=True)])


def mean_over_present(x: Tensor, present: Tensor | None) -> Tensor:
    """The mean over the modalities that each triplet has, ``(B, ...)``.

    Args:
        x: ``(3, B, ...)``, finite where absent.
        present: bool ``(3, B)``; None = all.
    """
    if present is None:
        return x.mean(dim=0)
    share = present.to(x) / present.sum(dim=0).clamp(min=1)
    return (x * share.view(*share.shape, *[1] * (x.dim() - 2))).sum(dim=0)
