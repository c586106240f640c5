"""Settings of how a network is trained: the loss, what is left out, the schedule."""

from dataclasses import dataclass
from typing import Literal

from dmpt.settings.numbers import AboveZero, Count, Positive, Seed, Several, Share, ShareBelowOne, Weight

Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class LossConfig:
    """Weights and forms of the terms of Eq. 17.

    Attributes:
        ce: weight of cross-entropy.
        smoothing: label smoothing of cross-entropy.
        metric_weight: weight of the metric loss.
        metric: ``triplet``: batch-hard, soft margin, Euclidean distances of unnormalised features; ``normalised``: the
            same on L2-normalised features, distances times ``metric_scale``; ``contrastive``: supervised contrastive
            on cosines times ``metric_scale``.
        metric_scale: the inverse of a temperature.
        head_reduction: of cross-entropy and metric loss over the heads: their ``mean``, or their ``sum``.
        centre: weight of the centre loss.
        centre_reduction: mean or sum over the feature's width.
        centre_normalise: L2-normalise features first.
        text: weight of the contrastive loss.
        shared: weight of cross-entropy and metric loss of the shared part, where there is one.
        distil: weight of distillation from the whole sample, where training sees it (``missing.view: both``).
        align: weight of a contrastive loss between the modalities of an identity: on its shared parts where there are
            some, else on its features.
    """

    ce: Weight = 1.0
    smoothing: Share = 0.1
    metric_weight: Weight = 1.0
    metric: Literal["triplet", "normalised", "contrastive"] = "triplet"
    metric_scale: AboveZero = 10.0
    head_reduction: Literal["mean", "sum"] = "mean"
    centre: Weight = 1.0
    centre_reduction: Literal["mean", "sum"] = "mean"
    centre_normalise: bool = False
    text: Weight = 1.0
    shared: Weight = 1.0
    distil: Weight = 1.0
    align: Weight = 0.0


@dataclass(frozen=True)
class MissingConfig:
    """Samples that lack a modality; not in the paper.

    Attributes:
        dropout: probability with which training leaves out each modality of a sample; one always stays.
        shared: train the shared part, by which items without a common modality are compared; null = where dropout is
            above 0.
        view: what training sees of a sample under dropout: the ``subset`` that is left; or ``both``, the whole sample
            too, from one pass of the tower and two of the interaction, and the subset is taught by the whole.
        absent: what stands in the bind for a modality that a sample lacks: ``nothing``, the bind is the mean over the
            others; or ``learned`` tokens.
        standardise: which sets of common modalities the shared part brings to one scale: those that training has
            ``seen``; or all, for which whole samples are ``cut`` down in thought, and dropout is not needed.
    """

    dropout: Share = 0.0
    shared: bool | None = None
    view: Literal["subset", "both"] = "subset"
    absent: Literal["nothing", "learned"] = "nothing"
    standardise: Literal["seen", "cut"] = "seen"

    @property
    def with_shared(self) -> bool:
        """Whether there is a shared part."""
        return self.dropout > 0 if self.shared is None else self.shared


@dataclass(frozen=True)
class TrainConfig:
    """The recipe.

    Attributes:
        epochs: passes over the training identities; warm-up and cosine keep their shares of it.
        ids: P, identities per batch.
        instances: K, samples per identity.
        lr: peak learning rate of Adam.
        weight_decay: Adam's.
        warmup: share of the run that warms up linearly.
        warmup_from: first learning rate, as a share of the peak.
        final: last learning rate, as a share of the peak.
        precision: compute precision; trained tensors and Adam's moments stay float32.
        accumulate: batches per optimiser step; the metric losses still see one batch at a time.
        clip: gradient norm limit; null = none.
        seed: of initial values, batches and augmentation.
        save_every: steps between saves.
        select: ``last``; ``val``: best on held-out training identities; ``auto``: that where it holds out 15 or more,
            which carry a threshold for one false match in a hundred, else ``last``; ``test``: best on the test set, as
            every peer does, and as such an optimistic number.
        val_share: share of the training identities seen by two or more cameras that ``val`` holds out.
        eval_every: epochs between evaluations for ``val`` and ``test``.
        ema: decay of an exponential moving average of the trained tensors, which is what is evaluated and saved as
            the adapter; 0 = none.
        tensorboard: also write TensorBoard events (extra ``track``).
    """

    epochs: Count = 60
    ids: Several = 8
    instances: Several = 8
    lr: AboveZero = 1e-3
    weight_decay: Weight = 1e-4
    warmup: Share = 1 / 6
    warmup_from: Share = 0.1
    final: Share = 1e-3
    precision: Precision = "fp32"
    accumulate: Positive = 1
    clip: AboveZero | None = None
    seed: Seed = 0
    save_every: Positive = 100
    select: Literal["last", "val", "auto", "test"] = "last"
    val_share: Share = 0.2
    eval_every: Positive = 1
    ema: ShareBelowOne = 0.0
    tensorboard: bool = False
