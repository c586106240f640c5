"""BNNeck and classifiers (Luo et al. 2019): where cross-entropy and triplet loss act.

The triplet loss sees the feature before batch normalisation, cross-entropy the logits after it.

Triplets that lack a modality. A modality's head sees the triplets that have it. A head on a concatenation sees complete
triplets alone: with zeros in the place of a missing slot its triplet loss would measure which slots are missing, and
batch normalisation would mix features with zeros that no test compares.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dmpt.settings.modalities import MODALITIES

HEADS: dict[str, tuple[str, ...]] = {
    "concat": ("concat",),
    "modality": MODALITIES,
    "concat+modality": ("concat", *MODALITIES),
    "paper": ("concat", *MODALITIES, "projected"),
}


class BNNeck(nn.Module):
    """Batch normalisation with a frozen zero bias, then a linear classifier without bias.

    Args:
        width: of the feature.
        ids: number of training identities.
    """

    def __init__(self, width: int, ids: int):
        super().__init__()
        self.norm = nn.BatchNorm1d(width)
        self.norm.bias.requires_grad_(False)
        self.classifier = nn.Linear(width, ids, bias=False)
        nn.init.normal_(self.classifier.weight, std=0.001)

    def forward(self, feature: Tensor) -> Tensor:
        """Features ``(B, width)`` to logits ``(B, ids)``."""
        logits: Tensor = self.classifier(self.norm(feature))
        return logits


class Heads(nn.Module):
    """One BNNeck per feature that the setting ``heads`` names.

    Args:
        setting: a key of ``HEADS``.
        width: D of one modality's feature.
        projected: width of one modality's projection; only ``paper`` uses it.
        ids: number of training identities.
        modalities: those in use; a complete triplet has all of them.
        shared: one more, on the shared part.
    """

    def __init__(
        self,
        setting: str,
        width: int,
        projected: int | None,
        ids: int,
        modalities: Sequence[str] = MODALITIES,
        shared: bool = False,
    ):
        super().__init__()
        self.modalities = tuple(modalities)
        widths = {"concat": len(modalities) * width, "projected": len(modalities) * (projected or 0)}
        names = [name for name in HEADS[setting] if name in modalities or name in widths]
        self.necks = nn.ModuleDict({name: BNNeck(widths.get(name, width), ids) for name in names})
        if shared:
            self.necks["shared"] = BNNeck(width, ids)

    def forward(
        self,
        features: Tensor,
        projected: Tensor | None,
        shared: Tensor | None = None,
        present: Tensor | None = None,
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """The feature and its logits, by head.

        Args:
            features: ``(3, B, D)``.
            projected: ``(3, B, d)`` or None.
            shared: ``(B, D)`` or None.
            present: bool ``(3, B)``; None = all.

        Returns:
            Of each head the triplets that it sees (``rows``). A head that sees fewer than two is given none, for batch
            normalisation knows no spread of one.
        """
        sources = dict(zip(MODALITIES, features, strict=True))
        sources["concat"] = concatenate(self._used(features))
        if projected is not None:
            sources["projected"] = concatenate(self._used(projected))
        if shared is not None:
            sources["shared"] = shared
        found: dict[str, tuple[Tensor, Tensor]] = {}
        for name, neck in self.necks.items():
            own = rows(name, present, self.modalities)
            seen = sources[name] if own is None else sources[name][own]
            if own is not None and len(seen) < 2:
                nothing = seen[:0]
                found[name] = nothing, nothing @ neck.get_parameter("classifier.weight").T
            else:
                found[name] = seen, neck(seen)
        return found

    def normed(self, features: Tensor, present: Tensor | None = None) -> Tensor:
        """Features after batch norm: the concatenation's where it has a head, else each modality's.

        Args:
            features: ``(3, B, D)``.
            present: bool ``(3, B)``; None = all.

        Returns:
            ``(3, B, D)``; zeros where absent.
        """
        used = self._used(features)
        if "concat" in self.necks:
            whole = self.necks["concat"].get_submodule("norm")(concatenate(used))
            after = whole.unflatten(1, (len(used), -1)).transpose(0, 1)
        else:
            norms = [self.necks[name].get_submodule("norm") for name in self.modalities]
            after = torch.stack([norm(x) for norm, x in zip(norms, used, strict=True)])
        out = torch.zeros_like(features)
        out[[MODALITIES.index(name) for name in self.modalities]] = after
        return out if present is None else out.masked_fill(~present[..., None], 0)

    def _used(self, features: Tensor) -> Tensor:
        """The slots of the modalities in use."""
        if len(self.modalities) == len(MODALITIES):
            return features
        return features[[MODALITIES.index(name) for name in self.modalities]]


def rows(name: str, present: Tensor | None, modalities: Sequence[str]) -> Tensor | None:
    """Which triplets a head sees, bool ``(B,)``; None = all.

    Args:
        name: of the head.
        present: bool ``(3, B)``; None = all.
        modalities: those in use.
    """
    if present is None or name == "shared":
        return None
    needed = [name] if name in MODALITIES else modalities
    return torch.stack([present[MODALITIES.index(one)] for one in needed]).all(dim=0)


def concatenate(features: Tensor) -> Tensor:
    """The modalities side by side: ``(3, B, D)`` to ``(B, 3 D)``."""
    return features.transpose(0, 1).flatten(1)
