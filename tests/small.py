"""Small towers and networks, with values far enough from their initial ones that every part matters."""

import copy
import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dmpt.extensions.assemble import build_backbone, build_network, build_objective
from dmpt.extensions.readings import NoExchange, words_for_prompts
from dmpt.method.backbone import Backbone
from dmpt.method.bind import ExternalInteraction, InteractionLayer, InternalInteraction
from dmpt.method.heads import Heads, Seen
from dmpt.method.losses import Objective
from dmpt.method.modalities import PerModality
from dmpt.method.network import DMPT
from dmpt.settings.config import BackboneConfig, Config, LoraConfig
from dmpt.settings.rules import check
from dmpt.settings.values import from_dict
from dmpt.towers.image import TowerInfo, build_vit
from dmpt.towers.phrases import TextTargets

PLAIN = LoraConfig()
BARE: dict[str, Any] = {"semantic": {"length": 0}, "modality": {"length": 0}, "bind": {"depth": 0}}
"""The tower without prompts and interaction."""
NO_TEXT: dict[str, Any] = {"text": {"loss": "off"}}
TEXT_WIDTH = 12
WORD_WIDTH = 20
LABELS = torch.tensor([0, 0, 2, 2, 1, 1])
"""Of six samples."""
PRESENT = torch.tensor([[1, 1, 0, 0, 1, 1], [1, 0, 1, 0, 1, 1], [1, 0, 0, 1, 0, 1]], dtype=torch.bool)
"""Which modalities six samples have, ``(3, 6)``: two have all, three one, one two."""
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "clip": ("vit_base_patch16_clip_quickgelu_224.openai", {"num_classes": TEXT_WIDTH}),  # norm_pre, QuickGELU
    "imagenet": ("vit_base_patch16_224.augreg_in21k", {}),
    "dino": ("vit_small_patch14_dinov2.lvd142m", {}),  # LayerScale
    "registers": ("vit_small_patch14_reg4_dinov2.lvd142m", {}),
    "qk_norm": ("vit_base_patch16_224.augreg_in21k", {"qk_norm": True, "qkv_bias": False}),
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@functools.cache
def _tower(kind: str, depth: int, tune: Any, norm: Any, lora: LoraConfig) -> tuple[Backbone, TowerInfo]:
    architecture, overrides = KINDS[kind]
    shape = {"embed_dim": 32, "depth": depth, "num_heads": 4, **overrides}
    patch = 14 if "patch14" in architecture else 16
    config = BackboneConfig(name=architecture, weights="random", norm=norm, overrides=shape, tune=tune)
    torch.manual_seed(0)
    vit, info = build_vit(config, (3 * patch, 2 * patch))
    with torch.no_grad():  # at timm's initial values LayerScale hides the blocks and attention is uniform
        for name, value in vit.named_parameters():
            spread = 0.5 if name.endswith("gamma") else 0.2 if value.ndim > 1 else 0.1
            value.add_(torch.randn_like(value) * spread)
    return build_backbone(Config(backbone=config, lora=lora), vit), info


def small_backbone(
    kind: str = "clip", depth: int = 2, tune: str = "frozen", norm: str = "tower", lora: LoraConfig = PLAIN
) -> Backbone:
    """A tower of width 32 with 4 heads, 6 patches and random weights."""
    return copy.deepcopy(_tower(kind, depth, tune, norm, lora)[0])


def small_words(seed: int = 0) -> list[Tensor]:
    """Made-up word embeddings, as many as the phrases have tokens."""
    generator = seeded(seed)
    return [torch.randn(tokens, WORD_WIDTH, generator=generator) for tokens in (3, 5, 5)]


def small_config(**settings: Any) -> Config:
    """Settings by section, e.g. ``semantic={"length": 2}``; checked as the command line's are."""
    short: dict[str, dict[str, Any]] = {"semantic": {"length": 5}, "modality": {"width": WORD_WIDTH}}
    config = from_dict(settings | {name: own | settings.get(name, {}) for name, own in short.items()})
    check(config)
    return config


class Small(NamedTuple):
    """What ``build_network`` gives, with the settings it was given."""

    network: DMPT
    heads: Heads
    config: Config

    def objective(self) -> Objective:
        """The loss, with made-up text in the network's precision."""
        text = None
        if self.config.text.loss != "off":
            text = small_targets(dtype=next(self.heads.parameters()).dtype)
        return build_objective(self.config, self.network, self.heads, text)


