"""``bind.rank``: every linear map of PromptIBind as a product of two thin ones."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LowRankLinear(nn.Module):
    """``nn.Linear`` whose weight is a product of two of rank r; it starts with the same spread."""

    def __init__(self, inputs: int, outputs: int, rank: int):
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, inputs).uniform_(-1, 1) * math.sqrt(3 / inputs))
        self.up = nn.Parameter(torch.empty(outputs, rank).uniform_(-1, 1) / math.sqrt(rank))
        self.bias = nn.Parameter(torch.empty(outputs).uniform_(-1, 1) / math.sqrt(inputs))

    @property
    def weight(self) -> Tensor:
        """``(outputs, inputs)``."""
        return self.up @ self.down

    def start_at_zero(self) -> None:
        """Map everything to zero, until it is trained."""
        nn.init.zeros_(self.up)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., inputs)`` to ``(..., outputs)``."""
        return F.linear(F.linear(x, self.down), self.up, self.bias)
