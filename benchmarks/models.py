"""Models, batches and steps that the benchmarks of speed and memory compare.

Weights are random and batches are noise: neither changes what a step costs. The modality prompts are fed frozen
random vectors as wide as CLIP's words, which cost what words cost and need no file.
"""

import argparse
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from dmpt.extensions.assemble import build_backbone, build_network, build_objective
from dmpt.extensions.readings import words_for_prompts
from dmpt.method.backbone import Backbone
from dmpt.method.heads import Heads
from dmpt.method.losses import Objective
from dmpt.method.modalities import MODALITY_COUNT, Features
from dmpt.method.network import DMPT, Output
from dmpt.runtime.torch import PRECISIONS
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
from dmpt.towers.image import TowerInfo, build_vit
from dmpt.towers.phrases import TextTargets

IDS = 171
"""Training identities of RGBNT201: how wide the classifiers are."""
Precision = Literal["fp32", "bf16", "fp16"]
ON_CPU: tuple[Precision, ...] = ("fp32", "bf16")
Tune = Literal["frozen", "lora", "full"]
Path = Literal["ours", "timm fused", "timm unfused"]
PATHS: tuple[Path, ...] = ("ours", "timm fused", "timm unfused")


@dataclass(frozen=True)
class Case:
    """One setting of a benchmark: S = 32, M = 1, no text loss.

    Attributes:
        name: timm's name of the tower.
        size: image height and width.
        samples: B.
        precision: of training; fp16 needs a GPU.
        overrides: of timm's shape, as ``backbone.overrides``.
        device: where it runs.
    """

    name: str
    size: tuple[int, int]
    samples: int
    precision: Precision = "fp32"
    overrides: dict[str, Any] = field(default_factory=dict)
    device: str = "cpu"

    def __str__(self) -> str:
        height, width = self.size
        where = f"{torch.get_num_threads()} threads" if self.device == "cpu" else self.device
        shape = "".join(f", {key} {value}" for key, value in self.overrides.items())
        return f"{self.name}{shape}, {height}x{width}, {self.samples} samples, {self.precision}, {where}"

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

    def plain(self, tune: Tune) -> Config:
        """The tower without prompts or interaction, tuned as asked."""
        return plain(self.dmpt(), tune)

    def images(self) -> Tensor:
        """``(3, B, 3, H, W)``."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(MODALITY_COUNT, self.samples, 3, *self.size, generator=generator).to(self.device)

    def autocast(self) -> AbstractContextManager[None]:
        """``autocast`` of its device and precision."""
        return autocast(self.device, self.precision)


def parser_of(doc: str | None, samples: int, repeats: int) -> argparse.ArgumentParser:
    """The flags of a benchmark of one ``Case``, which ``case_of`` makes of them."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=samples)
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--precision", choices=ON_CPU, default="fp32")
    parser.add_argument("--tower", default="vit_base_patch16_clip_quickgelu_224", help="timm's name")
    parser.add_argument("--overrides", type=json.loads, default={}, help='of its shape, as JSON: {"depth": 9}')
    parser.add_argument("--size", type=int, nargs=2, default=(256, 128), metavar=("H", "W"))
    parser.add_argument("--quick", action="store_true", help="smoke test: one round of a ViT-Ti/16 at 64x32")
    return parser


def case_of(args: argparse.Namespace) -> Case:
    """What the flags say."""
    if args.quick:
        return Case("vit_tiny_patch16_224", (64, 32), min(args.samples, 4), args.precision, args.overrides)
    return Case(args.tower, tuple(args.size), args.samples, args.precision, args.overrides)


def autocast(device: str, precision: Precision) -> AbstractContextManager[None]:
    """Around the forward pass, as training and evaluation do."""
    return torch.autocast(device, PRECISIONS[precision], enabled=precision != "fp32")


def plain(config: Config, tune: Tune) -> Config:
    """The same heads and losses on a tower without prompts or interaction, tuned as asked."""
    return replace(
        config,
        backbone=replace(config.backbone, tune=tune),
        semantic=SemanticConfig(length=0),
        modality=replace(config.modality, length=0),
        bind=BindConfig(depth=0),
    )


