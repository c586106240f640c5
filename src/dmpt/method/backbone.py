"""The frozen vision transformer, and the two ways in which prompts enter it (paper Eq. 1-3, 7-10).

The only file that runs timm's insides. The three streams of the paper hold identical frozen weights, so one copy
serves all of them: B samples of three modalities are one pass over n = 3 B images, modality first.

Shapes: n images, N tokens of one (class token, registers, patches), G groups of equal size in which the images stand
one after the other, P prompts, D width, h heads. Prompts are per group: of three modalities, or of each image (G = n).

Prompts as prefixes. In a pre-norm block the key and value of a prompt do not depend on the image, and what the block
makes of the prompt itself is thrown away (the dashes of Eq. 7-9) in every layer but the last. So there a prompt needs
no query, no output projection and no MLP: its key and value are computed once per layer and group and joined to the
images' keys and values. This equals inserting tokens, up to rounding. In the last layer the prompts' own outputs
are used by the interaction layers (Eq. 10), and they are computed; only their queries, keys and values, which do not
depend on the image either, once per group.

A layer may have no prompts (None). Below the first that has some nothing needs a gradient, so autograd records nothing
there and stores no activations: backward ends at that layer.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.layers.mlp import Mlp
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dmpt.method.attention import attend
from dmpt.method.modalities import MODALITY_COUNT

Prefix = tuple[Tensor, Tensor]
"""Keys and values of one layer's prompts, each ``(G, h, P, D / h)``."""
Behind = Mapping[int, Callable[[Tensor], Tensor]]
"""By layer: from the tokens that leave it, ``(n, N + P, D)``, to those that enter the next, ``(n, N, D)``."""
NOTHING: Behind = {}
ALL = tuple(range(MODALITY_COUNT))
MAPS = {"qkv": "attn", "proj": "attn", "fc1": "mlp", "fc2": "mlp"}
"""The linear maps of a block, and where they stand."""


