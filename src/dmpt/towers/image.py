"""A frozen image tower from a name and a weights file (section 4.2: CLIP and ImageNet ViT-B/16).

timm builds every tower; its own filter renames open_clip's, OpenAI's and DINOv2's tensors, ``names.py`` the others.
Loading is strict: a tensor of the tower that is missing, too many or of another shape is an error, and the few that may
stay unused are listed.
"""

import difflib
import hashlib
import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import timm
import torch
from timm.layers.activations import QuickGELU
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import Block, VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from dmpt.base.errors import UserError
from dmpt.base.files import sha256
from dmpt.settings.config import BackboneConfig
from dmpt.towers.hub import native_quick_gelu, pretrained_cfg, resolve
from dmpt.towers.names import find_tower
from dmpt.towers.positions import Grid, grid_of, resampled, shown
from dmpt.towers.tensors import check_same, read_tensors

# timm's keyword arguments that are not architecture, or would read files of their own.
_RESERVED = ("pretrained", "checkpoint_path", "cache_dir", "img_size", "use_naflex", "features_only", "device", "dtype")


@dataclass(frozen=True, eq=False)
class TowerInfo:
    """What is known about a tower besides its tensors."""

    name: str  # timm's
    mean: tuple[float, float, float]  # per channel, what it was trained with
    std: tuple[float, float, float]
    quick_gelu: bool  # its activation
    licence: str  # as the file says, else that of timm's weights of that name; other files have their own
    sha256: str | None = None  # of the weights file; of the tensors where they are random; None on the meta device
    unused: tuple[str, ...] = ()  # tensors or groups of the file that the tower does not use
    projection: Tensor | None = None  # of image features to CLIP's text space, (text width, width), where there is one
    grid: Grid | None = None  # of the file's position table, height and width
    done: tuple[str, ...] = ()  # what was done to the file's tensors, a line each


def build_vit(
    config: BackboneConfig,
    size: tuple[int, int],
    load: bool = True,
    keep_random_state: bool = True,
    square: bool = False,
) -> tuple[VisionTransformer, TowerInfo]:
    """The image tower, in float32 on the CPU, with positions resampled to the image size.

    Args:
        config: name, weights, grid, blocks, norm, antialias and overrides are used.
        size: height and width of the images in pixels.
        load: False builds it on the meta device without reading any file: shapes only.
        keep_random_state: False leaves torch's random state behind the tower's initial values, which are drawn even
            where a file replaces them; what training draws next has always begun there.
        square: take the file's positions for a square, whatever they look like, as dmpt did before ``backbone.grid``.

    Returns:
        timm's model with ``config.blocks`` blocks and no head, and what is known about it.

    Raises:
        UserError: unknown name, architecture that prompts cannot enter, size that patches do not tile, or weights of
            another architecture or activation.
    """
    with torch.random.fork_rng(devices=[], enabled=keep_random_state):
        vit = _create(config, size, load)
    cfg = vit.pretrained_cfg
    info = TowerInfo(
        name=config.name,
        mean=tuple(cfg["mean"]),
        std=tuple(cfg["std"]),
        quick_gelu=isinstance(vit.blocks[0].mlp.act, QuickGELU),
        licence=cfg.get("license") or "see where they come from",
    )
    projects = _is_projection(vit)
    if load and config.weights != "random":
        info, projects = _load(vit, info, config, square)
    elif load:  # another version of timm or torch may draw others
        drawn = b"".join(t.numpy().tobytes() for t in vit.state_dict().values())
        info = replace(info, sha256=hashlib.sha256(drawn).hexdigest())
    if projects:
        info = replace(info, projection=vit.head.weight.detach().clone())
    vit.head = nn.Identity()
    vit.blocks = vit.blocks[: config.blocks]
    if config.norm == "plain":
        vit.norm = nn.LayerNorm(vit.embed_dim, eps=vit.norm.eps, elementwise_affine=False)
    return vit, info


