"""Modality-aware decoupling: modality prompts and semantic prompts (paper section 3.3, Eq. 7-10).

Every layer l and modality m gets M + S prompts of its own, [M_p, S_p]. Modality prompts carry what the modality's words
say: frozen word embeddings, pooled to M vectors, mapped by one linear layer P per transformer layer, which the
modalities share. Semantic prompts are learned freely and are what PromptIBind exchanges.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmpt.base.errors import UserError
from dmpt.method.modalities import MODALITY_COUNT


class SemanticPrompts(nn.Module):
    """S learned prompts of width D for each of L layers and each modality, or per layer when shared."""

    def __init__(self, layers: int, length: int, width: int, patch: int, share: bool = False):
        super().__init__()
        # VPT's uniform initialisation (Jia et al. 2022), whose range the patch size in pixels and D set.
        bound = math.sqrt(6 / (3 * patch * patch + width))
        shape = (layers, 1 if share else MODALITY_COUNT, length, width)
        self.tokens = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))

    def forward(self) -> Tensor:
        """Prompts ``(layers, 3, S, D)``."""
        return self.tokens.expand(-1, MODALITY_COUNT, -1, -1)


class ModalityPrompts(nn.Module):
    """The mapping network P on each modality's words: one linear map to width D for each of L layers."""

    words: Tensor  # of each modality, pooled to M vectors, (3, M, d_t)

    def __init__(self, words: Tensor, layers: int, width: int):
        super().__init__()
        self.register_buffer("words", words.clone())
        self.map = nn.ModuleList(nn.Linear(words.shape[-1], width) for _ in range(layers))

    def forward(self) -> Tensor:
        """Prompts ``(layers, 3, M, D)``."""
        return torch.stack([linear(self.words) for linear in self.map])  # P, section 3.3


class Prompts(nn.Module):
    """Both kinds, in the order of Eq. 7-9; ``semantic`` is None where S is 0, ``modality`` where M is.

    ``layers`` is L of the tower; a kind that was made for fewer begins behind the first ones.
    """

    def __init__(self, semantic: SemanticPrompts | None, modality: ModalityPrompts | None, layers: int):
        super().__init__()
        self.semantic = semantic
        self.modality = modality
        self.layers = layers

    def forward(self) -> list[Tensor | None]:
        """Per layer ``(3, M + S, D)``, less where only one kind has begun, None where neither has."""
        kinds = [list(kind()) for kind in (self.modality, self.semantic) if kind is not None]
        kinds = [[None] * (self.layers - len(kind)) + kind for kind in kinds]
        own = [[prompts for prompts in layer if prompts is not None] for layer in zip(*kinds, strict=True)]
        return [torch.cat(prompts, dim=1) if prompts else None for prompts in own]  # [M_p, S_p] of Eq. 7-9


def pool(words: Sequence[Tensor], length: int) -> Tensor:
    """The words of each modality, ``(tokens, d_t)``, averaged adaptively to M vectors: ``(3, M, d_t)``.

    Raises:
        UserError: M exceeds the number of tokens.
    """
    if length > (least := min(map(len, words))):
        raise UserError(
            f"modality.length is {length}, but the shortest modality phrase has {least} tokens; "
            f"set modality.length to at most {least}, or modality.source to learned or random"
        )
    return torch.stack([F.adaptive_avg_pool1d(own.T[None], length)[0].T for own in words])
