"""PromptIBind: the spectra exchange what they know through a bind prompt (paper section 3.4, Eq. 11-16).

Shapes: 3 modalities, B samples, N tokens with prompts: class token, registers, modality prompts M, semantic prompts S,
patches.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmpt.method.attention import attend
from dmpt.method.modalities import MODALITY_COUNT, Features, PerModality


class Linear(nn.Linear):
    """A full linear map with bias: what PromptIBind is made of, unless it is handed another kind."""

    def start_at_zero(self) -> None:
        """Map everything to zero, until it is trained."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


MakeLinear = Callable[[int, int], Any]
"""From widths in and out to a linear map with ``weight``, ``bias`` and ``start_at_zero``."""


class ExternalInteraction(nn.Module):
    """Semantic prompts of each modality attend to the bind prompt, CA_b2m (Eq. 11-14).

    The bind prompt is the mean of the projected semantic prompts; it has no parameters of its own. Projected by W_b
    it is key and value at once; there is one attention head, and the residual of Eq. 14.
    """

    def __init__(self, width: int, linear: MakeLinear = Linear):
        super().__init__()
        self.to_bind = PerModality(linear(width, width) for _ in range(MODALITY_COUNT))  # W°_m
        self.query = PerModality(linear(width, width) for _ in range(MODALITY_COUNT))  # W_m
        self.key = linear(width, width)  # W_b

    def forward(self, semantic: Features) -> Tensor:
        """Semantic prompts Ŝ of each modality, ``(3, B, S, D)``, enriched; the bind is over those present."""
        bind = Features(self.to_bind(semantic.x), semantic.present).mean()  # Eq. 11, (B, S, D)
        bind = self.key(bind)  # Eq. 13
        query = self.query(semantic.x)  # Eq. 13
        scores = query / math.sqrt(query.shape[-1]) @ bind.transpose(-1, -2)  # in this order, or 16 bits overflow
        enriched: Tensor = semantic.x + scores.softmax(dim=-1).to(bind.dtype) @ bind  # Eq. 12, 14
        return enriched


class InternalInteraction(nn.Module):
    """Multi-head self-attention SA_m within one modality, x + MHSA(LN(x)) (Eq. 15).

    The output projection starts at zero, so the layer starts as the identity on the frozen features.
    """

    def __init__(self, width: int, attention_heads: int, linear: MakeLinear = Linear):
        super().__init__()
        self.attention_heads = attention_heads
        self.norm = nn.LayerNorm(width)
        self.qkv = linear(width, 3 * width)
        self.proj = linear(width, width)
        self.proj.start_at_zero()

    def forward(self, x: Tensor, cls_only: bool = False) -> Tensor:
        """Tokens ``(B, N, D)``, enhanced; or ``(B, 1, D)``, the class token alone, which all tokens inform."""
        y = self.norm(x.to(self.norm.weight.dtype)).to(x.dtype)
        if cls_only:
            out: Tensor = x[:, :1] + self.proj(self._attend_cls(y))  # Eq. 15, of the class token
        else:
            q, k, v = self.qkv(y).view(*y.shape[:2], 3, self.attention_heads, -1).permute(2, 0, 3, 1, 4)
            out = x + self.proj(attend(q, k, v).transpose(1, 2).flatten(2))  # Eq. 15
        return out

    def _attend_cls(self, y: Tensor) -> Tensor:
        """The class token's part, where no token needs a key or value: the same sums in another order.

        Per head q · (W_k y + b_k) = (W_kᵀ q) · y + a constant that softmax cancels, and with weights a that sum to 1
        Σ a (W_v y + b_v) = W_v (Σ a y) + b_v.
        """
        (batch, _, width), h = y.shape, self.attention_heads
        w_q, w_k, w_v = self.qkv.weight.view(3, width, width)
        b_q, _, b_v = self.qkv.bias.view(3, h, -1)
        q = F.linear(y[:, 0], w_q).view(batch, h, -1) + b_q
        q = q * q.shape[-1] ** -0.5
        asked = torch.einsum("bhd,hde->bhe", q, w_k.view(h, -1, width))
        scores = asked @ y.transpose(-1, -2)  # (B, h, N)
        seen = scores.softmax(dim=-1).to(y.dtype) @ y  # (B, h, D)
        out: Tensor = torch.einsum("bhe,hde->bhd", seen, w_v.view(h, -1, width)) + b_v
        return out.flatten(1)[:, None]


class InteractionLayer(nn.Module):
    """External, then internal interaction of each modality: the layer F of Eq. 16."""

    def __init__(self, external: nn.Module, internal: PerModality):
        super().__init__()
        self.external = external
        self.internal = internal

    def forward(self, tokens: Features, semantic: slice, cls_only: bool = False) -> tuple[Tensor, Tensor]:
        """What Eq. 15 gives, ``(3, B, N or 1, D)``, and the tokens that went into it; ``semantic``: where S stands."""
        x = tokens.x
        enriched = self.external(Features(x[:, :, semantic], tokens.present))  # Eq. 11-14
        x = torch.cat([x[:, :, : semantic.start], enriched.to(x.dtype), x[:, :, semantic.stop :]], dim=2)
        return self.internal(x, cls_only), x  # Eq. 15


class PromptIBind(nn.Module):
    """k interaction layers, at least one, each with its own weights (Eq. 16)."""

    def __init__(self, layers: Iterable[InteractionLayer]):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, tokens: Features, semantic: slice) -> tuple[Tensor, Tensor]:
        """The backbone's tokens ``(3, B, N, D)`` to class tokens ``(3, B, D)`` and enriched prompts ``(3, B, S, D)``.

        Nothing but the class token leaves the last layer, so nothing else is a query there.
        """
        for layer in self.layers[:-1]:
            tokens = Features(layer(tokens, semantic)[0], tokens.present)  # Eq. 16
        cls, x = self.layers[-1](tokens, semantic, True)
        return cls[:, :, 0], x[:, :, semantic]
