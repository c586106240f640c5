"""The shared part: one space for all modalities, by which items without a common modality are compared.

Not in the paper. Each modality's enhanced class token is projected into one space; the shared part of a sample is the
mean over the modalities it has. Trained with cross-entropy and metric loss on samples of many subsets (modality
dropout), what one modality shows of an identity must come to lie near what another shows.

Standardisation. A cosine over the RGB feature and a cosine of shared parts have different spreads, and one gallery may
hold items of many subsets. So training keeps, as batch normalisation does, a running mean and variance of the cosine
between *different identities* for each set of common modalities. At test a cosine of one set is moved to the scale of
complete samples, which have all modalities that the model uses: m + s (cos - m_set) / s_set. It is increasing, so it
changes no ranking in which all items have the same subset, and it leaves the cosine of complete samples as it is.
"""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmpt.method.modalities import MODALITY_COUNT, Features, PerModality
from dmpt.method.network import DMPT
from dmpt.settings.modalities import MODALITIES

_SETS = 2**MODALITY_COUNT
"""A set of common modalities is a number below: bit m stands for modality m. 0 = none in common, the shared parts."""
_MOMENTUM = 0.1
_FLAT = 1e-6  # a smaller spread of cosines than this is rounding


class SharedPart(nn.Module):
    """Projections into one space, D to D, and the standardisation of similarities.

    A complete sample has all of ``modalities``; ``complete`` is the number of that set.
    """

    mean: Tensor  # of the cosines of each set, (8,)
    variance: Tensor  # of these, (8,); below 0 = never seen

    def __init__(self, width: int, modalities: Sequence[str] = MODALITIES):
        super().__init__()
        self.project = PerModality(nn.Linear(width, width) for _ in range(MODALITY_COUNT))
        self.register_buffer("mean", torch.zeros(_SETS))
        self.register_buffer("variance", torch.full((_SETS,), -1.0))
        self.complete = sum(2 ** MODALITIES.index(modality) for modality in modalities)

    def forward(self, features: Features) -> Tensor:
        """Shared part of each sample ``(B, D)``, of features ``(3, B, D)`` that are zeros where absent."""
        return Features(self.project(features.x), features.present).mean()

    @torch.no_grad()
    def observe(self, features: Features, shared: Tensor, labels: Tensor) -> None:
        """Take a global batch into the running statistics: ``(3, B, D)``, zeros where absent; ``(B, D)``; ``(B,)``."""
        cosine, common = similarity(features, shared)
        strangers = torch.ones_like(common, dtype=torch.bool).triu(1) & (labels[:, None] != labels[None, :])
        for which in range(_SETS):
            self._take(which, cosine[strangers & (common == which)])

    @torch.no_grad()
    def observe_cut(self, features: Features, shared: Tensor, labels: Tensor) -> None:
        """As ``observe``, with both samples of a pair cut down to each two subsets of what they have.

        Where modalities exchange something, what is left of a sample has met the rest: then it is an approximation.
        """
        present = (
            torch.ones_like(features.x[..., 0], dtype=torch.bool) if features.present is None else features.present
        )
        strangers = torch.ones(len(labels), len(labels), dtype=torch.bool, device=labels.device).triu(1)
        strangers &= labels[:, None] != labels[None, :]
        has = {
            code: present[[m for m in range(MODALITY_COUNT) if code >> m & 1]].all(dim=0) for code in range(1, _SETS)
        }
        cut = {code: self._cut(features.x, code) for code in has}
        for which, here in has.items():
            vectors = F.normalize(cut[which].transpose(0, 1).flatten(1), dim=-1)
            self._take(which, (vectors @ vectors.T)[strangers & here[:, None] & here[None, :]])
        met = [(one, other) for one in has for other in has if not one & other]  # in both orders
        spaces = {code: F.normalize(self(Features(x, self._mask(x, code))), dim=-1) for code, x in cut.items()}
        apart = [(spaces[a] @ spaces[b].T)[strangers & has[a][:, None] & has[b][None, :]] for a, b in met]
        self._take(0, torch.cat(apart))

    @staticmethod
    def _mask(x: Tensor, code: int) -> Tensor:
        """A set of modalities, for every sample of ``(3, B, D)``: bool ``(3, B)``."""
        members = torch.tensor([bool(code >> m & 1) for m in range(MODALITY_COUNT)], device=x.device)
        return members[:, None].expand(x.shape[:2])

    def _cut(self, x: Tensor, code: int) -> Tensor:
        """Features ``(3, B, D)`` of a set of modalities alone."""
        return x * self._mask(x, code)[..., None]

    def _take(self, which: int, seen: Tensor) -> None:
        """Cosines of a set into its running statistics; of fewer than two nothing follows."""
        if len(seen) > 1:
            first = self.variance[which] < 0
            for running, new in ((self.mean, seen.mean()), (self.variance, seen.var())):
                running[which] = torch.where(first, new, running[which].lerp(new.to(running), _MOMENTUM))

    def standardisation(self) -> Tensor:
        """Scale and shift that move the cosine of each set to the scale of complete samples, ``(8, 2)`` on the CPU.

        A set that training never saw, or whose spread is nil, is only shifted or left alone.
        """
        mean, variance = self.mean.cpu().double(), self.variance.cpu().double()  # Apple's GPUs have no double
        spread = variance.clamp(min=0).sqrt()
        seen = (variance >= 0) & (variance[self.complete] >= 0)
        scale = torch.where(seen & (spread > _FLAT), spread[self.complete] / spread.clamp(min=_FLAT), 1.0)
        scale = torch.where(scale > 0, scale, 1.0)
        shift = torch.where(seen, mean[self.complete] - scale * mean, 0.0)
        exact = torch.arange(_SETS) == self.complete
        return torch.stack([scale.masked_fill(exact, 1.0), shift.masked_fill(exact, 0.0)], dim=1).float()


def similarity(features: Features, shared: Tensor | None) -> tuple[Tensor, Tensor]:
    """How similar the samples of a batch are: the cosine over common modalities, of shared parts where none are.

    Of features ``(3, B, D)``, zeros where absent, and shared parts ``(B, D)``, or None, where the mean of a sample's
    features takes their place, the cosine of each pair, not standardised, and its set of common modalities, ``(B, B)``.
    """
    x, present = features.x, features.present
    if present is None:
        present = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    products = x @ x.transpose(-1, -2)  # (3, B, B)
    squares = x.square().sum(dim=-1)
    joint = present[:, :, None] & present[:, None, :]
    bits = 2 ** torch.arange(MODALITY_COUNT, device=x.device)
    common = (joint * bits[:, None, None]).sum(dim=0)
    own = (squares[:, :, None] * joint).sum(dim=0)
    tiny = torch.finfo(own.dtype).tiny
    # Of pairs without a common modality the length is 0: 1 in its place, whose root has a gradient.
    cosine = products.sum(dim=0) / (own * own.T).masked_fill(common == 0, 1).clamp(min=tiny).sqrt()
    unit = F.normalize(x.sum(dim=0) if shared is None else shared, dim=-1)
    return torch.where(common == 0, unit @ unit.T, cosine), common


def shared_part(network: DMPT) -> SharedPart | None:
    """The network's shared part, if it has one."""
    return cast(SharedPart, network.also["shared"]) if "shared" in network.also else None