class Tower(Backbone):
    """A backbone whose plain pass can run timm's own blocks instead of ours."""

    path: Path = "ours"
    info: TowerInfo

    def forward(self, images: Tensor, prompts: object = None, *args: object, **kwargs: object) -> Tensor:
        """As ``Backbone``; without prompts by the chosen path."""
        if prompts is not None or self.path == "ours":
            return super().forward(images, prompts, *args, **kwargs)
        return self.timm_blocks(self.embed(images))

    def timm_blocks(self, tokens: Tensor) -> Tensor:
        """The blocks of timm on ``(n, N, D)``, with PyTorch's fused attention or timm's own without it."""
        for block in self.vit.blocks:
            block.attn.fused_attn = self.path == "timm fused"
        out: Tensor = self.vit.blocks(tokens)
        return out


def tower(config: Config, build: Callable[..., tuple[Any, TowerInfo]] = build_vit) -> Tower:
    """A tower with random weights, a frozen one in the compute precision."""
    torch.manual_seed(0)
    vit, info = build(config.backbone, config.data.size)
    backbone: Any = build_backbone(config, vit)
    backbone.__class__ = Tower  # which holds nothing but the choice of its path
    backbone.info = info
    backbone.keep_in(PRECISIONS[config.train.precision])
    return backbone


class Trainee(NamedTuple):
    """What a step trains."""

    module: nn.Module
    objective: Objective
    recipe: TrainConfig


def trainee(config: Config, backbone: Tower | None = None) -> Trainee:
    """The method, on a backbone of its own or on one that others use too."""
    backbone = backbone or tower(config)
    modality, words = config.modality, None
    if modality.length:
        words = words_for_prompts(modality.source, modality.length, modality.width, None)
    network, heads = build_network(config, backbone, backbone.info, IDS, words)
    text = None
    if network.text_from is not None:
        assert network.projection is not None
        text = TextTargets(torch.randn(6, network.projection.out_features), torch.tensor([0, 2, 4]), 100.0)
    return Trainee(network, build_objective(config, network, heads, text), config.train)


def network(config: Config, backbone: Tower | None = None) -> DMPT:
    """The network alone."""
    module = trainee(config, backbone).module
    assert isinstance(module, DMPT)
    return module


def three_towers(config: Config) -> Trainee:
    """Full fine-tuning as the paper's peers have it."""
    module = ThreeTowers(config)
    nothing: Any = nn.Module()
    nothing.also = {}
    return Trainee(module, build_objective(config, nothing, module.heads, None), config.train)


class ThreeTowers(nn.Module):
    """Each modality trains a tower of its own."""

    def __init__(self, config: Config):
        super().__init__()
        self.towers = nn.ModuleList(tower(config) for _ in range(MODALITY_COUNT))
        self.heads = Heads(config.heads, self.towers[0].width, None, IDS)

    def forward(self, images: Tensor) -> Output:
        """As ``DMPT.forward``."""
        cls = [own(images[m])[:, 0] for m, own in enumerate(self.towers)]
        with torch.autocast(images.device.type, enabled=False):
            return Output(Features(torch.stack([own.norm(x) for own, x in zip(self.towers, cls, strict=True)])))


class Step:
    """A training step as ``dmpt.training.trainer`` takes it: forward, losses, backward, Adam, gradients to None."""

    def __init__(self, case: Case, own: Trainee):
        self.case, self.objective, self.images = case, own.objective, case.images()
        self.model = own.module.to(case.device).train()
        self.labels = torch.arange(case.samples, device=case.device) // max(2, case.samples // 8)
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(self.trained, lr=own.recipe.lr, weight_decay=own.recipe.weight_decay)

    def __call__(self) -> None:
        """One step."""
        self.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def on(self, path: Path) -> None:
        """One step, its tower's plain pass on that path."""
        self.model.backbone.path = path
        self()

    def backward(self) -> None:
        """Leave the gradients of the losses on the trained tensors."""
        with self.case.autocast():
            output = self.model(self.images)
        torch.stack(list(self.objective(output, self.labels).values())).sum().backward()
