"""Other readings of the paper, controls of its parts, and small variants of them; each is a setting.

The named settings are listed in docs/readings.md. What is here replaces a part of ``method`` and leaves the rest.
"""

from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmpt.method.bind import ExternalInteraction, MakeLinear
from dmpt.method.heads import Heads
from dmpt.method.modalities import MODALITY_COUNT, Features, PerModality
from dmpt.method.prompts import ModalityPrompts, pool
from dmpt.settings.modalities import MODALITIES
from dmpt.towers.phrases import TextTargets


def words_for_prompts(source: str, length: int, width: int, words: Sequence[Tensor] | None) -> Tensor:
    """``modality.source``: what the mapping P of modality prompts is fed, ``(3, M, d_t)``.

    Each modality's frozen word embeddings ``(tokens, d_t)``, pooled; without words (``learned``, ``random``) a draw.

    Raises:
        UserError: M exceeds the number of tokens.
    """
    if words is None:
        # The spread of a CLIP word embedding, so that P starts from inputs of the same size.
        return torch.randn(MODALITY_COUNT, length, width) * 0.02
    pooled = pool(words, length)
    return pooled.roll(1, dims=0) if source == "permuted" else pooled


class LearnedWords(ModalityPrompts):
    """``modality.source: learned``: the words themselves are trained."""

    def __init__(self, words: Tensor, layers: int, width: int):
        super().__init__(words, layers, width)
        del self.words
        self.words = nn.Parameter(words.clone())


class NoExchange(nn.Module):
    """``bind.external: false``: internal attention alone."""

    def forward(self, semantic: Features) -> Tensor:
        """Semantic prompts ``(3, B, S, D)`` as they are."""
        return semantic.x


class LearnedAbsent(ExternalInteraction):
    """``missing.absent: learned``: S trained tokens stand for semantic prompts of a modality that a sample lacks."""

    def __init__(self, width: int, linear: MakeLinear, length: int):
        super().__init__(width, linear)
        self.absent = nn.Parameter(torch.randn(MODALITY_COUNT, 1, length, width) * 0.02)

    def forward(self, semantic: Features) -> Tensor:
        """As ``ExternalInteraction``, with the bind a mean over all three."""
        x, present = semantic.x, semantic.present
        if present is None:  # where one process has a gradient for these tokens, all must
            present = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        return super().forward(Features(torch.where(present[..., None, None], x, self.absent.to(x))))


class OneForAll(PerModality):
    """``bind.share``: the only module in it serves every modality."""

    def forward(self, x: Tensor, *options: Any) -> Tensor:
        """``(3, ...)`` to ``(3, ...)``."""
        return torch.stack([module(own, *options) for module, own in zip(cycle(self), x, strict=False)])


class ClassAndBind(nn.Module):
    """``feature: cls+bind``: the class token, and the mean of the enriched semantic prompts beside it."""

    def forward(self, norm: Callable[[Tensor], Tensor], cls: Tensor, semantic: Tensor | None) -> Tensor:
        """``(3, B, D)`` and ``(3, B, S, D)`` to ``(3, B, 2 D)``."""
        assert semantic is not None
        return torch.cat(list(norm(torch.stack([cls, semantic.mean(dim=2)]))), dim=-1)


def behind_the_neck(heads: Heads) -> Callable[[Features], Features]:
    """``neck: after``: test features after batch norm: that of the concatenation, else that of each modality."""

    def normed(features: Features) -> Features:
        used = heads.modalities
        if "concat" in heads.necks:
            whole = heads.necks["concat"].get_submodule("norm")(features.side_by_side(used))
            after = whole.unflatten(1, (len(used), -1)).transpose(0, 1)
        else:
            own = dict(zip(MODALITIES, features.x, strict=True))
            after = torch.stack([heads.necks[name].get_submodule("norm")(own[name]) for name in used])
        out = torch.zeros_like(features.x)
        out[[MODALITIES.index(name) for name in used]] = after
        return Features(out, features.present).masked()

    return normed


def text_literal(z: Features, targets: TextTargets, identities: int) -> Tensor:
    """``text.loss: literal``: Eq. 5-6 as printed, a sum of ratios without a logarithm.

    The prompts are fixed, so the N texts of a modality are one and the same vector, its own prompt: with z
    ``(3, B, d)`` the ratio is 1 / N, the loss 3 B / N, and its gradient zero. Kept to show just that.
    """
    text = targets.features[targets.positive].to(z.x.device)  # (3, d)
    cosine = (F.normalize(z.x, dim=-1) * F.normalize(text, dim=-1)[:, None]).sum(dim=-1)  # (3, B)
    logits = (targets.scale * cosine)[..., None].expand(-1, -1, identities)
    return Features(logits.softmax(dim=-1)[..., 0], z.present).existing().sum()
