"""Every setting, as dataclasses: their fields are the YAML keys and the command-line flags.

A reading of the paper where it is ambiguous is a named choice here; the first choice is the default. Section and
equation numbers are the paper's.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from dmpt.settings.numbers import AboveZero, Count, Finite, Positive, Seed, Share, ShareAboveZero, ShareBetween
from dmpt.settings.recipe import LossConfig, MissingConfig, TrainConfig

Layout = Literal["rgbnt201", "market1501_mm", "rgbnt100", "msvr310", "wmveid863", "rgbn300", "manifest", "folder"]
Object = Literal["person", "vehicle"]
Protocol = Literal["same_camera", "same_scene", "none"]
FirstLayer = Count | Literal["third", "middle"]
Range = tuple[Finite, Finite]
SIXTEEN_BITS: Range = (0.0, 65535.0)
"""What pictures of 16 bits can hold."""


@dataclass(frozen=True)
class DataConfig:
    """Which images, and what happens to them before the network.

    Attributes:
        root: the data set's folder; for ``manifest`` also the table itself.
        layout: how files and names are arranged (docs/data.md); also chooses the protocol and the object word.
        object: what is re-identified; null = the layout's own, for own data ``person``.
        protocol: what a query ignores: its identity in the ``same_camera``, in the ``same_scene``, or ``none``; null =
            the layout's own, for own data ``same_camera``.
        test_share: share of the identities that are tested, for own data that names no splits.
        split_seed: of that split, and of the identities that ``train.select val`` holds out.
        train_share: share of the training identities that are used, drawn with ``split_seed``: how few will do? A
            smaller share is part of a larger one.
        size: height and width in pixels; both must be multiples of the backbone's patch.
        mean: per-channel mean in [0, 1]; null = the tower's own.
        std: per-channel standard deviation; null = the tower's own.
        value_range: raw values of images of more than 8 bits that become black and white, the same for all images;
            ``auto`` = measured on the training set once, and fixed.
        augmentation: random draws per modality (``independent``, as all peers do) or once per sample (``shared``).
        flip: probability of a horizontal flip.
        pad: black border in pixels before the random crop.
        erasing: probability of random erasing (Zhong et al. 2020).
        workers: loader processes.
        modalities: which images are used, in training and at test; the others are not read.
    """

    root: str | None = None
    layout: Layout = "rgbnt201"
    object: Object | None = None
    protocol: Protocol | None = None
    test_share: ShareBetween = 0.2
    split_seed: Seed = 0
    train_share: ShareAboveZero = 1.0
    size: tuple[Positive, Positive] = (256, 128)
    mean: tuple[Finite, Finite, Finite] | None = None
    std: tuple[AboveZero, AboveZero, AboveZero] | None = None
    value_range: Range | Literal["auto"] = SIXTEEN_BITS
    augmentation: Literal["independent", "shared"] = "independent"
    flip: Share = 0.5
    pad: Count = 10
    erasing: Share = 0.5
    workers: Count = 2
    modalities: tuple[Literal["rgb", "nir", "tir"], ...] = ("rgb", "nir", "tir")

    @property
    def black_and_white(self) -> Range:
        """``value_range`` of a run, where it is measured and so two numbers."""
        assert not isinstance(self.value_range, str)
        return self.value_range


@dataclass(frozen=True)
class BackboneConfig:
    """The pretrained vision transformer.

    Attributes:
        name: a timm ``VisionTransformer``.
        weights: ``hub`` (the name's own file, downloaded once), ``hub:OWNER/REPO/FILE``,
            ``package:FILE`` (what comes with dmpt), a local file, or ``random``.
        grid: height and width in patches of the position table in the weights file; null = as the table shows.
        blocks: use only the first so many blocks; null = all.
        norm: the tower's final norm, or a ``plain`` LayerNorm without affine.
        projection: image features to the text space: the tower's own, frozen; or one that is ``trained``.
        projection_dim: width of a trained projection; the tower's own has its own width.
        antialias: when position embeddings are resampled to another grid.
        tune: ``frozen`` (the paper), or a comparator: ``linear`` probe, a layer per modality on the frozen tower's
            feature; ``full`` fine-tuning; or ours: ``lora``, low-rank updates of its maps (``lora.where``).
        checkpoint: compute a block's activations again in backward instead of keeping them: less memory, more time.
        overrides: changes to the named architecture, as timm's keyword arguments, e.g. ``{embed_dim: 192, depth: 8}``.
    """

    name: str = "vit_base_patch16_clip_quickgelu_224.openai"
    weights: str = "hub"
    grid: tuple[Positive, Positive] | None = None
    blocks: Positive | None = None
    norm: Literal["tower", "plain"] = "tower"
    projection: Literal["tower", "trained"] = "tower"
    projection_dim: Positive = 512
    antialias: bool = True
    tune: Literal["frozen", "linear", "lora", "full"] = "frozen"
    checkpoint: bool = False
    overrides: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank updates of the frozen tower, where ``backbone.tune`` is ``lora``; not in the paper.

    Attributes:
        where: which maps of a block are updated: queries and values ``qv``, of ``attention``, ``mlp``, or ``all``.
        rank: of the update that the modalities share; 0 = none.
        rank_per_modality: of each modality's own update; 0 = none.
        first_layer: the layers below, counted from 0, stay as they are and run without autograd.
            ``third``, ``middle``: that share of the tower's layers, rounded down.
        scale: factor of every update.
    """

    where: Literal["qv", "attention", "mlp", "all"] = "qv"
    rank: Count = 8
    rank_per_modality: Count = 0
    first_layer: FirstLayer = 0
    scale: AboveZero = 1.0


@dataclass(frozen=True)
class SemanticConfig:
    """Semantic prompts S (section 3.3).

    Attributes:
        length: S, prompts per layer and modality; 0 = none.
        share: one set for the three modalities (a reading of Baseline 1's "common" prompts).
        first_layer: prompts enter from this layer on; the layers below, counted from 0, run without autograd.
            ``third``, ``middle``: that share of the tower's layers, rounded down.
        init: ``uniform`` as VPT, or from ``data``: patch tokens of training images at that layer.
    """

    length: Count = 32
    share: bool = False
    first_layer: FirstLayer = 0
    init: Literal["uniform", "data"] = "uniform"


@dataclass(frozen=True)
class ModalityConfig:
    """Modality prompts M (section 3.3).

    Attributes:
        length: M, prompts per layer and modality; 0 = none.
        source: what the mapping P is fed: the frozen ``words`` of the phrase, the ``attribute`` word alone, or one of
            three controls: ``learned`` vectors, frozen ``random`` vectors, the words ``permuted`` among modalities.
        width: width of learned or random vectors; words have their own.
        first_layer: prompts enter from this layer on; null = where semantic prompts do.
    """

    length: Count = 1
    source: Literal["words", "attribute", "learned", "random", "permuted"] = "words"
    width: Positive = 512
    first_layer: Count | None = None

    @property
    def worded(self) -> bool:
        """Whether words of a text tower are needed."""
        return self.length > 0 and self.source not in ("learned", "random")


@dataclass(frozen=True)
class BindConfig:
    """PromptIBind (section 3.4, Eq. 11-16).

    Attributes:
        depth: k, interaction layers; 0 = no interaction.
        external: exchange through the bind prompt (Eq. 11-14); off = internal attention alone, a control.
        rank: of every linear map in it, each then a product of two thin ones; null = full.
        share: one internal attention SA for the three modalities.
        layers: of the tower, counted from 0, behind which the modalities exchange too; the last one is ``depth``'s.
    """

    depth: Count = 1
    external: bool = True
    rank: Positive | None = None
    share: bool = False
    layers: tuple[Count, ...] = ()


@dataclass(frozen=True)
class TextConfig:
    """Text prompts and the contrastive loss (section 3.2, Eq. 5-6).

    Attributes:
        loss: ``modality``: the image must find its own modality's and object's prompt among the fixed six;
            ``identity``: learnable identity tokens in the prompt, one text per identity; ``literal``: Eq. 5 as
            printed, a constant; ``off``.
        z: image features ``before`` or ``after`` the interaction layers.
        tower: open_clip's name of the text tower.
        weights: its weights: an open_clip tag (``openai``), ``hub:OWNER/REPO/FILE``, or a local file.
        file: a ready ``text.safetensors`` (or ``package:FILE``) instead of a tower.
        reduction: of the loss over the modalities: ``mean``, or ``sum`` as in Eq. 6; ``literal`` is a sum anyway.
        tokens: learnable tokens per identity, for ``identity``.
    """

    loss: Literal["modality", "identity", "literal", "off"] = "modality"
    z: Literal["before", "after"] = "before"
    tower: str = "ViT-B-16-quickgelu"
    weights: str = "openai"
    file: str | None = None
    reduction: Literal["mean", "sum"] = "mean"
    tokens: Positive = 4


@dataclass(frozen=True)
class Config:
    """All of it.

    Attributes:
        data: images and augmentation.
        backbone: the pretrained transformer.
        lora: low-rank updates of it.
        semantic: semantic prompts.
        modality: modality prompts.
        bind: PromptIBind.
        text: text prompts and their loss.
        prompts: ``prefix``: prompts as attention prefixes, exact and faster; ``token``: inserted as tokens.
        heads: where cross-entropy and metric loss act: on the concatenated feature, on each modality's, on both, or
            (``paper``) on both and on the concatenated projections.
        feature: of a modality: its enhanced class token ``cls``; or with the mean of its semantic prompts after the
            exchange beside it, ``cls+bind``. Heads and test alike.
        neck: test features ``before`` or ``after`` the batch norm of the heads.
        loss: the terms of Eq. 17.
        missing: samples that lack a modality.
        train: the recipe.
        init: an adapter, or the run that it lies in: training starts from its tensors, and only what belongs to
            identities (classifiers, identity tokens) starts anew; in place of ``semantic.init``.
    """

    data: DataConfig = field(default_factory=DataConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    semantic: SemanticConfig = field(default_factory=SemanticConfig)
    modality: ModalityConfig = field(default_factory=ModalityConfig)
    bind: BindConfig = field(default_factory=BindConfig)
    text: TextConfig = field(default_factory=TextConfig)
    prompts: Literal["prefix", "token"] = "prefix"
    heads: Literal["concat+modality", "concat", "modality", "paper"] = "concat+modality"
    feature: Literal["cls", "cls+bind"] = "cls"
    neck: Literal["before", "after"] = "before"
    loss: LossConfig = field(default_factory=LossConfig)
    missing: MissingConfig = field(default_factory=MissingConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    init: str | None = None
