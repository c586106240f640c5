"""``backbone.tune: lora``: low-rank updates of the frozen tower's linear maps, shared and one per modality.

LoRA (Hu et al. 2022): a map W becomes W + s B A with A ``(r, inputs)`` and B ``(outputs, r)``. Any of a block's maps
may: queries and values alone (as in its paper's experiments), attention, MLP, or all four. The paper of DMPT decouples,
in prompts, what belongs to a modality from what does not. Here the same is done in weights: modality m has
W + s (B A + B_m A_m). A starts as ``nn.Linear`` does, uniform in ±1 / √inputs, and B at zero: before the first step it
is the frozen tower.

Merge in forward, low rank in backward. W + s B A is made anew at each use, which costs r / n of the product with n
tokens; only the input is kept for backward, which makes it again and never computes a gradient of W.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmpt.method.backbone import Backbone
from dmpt.method.modalities import MODALITY_COUNT
from dmpt.settings.config import LoraConfig
from dmpt.towers.maps import MAPS, Grouped, wrap

_ATTENTION, _MLP = ([name for name, home in MAPS.items() if home == place] for place in ("attn", "mlp"))
_WHERE = {"qv": ["qkv"], "attention": _ATTENTION, "mlp": _MLP, "all": list(MAPS)}
"""Which maps of a block are updated (``lora.where``); ``qv``: of the first the rows of queries and of values alone."""


class _Product(torch.autograd.Function):
    """x (W + B A)ᵀ + b for each of G groups: x ``(G, n, inputs)``, A ``(G, r, inputs)``, B ``(G, outputs, r)``.

    W and b are frozen. All are of one dtype.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor) -> Tensor:
        y = x.new_empty(*x.shape[:2], len(weight))
        for group, own in enumerate(x):
            merged = torch.addmm(weight, up[group], down[group]).t()
            if bias is None:
                torch.mm(own, merged, out=y[group])
            else:
                torch.addmm(bias, own, merged, out=y[group])
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, down, up = inputs
        ctx.save_for_backward(x, weight, down, up)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor]:
        x, weight, down, up = ctx.saved_tensors
        of_x = None
        if ctx.needs_input_grad[0]:
            merged = [torch.addmm(weight, b, a) for b, a in zip(up, down, strict=True)]
            of_x = _stacked(x, [partial(torch.mm, g, w) for g, w in zip(gradient, merged, strict=True)])
        of_up = gradient.mT @ (x @ down.mT)
        of_down = (gradient @ up).mT @ x
        return of_x, None, None, of_down, of_up


def _stacked(like: Tensor, products: Sequence[Callable[..., Tensor]]) -> Tensor:
    """The products side by side, written in place unless they are themselves differentiated."""
    if torch.is_grad_enabled():
        return torch.stack([product() for product in products])
    out = torch.empty_like(like, memory_format=torch.contiguous_format)
    for group, product in enumerate(products):
        product(out=out[group])
    return out


class LowRankUpdate(nn.Module):
    """B A of some rows of a map.

    Args:
        inputs: of the map.
        outputs: how many rows it updates.
        rank: r.
    """

    def __init__(self, inputs: int, outputs: int, rank: int):
        super().__init__()
        self.down = nn.Linear(inputs, rank, bias=False)  # A
        self.up = nn.Linear(rank, outputs, bias=False)  # B
        nn.init.zeros_(self.up.weight)


class LoRA(Grouped):
    """A frozen linear map with trained updates.

    Args:
        frozen: ``(..., inputs)`` to ``(..., outputs)``.
        rank: of the update that the modalities share; 0 = none.
        rank_per_modality: of each modality's own; 0 = none.
        scale: s.
        rows: which of the outputs are updated, by name, each part with an update of its own; None = all as one.
    """

    def __init__(
        self,
        frozen: nn.Linear,
        rank: int,
        rank_per_modality: int = 0,
        scale: float = 1.0,
        rows: dict[str, slice] | None = None,
    ):
        super().__init__()
        self.frozen, self.scale = frozen, scale
        self.rows = rows or {"whole": slice(0, frozen.out_features)}

        def updates(rank: int) -> dict[str, nn.Module]:
            parts = {name: part.stop - part.start for name, part in self.rows.items()} if rank else {}
            return {name: LowRankUpdate(frozen.in_features, count, rank) for name, count in parts.items()}

        for name, update in updates(rank).items():
            self.add_module(name, update)
        groups = MODALITY_COUNT if rank_per_modality else 0
        self.own = nn.ModuleList(nn.ModuleDict(updates(rank_per_modality)) for _ in range(groups))

    def forward(self, x: Tensor, modalities: Sequence[int]) -> Tensor:
        """``(n, N, inputs)`` to ``(n, N, outputs)``, in the frozen weight's precision, or autocast's."""
        dtype = _precision(x, self.frozen.weight)
        weight, bias = self.frozen.weight.to(dtype), self.frozen.bias
        groups = [self._factors(m) for m in (modalities if len(self.own) else (0,))]
        down, up = (torch.stack(parts).to(dtype) for parts in zip(*groups, strict=True))
        grouped = x.to(dtype).reshape(len(groups), -1, x.shape[-1])
        y: Tensor = _Product.apply(grouped, weight, None if bias is None else bias.to(dtype), down, up)
        return y.view(*x.shape[:-1], self.frozen.out_features)  # no -1: there may be 0 tokens

    def _factors(self, modality: int | None, shared: bool = True) -> tuple[Tensor, Tensor]:
        """A ``(r, inputs)`` and s B ``(outputs, r)`` of updates side by side: the shared, a modality's, or both."""
        downs, ups = [], []
        own: Any = {} if modality is None or not len(self.own) else self.own[modality]
        common = {name: getattr(self, name) for name in self.rows if shared and hasattr(self, name)}
        updates: Any = [*common.items(), *own.items()]
        for name, update in updates:
            rows = self.rows[name]
            downs.append(update.down.weight)
            ups.append(F.pad(update.up.weight, (0, 0, rows.start, self.frozen.out_features - rows.stop)))
        return torch.cat(downs), self.scale * torch.cat(ups, dim=1)

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """The same map without products of its own: one plain map, or one of each modality."""
        made = [self._weight(m) for m in range(len(self.own) or 1)]
        return MapPerModality(torch.stack(made), self.frozen.bias) if len(self.own) else self._plain(made[0])

    @torch.no_grad()
    def folded(self) -> nn.Module:
        """The same map, of whose updates those of a modality are the only products left."""
        plain = self._plain(self._weight(None) if hasattr(self, next(iter(self.rows))) else self.frozen.weight)
        if not len(self.own):
            return plain
        down, up = zip(*(self._factors(m, shared=False) for m in range(len(self.own))), strict=True)
        return ProductPerModality(plain, torch.stack(down), torch.stack(up))

    def _weight(self, modality: int | None) -> Tensor:
        """W + s B A, of the shared update or of a modality's too."""
        down, up = self._factors(modality)
        weight = self.frozen.weight
        return torch.addmm(weight, up.to(weight.dtype), down.to(weight.dtype))

    def _plain(self, weight: Tensor) -> nn.Linear:
        """The map with another weight."""
        plain = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        plain.weight, plain.bias = nn.Parameter(weight, requires_grad=False), self.frozen.bias
        return plain


