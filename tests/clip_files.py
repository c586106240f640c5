"""A small random CLIP, and its weights in every format that users have."""

import copy
import functools
import json
import warnings
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn

from dmpt.base.errors import UserError
from dmpt.settings.config import BackboneConfig, TextConfig
from dmpt.towers import packaged

QUICK = "vit_base_patch16_clip_quickgelu_224.openai"
PLAIN = "vit_base_patch16_clip_224.laion2b"
OVERRIDES = {"embed_dim": 64, "depth": 3, "num_heads": 4, "num_classes": 32}
SIZE = (64, 64)
FORMATS = ("timm", "pt", "safetensors", "archive")


def architecture(quick: bool) -> dict[str, Any]:
    return {
        "embed_dim": 32,
        "quick_gelu": quick,
        "vision_cfg": {"image_size": 64, "layers": 3, "width": 64, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 48, "heads": 4, "layers": 2},
    }


def clip(quick: bool = True, half: bool = False) -> Any:
    """A copy of one that is made once."""
    return copy.deepcopy(_clip(quick, half))


def smooth(height: int, width: int, dim: int) -> Tensor:
    """A position table ``(height * width, dim)`` on which neighbours are alike, as a pretrained one's are."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    waves = torch.arange(1, dim // 4 + 1) / dim
    parts = [turn(side.flatten()[:, None] * waves * 2) for side in (y, x) for turn in (torch.sin, torch.cos)]
    return torch.cat(parts, dim=1) / 2


@functools.cache
def _clip(quick: bool, half: bool) -> Any:
    """Weights far from their initial values, so that activations and norms matter; ``half``: rounded to fp16."""
    torch.manual_seed(0)
    model: Any = open_clip.CLIP(**architecture(quick)).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name != "logit_scale":
                value.add_(torch.randn_like(value) * (0.2 if value.ndim > 1 else 0.1))
            if name == "visual.positional_embedding":
                value[1:] = smooth(4, 4, value.shape[1]) + 0.1 * torch.randn_like(value[1:])
            if half:
                value.copy_(value.half().float())
    return model


class _Holder(nn.Module):
    """A module's tensors and children, without its code: what tracing keeps of it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        for name, value in module.named_parameters(recurse=False):
            self.register_parameter(name, nn.Parameter(value.detach().half()))
        for name, buffer in module.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        for name, child in module.named_children():
            self.add_module(name, _Holder(child))

    def forward(self, x: Tensor) -> Tensor:
        return x


def save_archive(model: nn.Module, path: Path) -> Path:
    """An fp16 TorchScript archive with OpenAI's three extra numbers."""
    holder = _Holder(model)
    for name, value in {"input_resolution": 64, "context_length": 77, "vocab_size": 49408}.items():
        holder.register_buffer(name, torch.tensor(value))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(holder, torch.zeros(1)).save(path)
    return path


def timm_names(model: nn.Module, backbone: nn.Module) -> dict[str, Tensor]:
    found = checkpoint_filter_fn(dict(model.state_dict()), backbone)
    return {name: value.contiguous() for name, value in found.items()}


def save(model: Any, folder: Path, kind: str, quick: bool = True) -> Path:
    path = folder / f"clip-{kind}"  # no suffix: formats are told by content
    if kind == "archive":
        return save_archive(model, path)
    tensors = dict(model.state_dict())
    if kind == "timm":
        import timm

        vit = timm.create_model(QUICK if quick else PLAIN, img_size=SIZE, **OVERRIDES)
        save_file(timm_names(model, vit), path)
    elif kind == "safetensors":
        save_file(tensors, path)
    else:
        torch.save({"epoch": 3, "state_dict": {f"module.{name}": value for name, value in tensors.items()}}, path)
    return path


def save_config(folder: Path, quick: bool = True, **text: Any) -> str:
    config = architecture(quick)
    config["text_cfg"] |= text
    path = folder / "tiny.json"
    path.write_text(json.dumps(config))
    return str(path)


def backbone(weights: Path | str, quick: bool = True, **changes: Any) -> BackboneConfig:
    return BackboneConfig(
        **{"name": QUICK if quick else PLAIN, "weights": str(weights), "overrides": OVERRIDES, **changes}
    )


def tiny_clip() -> tuple[BackboneConfig, TextConfig]:
    """Settings of the tiny CLIP that comes with the package."""
    card = json.loads((packaged._FOLDER / "tiny_clip.json").read_text())
    files = {"tower": "text_tower.json", "weights": "text_tower.safetensors", "file": "text.safetensors"}
    vit = BackboneConfig(name=card["name"], weights="package:vit.safetensors", overrides=card["overrides"])
    return vit, TextConfig(**{setting: f"package:{name}" for setting, name in files.items()})


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message