def _create(config: BackboneConfig, size: tuple[int, int], load: bool) -> Any:  # timm's attributes are untyped
    """The named architecture with initial values, checked to be one that prompts can enter."""
    name = config.name
    where = f"backbone.name {name}"
    known = timm.list_pretrained("vit_*") + timm.list_models("vit_*")
    # A name may stand without a tag; a tag that timm does not know is a mistake.
    if ":" in name or "/" in name or not timm.is_model(name) or ("." in name and name not in known):
        near = difflib.get_close_matches(name, known, 3, cutoff=0.3)
        raise UserError(f"{where}: timm has no such model; near it are {', '.join(near) or 'none'}")
    if reserved := [key for key in config.overrides if key.startswith(_RESERVED) or key.endswith("_rate")]:
        raise UserError(f"backbone.overrides: {reserved[0]} is not part of an architecture; leave it out")
    try:
        with torch.device("cpu" if load else "meta"):
            vit: Any = timm.create_model(name, pretrained=False, img_size=size, **config.overrides)
    except Exception as error:  # an impossible override can fail anywhere in timm
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{where} with overrides {config.overrides}: timm refuses it ({reason})") from error
    plain = type(vit) is VisionTransformer and vit.has_class_token and isinstance(vit.patch_embed, PatchEmbed)
    if not (
        plain
        and len(vit.blocks)
        and isinstance(vit.norm, nn.LayerNorm)
        and all(_is_standard(block) for block in vit.blocks)
    ):
        raise UserError(f"{where}: must be a timm VisionTransformer with a class token and standard pre-norm blocks")
    patch = vit.patch_embed.patch_size
    if any(pixels % step for pixels, step in zip(size, patch, strict=True)):
        below = [max(pixels // step, 1) * step for pixels, step in zip(size, patch, strict=True)]
        above = [math.ceil(pixels / step) * step for pixels, step in zip(size, patch, strict=True)]
        raise UserError(
            f"data.size {size[0]}x{size[1]}: the {patch[0]}x{patch[1]} patches of {name} do not tile it; "
            f"next sizes are {below[0]}x{below[1]} and {above[0]}x{above[1]}"
        )
    if config.blocks is not None and config.blocks > len(vit.blocks):
        raise UserError(f"backbone.blocks {config.blocks}: {name} has {len(vit.blocks)}; set it lower or to null")
    return vit


def _is_standard(block: Any) -> bool:
    """Whether a block computes x + ls1(attn(norm1 x)), x + ls2(mlp(norm2 x)) with nothing else inside attention."""
    if type(block) is not Block or type(block.attn).__name__ != "Attention":
        return False
    return isinstance(block.attn.norm, nn.Identity) and getattr(block.attn, "gate", None) is None


def _check_activation(config: BackboneConfig, quick: bool, path: Path, openai: bool) -> None:
    """Refuse GELU weights in a QuickGELU tower and the reverse: no tensor shows it, every feature is wrong."""
    name, weights = config.name, config.weights
    architecture, _, tag = name.partition(".")
    cfg = pretrained_cfg(name)
    own = cfg.hf_hub_id if cfg else None
    native = True if openai else None
    if weights.startswith("hub:"):
        native = native or native_quick_gelu(weights)
    elif own and (tag or weights == "hub"):  # a local file is taken for what the name's tag says
        native = native or native_quick_gelu(own)
    if native is None or native == quick or "_clip_" not in name:
        return
    right = architecture.replace("_quickgelu", "") if quick else architecture.replace("_clip_", "_clip_quickgelu_")
    if tag and pretrained_cfg(f"{right}.{tag}"):
        right += f".{tag}"
    elif weights == "hub":
        right += f" and backbone.weights hub:{own}/model.safetensors"
    kinds = ("GELU", "QuickGELU")
    raise UserError(f"{path}: trained with {kinds[native]}, backbone.name {name} has {kinds[quick]}; set it to {right}")


def _load(vit: Any, info: TowerInfo, config: BackboneConfig, square: bool) -> tuple[TowerInfo, bool]:
    """Copy the file's tensors into the tower, strictly; what is known of them, and whether the head is CLIP's."""
    path = resolve(config.weights, config.name)
    tensors, said = read_tensors(path)
    _check_activation(config, info.quick_gelu, path, said["container"] == "torchscript")
    tower = find_tower(tensors, "image", path)
    found, strange = _convert(vit, tower.tensors, config, path)
    grid, how = _place(vit, found, config, square, path)
    projects = _is_projection(vit, tower.tensors)
    if projects and "head.bias" in found and found["head.bias"].any():
        raise UserError(f"{path}: head.bias is not zero, so its head is a classifier, not CLIP's projection")
    blocks = range(len(vit.blocks) if config.blocks is None else config.blocks, len(vit.blocks))
    spare = [f"blocks.{index}." for index in blocks]
    spare += ["norm."] if config.norm == "plain" else []
    spare += ["head.bias"] if projects else ["head."]
    unused = [part.strip(".") for part in spare if part != "head.bias" and any(n.startswith(part) for n in found)]
    wanted = {name: value for name, value in found.items() if not name.startswith(tuple(spare))}
    expected = {name: value for name, value in vit.state_dict().items() if not name.startswith(tuple(spare))}
    check_same(wanted, expected, path, f"backbone.name {config.name}", strange)
    vit.load_state_dict(wanted, strict=False)

    done, target = [], vit.patch_embed.grid_size
    classes = said.get("classes")
    if names := [part for part in (tower.done, classes and f"passed over, not run: {classes}") if part]:
        done.append(f"weights file: {'; '.join(names)}")
    if grid is not None and (how or grid != target):
        resized = f", resampled to {shown(target)}" if grid != target else ""
        done.append(f"positions: a table of {shown(grid)}{f' ({how})' * bool(how)}{resized}")
    info = replace(
        info,
        sha256=sha256(path),
        licence=said.get("licence") or info.licence,
        unused=(*unused, *tower.other),
        grid=grid,
        done=tuple(done),
    )
    return info, projects


def _is_projection(vit: Any, tensors: Collection[str] = ()) -> bool:
    """Whether the head is CLIP's image projection, as a file's names or the tower's say, rather than a classifier."""
    name = f"{vit.pretrained_cfg['architecture']}.{vit.pretrained_cfg['tag']}"
    clip = "visual.proj" in tensors or ("_clip_" in name and "_ft_" not in name)  # fine-tuned ones have classifiers
    return clip and isinstance(vit.head, nn.Linear)


def _convert(
    vit: Any, tensors: dict[str, Tensor], config: BackboneConfig, path: Path
) -> tuple[dict[str, Tensor], list[str]]:
    """The file's tensors in float32 under timm's names, and names that belong nowhere."""
    clip = "visual.class_embedding" in tensors  # timm takes the rest of a CLIP for its text tower
    strange = [name for name in tensors if clip and not name.startswith("visual.")]
    tensors = {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
    # Positions None: timm would guess their grid.
    model: Any = SimpleNamespace(patch_embed=vit.patch_embed, head=vit.head, pos_embed=None)
    try:
        return dict(checkpoint_filter_fn(tensors, model, antialias=config.antialias)), strange
    except (RuntimeError, ValueError, KeyError) as error:
        raise UserError(f"{path}: weights of another architecture than backbone.name {config.name}") from error


def _place(
    vit: Any, found: dict[str, Tensor], config: BackboneConfig, square: bool, path: Path
) -> tuple[Grid | None, str]:
    """Bring the positions among ``found`` to the tower's grid; returns the file's, and how that was found."""
    positions = found.get("pos_embed")
    prefix = 0 if vit.no_embed_class else vit.num_prefix_tokens
    if positions is None or positions.ndim != 3 or positions.shape[1] <= prefix:
        return None, ""  # the strict comparison says so
    table, target = positions[:, prefix:], vit.patch_embed.grid_size
    side = math.isqrt(table.shape[1])
    named = (side, side) if square and config.grid is None else config.grid
    _, *pretrained = vit.pretrained_cfg["input_size"]  # the channels; height and width in pixels
    height, width = (pixels // step for pixels, step in zip(pretrained, vit.patch_embed.patch_size, strict=True))
    grid, how = grid_of(table[0], named, (height, width), target, path)
    found["pos_embed"] = torch.cat([positions[:, :prefix], resampled(table, grid, target, config.antialias)], dim=1)
    return grid, how
