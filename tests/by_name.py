"""A small network with values that depend on nothing but their names, and numbers that were computed from it once.

``fixtures/numbers.npz`` was written from the code of commit c92080e, before the paper had a room of its own.
"""

import zlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

TOWER = {"embed_dim": 16, "depth": 3, "num_heads": 2}
NAMES = {"clip": "vit_base_patch16_clip_quickgelu_224.openai", "registers": "vit_small_patch14_reg4_dinov2.lvd142m"}
SIZES = {"clip": (48, 32), "registers": (42, 28)}
IDS, TEXT_WIDTH, WORD_WIDTH = 4, 12, 20
LABELS = torch.tensor([0, 0, 2, 2, 1, 1])
PRESENT = torch.tensor([[1, 1, 1, 0, 1, 1], [1, 1, 0, 1, 1, 1], [1, 1, 1, 1, 0, 0]], dtype=torch.bool)
SUBSET = torch.tensor([[1, 0, 1, 0, 1, 0], [1, 1, 0, 1, 0, 1], [0, 1, 1, 1, 0, 0]], dtype=torch.bool)

CASES: dict[str, dict[str, Any]] = {
    "paper": {"heads": "paper"},
    "prompts as tokens": {"heads": "paper", "prompts": "token"},
    "two layers of interaction": {"bind": {"depth": 2}},
    "no interaction": {"bind": {"depth": 0}},
    "internal attention alone": {"bind": {"external": False}},
    "rank 4, one SA": {"bind": {"rank": 4, "share": True}},
    "exchange behind layer 0": {"bind": {"layers": [0]}},
    "prompts from layer 1 and 2 on": {"semantic": {"first_layer": 1}, "modality": {"first_layer": 2}},
    "common prompts": {"semantic": {"share": True}, "modality": {"source": "permuted"}},
    "feature cls+bind": {"feature": "cls+bind", "text": {"loss": "off"}},
    "neck after": {"neck": "after", "heads": "concat+modality"},
    "neck after, heads per modality": {"neck": "after", "heads": "modality"},
    "contrastive": {
        "loss": {"metric": "contrastive", "centre": 0.0},
        "text": {"loss": "off"},
        "modality": {"length": 0},
    },
    "normalised triplet": {"loss": {"metric": "normalised", "metric_scale": 4.0}},
    "centre as a sum": {"loss": {"centre_reduction": "sum", "centre_normalise": True}},
    "text literal, z after": {"text": {"loss": "literal", "z": "after"}},
    "text z after": {"text": {"z": "after"}},
    "trained projection": {"backbone": {"projection": "trained", "projection_dim": TEXT_WIDTH}, "heads": "paper"},
    "LoRA beside prompts": {"backbone": {"tune": "lora"}, "lora": {"rank": 3}},
    "linear probe": {
        "backbone": {"tune": "linear"},
        "semantic": {"length": 0},
        "modality": {"length": 0},
        "bind": {"depth": 0},
        "text": {"loss": "off"},
    },
    "full fine-tuning": {"backbone": {"tune": "full"}},
    "two modalities": {"data": {"modalities": ["rgb", "nir"]}, "text": {"loss": "off"}},
    "missing": {"heads": "paper", "missing": {"dropout": 0.3}},
    "missing, learned tokens": {"missing": {"dropout": 0.3, "absent": "learned"}},
    "missing, exchange behind layer 1": {"missing": {"dropout": 0.3}, "bind": {"layers": [1]}},
    "missing, whole and subset": {"missing": {"dropout": 0.3, "view": "both"}, "loss": {"metric": "contrastive"}},
}


def settings(case: dict[str, Any], kind: str) -> dict[str, Any]:
    """A case's settings in full, nested."""
    base: dict[str, Any] = {
        "data": {"size": list(SIZES[kind])},
        "backbone": {"name": NAMES[kind], "weights": "random", "overrides": dict(TOWER)},
        "semantic": {"length": 4},
        "modality": {"width": WORD_WIDTH},
    }
    if kind == "clip":
        base["backbone"]["overrides"]["num_classes"] = TEXT_WIDTH
    else:
        base["backbone"] |= {"projection": "trained", "projection_dim": TEXT_WIDTH}
    return base | {
        name: base.get(name, {}) | value if isinstance(value, dict) else value for name, value in case.items()
    }


def drawn(name: str, *shape: int) -> Tensor:
    """Values in [-1, 1] that depend on the name alone."""
    count = torch.Size(shape).numel()
    phase = zlib.crc32(name.encode()) % 10_007
    return torch.sin(torch.arange(count, dtype=torch.float64) * 1.7 + phase).reshape(shape)


@torch.no_grad()
def fill(tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Give each tensor the values of its name; statistics of batch norm and of the shared part stay as they are."""
    for name, tensor in tensors:
        last = name.rpartition(".")[2]
        if not tensor.is_floating_point() or last in ("running_mean", "running_var", "mean", "variance"):
            continue
        scale = last == "weight" and tensor.ndim == 1  # of a norm
        tensor.copy_(drawn(name, *tensor.shape) * (0.4 if tensor.ndim > 1 else 0.1) + scale)


def inputs(kind: str) -> Tensor:
    """Images ``(3, 6, 3, H, W)``."""
    return drawn("images", 3, len(LABELS), 3, *SIZES[kind])


def words() -> list[Tensor]:
    """Of each modality."""
    return [drawn(f"words {tokens} {m}", tokens, WORD_WIDTH) for m, tokens in enumerate((3, 5, 5))]


def summary(gradients: dict[str, Tensor]) -> Tensor:
    """Of each gradient, in the order of names: its length, and its product with other values of its name."""
    rows = [(g.norm(), (g * drawn(f"gradient {name}", *g.shape)).sum()) for name, g in sorted(gradients.items())]
    return torch.tensor([[float(a), float(b)] for a, b in rows], dtype=torch.float64)
