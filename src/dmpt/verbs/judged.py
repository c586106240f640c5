"""What may differ from training where a trained model is judged: flags that ``evaluate`` and ``report`` share."""

from dataclasses import asdict, dataclass
from typing import Any

from dmpt.settings.config import Layout, Object, Protocol
from dmpt.settings.numbers import Count, Seed, ShareBetween


@dataclass(frozen=True)
class _Data:
    """Settings of the data.

    Attributes:
        root: Data folder; default: where training found it.
        layout: How files and names are arranged, where they are others than those of training.
        object: What they show; the words of the prompts stay those of training.
        protocol: What a query ignores. Numbers by another one than the run's are kept apart.
        test_share: Share of the identities that are tested, for own data that names no splits.
        split_seed: Of that split.
        workers: Loader processes; default: as in training.
    """

    root: str | None = None
    layout: Layout | None = None
    object: Object | None = None
    protocol: Protocol | None = None
    test_share: ShareBetween | None = None
    split_seed: Seed | None = None
    workers: Count | None = None


@dataclass(frozen=True)
class Backbone:
    """Settings of the backbone.

    Attributes:
        weights: Weights file, when it has moved.
    """

    weights: str | None = None


@dataclass(frozen=True)
class Judged:
    """What is not given is as in training.

    Attributes:
        data: the data that are judged on
        backbone: the tower
    """

    data: _Data = _Data()
    backbone: Backbone = Backbone()

    def conditions(self) -> dict[str, Any]:
        """As ``evaluation.opened.Conditions`` takes them."""
        return {"data": asdict(self.data), "weights": self.backbone.weights}
