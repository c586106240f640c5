"""Modality-aware decoupling: modality prompts and semantic prompts (paper section 3.3, Eq. 7-10).

Every layer l (from a first one on) and modality m gets its own M + S prompts [M_p, S_p]. Modality prompts carry what
the modality's words say: frozen word embeddings, pooled to M vectors, mapped by one linear layer P per transformer
layer, which the modalities share. Semantic prompts are learned freely and are what PromptIBind exchanges.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmpt.base.errors import UserError
from dmpt.method.modalities import MODALITY_COUNT
from dmpt.settings.config import ModalityConfig


class SemanticPrompts(nn.Module):
    """S learned prompts per layer and modality, or per layer when shared.

    Args:
        layers: with prompts, at most L.
        length: S.
        width: D.
        patch: patch size in pixels; with D it sets the range of VPT's uniform initialisation (Jia et al. 2022).
        share: one set for the three modalities.
    """

    def __init__(self, layers: int, length: int, width: int, patch: int, share: bool = False):
        super().__init__()
        bound = math.sqrt(6 / (3 * patch * patch + width))
        shape = (layers, 1 if share else MODALITY_COUNT, length, width)
        self.tokens = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))

    def forward(self) -> Tensor:
        """Prompts ``(layers, 3, S, D)``."""
        return self.tokens.expand(-1, MODALITY_COUNT, -1, -1)


class ModalityPrompts(nn.Module):
    """The mapping network P on each modality's words.

    Args:
        words: ``(3, M, d_t)``, the words of each modality pooled to M vectors (``modality_words``).
        layers: with prompts, at most L; one linear each.
        width: D.
        learned: train the words themselves, a control.
    """

    def __init__(self, words: Tensor, layers: int, width: int, learned: bool = False):
        super().__init__()
        if learned:
            self.words = nn.Parameter(words.clone())
        else:
            self.register_buffer("words", words.clone())
        self.map = nn.ModuleList(nn.Linear(words.shape[-1], width) for _ in range(layers))

    def forward(self) -> Tensor:
        """Prompts ``(layers, 3, M, D)``."""
        return torch.stack([linear(self.words) for linear in self.map])


class Prompts(nn.Module):
    """Both kinds, in the order of Eq. 7-9.

    Args:
        semantic: or None where S = 0.
        modality: or None where M = 0.
        layers: L of the tower; each kind holds prompts for as many of its last layers as it was made for.
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
        return [torch.cat(prompts, dim=1) if prompts else None for prompts in own]


def pool(words: Tensor, length: int) -> Tensor:
    """Adaptive average pooling of word embeddings ``(tokens, d_t)`` to ``(M, d_t)``.

    Raises:
        UserError: M exceeds the number of tokens.
    """
    if length > len(words):
        raise UserError(
            f"modality.length is {length}, but the shortest modality phrase has {len(words)} tokens; "
            f"set modality.length to at most {len(words)}, or modality.source to learned or random"
        )
    return F.adaptive_avg_pool1d(words.T[None], length)[0].T


def modality_words(config: ModalityConfig, words: list[Tensor] | None) -> Tensor:
    """What P is fed, ``(3, M, d_t)``.

    Args:
        config: its length, source and width.
        words: each modality's frozen word embeddings ``(tokens, d_t)``; None where the source needs none.

    Raises:
        UserError: M exceeds the number of tokens.
    """
    if not config.worded:
        # The spread of a CLIP word embedding, so that P starts from inputs of the same size.
        return torch.randn(MODALITY_COUNT, config.length, config.width) * 0.02
    assert words is not None
    pooled = torch.stack([pool(w, config.length) for w in words])
    return pooled.roll(1, dims=0) if config.source == "permuted" else pooled
