"""The frozen vision transformer, and the two ways in which prompts enter it (paper Eq. 1-3, 7-10).

The only file that runs timm's insides. The three streams of the paper hold identical frozen weights, so one copy
serves all of them: B samples of three modalities are one pass over n = 3 B images, modality first.

Shapes: n images, N tokens of one (class token, registers, patches), P prompts, D width, h attention heads. The images
stand in G groups of equal size, one after the other; prompts are per group: of a modality, or of each image (G = n).

Prompts as prefixes. In a pre-norm block the key and value of a prompt do not depend on the image, and what the block
makes of the prompt itself is thrown away (the dashes of Eq. 7-9) in every layer but the last. So there a prompt needs
no query, no output projection and no MLP: its key and value are computed once per layer and group and joined to the
images' keys and values. This equals inserting tokens, up to rounding. In the last layer the prompts' own outputs
are used by the interaction layers (Eq. 10), and they are computed; only their queries, keys and values, which do not
depend on the image either, once per group.

A layer may have no prompts. Below the first that has some nothing needs a gradient: backward ends at that layer.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dmpt.method.attention import attend
from dmpt.method.modalities import MODALITY_COUNT
from dmpt.towers.maps import apply_map, apply_mlp, wrap

Prefix = tuple[Tensor, Tensor]
"""Keys and values of one layer's prompts, each ``(G, h, P, D / h)``."""
LayerPrompts = Tensor | Prefix | None
"""One layer's prompts ``(G, P, D)``, in the order modality, semantic; or what is left of them for inference."""
Form = Literal["prefix", "token"]
Behind = Mapping[int, Callable[[Tensor], Tensor]]
"""By layer: from the tokens that leave it, ``(n, N + P, D)``, to those that enter the next, ``(n, N, D)``."""
_NOTHING: Behind = {}
_ALL = tuple(range(MODALITY_COUNT))


