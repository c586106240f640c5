"""What prompts are measured against, other than full fine-tuning: LoRA and the linear probe.

LoRA (Hu et al. 2022) on queries and values, the pair of its paper's experiments: W x + B A x with A (r, D), B (D, r),
alpha = r, so that the update is not rescaled. B starts at zero: before the first step it is the frozen tower.
"""

from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from dmpt.method.modalities import MODALITY_COUNT, PerModality


class LowRankUpdate(nn.Module):
    """B A of one linear map.

    Args:
        width: D, in and out.
        rank: r.
    """

    def __init__(self, width: int, rank: int):
        super().__init__()
        self.down = nn.Linear(width, rank, bias=False)  # A
        self.up = nn.Linear(rank, width, bias=False)  # B
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., D)`` to ``(..., D)``."""
        out: Tensor = self.up(self.down(x))
        return out


class LoRA(nn.Module):
    """A frozen linear map to queries, keys and values, with trained updates of queries and values.

    Args:
        frozen: ``(..., D)`` to ``(..., 3 D)``.
        rank: r.
    """

    def __init__(self, frozen: nn.Linear, rank: int):
        super().__init__()
        self.frozen = frozen
        self.query = LowRankUpdate(frozen.in_features, rank)
        self.value = LowRankUpdate(frozen.in_features, rank)

    def forward(self, x: Tensor) -> Tensor:
        """Queries, keys and values side by side, ``(..., 3 D)``."""
        q, k, v = self.frozen(x).chunk(3, dim=-1)
        return torch.cat([q + self.query(x), k, v + self.value(x)], dim=-1)


def add_lora(vit: VisionTransformer, rank: int) -> None:
    """Wrap every block's map to queries, keys and values."""
    for block in vit.blocks:
        attn: Any = block.attn
        attn.qkv = LoRA(attn.qkv, rank)


class LinearProbe(nn.Module):
    """A trained linear layer per modality on the frozen tower's feature; it starts as the identity.

    Args:
        width: D.
    """

    def __init__(self, width: int):
        super().__init__()
        self.map = PerModality(nn.Linear(width, width) for _ in range(MODALITY_COUNT))
        for linear in self.map:
            nn.init.eye_(linear.get_parameter("weight"))
            nn.init.zeros_(linear.get_parameter("bias"))

    def forward(self, features: Tensor) -> Tensor:
        """``(3, B, D)`` to ``(3, B, D)``."""
        out: Tensor = self.map(features)
        return out
