"""BNNeck and classifiers (Luo et al. 2019): where cross-entropy and triplet loss act.

The triplet loss sees the feature before batch normalisation, cross-entropy the logits after it. A modality's head sees
the samples that have it, a head on a concatenation complete samples: with zeros for a missing modality its triplet loss
would measure which are missing, and batch normalisation would mix in zeros that no test compares.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from dmpt.method.network import Output
from dmpt.settings.modalities import MODALITIES

HEADS: dict[str, tuple[str, ...]] = {
    "concat": ("concat",),
    "modality": MODALITIES,
    "concat+modality": ("concat", *MODALITIES),
    "paper": ("concat", *MODALITIES, "projected"),
}


class BNNeck(nn.Module):
    """Batch normalisation of a feature with a frozen zero bias, then a linear classifier of identities without bias."""

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


class Seen(NamedTuple):
    """Of b samples, what a head sees ``(b, width)``, its logits ``(b, ids)``, and their labels ``(b,)``."""

    feature: Tensor
    logits: Tensor
    labels: Tensor


class Heads(nn.Module):
    """One BNNeck per feature that the setting ``heads``, a key of ``HEADS``, names, for ``ids`` identities.

    ``width`` is D of one modality's feature, ``projected`` that of its projection, which only ``paper`` uses.
    A complete sample has all of ``modalities``.
    """

    def __init__(
        self, setting: str, width: int, projected: int | None, ids: int, modalities: Sequence[str] = MODALITIES
    ):
        super().__init__()
        self.modalities = tuple(modalities)
        widths = {"concat": len(modalities) * width, "projected": len(modalities) * (projected or 0)}
        self.names = [name for name in HEADS[setting] if name in modalities or name in widths]
        self.necks = nn.ModuleDict({name: BNNeck(widths.get(name, width), ids) for name in self.names})

    def forward(self, output: Output, labels: Tensor) -> dict[str, Seen]:
        """By head, what it sees of a batch with labels ``(B,)``; batch norm knows no spread of fewer than two."""
        features = dict(zip(MODALITIES, output.features.x, strict=True))
        features["concat"] = output.features.side_by_side(self.modalities)
        if output.projected is not None:
            features["projected"] = output.projected.side_by_side(self.modalities)
        found = {}
        for name in self.names:
            neck = self.necks[name]
            having = output.features.having([name] if name in MODALITIES else self.modalities)
            feature, own = (x if having is None else x[having] for x in (features[name], labels))
            if having is not None and len(feature) < 2:
                feature, own = feature[:0], own[:0]
                found[name] = Seen(feature, feature @ neck.get_parameter("classifier.weight").T, own)
            else:
                found[name] = Seen(feature, neck(feature), own)
        return found