class Backbone(nn.Module):
    """A pretrained transformer: tokens before the final norm, and the norm.

    Args:
        vit: the loaded tower, timm's.
        frozen: the pretrained tensors get no gradients and stay in evaluation mode for ever; else all are trained.
        checkpoint: keep no activations of a block for backward, but compute them again.
        rotate: turns queries and keys of the patches ``(n, h, patches, D / h)``, for towers with rotary positions;
            prompts have none.
    """

    def __init__(
        self, vit: Any, frozen: bool = True, checkpoint: bool = False, rotate: Callable[[Tensor], Tensor] | None = None
    ):
        super().__init__()
        self.vit, self.frozen, self.checkpoint, self.rotate = vit, frozen, checkpoint, rotate
        self.requires_grad_(not frozen)
        self.train(False)
        self.depth = len(vit.blocks)  # L
        self.width = int(vit.embed_dim)  # D, the paper's d_v
        self.attention_heads = int(vit.blocks[0].attn.num_heads)  # h
        self.leading = int(vit.num_prefix_tokens)  # class token and registers; prompts enter directly behind them

    def train(self, mode: bool = True) -> "Backbone":
        """Stay in evaluation mode when frozen, whatever the caller asks."""
        super().train(mode and not self.frozen)
        return self

    def keep_in(self, dtype: torch.dtype) -> None:
        """Hold frozen weights in the compute precision; the final norm and what is trained stay in float32.

        Autocast keeps the half-precision copy of a weight only while it needs a gradient: it would cast frozen ones
        again at every use.
        """
        for parameter in self.vit.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)
        self.vit.norm.float()

    def wrap(self, name: str, by: Callable[[nn.Linear], nn.Module], first_layer: int = 0) -> None:
        """Put ``by(own)`` in the place of a linear map of every block from a layer on (``towers.maps.wrap``)."""
        wrap(self.vit.blocks[first_layer:], name, by)

    def forward(
        self,
        images: Tensor,
        prompts: Sequence[LayerPrompts] | None = None,
        form: Form = "prefix",
        keep_prompts: bool = False,
        behind: Behind = _NOTHING,
        modalities: tuple[int, ...] = _ALL,
        watch: Callable[[int, Tensor], object] | None = None,
    ) -> Tensor:
        """Tokens before the final norm (Eq. 10).

        Args:
            images: normalised, ``(n, 3, H, W)``.
            prompts: of each layer; None for the plain tower.
            form: how prompts enter: as keys and values, or inserted as tokens.
            keep_prompts: return the last layer's prompt tokens too, for the interaction layers.
            behind: what happens behind some layers but the last, whose prompts are computed in full.
            modalities: of the groups of images; only maps that differ by modality ask.
            watch: is shown each layer, and the tokens ``(n, N, D)`` on their way into it.

        Returns:
            ``(n, N, D)``, or ``(n, N + P, D)`` in the order class token, registers, prompts, patches.
        """
        x = self.embed(images)
        for layer in range(self.depth):
            own = None if prompts is None else prompts[layer]
            if watch is not None:
                watch(layer, x)
            keep = layer in behind or (keep_prompts and layer == self.depth - 1)  # Eq. 10
            if self.checkpoint and torch.is_grad_enabled():
                x = checkpoint(self.block, layer, x, own, form, keep, modalities, use_reentrant=False)
            else:
                x = self.block(layer, x, own, form, keep, modalities)
            if layer in behind:
                x = behind[layer](x)
        return x

    def embed(self, images: Tensor) -> Tensor:
        """Normalised images ``(n, 3, H, W)`` to tokens ``(n, N, D)``, ready for the first block."""
        x = self.vit.patch_embed(images.to(self.vit.patch_embed.proj.weight.dtype))
        tokens: Tensor = self.vit.norm_pre(self.vit._pos_embed(x))
        return tokens

    def norm(self, cls: Tensor) -> Tensor:
        """The tower's final norm, in float32 or better; ``(..., D)``."""
        out: Tensor = self.vit.norm(cls.to(torch.promote_types(cls.dtype, torch.float32)))
        return out

    def block(
        self,
        layer: int,
        x: Tensor,
        prompts: LayerPrompts = None,
        form: Form = "prefix",
        keep_prompts: bool = False,
        modalities: tuple[int, ...] = _ALL,
    ) -> Tensor:
        """Block V^l, ``(n, N, D)`` to ``(n, N, D)``, or to ``(n, N + P, D)`` where its prompts are kept (Eq. 7-10)."""
        assert not (keep_prompts and isinstance(prompts, tuple)), "prompts that are kept are needed in full"
        if form == "token" and isinstance(prompts, Tensor):
            x = self._insert(x, prompts)  # Eq. 7-9: [c, M, S, E]
            q, k, v = self._project(layer, x, modalities)
        elif keep_prompts and isinstance(prompts, Tensor):
            x, q, k, v = self.in_full(layer, x, prompts, modalities)  # Eq. 10
        else:
            q, k, v = self._project(layer, x, modalities)  # Eq. 1-3, without prompts
            if prompts is not None:  # Eq. 7-9, as keys and values
                own = self.prefix(layer, prompts, modalities) if isinstance(prompts, Tensor) else prompts
                k, v = (torch.cat([one, _each(one, its)], dim=2) for one, its in zip((k, v), own, strict=True))
        x = self.finish(layer, x, attend(q, k, v), modalities)
        if form == "token" and isinstance(prompts, Tensor) and not keep_prompts:  # Eq. 7-9: [c, -, -, E]
            x = torch.cat([x[:, : self.leading], x[:, self.leading + prompts.shape[1] :]], dim=1)
        return x

    def prefix(self, layer: int, prompts: Tensor, modalities: tuple[int, ...] = _ALL) -> Prefix:
        """Keys and values of a layer's prompts ``(G, P, D)``."""
        block = self.vit.blocks[layer]
        attn, y = block.attn, block.norm1(prompts.to(block.norm1.weight.dtype))
        if type(attn.qkv) is nn.Linear:  # the queries' third is not needed
            bias = None if attn.qkv.bias is None else attn.qkv.bias[self.width :]
            kv = F.linear(y, attn.qkv.weight[self.width :], bias)
        else:
            kv = apply_map(attn.qkv, y, modalities)[..., self.width :]
        k, v = kv.view(*kv.shape[:2], 2, attn.num_heads, -1).permute(2, 0, 3, 1, 4)  # each (G, h, P, D / h)
        return attn.k_norm(k), v

    def in_full(
        self, layer: int, x: Tensor, prompts: Tensor, modalities: tuple[int, ...] = _ALL
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Tokens with their prompts ``(n, N + P, D)``, and queries, keys and values of all ``(n, h, N + P, D / h)``."""
        own = prompts.to(self.vit.blocks[layer].norm1.weight.dtype)
        found = self._project(layer, x, modalities), self._project(layer, own, modalities, patches=False)
        q, k, v = (self._insert(one, its, dim=2) for one, its in zip(*found, strict=True))
        return self._insert(x, prompts), q, k, v

    def _project(
        self, layer: int, x: Tensor, modalities: tuple[int, ...] = _ALL, patches: bool = True
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of tokens ``(n, N, D)``, each ``(n, h, N, D / h)``."""
        block, h = self.vit.blocks[layer], self.attention_heads
        qkv = apply_map(block.attn.qkv, block.norm1(x), modalities)
        q, k, v = qkv.view(*qkv.shape[:2], 3, h, self.width // h).permute(2, 0, 3, 1, 4)  # no -1: there may be 0 tokens
        q, k = block.attn.q_norm(q), block.attn.k_norm(k)
        if self.rotate is not None and patches:
            count = self.vit.patch_embed.num_patches
            q, k = (torch.cat([t[:, :, :-count], self.rotate(t[:, :, -count:])], dim=2) for t in (q, k))
        return q, k, v

    def finish(self, layer: int, x: Tensor, y: Tensor, modalities: tuple[int, ...] = _ALL) -> Tensor:
        """The rest of a block, after its attention has given ``y``, ``(n, h, N, D / h)``."""
        block = self.vit.blocks[layer]
        y = block.attn.norm(y.transpose(1, 2).flatten(2))
        x = x + block.ls1(apply_map(block.attn.proj, y, modalities))
        out: Tensor = x + block.ls2(apply_mlp(block.mlp, block.norm2(x), modalities))
        return out

    def _insert(self, x: Tensor, prompts: Tensor, dim: int = 1) -> Tensor:
        """Prompts behind class token and registers."""
        before, after = x.tensor_split([self.leading], dim=dim)
        return torch.cat([before, _each(x, prompts), after], dim=dim)


def _each(x: Tensor, shared: Tensor) -> Tensor:
    """What the images of a group share, ``(G, ...)``, for each of them, ``(n, ...)``; its gradient is their sum."""
    own, size = shared.to(x.dtype), x.shape[0] // shared.shape[0]  # not len(x), a constant in an exported graph
    return own[:, None].expand(-1, size, *own.shape[1:]).flatten(0, 1)
