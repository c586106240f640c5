"""Which of a file's tensors are the tower's, and by which names timm and open_clip know them.

A tower is recognised by its first layer. What stands before the name of that, ``state_dict.module.backbone.`` or
anything else, is a wrapper; what stands elsewhere in the file belongs to something else.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from dmpt.base.errors import UserError
from dmpt.towers.tensors import refuse_nan

_Kind = Literal["image", "text"]

# The first layer of each kind of tower, and what of the name before it is the tower's own, not a wrapper's.
_FIRST: dict[_Kind, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "image": (
        ("patch_embed.proj.weight", ("visual.trunk.", "")),  # timm's and DINOv2's; open_clip's towers from timm
        ("conv1.weight", ("visual.",)),  # OpenAI's and open_clip's
        ("embeddings.patch_embeddings.projection.weight", ("",)),  # transformers' ViT and DINOv2
        ("embeddings.patch_embedding.weight", ("vision_model.",)),  # transformers' CLIP
    ),
    "text": (
        ("embeddings.token_embedding.weight", ("text_model.",)),
        ("token_embedding.weight", ("text.", "")),
    ),
}
# Where a file holds several towers: today's weights before their average, and the teacher, which is what is evaluated.
_PREFERRED = (r"state_dict\.", r"model\.", r"(.*\.)?teacher\.")

# What files hold besides weights; tracing keeps a causal mask like one.
_NO_WEIGHTS = ("position_ids", "logit_bias", "attn_mask", "input_resolution", "context_length", "vocab_size")
# What of a CLIP file belongs to its text tower, and so is not an image tower's leftover.
_TEXT = (
    *("text", "transformer", "token_embedding", "positional_embedding", "ln_final", "text_projection", "logit_scale"),
    "text_model",
)

_Renames = tuple[tuple[str, str], ...]
_VIT: _Renames = (
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"^embeddings\.", ""),
    (r"^encoder\.layer\.", "blocks."),
    (r"attention\.attention\.(query|key|value)", r"attn.qkv.\1"),
    (r"attention\.output\.dense", "attn.proj"),
    (r"intermediate\.dense", "mlp.fc1"),
    (r"output\.dense", "mlp.fc2"),
    (r"mlp\.weights_in", "mlp.w12"),
    (r"mlp\.weights_out", "mlp.w3"),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"layer_scale(\d)\.lambda1", r"ls\1.gamma"),
    (r"^layernorm\.", "norm."),
)
_CLIP: _Renames = (
    (r"embeddings\.patch_embedding\.", "conv1."),
    (r"embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"embeddings\.", ""),
    (r"pre_layrnorm", "ln_pre"),  # so it is called
    (r"post_layernorm", "ln_post"),
    (r"final_layer_norm", "ln_final"),
    (r"encoder\.layers\.", "transformer.resblocks."),
    (r"layer_norm(\d)", r"ln_\1"),
    (r"self_attn\.([qkv])_proj\.", r"attn.in_proj_.\1."),
    (r"self_attn\.", "attn."),
    (r"mlp\.fc1", "mlp.c_fc"),
    (r"mlp\.fc2", "mlp.c_proj"),
    (r"^vision_model\.", "visual."),
    (r"^text_model\.", ""),
    (r"^visual_projection\.weight$", "visual.proj"),
    (r"^text_projection\.weight$", "text_projection"),
)
_THREE = re.compile(r"(.*\.(?:qkv\.|in_proj_))\.?(q|k|v|query|key|value)\.(weight|bias)")
_POOLER = re.compile(r"(.*\.)?pooler\.dense\.(weight|bias)")


@dataclass(frozen=True)
class Found:
    """A tower in a file."""

    tensors: dict[str, Tensor]  # by the names that timm's filter and open_clip know; of a CLIP, without its other tower
    other: tuple[str, ...] = ()  # groups of tensors outside it
    done: str = ""  # what was done to the names, for the user; nothing where they are as they should be


def find_tower(tensors: Mapping[str, Tensor], kind: _Kind, path: Path) -> Found:
    """One tower of a file. Where none is recognised, all tensors as they are: what they lack is said elsewhere.

    Raises:
        UserError: there are several, only one of the other kind, or one with NaN or infinity.
    """
    tensors = {name: tensor for name, tensor in tensors.items() if name.split(".")[-1] not in _NO_WEIGHTS}
    roots = _roots(tensors, kind)
    if not roots:
        _refuse_others(tensors, kind, path)
        return Found(tensors)
    first, root = _chosen(roots, tensors, path)
    homes = next(homes for name, homes in _FIRST[kind] if name == first)
    home = next((home for home in homes if root.endswith(home)), None)
    wrapper = root if home is None else root.removesuffix(home)
    inside = {n: tensor for n, tensor in tensors.items() if n.startswith(wrapper) and not _POOLER.fullmatch(n)}
    refuse_nan(inside, path)
    put = homes[0] if home is None else ""  # a tower that was saved without its name
    found = {put + name.removeprefix(wrapper): tensor for name, tensor in inside.items()}
    done = [f"taken from {wrapper}*"] if wrapper else []
    if first.startswith("embeddings."):
        found = _translated(found, _VIT if "patch_embeddings" in first else _CLIP)
        done.append("transformers' names translated")
    others = ("visual",) if kind == "text" else _TEXT if "visual.class_embedding" in found else ()
    found = {name: tensor for name, tensor in found.items() if name.split(".")[0] not in others}
    groups = dict.fromkeys(_group(name, wrapper) for name in tensors if name not in inside)
    return Found(found, tuple(group for group in groups if group.split(".")[-1] not in _TEXT), ", ".join(done))


def _roots(tensors: Mapping[str, Tensor], kind: _Kind) -> list[tuple[str, str]]:
    """Each first layer in the file, and what stands before its name."""
    found = []
    for name in tensors:
        first = next((first for first, _ in _FIRST[kind] if f".{name}".endswith(f".{first}")), None)
        if first is not None:
            root = name.removesuffix(first)
            if first != "conv1.weight" or f"{root}class_embedding" in tensors:  # else a convolutional network's
                found.append((first, root))
    return found


def _chosen(roots: Sequence[tuple[str, str]], tensors: Mapping[str, Tensor], path: Path) -> tuple[str, str]:
    """The one tower, the preferred one of several, or any of several names of the same."""
    for preferred in _PREFERRED:
        roots = [pair for pair in roots if re.match(preferred, pair[1])] or roots
        if len(roots) == 1:
            return roots[0]
    first, root = roots[0]
    for _, other in roots[1:]:
        twins = [
            (tensor, tensors.get(other + name.removeprefix(root)))
            for name, tensor in tensors.items()
            if name.startswith(root)
        ]
        if not all(twin is not None and torch.equal(tensor, twin) for tensor, twin in twins):
            named = ", ".join(f"{root}*" for _, root in roots)
            raise UserError(f"{path}: holds several towers ({named}); save the one that you mean as a file of its own")
    return first, root


def _refuse_others(tensors: Mapping[str, Tensor], kind: _Kind, path: Path) -> None:
    """Say what a file without such a tower is, where it can be told."""
    if kind == "image" and _roots(tensors, "text"):
        raise UserError(f"{path}: holds a tower for text alone; give a file with one for images")
    if kind == "text" and _roots(tensors, "image"):
        raise UserError(f"{path}: holds a tower for images alone; give a file with one for text")
    if any(name.endswith(("exp_avg", "exp_avg_sq", "momentum_buffer")) for name in tensors):
        raise UserError(f"{path}: holds the state of an optimiser, and no tower; give the model's weights")


def _translated(tensors: Mapping[str, Tensor], renames: _Renames) -> dict[str, Tensor]:
    """From transformers' names; queries, keys and values become one tensor, projections are transposed."""
    found: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        for pattern, by in renames:
            name = re.sub(pattern, by, name)
        if three := _THREE.fullmatch(name):
            parts.setdefault(three[1] + three[3], {})[three[2][0]] = tensor
        else:
            found[name] = tensor.T if name in ("visual.proj", "text_projection") else tensor
    return found | {name: torch.cat([three[x] for x in "qkv" if x in three]) for name, three in parts.items()}


def _group(name: str, wrapper: str) -> str:
    """A name as far as it first differs from the tower's wrapper."""
    parts, inside = name.split("."), wrapper.split(".")
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(parts, inside, strict=False)))
    return ".".join(parts[: same + 1])