class Grouped(nn.Module):
    """A map of a block that differs by modality: it is called with ``(x, modalities)``.

    ``x`` is ``(n, N, D)`` in ``len(modalities)`` groups of equal size; ``modalities`` numbers each group's.
    """


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
        self,
        vit: Any,
        frozen: bool = True,
        checkpoint: bool = False,
        rotate: Callable[[Tensor], Tensor] | None = None,
    ):
        super().__init__()
        self.vit = vit
        self.frozen = frozen
        self.checkpoint = checkpoint
        self.rotate = rotate
        self.wrapped = False
        self.requires_grad_(not frozen)
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
    def attention_heads(self) -> int:
        """Attention heads of a block, h."""
        return int(self.vit.blocks[0].attn.num_heads)

    @property
    def leading(self) -> int:
        """Class token and registers; prompts enter directly behind them."""
        return int(self.vit.num_prefix_tokens)

    def train(self, mode: bool = True) -> "Backbone":
        """Stay in evaluation mode when frozen, whatever the caller asks."""
        super().train(mode and not self.frozen)
        return self

    def keep_in(self, dtype: torch.dtype) -> None:
        """Hold frozen weights in the compute precision; the final norm and what is trained stay in float32.

        Autocast keeps the half-precision copy of a weight only while it needs a gradient: it would cast frozen ones
        again at every use.
        """
        if self.frozen:
            for parameter in self.vit.parameters():
                if not parameter.requires_grad:
                    parameter.data = parameter.data.to(dtype)
            self.vit.norm.float()

    def wrap(self, name: str, by: Callable[[nn.Linear], nn.Module], first_layer: int = 0) -> None:
        """Put another map in the place of one of ``MAPS``, in every block from ``first_layer`` on.

        Args:
            name: which map.
            by: from the block's own map to what replaces it: called with ``(..., inputs)``, or as ``Grouped`` is.
            first_layer: counted from 0.
        """
        self.wrapped = True
        for block in self.vit.blocks[first_layer:]:
            place = getattr(block, MAPS[name])
            setattr(place, name, by(getattr(place, name)))

    def forward(
        self,
        images: Tensor,
        prompts: Sequence[Tensor | None] | None = None,
        form: Literal["prefix", "token"] = "prefix",
        keep_prompts: bool = False,
        prefixes: Sequence[Prefix | None] | None = None,
        behind: Behind = NOTHING,
        modalities: tuple[int, ...] = ALL,
    ) -> Tensor:
        """Tokens before the final norm (Eq. 10).

        Args:
            images: normalised, ``(n, 3, H, W)``.
            prompts: per layer ``(G, P, D)``, in the order modality, semantic; None where it has none, but the last has
                some. None for the plain tower.
            form: how prompts enter: as keys and values, or inserted as tokens.
            keep_prompts: return the last layer's prompt tokens too, for the interaction layers.
            prefixes: ``self.prefixes(prompts)``, where they are constants.
            behind: what happens behind some layers but the last, whose prompts are computed in full.
            modalities: of the groups of images; only ``Grouped`` maps ask.

        Returns:
            ``(n, N, D)``, or ``(n, N + P, D)`` in the order class token, registers, prompts, patches.
        """
        x = self.embed(images)
        for layer in range(self.depth):
            own = None if prompts is None else prompts[layer]
            prefix = None if prefixes is None else prefixes[layer]
            full = own is not None and (layer in behind or (keep_prompts and layer == self.depth - 1))
            if self.checkpoint and torch.is_grad_enabled():
                x = checkpoint(self.block, layer, x, own, form, full, prefix, modalities, use_reentrant=False)
            else:
                x = self.block(layer, x, own, form, full, prefix, modalities)
            if layer in behind:
                x = behind[layer](x)
        return x

    def embed(self, images: Tensor) -> Tensor:
        """Normalised images ``(n, 3, H, W)`` to tokens ``(n, N, D)``, ready for the first block."""
        x = self.vit.patch_embed(images.to(self.vit.patch_embed.proj.weight.dtype))
        tokens: Tensor = self.vit.norm_pre(self.vit._pos_embed(x))
        return tokens

    def entering(
        self, images: Tensor, prompts: Sequence[Tensor | None] | None = None, behind: Behind = NOTHING
    ) -> Iterator[Tensor]:
        """Tokens ``(n, N, D)`` on their way into each block; arguments as for ``forward``."""
        x = self.embed(images)
        for layer in range(self.depth):
            yield x
            x = self.block(layer, x, None if prompts is None else prompts[layer], keep_prompts=layer in behind)
            if layer in behind:
                x = behind[layer](x)

    def norm(self, cls: Tensor) -> Tensor:
        """The tower's final norm, in float32 or better; ``(..., D)``."""
        out: Tensor = self.vit.norm(cls.to(torch.promote_types(cls.dtype, torch.float32)))
        return out

    def prefixes(self, prompts: Sequence[Tensor | None], modalities: tuple[int, ...] = ALL) -> list[Prefix | None]:
        """Keys and values of every layer's prompts.

        Args:
            prompts: per layer ``(G, P, D)``, or None.
            modalities: of the groups.
        """
        layers = zip(self.vit.blocks, prompts, strict=True)
        return [None if own is None else self._prefix(block, own, modalities) for block, own in layers]

    def block(
        self,
        layer: int,
        x: Tensor,
        prompts: Tensor | None = None,
        form: Literal["prefix", "token"] = "prefix",
        keep_prompts: bool = False,
        prefix: Prefix | None = None,
        modalities: tuple[int, ...] = ALL,
    ) -> Tensor:
        """One block V^l, ``(n, N, D)`` to ``(n, N, D)``, or to ``(n, N + P, D)`` where its prompts are kept (Eq. 7-10).

        Args:
            layer: l, from 0.
            x: tokens of the layer before, without its prompts.
            prompts: ``(G, P, D)``, or None.
            form: as for ``forward``.
            keep_prompts: whether the prompts leave with the rest.
            prefix: keys and values of the prompts, where they are constants.
            modalities: of the groups.
        """
        block = self.vit.blocks[layer]
        if prompts is None or (form == "prefix" and not keep_prompts):
            q, k, v = self._project(block, x, modalities)
            if prompts is not None:
                k, v = self._join((k, v), prefix or self._prefix(block, prompts, modalities))
        elif form == "prefix":
            x, q, k, v = self.project_in_full(layer, x, prompts, modalities)
        else:
            x = self._insert(x, prompts)
            q, k, v = self._project(block, x, modalities)
        x = self.finish(layer, x, attend(q, k, v), modalities)
        if form == "token" and prompts is not None and not keep_prompts:  # the dashes of Eq. 7-9
            x = torch.cat([x[:, : self.leading], x[:, self.leading + prompts.shape[1] :]], dim=1)
        return x

    def project_in_full(
        self, layer: int, x: Tensor, prompts: Tensor | None, modalities: tuple[int, ...] = ALL
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Tokens with their prompts ``(n, N + P, D)``, and the queries, keys and values of all, ``(n, h, N + P, d)``.

        Those of the prompts do not depend on the image, and are computed once per group.
        """
        block = self.vit.blocks[layer]
        found = self._project(block, x, modalities)
        if prompts is None:
            return x, *found
        own = self._project(block, prompts.to(block.norm1.weight.dtype), modalities, patches=False)
        q, k, v = (self._insert(one, its, dim=2) for one, its in zip(found, own, strict=True))
        return self._insert(x, prompts), q, k, v

    def finish(self, layer: int, x: Tensor, y: Tensor, modalities: tuple[int, ...] = ALL) -> Tensor:
        """The rest of a block, after its heads have seen ``y``, ``(n, h, N, D / h)``."""
        block = self.vit.blocks[layer]
        y = y.transpose(1, 2).flatten(2)
        x = x + block.ls1(_map(block.attn.proj, block.attn.norm(y), modalities))
        y, mlp = block.norm2(x), block.mlp
        if type(mlp) is Mlp:
            y = mlp.norm(mlp.drop1(mlp.act(_map(mlp.fc1, y, modalities))))
            y = mlp.drop2(_map(mlp.fc2, y, modalities))
        else:  # gated ones, whose maps nothing wraps
            y = mlp(y)
        out: Tensor = x + block.ls2(y)
        return out

    def _project(
        self, block: Any, x: Tensor, modalities: tuple[int, ...], patches: bool = True
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of tokens ``(n, N, D)``, each ``(n, h, N, D / h)``."""
        attn = block.attn
        qkv = _map(attn.qkv, block.norm1(x), modalities)
        q, k, v = qkv.view(*qkv.shape[:2], 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k = attn.q_norm(q), attn.k_norm(k)
        if self.rotate is not None and patches:
            count = self.vit.patch_embed.num_patches
            q, k = (torch.cat([t[:, :, :-count], self.rotate(t[:, :, -count:])], dim=2) for t in (q, k))
        return q, k, v

    def _prefix(self, block: Any, prompts: Tensor, modalities: tuple[int, ...]) -> Prefix:
        attn = block.attn
        y = block.norm1(prompts.to(block.norm1.weight.dtype))
        if type(attn.qkv) is nn.Linear:  # the queries' third is not needed
            bias = None if attn.qkv.bias is None else attn.qkv.bias[self.width :]
            kv = F.linear(y, attn.qkv.weight[self.width :], bias)
        else:
            kv = _map(attn.qkv, y, modalities)[..., self.width :]
        k, v = kv.view(*kv.shape[:2], 2, attn.num_heads, -1).permute(2, 0, 3, 1, 4)  # each (G, h, P, D / h)
        return attn.k_norm(k), v

    def _join(self, own: Prefix, prompts: Prefix) -> Prefix:
        """The images' keys and values, and behind them those of their groups' prompts."""
        k, v = (torch.cat([x, _each(x, shared)], dim=2) for x, shared in zip(own, prompts, strict=True))
        return k, v

    def _insert(self, x: Tensor, prompts: Tensor, dim: int = 1) -> Tensor:
        """Prompts behind class token and registers."""
        before, after = x.tensor_split([self.leading], dim=dim)
        return torch.cat([before, _each(x, prompts), after], dim=dim)


def _each(x: Tensor, shared: Tensor) -> Tensor:
    """What the images of a group share, ``(G, ...)``, for each of them, ``(n, ...)``; its gradient is their sum."""
    groups, own = len(shared), shared.to(x.dtype)
    return own[:, None].expand(-1, len(x) // groups, *own.shape[1:]).flatten(0, 1)


def _map(linear: nn.Module, x: Tensor, modalities: tuple[int, ...]) -> Tensor:
    out: Tensor = linear(x, modalities) if isinstance(linear, Grouped) else linear(x)
    return out
