"""The frozen vision transformer, and the two ways in which prompts enter it (paper Eq. 1-3, 7-10).

The only file that runs timm's insides. The three streams of the paper hold identical frozen weights, so one copy
serves all of them: B triplets are one pass over 3B images.

Shapes: M modalities, B triplets, N tokens of an image (class token, registers, patches), P prompts, D width, h heads.

Prompts as prefixes. In a pre-norm block the key and value of a prompt do not depend on the image, and what the block
makes of the prompt itself is thrown away (the dashes of Eq. 7-9) in every layer but the last. So there a prompt needs
no query, no output projection and no MLP: its key and value are computed once per layer and modality and joined to
the images' keys and values. This equals inserting tokens, up to rounding. In the last layer the prompts' own outputs
are used by the interaction layers (Eq. 10), and they are computed; only their queries, keys and values, which do not
depend on the image either, once per modality.

Prompts from a layer on. A layer may have no prompts (None). Below the first that has some nothing needs a gradient, so
autograd records nothing there and stores no activations: backward ends at that layer.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from dmpt.extensions.lora import LoRA, add_lora
from dmpt.method.attention import attend
from dmpt.towers.image import TowerInfo

Prefix = tuple[Tensor, Tensor]
"""Keys and values of one layer's prompts, each ``(M, h, P, D / h)``."""
Exchanges = Mapping[int, Callable[[Tensor], Tensor]]
"""By layer: from the tokens that leave it, ``(M, B, N + P, D)``, to those that enter the next, ``(M, B, N, D)``."""
NONE: Exchanges = {}