def _precision(x: Tensor, weight: Tensor) -> torch.dtype:
    """In which a map computes: autocast's, or its weight's."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


class MapPerModality(Grouped):
    """A frozen map for each modality: weight ``(3, outputs, inputs)``."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight, requires_grad=False), bias

    def forward(self, x: Tensor, modalities: Sequence[int]) -> Tensor:
        """``(n, N, inputs)`` to ``(n, N, outputs)``."""
        dtype, count, outputs = _precision(x, self.weight), len(modalities), self.weight.shape[1]
        # Not chunk, whose sizes an exported graph would hold; no -1: there may be 0 tokens.
        groups = x.to(dtype).reshape(count, x.shape[0] // count * x.shape[1], x.shape[2])
        step = 2 if tuple(modalities) == (0, 2) else 1  # so that it is a view, whichever are there
        weights = self.weight[modalities[0] : modalities[-1] + 1 : step].to(dtype).mT
        bias = groups.new_zeros(outputs) if self.bias is None else self.bias.to(dtype)
        if dtype == torch.float32 and x.device.type == "cpu" and torch.is_inference_mode_enabled():
            y = groups.new_empty(*groups.shape[:2], outputs)  # in fp32 a batched product is the slower one there
            for own, weight, out in zip(groups, weights, y, strict=True):
                torch.addmm(bias, own, weight, out=out)
        else:
            y = torch.baddbmm(bias, groups, weights)
        return y.view(*x.shape[:-1], outputs)


class ProductPerModality(Grouped):
    """A map that the modalities share, and a small product for each: A ``(3, r, inputs)``, B ``(3, outputs, r)``."""

    def __init__(self, plain: nn.Linear, down: Tensor, up: Tensor):
        super().__init__()
        self.plain = plain
        self.down, self.up = (nn.Parameter(part.mT.contiguous(), requires_grad=False) for part in (down, up))

    def forward(self, x: Tensor, modalities: Sequence[int]) -> Tensor:
        """``(n, N, inputs)`` to ``(n, N, outputs)``."""
        down, up = (part if len(modalities) == len(part) else part[list(modalities)] for part in (self.down, self.up))
        y: Tensor = self.plain(x)
        grouped = x.reshape(len(modalities), -1, x.shape[-1])
        return y + (grouped @ down @ up).reshape(y.shape)


def add_lora(backbone: Backbone, config: LoraConfig, first_layer: int) -> None:
    """Wrap the maps of every block from a layer on.

    Args:
        backbone: frozen.
        config: which maps, ranks, scale.
        first_layer: counted from 0.
    """
    width = backbone.width
    rows = {"query": slice(0, width), "value": slice(2 * width, 3 * width)} if config.where == "qv" else None
    by = partial(LoRA, rank=config.rank, rank_per_modality=config.rank_per_modality, scale=config.scale, rows=rows)
    for name in _WHERE[config.where]:
        backbone.wrap(name, by, first_layer)


def merge_lora(backbone: Backbone) -> None:
    """Put each updated map's merged form in its place: for inference alone."""
    for name in MAPS:
        wrap(backbone.vit.blocks, name, lambda own: own.merged() if isinstance(own, LoRA) else own)


def fold_lora(backbone: Backbone) -> None:
    """As ``merge_lora``, with one copy of the tower: what a modality has of its own stays a product beside it."""
    for name in MAPS:
        wrap(backbone.vit.blocks, name, lambda own: own.folded() if isinstance(own, LoRA) else own)
