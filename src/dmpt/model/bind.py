"""PromptIBind: the spectra exchange what they know through a bind prompt (paper section 3.4, Eq. 11-16).

Shapes: 3 modalities, B triplets, tokens ``(3, B, N, D)`` in the order class token, registers, modality prompts M,
semantic prompts S, patches.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmpt.model.attention import attend
from dmpt.model.prompts import MODALITY_COUNT


class ExternalInteraction(nn.Module):
    """Semantic prompts of each modality attend to the bind prompt (Eq. 11-14).

    The bind prompt is the mean of the projected semantic prompts; it has no parameters of its own. Projected by W_b
    it is key and value at once; there is one head, and the residual of Eq. 14.
    """

    def __init__(self, width: int):
        super().__init__()
        self.to_bind = nn.ModuleList(nn.Linear(width, width) for _ in range(MODALITY_COUNT))  # W°_m
        self.query = nn.ModuleList(nn.Linear(width, width) for _ in range(MODALITY_COUNT))  # W_m
        self.key = nn.Linear(width, width)  # W_b

    def forward(self, semantic: Tensor, present: Tensor | None = None) -> Tensor:
        """Semantic prompts ``(3, B, S, D)``, enriched, in the same shape.

        Args:
            semantic: Ŝ of each modality.
            present: bool ``(3, B)``, which modalities a triplet has; the mean of Eq. 11 is over these. None = all.
        """
        projected = torch.stack([linear(s) for linear, s in zip(self.to_bind, semantic, strict=True)])
        if present is None:
            bind = projected.mean(dim=0)  # Eq. 11, (B, S, D)
        else:
            share = present.to(projected.dtype) / present.sum(dim=0)
            bind = (projected * share[..., None, None]).sum(dim=0)
        bind = self.key(bind)  # Eq. 13
        query = torch.stack([linear(s) for linear, s in zip(self.query, semantic, strict=True)])
        scores = query @ bind.transpose(-1, -2) / math.sqrt(query.shape[-1])
        enriched: Tensor = semantic + scores.softmax(dim=-1).to(bind.dtype) @ bind  # Eq. 14
        return enriched


class InternalInteraction(nn.Module):
    """Multi-head self-attention within one modality, x + MHSA(LN(x)) (Eq. 15).

    The output projection starts at zero, so the layer starts as the identity on the frozen features.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(self, x: Tensor, queries: int | None = None) -> Tensor:
        """Tokens ``(B, N, D)``, enhanced.

        Args:
            x: all tokens of one modality.
            queries: only the first so many tokens are wanted; all are keys and values. None = all.

        Returns:
            ``(B, queries, D)``.
        """
        y = self.norm(x.to(self.norm.weight.dtype)).to(x.dtype)
        attended = self._first(y) if queries == 1 else self._attend(y, queries)
        out: Tensor = x[:, :queries] + self.proj(attended)
        return out

    def _attend(self, y: Tensor, queries: int | None) -> Tensor:
        width = y.shape[-1]
        weight, bias = self.qkv.weight, self.qkv.bias
        q = F.linear(y[:, :queries], weight[:width], bias[:width])
        k, v = F.linear(y, weight[width:], bias[width:]).chunk(2, dim=-1)
        q, k, v = (t.view(*t.shape[:2], self.heads, -1).transpose(1, 2) for t in (q, k, v))
        return attend(q, k, v).transpose(1, 2).flatten(2)

    def _first(self, y: Tensor) -> Tensor:
        """``_attend`` with one query, where no token needs a key or value: the same sums in another order.

        Per head q · (W_k y + b_k) = (W_kᵀ q) · y + q · b_k, and Σ a (W_v y + b_v) = W_v (Σ a y) + b_v.
        """
        batch, _, width = y.shape
        w_q, w_k, w_v = self.qkv.weight.view(3, width, width)
        b_q, b_k, b_v = self.qkv.bias.view(3, self.heads, -1)
        q = F.linear(y[:, 0], w_q).view(batch, self.heads, -1) + b_q
        q = q * q.shape[-1] ** -0.5
        asked = torch.einsum("bhd,hde->bhe", q, w_k.view(self.heads, -1, width))
        scores = asked @ y.transpose(-1, -2) + (q * b_k).sum(dim=-1, keepdim=True)  # (B, h, N)
        seen = scores.softmax(dim=-1).to(y.dtype) @ y  # (B, h, D)
        out: Tensor = torch.einsum("bhe,hde->bhd", seen, w_v.view(self.heads, -1, width)) + b_v
        return out.flatten(1)[:, None]


class InteractionLayer(nn.Module):
    """External, then internal interaction: the layer F of Eq. 16.

    Args:
        width: D.
        heads: of the internal attention, as in the backbone.
        external: without it the layer is internal attention alone, a control.
    """

    def __init__(self, width: int, heads: int, external: bool = True):
        super().__init__()
        self.external = ExternalInteraction(width) if external else None
        self.internal = nn.ModuleList(InternalInteraction(width, heads) for _ in range(MODALITY_COUNT))

    def forward(
        self, tokens: Tensor, semantic: slice, present: Tensor | None = None, queries: int | None = None
    ) -> Tensor:
        """Tokens ``(3, B, N, D)`` to ``(3, B, queries or N, D)``; ``semantic`` says where S stands."""
        if self.external is not None:
            enriched = self.external(tokens[:, :, semantic], present)
            before, after = tokens[:, :, : semantic.start], tokens[:, :, semantic.stop :]
            tokens = torch.cat([before, enriched.to(tokens.dtype), after], dim=2)
        return torch.stack([layer(x, queries) for layer, x in zip(self.internal, tokens, strict=True)])


class PromptIBind(nn.Module):
    """k interaction layers, each with its own weights (Eq. 16)."""

    def __init__(self, depth: int, width: int, heads: int, external: bool = True):
        super().__init__()
        self.layers = nn.ModuleList(InteractionLayer(width, heads, external) for _ in range(depth))

    def forward(self, tokens: Tensor, semantic: slice, present: Tensor | None = None) -> Tensor:
        """Enhanced class tokens ``(3, B, D)`` of the backbone's tokens ``(3, B, N, D)``.

        Nothing but the class token leaves the last layer, so nothing else is a query there.
        """
        for layer in self.layers[:-1]:
            tokens = layer(tokens, semantic, present)
        cls: Tensor = self.layers[-1](tokens, semantic, present, queries=1)
        return cls[:, :, 0]
