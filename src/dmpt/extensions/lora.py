"""``backbone.tune: lora``: low-rank updates of queries and values, what prompts are measured against.

LoRA (Hu et al. 2022) on the pair of maps of its paper's experiments: W x + B A x with A (r, D), B (D, r), alpha = r, so
that the update is not rescaled. B starts at zero: before the first step it is the frozen tower.
"""

from functools import partial

import torch
from torch import Tensor, nn

from dmpt.method.backbone import Backbone


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


def add_lora(backbone: Backbone, rank: int) -> None:
    """Wrap every block's map to queries, keys and values."""
    backbone.wrap("qkv", partial(LoRA, rank=rank))
