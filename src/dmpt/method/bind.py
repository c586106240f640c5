"""PromptIBind: the spectra exchange what they know through a bind prompt (paper section 3.4, Eq. 11-16).

Shapes: 3 modalities, B triplets, tokens ``(3, B, N, D)`` in the order class token, registers, modality prompts M,
semantic prompts S, patches.
"""

import math
from itertools import cycle
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmpt.method.attention import attend
from dmpt.method.modalities import MODALITY_COUNT, PerModality, mean_over_present
from dmpt.settings.config import BindConfig


class LowRankLinear(nn.Module):
    """``nn.Linear`` whose weight is a product of two thin ones; it starts with the same spread.

    Args:
        inputs: width in.
        outputs: width out.
        rank: r.
    """

    def __init__(self, inputs: int, outputs: int, rank: int):
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, inputs).uniform_(-1, 1) * math.sqrt(3 / inputs))
        self.up = nn.Parameter(torch.empty(outputs, rank).uniform_(-1, 1) / math.sqrt(rank))
        self.bias = nn.Parameter(torch.empty(outputs).uniform_(-1, 1) / math.sqrt(inputs))

    @property
    def weight(self) -> Tensor:
        """``(outputs, inputs)``."""
        return self.up @ self.down

    def forward(self, x: Tensor) -> Tensor:
        """``(..., inputs)`` to ``(..., outputs)``."""
        return F.linear(F.linear(x, self.down), self.up, self.bias)


def _linear(inputs: int, outputs: int, rank: int | None) -> nn.Linear | LowRankLinear:
    return nn.Linear(inputs, outputs) if rank is None else LowRankLinear(inputs, outputs, rank)


class ExternalInteraction(nn.Module):
    """Semantic prompts of each modality attend to the bind prompt (Eq. 11-14).

    The bind prompt is the mean of the projected semantic prompts; it has no parameters of its own. Projected by W_b
    it is key and value at once; there is one head, and the residual of Eq. 14.

    Args:
        width: D.
        rank: of every linear map; None = full.
        absent: semantic prompts to learn, S of each modality, which stand for one that a triplet lacks; 0 = none.
    """

    def __init__(self, width: int, rank: int | None = None, absent: int = 0):
        super().__init__()
        self.to_bind = PerModality(_linear(width, width, rank) for _ in range(MODALITY_COUNT))  # W°_m
        self.query = PerModality(_linear(width, width, rank) for _ in range(MODALITY_COUNT))  # W_m
        self.key = _linear(width, width, rank)  # W_b
        self.absent = nn.Parameter(torch.randn(MODALITY_COUNT, 1, absent, width) * 0.02) if absent else None

    def forward(self, semantic: Tensor, present: Tensor | None = None) -> Tensor:
        """Semantic prompts ``(3, B, S, D)``, enriched, in the same shape.

        Args:
            semantic: Ŝ of each modality.
            present: bool ``(3, B)``, which modalities a triplet has; the mean of Eq. 11 is over these, or over all
                three with learned tokens for the absent. None = all.
        """
        if self.absent is not None:
            if present is None:  # where one process has a gradient for these tokens, all must
                present = torch.ones(semantic.shape[:2], dtype=torch.bool, device=semantic.device)
            semantic = torch.where(present.to(semantic.device)[..., None, None], semantic, self.absent.to(semantic))
            present = None
        bind = mean_over_present(self.to_bind(semantic), present)  # Eq. 11, (B, S, D)
        bind = self.key(bind)  # Eq. 13
        query = self.query(semantic)  # Eq. 12
        scores = query / math.sqrt(query.shape[-1]) @ bind.transpose(-1, -2)  # in this order, or 16 bits overflow
        enriched: Tensor = semantic + scores.softmax(dim=-1).to(bind.dtype) @ bind  # Eq. 14
        return enriched


