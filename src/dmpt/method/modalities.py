"""The three modalities side by side, and samples that lack some of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from dmpt.settings.modalities import MODALITIES

MODALITY_COUNT = len(MODALITIES)


class PerModality(nn.ModuleList):
    """A module for each modality, in the order of ``MODALITIES``."""

    def forward(self, x: Tensor, *options: Any) -> Tensor:
        """``(3, ...)`` to ``(3, ...)``, each by its own."""
        return torch.stack([module(own, *options) for module, own in zip(self, x, strict=True)])


@dataclass(frozen=True, eq=False)
class Features:
    """Something of each modality, for B samples."""

    x: Tensor  # (3, B, ...), finite where absent
    present: Tensor | None = None  # bool (3, B), which modalities a sample has, at least one; None = all of them

    def mean(self) -> Tensor:
        """The mean over the modalities that each sample has, ``(B, ...)``."""
        if self.present is None:
            return self.x.mean(dim=0)
        share = self.present.to(self.x) / self.present.sum(dim=0).clamp(min=1)
        return (self.x * share.view(*share.shape, *[1] * (self.x.dim() - 2))).sum(dim=0)

    def masked(self) -> "Features":
        """The same shape, with zeros where absent."""
        if self.present is None:
            return self
        away = ~self.present.view(*self.present.shape, *[1] * (self.x.dim() - 2))
        return replace(self, x=self.x.masked_fill(away, 0))

    def existing(self) -> Tensor:
        """What belongs to modalities that exist: ``(n, ...)``, modality first."""
        return self.x.flatten(0, 1) if self.present is None else self.x[self.present]

    def side_by_side(self, modalities: Sequence[str] = MODALITIES) -> Tensor:
        """The named ones concatenated, ``(B, n D)``; zeros or whatever stands there where a sample lacks one."""
        chosen = self.x if len(modalities) == MODALITY_COUNT else self.x[[MODALITIES.index(m) for m in modalities]]
        return chosen.transpose(0, 1).flatten(1)

    def having(self, modalities: Sequence[str]) -> Tensor | None:
        """Which samples have all the named ones, bool ``(B,)``; None = every sample."""
        if self.present is None:
            return None
        return torch.stack([self.present[MODALITIES.index(m)] for m in modalities]).all(dim=0)
