"""BNNeck and classifiers (Luo et al. 2019): where cross-entropy and triplet loss act.

The triplet loss sees the feature before batch normalisation, cross-entropy the logits after it.
"""

from torch import Tensor, nn

from dmpt.data.manifest import MODALITIES

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
    """

    def __init__(self, setting: str, width: int, projected: int | None, ids: int):
        super().__init__()
        widths = {"concat": 3 * width, "projected": 3 * (projected or 0)}
        self.necks = nn.ModuleDict({name: BNNeck(widths.get(name, width), ids) for name in HEADS[setting]})

    def forward(self, features: Tensor, projected: Tensor | None) -> dict[str, tuple[Tensor, Tensor]]:
        """The feature and its logits, by head.

        Args:
            features: ``(3, B, D)``.
            projected: ``(3, B, d)`` or None.
        """
        sources = dict(zip(MODALITIES, features, strict=True))
        sources["concat"] = concatenate(features)
        if projected is not None:
            sources["projected"] = concatenate(projected)
        return {name: (sources[name], neck(sources[name])) for name, neck in self.necks.items()}


def concatenate(features: Tensor) -> Tensor:
    """The three modalities side by side: ``(3, B, D)`` to ``(B, 3 D)``."""
    return features.transpose(0, 1).flatten(1)
