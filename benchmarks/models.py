"""Models, batches and steps that the benchmarks of speed and memory compare.

Weights are random and batches are noise: neither changes what a step costs. The modality prompts are fed frozen
random vectors as wide as CLIP's words, which cost what words cost and need no file.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dmpt.method.backbone import Backbone
from dmpt.method.heads import Heads
from dmpt.method.losses import objective
from dmpt.method.network import DMPT, Output
from dmpt.method.prompts import MODALITY_COUNT, modality_words
from dmpt.settings.config import (
    BackboneConfig,
    BindConfig,
    Config,
    DataConfig,
    ModalityConfig,
    SemanticConfig,
    TextConfig,
    TrainConfig,
)
from dmpt.towers.image import build_vit

IDS = 171
"""Training identities of RGBNT201: how wide the classifiers are."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
Path = Literal["ours", "timm fused", "timm unfused"]
PATHS: tuple[Path, ...] = ("ours", "timm fused", "timm unfused")


@dataclass(frozen=True)
class Case:
    """One setting of a benchmark: S = 32, M = 1, no text loss.

    Attributes:
        name: timm's name of the tower.
        size: image height and width.
        samples: B.
        precision: fp32 or bf16.
        overrides: of timm's shape, as ``backbone.overrides``.
    """

    name: str
    size: tuple[int, int]
    samples: int
    precision: Literal["fp32", "bf16"] = "fp32"
    overrides: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        height, width = self.size
        threads = torch.get_num_threads()
        shape = "".join(f", {key} {value}" for key, value in self.overrides.items())
        return f"{self.name}{shape}, {height}x{width}, {self.samples} samples, {self.precision}, {threads} threads"

    def dmpt(self, depth: int = 1, form: Literal["prefix", "token"] = "prefix") -> Config:
        """The method; the learning rate is small, so that no repetition leaves the range of the first."""
        return Config(
            data=DataConfig(size=self.size),
            backbone=BackboneConfig(name=self.name, weights="random", overrides=self.overrides),
            modality=ModalityConfig(source="random"),
            bind=BindConfig(depth=depth),
            text=TextConfig(loss="off"),
            train=TrainConfig(lr=1e-6, precision=self.precision),
            prompts=form,
        )

    def plain(self, tune: Literal["frozen", "full"]) -> Config:
        """The tower without prompts or interaction, frozen or fine-tuned as a whole."""
        config = self.dmpt(depth=0)
        return replace(
            config,
            backbone=replace(config.backbone, tune=tune),
            semantic=SemanticConfig(length=0),
            modality=replace(config.modality, length=0),
        )

    def images(self) -> Tensor:
        """``(3, B, 3, H, W)``."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(MODALITY_COUNT, self.samples, 3, *self.size, generator=generator)

    def autocast(self) -> AbstractContextManager[None]:
        """Around the forward pass, as training and evaluation do."""
        return torch.autocast("cpu", DTYPES[self.precision], enabled=self.precision != "fp32")


class Tower(Backbone):
    """A backbone whose plain pass can run timm's own blocks instead of ours."""

    path: Path = "ours"

    def forward(self, images: Tensor, prompts: object = None, *args: object, **kwargs: object) -> Tensor:
        """As ``Backbone``; without prompts by the chosen path."""
        if prompts is not None or self.path == "ours":
            return super().forward(images, prompts, *args, **kwargs)
        return self.timm_blocks(self.embed(images))

    def timm_blocks(self, tokens: Tensor) -> Tensor:
        """The blocks of timm on ``(M, B, N, D)``, with PyTorch's fused attention or timm's own without it."""
        for block in self.vit.blocks:
            block.attn.fused_attn = self.path == "timm fused"
        out: Tensor = self.vit.blocks(tokens.flatten(0, 1))
        return out.unflatten(0, tokens.shape[:2])


def tower(config: Config) -> Tower:
    """A tower with random weights, a frozen one in the compute precision."""
    torch.manual_seed(0)
    backbone = Tower(*build_vit(config.backbone, config.data.size), config.backbone.tune)
    backbone.keep_in(DTYPES[config.train.precision])
    return backbone


def network(config: Config, backbone: Tower | None = None) -> DMPT:
    """The network, on a backbone of its own or on one that others use too."""
    backbone = backbone or tower(config)
    words = modality_words(config.modality, None) if config.modality.length else None
    return DMPT(config, backbone, IDS, words)


class ThreeTowers(nn.Module):
    """Full fine-tuning as the paper's peers have it: each modality trains a tower of its own."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.towers = nn.ModuleList(tower(config) for _ in range(MODALITY_COUNT))
        self.heads = Heads(config.heads, self.towers[0].width, None, IDS)

    def forward(self, images: Tensor) -> Output:
        """As ``DMPT.forward``."""
        cls = [own(images[m : m + 1])[:, :, 0] for m, own in enumerate(self.towers)]
        with torch.autocast("cpu", enabled=False):
            return Output(torch.cat([own.norm(x) for own, x in zip(self.towers, cls, strict=True)]))


class Step:
    """A training step as ``dmpt.training.trainer`` takes it: forward, losses, backward, Adam, gradients to None."""

    def __init__(self, case: Case, model: DMPT | ThreeTowers):
        self.case, self.model, self.images = case, model.train(), case.images()
        self.labels = torch.arange(case.samples) // max(2, case.samples // 8)
        recipe = model.config.train
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(self.trained, lr=recipe.lr, weight_decay=recipe.weight_decay)

    def __call__(self) -> None:
        """One step."""
        self.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def backward(self) -> None:
        """Leave the gradients of the losses on the trained tensors."""
        with self.case.autocast():
            output = self.model(self.images)
        heads = self.model.heads(output.features, output.projected)
        torch.stack(list(objective(self.model.config, output, heads, self.labels).values())).sum().backward()
