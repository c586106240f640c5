"""``bind.layers``: the modalities also exchange behind some layers of the tower.

Prompts of one layer are thrown away before the next, so only the class token can carry an exchange on. An interaction
layer of its own does there what Eq. 11-15 do at the end; the class token goes on enhanced, and the prompts end.
"""

import torch
from torch import Tensor, nn

from dmpt.method.bind import InteractionLayer
from dmpt.method.modalities import MODALITY_COUNT, Features, PerModality


class Exchange(InteractionLayer):
    """An interaction layer between two layers of the tower; the S semantic ones are the last of the P prompts there."""

    def __init__(self, external: nn.Module, internal: PerModality, prompts: slice, length: int):
        super().__init__(external, internal)
        self.prompts = prompts
        self.semantic = slice(prompts.stop - length, prompts.stop)

    def behind(self, tokens: Tensor, present: Tensor | None) -> Tensor:
        """Tokens ``(3 B, N + P, D)`` that leave a layer, to those that enter the next, ``(3 B, N, D)``."""
        whole = Features(tokens.view(MODALITY_COUNT, -1, *tokens.shape[1:]), present)
        cls, x = self(whole, self.semantic, True)
        return torch.cat([cls, x[:, :, 1 : self.prompts.start], x[:, :, self.prompts.stop :]], dim=2).flatten(0, 1)
