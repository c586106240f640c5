"""``backbone.tune: linear``: a trained linear layer per modality on the frozen tower's feature, the linear probe."""

from collections.abc import Callable

from torch import Tensor, nn

from dmpt.method.modalities import MODALITY_COUNT, PerModality


class LinearProbe(nn.Module):
    """A readout: the final norm on the class token, then a linear layer D to D that starts as the identity."""

    def __init__(self, width: int):
        super().__init__()
        self.map = PerModality(nn.Linear(width, width) for _ in range(MODALITY_COUNT))
        for linear in self.map:
            nn.init.eye_(linear.get_parameter("weight"))
            nn.init.zeros_(linear.get_parameter("bias"))

    def forward(self, norm: Callable[[Tensor], Tensor], cls: Tensor, semantic: Tensor | None) -> Tensor:
        """``(3, B, D)`` to ``(3, B, D)``."""
        out: Tensor = self.map(norm(cls))
        return out
