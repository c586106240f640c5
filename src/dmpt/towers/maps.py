"""The linear maps of a block of timm's, and what may stand in their place: low-rank updates, shared or per modality."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

MAPS = {"qkv": "attn", "proj": "attn", "fc1": "mlp", "fc1_g": "mlp", "fc1_x": "mlp", "fc2": "mlp"}
"""Each map, and where in a block it stands; gated MLPs may have two in the place of the first."""


class Grouped(nn.Module):
    """A map that differs by modality: called with ``(x, modalities)``.

    ``x`` is ``(n, N, D)`` in ``len(modalities)`` groups of equal size; ``modalities`` numbers each group's.
    """


def wrap(blocks: Sequence[Any], name: str, by: Callable[[nn.Linear], nn.Module]) -> None:
    """Put another map in the place of one of ``MAPS``, in blocks that have it.

    Args:
        blocks: timm's, of a tower.
        name: which map.
        by: from a block's own map to what replaces it: called with ``(..., inputs)``, or as ``Grouped`` is.
    """
    for block in blocks:
        place = getattr(block, MAPS[name])
        if hasattr(place, name):
            setattr(place, name, by(getattr(place, name)))


def apply_map(linear: nn.Module, x: Tensor, modalities: Sequence[int]) -> Tensor:
    """A map of a block, whichever stands there, on ``(n, N, inputs)``."""
    out: Tensor = linear(x, modalities) if isinstance(linear, Grouped) else linear(x)
    return out


def apply_mlp(mlp: Any, x: Tensor, modalities: Sequence[int]) -> Tensor:
    """The MLP of a block, timm's ``Mlp``, ``GluMlp`` or ``SwiGLU``, on ``(n, N, D)``."""
    if hasattr(mlp, "fc1_g"):
        hidden = mlp.act(apply_map(mlp.fc1_g, x, modalities)) * apply_map(mlp.fc1_x, x, modalities)
    elif hasattr(mlp, "gate_last"):
        first, last = apply_map(mlp.fc1, x, modalities).chunk(2, dim=-1)
        hidden = first * mlp.act(last) if mlp.gate_last else mlp.act(first) * last
    else:
        hidden = mlp.act(apply_map(mlp.fc1, x, modalities))
    out: Tensor = mlp.drop2(apply_map(mlp.fc2, mlp.norm(mlp.drop1(hidden)), modalities))
    return out
