"""What may differ from training where a trained model is judged: in Python a value, on the command line flags."""

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from dmpt.settings.config import Layout, Object, Protocol
from dmpt.settings.numbers import Count, Positive, Seed, ShareBetween
from dmpt.settings.recipe import Precision


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Under which a trained model is judged; what is not given is as in training.

    Where a field has the place of a setting of training, the flag is called as that setting is.

    Attributes:
        root: Data folder; default: where training found it.
        layout: How files and names are arranged, where they are others than those of training.
        object: What they show; the words of the prompts stay those of training.
        protocol: What a query ignores. Numbers by another one than the run's are kept apart.
        test_share: Share of the identities that are tested, for own data that names no splits.
        split_seed: Of that split.
        workers: Loader processes; default: as in training.
        weights: Weights file, when it has moved.
        which: Default: the one training selected.
        precision: Default: as in training (dmpt calibrate: as a calibration that is there); of fp16 without a GPU fp32.
        batch_size: Samples per pass.
        skip_broken: Leave out samples with unreadable images, counted and listed.
    """

    root: str | None = field(default=None, metadata={"flag": "data.root"})
    layout: Layout | None = field(default=None, metadata={"flag": "data.layout"})
    object: Object | None = field(default=None, metadata={"flag": "data.object"})
    protocol: Protocol | None = field(default=None, metadata={"flag": "data.protocol"})
    test_share: ShareBetween | None = field(default=None, metadata={"flag": "data.test_share"})
    split_seed: Seed | None = field(default=None, metadata={"flag": "data.split_seed"})
    workers: Count | None = field(default=None, metadata={"flag": "data.workers"})
    weights: str | None = field(default=None, metadata={"flag": "backbone.weights"})
    which: Literal["last", "best"] | None = None
    precision: Precision | None = None
    batch_size: Positive = 64
    skip_broken: bool = False

    @property
    def data(self) -> dict[str, Any]:
        """The settings of the data that are given, by their names in ``DataConfig``."""
        own = [name.name for name in fields(self) if name.metadata.get("flag", "").startswith("data.")]
        return {name: value for name in own if (value := getattr(self, name)) is not None}


USUAL = Conditions()
"""Those of training."""
