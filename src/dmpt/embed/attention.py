"""Where the tokens of the last frozen block look, for looking at, not for training."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dmpt.method.network import DMPT
from dmpt.settings.config import Config
from dmpt.settings.modalities import MODALITIES


@dataclass(frozen=True)
class Gaze:
    """Attention of some samples, the mean over attention heads, by kind of token; NaN where a modality is absent.

    Attributes:
        maps: of a looking token, the mean over its kind, to each patch ``(M, B, rows, columns)``, M modalities in use;
            what it gives to other tokens is missing from the sum.
        cls: the share of the class token's attention that each kind draws, ``(M, B)``; they sum to 1.
        counts: tokens of each kind.
    """

    maps: Mapping[str, NDArray[np.float32]]
    cls: Mapping[str, NDArray[np.float32]]
    counts: Mapping[str, int]

    @property
    def ratios(self) -> dict[str, NDArray[np.float32]]:
        """Maps as multiples of an even look at the patches."""
        return {kind: values / values.mean(axis=(-2, -1), keepdims=True) for kind, values in self.maps.items()}


def gaze(network: DMPT, images: Tensor, present: Tensor, config: Config) -> Gaze:
    """Where prompts and class token look.

    Args:
        network: in evaluation mode.
        images: normalised, ``(3, B, 3, H, W)``.
        present: bool ``(3, B)``.
        config: of the adapter's card.
    """
    backbone, tower = network.backbone, network.backbone.vit.patch_embed.proj.weight
    device, precision = tower.device, tower.dtype
    with torch.inference_mode(), torch.autocast(device.type, precision, precision != torch.float32):
        seen = attention(network, images.to(device), present.to(device))[1]
    used = [MODALITIES.index(m) for m in config.data.modalities]
    looked = seen[used].float().mean(dim=2).cpu().numpy()
    looked[~present[used].numpy()] = np.nan  # what stands in its place is no picture
    ends = {"class token": 1, "registers": backbone.leading - 1}
    if network.prompts is not None:
        ends |= {"modality prompts": config.modality.length, "semantic prompts": config.semantic.length}
    ends["patches"] = looked.shape[-1] - sum(ends.values())
    kinds, start = {}, 0
    for kind, count in ends.items():
        if count:
            kinds[kind] = slice(start, start + count)
        start += count
    grid = [side // patch for side, patch in zip(config.data.size, backbone.vit.patch_embed.patch_size, strict=True)]
    lookers = [kind for kind in ("modality prompts", "semantic prompts", "class token") if kind in kinds]
    patches = kinds["patches"]
    return Gaze(
        maps={k: looked[:, :, kinds[k], patches].mean(axis=2).reshape(*looked.shape[:2], *grid) for k in lookers},
        cls={kind: looked[:, :, 0, where].sum(axis=-1) for kind, where in kinds.items()},
        counts={kind: where.stop - where.start for kind, where in kinds.items()},
    )


def attention(network: DMPT, images: Tensor, present: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What the tower gives to PromptIBind, and where each token of its last block looked.

    The probabilities, which training never holds, are written out.

    Args:
        network: in evaluation mode.
        images: normalised, ``(3, B, 3, H, W)``.
        present: bool ``(3, B)``; None = all.

    Returns:
        Tokens before the final norm ``(3, B, N + P, D)``, computed from the probabilities; and the probabilities
        ``(3, B, h, N + P, N + P)``, whose rows (queries) sum to 1. P is 0 without prompts.
    """
    backbone = network.backbone
    prompts = None if network.prompts is None else network.prompts()
    last = backbone.depth - 1
    entering: dict[int, Tensor] = {}

    def keep(layer: int, tokens: Tensor) -> None:
        if layer == last:
            entering[layer] = tokens

    backbone(images.flatten(0, 1), prompts, behind=network.behind(present), watch=keep)
    own = None if prompts is None else prompts[-1]
    x = entering[last]
    x, q, k, v = backbone.in_full(last, x, x.new_zeros(len(images), 0, x.shape[-1]) if own is None else own)
    probabilities = ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).softmax(dim=-1)
    tokens = backbone.finish(last, x, probabilities.to(v.dtype) @ v)
    size = images.shape[:2]
    return tokens.view(*size, *tokens.shape[1:]), probabilities.view(*size, *probabilities.shape[1:])