class Backbone(nn.Module):
    """A pretrained transformer: tokens before the final norm, the norm, and the projection or None.

    Args:
        vit: the loaded tower (``weights.build_vit``).
        info: what is known of it.
        tune: ``full``: everything is trained, a comparator; else the pretrained tensors get no gradients and stay in
            evaluation mode for ever. ``lora`` adds updates that are trained.
        lora_rank: their rank.
    """

    def __init__(
        self,
        vit: VisionTransformer,
        info: TowerInfo,
        tune: Literal["frozen", "linear", "lora", "full"] = "frozen",
        lora_rank: int = 8,
    ):
        super().__init__()
        self.vit = vit
        self.info = info
        self.frozen = tune != "full"
        self.requires_grad_(not self.frozen)
        if tune == "lora":
            add_lora(vit, lora_rank)
        self.train(False)

    @property
    def depth(self) -> int:
        """Number of blocks in use, L."""
        return len(self.vit.blocks)

    @property
    def width(self) -> int:
        """Token width D, the paper's d_v."""
        return int(self.vit.embed_dim)

    @property
    def heads(self) -> int:
        """Attention heads of a block."""
        block: Any = self.vit.blocks[0]
        return int(block.attn.num_heads)

    @property
    def leading(self) -> int:
        """Class token and registers; prompts enter directly behind them."""
        return int(self.vit.num_prefix_tokens)

    def train(self, mode: bool = True) -> "Backbone":
        """Stay in evaluation mode when frozen, whatever the caller asks."""
        super().train(mode and not self.frozen)
        return self

    def keep_in(self, dtype: torch.dtype) -> None:
        """Hold frozen weights in the compute precision; the final norm stays in float32.

        Autocast keeps the half-precision copy of a weight only while it needs a gradient: it would cast frozen ones
        again at every use.
        """
        if self.frozen:
            for parameter in self.vit.parameters():
                if not parameter.requires_grad:  # LoRA's updates stay in float32
                    parameter.data = parameter.data.to(dtype)
            self.vit.norm.float()

    def embed(self, images: Tensor) -> Tensor:
        """Normalised images ``(M, B, 3, H, W)`` to tokens ``(M, B, N, D)``, ready for the first block."""
        m, b = images.shape[:2]
        weight = self.vit.patch_embed.proj.weight
        x = self.vit.patch_embed(images.flatten(0, 1).to(weight.dtype))
        tokens: Tensor = self.vit.norm_pre(self.vit._pos_embed(x))
        return tokens.view(m, b, *tokens.shape[1:])

    def prefixes(self, prompts: Sequence[Tensor | None]) -> list[Prefix | None]:
        """Keys and values of every layer's prompts.

        Args:
            prompts: per layer ``(M, P, D)``, or None.
        """
        layers = zip(self.vit.blocks, prompts, strict=True)
        return [None if own is None else self._prefix(block, own) for block, own in layers]

    def forward(
        self,
        images: Tensor,
        prompts: Sequence[Tensor | None] | None = None,
        form: Literal["prefix", "token"] = "prefix",
        keep_prompts: bool = False,
        prefixes: Sequence[Prefix | None] | None = None,
        exchanges: Exchanges = NONE,
    ) -> Tensor:
        """Tokens before the final norm (Eq. 10).

        Args:
            images: normalised, ``(M, B, 3, H, W)``.
            prompts: per layer ``(M, P, D)``, in the order modality, semantic; None where it has none, but the last has
                some. None for the plain tower.
            form: how prompts enter.
            keep_prompts: return the last layer's prompt tokens too, for the interaction layers.
            prefixes: ``self.prefixes(prompts)``, where they are constants.
            exchanges: what happens behind some layers but the last.

        Returns:
            ``(M, B, N, D)``, or ``(M, B, N + P, D)`` in the order class token, registers, prompts, patches.
        """
        x = self.embed(images)
        stale = 0  # tokens of the layer before that the next drops: the dashes of Eq. 7-9
        for layer, block in enumerate(self.vit.blocks):
            own = None if prompts is None else prompts[layer]
            if own is None:
                x = self._block(block, x)
            elif layer in exchanges:
                x = exchanges[layer](self._block(block, self._drop(x, stale), prompts=own))
                stale = 0
            elif form == "token":
                x = self._block(block, self._insert(x, own, stale))
                stale = own.shape[1]
            elif keep_prompts and layer == self.depth - 1:
                x = self._block(block, x, prompts=own)
            else:
                x = self._block(block, x, self._prefix(block, own) if prefixes is None else prefixes[layer])
        return x if keep_prompts else self._drop(x, stale)

    def entering(
        self, images: Tensor, prompts: Sequence[Tensor | None] | None = None, exchanges: Exchanges = NONE
    ) -> Iterator[Tensor]:
        """Tokens ``(M, B, N, D)`` on their way into each block; arguments as for ``forward``."""
        x = self.embed(images)
        for layer, block in enumerate(self.vit.blocks):
            yield x
            own = None if prompts is None else prompts[layer]
            if layer in exchanges:
                x = exchanges[layer](self._block(block, x, prompts=own))
            else:
                x = self._block(block, x, None if own is None else self._prefix(block, own))

    def attention(
        self, images: Tensor, prompts: Sequence[Tensor | None] | None = None, exchanges: Exchanges = NONE
    ) -> tuple[Tensor, Tensor]:
        """What ``forward`` with ``keep_prompts`` gives, and where each token of the last block looked.

        For looking at, not for training: the probabilities, which ``forward`` may never hold, are written out.

        Args:
            images: normalised, ``(M, B, 3, H, W)``.
            prompts: as for ``forward``.
            exchanges: as for ``forward``.

        Returns:
            Tokens before the final norm ``(M, B, N + P, D)``, computed from the probabilities; and the probabilities
            ``(M, B, h, N + P, N + P)``, whose rows (queries) sum to 1. P is 0 without prompts.
        """
        last = self.vit.blocks[-1]
        x = next(islice(self.entering(images, prompts, exchanges), self.depth - 1, None))  # which stops before it
        x, q, k, v = self._project(last, x, prompts=None if prompts is None else prompts[-1])
        probabilities = ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).softmax(dim=-1)
        return self._finish(last, x, probabilities.to(v.dtype) @ v), probabilities

    def norm(self, cls: Tensor) -> Tensor:
        """The tower's final norm, in float32 or better; ``(..., D)``."""
        out: Tensor = self.vit.norm(cls.to(torch.promote_types(cls.dtype, torch.float32)))
        return out

    def _insert(self, x: Tensor, prompts: Tensor, stale: int = 0) -> Tensor:
        """Prompts behind class token and registers, in the place of ``stale`` tokens of the layer before."""
        expanded = prompts.to(x.dtype)[:, None].expand(-1, x.shape[1], -1, -1)
        return torch.cat([x[:, :, : self.leading], expanded, x[:, :, self.leading + stale :]], dim=2)

    def _drop(self, x: Tensor, stale: int) -> Tensor:
        """Without the ``stale`` prompts behind class token and registers."""
        return torch.cat([x[:, :, : self.leading], x[:, :, self.leading + stale :]], dim=2) if stale else x

    def _prefix(self, block: Any, prompts: Tensor) -> Prefix:
        attn = block.attn
        y = block.norm1(prompts.to(block.norm1.weight.dtype))
        if isinstance(attn.qkv, LoRA):
            kv = attn.qkv(y)[..., self.width :]
        else:
            bias = None if attn.qkv.bias is None else attn.qkv.bias[self.width :]
            kv = F.linear(y, attn.qkv.weight[self.width :], bias)  # the queries' third is not needed
        k, v = kv.view(*kv.shape[:2], 2, attn.num_heads, -1).permute(2, 0, 3, 1, 4)  # each (M, h, P, D / h)
        return attn.k_norm(k), v

    def _block(self, block: Any, x: Tensor, prefix: Prefix | None = None, prompts: Tensor | None = None) -> Tensor:
        """Timm's ``Block.forward`` on ``(M, B, N, D)``, whose attention may also see a prefix.

        Or prompts enter it and stay, ``(M, B, N + P, D)``; their queries, keys and values are computed once.
        """
        x, q, k, v = self._project(block, x, prefix, prompts)
        y = attend(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1))
        return self._finish(block, x, y.view(q.shape))

    def _project(
        self, block: Any, x: Tensor, prefix: Prefix | None = None, prompts: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The block's tokens, with prompts that enter, and their queries, keys and values ``(M, B, h, N, D / h)``."""
        attn = block.attn
        qkv = attn.qkv(block.norm1(x))
        if prompts is not None:
            x = self._insert(x, prompts)
            qkv = self._insert(qkv, attn.qkv(block.norm1(prompts.to(block.norm1.weight.dtype))))
        m, b, n, _ = x.shape
        q, k, v = qkv.view(m, b, n, 3, attn.num_heads, -1).permute(3, 0, 1, 4, 2, 5)  # each (M, B, h, N, D / h)
        q, k = attn.q_norm(q), attn.k_norm(k)
        if prefix is not None:
            # Expanded, not repeated: a prefix exists once per modality, and its gradient is summed there.
            k, v = (
                torch.cat([own, shared.to(own.dtype)[:, None].expand(-1, b, -1, -1, -1)], dim=3)
                for own, shared in ((k, prefix[0]), (v, prefix[1]))
            )
        return x, q, k, v

    def _finish(self, block: Any, x: Tensor, y: Tensor) -> Tensor:
        """The rest of a block, after its heads have seen ``y``, ``(M, B, h, N, D / h)``."""
        y = y.transpose(2, 3).reshape(x.shape)
        x = x + block.ls1(block.attn.proj(block.attn.norm(y)))
        out: Tensor = x + block.ls2(block.mlp(block.norm2(x)))
        return out