def small_model(kind: str = "clip", depth: int = 2, ids: int = 4, **settings: Any) -> Small:
    """A network at its real initial values; towers other than CLIP get a projection to train."""
    projection = {"projection": "tower" if kind == "clip" else "trained", "projection_dim": TEXT_WIDTH}
    config = small_config(**settings | {"backbone": projection | settings.get("backbone", {})})
    own, modality, words = config.backbone, config.modality, None
    backbone, tower = copy.deepcopy(_tower(kind, depth, own.tune, own.norm, config.lora))
    torch.manual_seed(0)  # after the tower, which draws too where it is made
    if modality.length:
        worded = small_words() if modality.worded else None
        words = words_for_prompts(modality.source, modality.length, modality.width, worded)
    network, heads = build_network(config, backbone, tower, ids, words)
    return Small(network, heads, config)


def interaction_layer(width: int, attention_heads: int, external: bool = True) -> InteractionLayer:
    """The paper's, or one without external interaction."""
    internal = PerModality(InternalInteraction(width, attention_heads) for _ in range(3))
    return InteractionLayer(ExternalInteraction(width) if external else NoExchange(), internal)


class Told(nn.Module):
    """Whatever it is asked, it gives what it was told."""

    def __init__(self, answer: Any):
        super().__init__()
        self.answer = answer

    def forward(self, *asked: Any) -> Any:
        return self.answer


def objective_of(config: Config, seen: dict[str, Seen], text: TextTargets | None = None, **parts: Any) -> Objective:
    """The loss of heads that see and say what they are told.

    ``parts``: ``identity_text``, module of the network; ``shared``, a shared part and its neck.
    """
    network: Any = nn.Module()
    heads: Any = Told(seen)
    network.also, heads.necks = nn.ModuleDict(), nn.ModuleDict()
    if "shared" in parts:
        network.also["shared"], heads.necks["shared"] = parts["shared"]
    network.identity_text = parts.get("identity_text")
    return build_objective(config, network, heads, text)


def small_network(kind: str = "clip", depth: int = 2, ids: int = 4, **settings: Any) -> DMPT:
    """``small_model``'s network."""
    return small_model(kind, depth, ids, **settings).network


def redraw(module: nn.Module, generator: torch.Generator, std: float = 0.02) -> None:
    """Set every trained tensor to N(0, std²): zero-initialised layers would hide what stands before them."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)


def redrawn(kind: str = "clip", depth: int = 2, double: bool = True, **settings: Any) -> DMPT:
    """A small network in which every part matters."""
    network = small_network(kind, depth, **settings)
    redraw(network, seeded(6))
    return network.double() if double else network


def small_images(backbone: Backbone, batch: int = 2, seed: int = 1) -> Tensor:
    """Normalised samples ``(3, B, 3, H, W)`` of the tower's size, in its precision."""
    size = backbone.vit.patch_embed.img_size
    weight = backbone.vit.patch_embed.proj.weight
    return torch.randn(3, batch, 3, *size, generator=seeded(seed)).to(weight.dtype)


def through(backbone: Backbone, images: Tensor, *arguments: Any, **options: Any) -> Tensor:
    """Tokens ``(3, B, N, D)`` of images ``(3, B, 3, H, W)``; the rest as ``Backbone`` takes it."""
    return backbone(images.flatten(0, 1), *arguments, **options).unflatten(0, images.shape[:2])


def small_targets(seed: int = 2, dtype: torch.dtype = torch.float32) -> TextTargets:
    """Made-up features of the six fixed prompts, for persons."""
    features = torch.randn(6, TEXT_WIDTH, generator=seeded(seed))
    return TextTargets(features.to(dtype), torch.tensor([0, 2, 4]), 10.0)


def error_of(value: Tensor, reference: Tensor) -> float:
    """Largest difference as a share of the reference's largest value."""
    assert value.shape == reference.shape
    if reference.numel() == 0:
        return 0.0
    value, reference = value.detach().double(), reference.detach().double()
    return float((value - reference).abs().max() / reference.abs().max().clamp(min=torch.finfo(torch.float64).tiny))


def train_steps(model: Small, steps: int = 3) -> set[str]:
    """Names of the tensors that had a gradient in some step."""
    network, objective = model.network.train(), model.objective()
    trained, reached = network.trained(), set()
    optimizer = torch.optim.Adam(trained.values(), lr=1e-3)
    for step in range(steps):
        output = network(small_images(network.backbone, batch=4, seed=step))
        terms = objective(output, torch.tensor([0, 0, 2, 2]))
        optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        reached |= {name for name, p in trained.items() if p.grad is not None and p.grad.any()}
        optimizer.step()
    return reached


def trains_all_that_is_to_be_trained(model: Small) -> None:
    """In a few steps each trained tensor moves, and no other but batch norm's statistics."""
    network = model.network
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert train_steps(model) == set(network.trained())
    for name, value in network.state_dict().items():
        moved = name in network.trained() or "running" in name or "num_batches" in name
        assert torch.equal(value, before[name]) is not moved, name