class InternalInteraction(nn.Module):
    """Multi-head self-attention within one modality, x + MHSA(LN(x)) (Eq. 15).

    The output projection starts at zero, so the layer starts as the identity on the frozen features.
    """

    def __init__(self, width: int, heads: int, rank: int | None = None):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = _linear(width, 3 * width, rank)
        self.proj = _linear(width, width, rank)
        nn.init.zeros_(self.proj.up if isinstance(self.proj, LowRankLinear) else self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(self, x: Tensor, cls_only: bool = False) -> Tensor:
        """Tokens ``(B, N, D)``, enhanced.

        Args:
            x: all tokens of one modality.
            cls_only: only the class token's output is wanted; all tokens are keys and values.

        Returns:
            ``(B, N, D)``, or ``(B, 1, D)``.
        """
        y = self.norm(x.to(self.norm.weight.dtype)).to(x.dtype)
        if cls_only:
            out: Tensor = x[:, :1] + self.proj(self._attend_cls(y))
        else:
            out = x + self.proj(self._attend_all(y))
        return out

    def _attend_all(self, y: Tensor) -> Tensor:
        q, k, v = self.qkv(y).view(*y.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return attend(q, k, v).transpose(1, 2).flatten(2)

    def _attend_cls(self, y: Tensor) -> Tensor:
        """``_attend_all(y)[:, :1]``, where no token needs a key or value: the same sums in another order.

        Per head q · (W_k y + b_k) = (W_kᵀ q) · y + a constant that softmax cancels, and with weights a that sum to 1
        Σ a (W_v y + b_v) = W_v (Σ a y) + b_v.
        """
        batch, _, width = y.shape
        w_q, w_k, w_v = self.qkv.weight.view(3, width, width)
        b_q, _, b_v = self.qkv.bias.view(3, self.heads, -1)
        q = F.linear(y[:, 0], w_q).view(batch, self.heads, -1) + b_q
        q = q * q.shape[-1] ** -0.5
        asked = torch.einsum("bhd,hde->bhe", q, w_k.view(self.heads, -1, width))
        scores = asked @ y.transpose(-1, -2)  # (B, h, N)
        seen = scores.softmax(dim=-1).to(y.dtype) @ y  # (B, h, D)
        out: Tensor = torch.einsum("bhe,hde->bhd", seen, w_v.view(self.heads, -1, width)) + b_v
        return out.flatten(1)[:, None]


class InteractionLayer(nn.Module):
    """External, then internal interaction: the layer F of Eq. 16.

    Args:
        config: its ``external``, ``rank`` and ``share``.
        width: D.
        heads: of the internal attention, as in the backbone.
        absent: tokens to learn for an absent modality (``ExternalInteraction``).
    """

    def __init__(self, config: BindConfig, width: int, heads: int, absent: int = 0):
        super().__init__()
        self.external = ExternalInteraction(width, config.rank, absent) if config.external else None
        own = 1 if config.share else MODALITY_COUNT
        self.internal = nn.ModuleList(InternalInteraction(width, heads, config.rank) for _ in range(own))

    def forward(self, tokens: Tensor, semantic: slice, present: Tensor | None = None, cls_only: bool = False) -> Tensor:
        """Tokens ``(3, B, N, D)`` to ``(3, B, N or 1, D)``; ``semantic`` says where S stands."""
        return self.look(self.exchange(tokens, semantic, present), cls_only)

    def exchange(self, tokens: Tensor, semantic: slice, present: Tensor | None = None) -> Tensor:
        """Tokens ``(3, B, N, D)`` with enriched semantic prompts (Eq. 11-14)."""
        if self.external is None:
            return tokens
        enriched = self.external(tokens[:, :, semantic], present)
        before, after = tokens[:, :, : semantic.start], tokens[:, :, semantic.stop :]
        return torch.cat([before, enriched.to(tokens.dtype), after], dim=2)

    def look(self, tokens: Tensor, cls_only: bool = False) -> Tensor:
        """Internal attention of each modality (Eq. 15); ``(3, B, N or 1, D)``."""
        layers = cycle(self.internal)  # one serves all where it is shared
        return torch.stack([layer(x, cls_only) for layer, x in zip(layers, tokens, strict=False)])


class PromptIBind(nn.Module):
    """k interaction layers, each with its own weights (Eq. 16).

    Args:
        config: depth k of at least 1, what its layers are, and behind which layers of the tower there are more.
        width: D.
        heads: of the internal attention.
        pooled: also give the mean semantic prompt of each modality after the last exchange.
        absent: tokens to learn for an absent modality (``ExternalInteraction``).
    """

    def __init__(self, config: BindConfig, width: int, heads: int, pooled: bool = False, absent: int = 0):
        super().__init__()
        form = config, width, heads, absent
        self.layers = nn.ModuleList(InteractionLayer(*form) for _ in range(config.depth))
        self.pooled = pooled
        self.between = nn.ModuleDict({str(i): InteractionLayer(*form) for i in config.layers})

    def forward(self, tokens: Tensor, semantic: slice, present: Tensor | None = None) -> Tensor:
        """Enhanced class tokens of the backbone's tokens ``(3, B, N, D)``.

        Nothing but the class token leaves the last layer, so nothing else is a query there.

        Returns:
            ``(3, B, D)``; with ``pooled`` ``(2, 3, B, D)``, class tokens and mean semantic prompts.
        """
        for layer in self.layers[:-1]:
            tokens = layer(tokens, semantic, present)
        last: Any = self.layers[-1]
        tokens = last.exchange(tokens, semantic, present)
        cls: Tensor = last.look(tokens, cls_only=True)[:, :, 0]
        return torch.stack([cls, tokens[:, :, semantic].mean(dim=2)]) if self.pooled else cls

    def exchange_behind(
        self, layer: int, tokens: Tensor, prompts: slice, length: int, present: Tensor | None = None
    ) -> Tensor:
        """The same between two layers of the tower: the class token goes on enhanced, the prompts end here.

        Args:
            layer: one of the settings' ``layers``.
            tokens: that leave it, ``(3, B, N + P, D)``.
            prompts: where the P prompts stand.
            length: S, the semantic ones, which stand last.
            present: bool ``(3, B)``; None = all.

        Returns:
            ``(3, B, N, D)``.
        """
        own: Any = self.between[str(layer)]
        tokens = own.exchange(tokens, slice(prompts.stop - length, prompts.stop), present)
        cls = own.look(tokens, cls_only=True)
        return torch.cat([cls, tokens[:, :, 1 : prompts.start], tokens[:, :, prompts.stop :]], dim=2)
