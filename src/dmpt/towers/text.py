"""The frozen text encoder T (section 3.2): open_clip's, from its name or a JSON config and a weights file."""

import difflib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmpt.base.errors import UserError
from dmpt.settings.config import TextConfig
from dmpt.towers.hub import download, native_quick_gelu, resolve
from dmpt.towers.names import find_tower
from dmpt.towers.packaged import local
from dmpt.towers.tensors import check_same, read_tensors

_VOCABULARY = 49408  # CLIP's byte-pair encoding
_WORDS = "token_embedding.weight"


def load_text_tower(config: TextConfig) -> Any:
    """open_clip's text tower, frozen, in float32 on the CPU.

    Returns:
        An ``open_clip.CLIP`` without its image half: ``encode_text``, ``token_embedding``, ``logit_scale``.

    Raises:
        UserError: unknown tower or weights, no CLIP words, or weights of another architecture or activation.
    """
    from open_clip import CLIP, CLIPTextCfg, CLIPVisionCfg

    architecture = architecture_of(config.tower)
    path = weights_of(config, architecture)
    tensors, info = read_tensors(path)
    if info["container"] == "torchscript":
        _check_activation(config.tower, architecture, native=True)
    text = CLIPTextCfg(**architecture["text_cfg"])
    stub = CLIPVisionCfg(layers=1, width=64, head_width=64, patch_size=16, image_size=16)
    with torch.random.fork_rng(devices=[]):  # training draws the same values whether or not the file was cached
        tower = CLIP(architecture["embed_dim"], stub, text, quick_gelu=is_quick(architecture))
    del tower.visual
    found = {
        name.removeprefix("text."): value.float() for name, value in find_tower(tensors, "text", path).tensors.items()
    }
    if "vocabulary" in info and _WORDS in found:
        found[_WORDS] = _all_words(found[_WORDS], info["vocabulary"], path)
    check_same(found, tower.state_dict(), path, f"text.tower {config.tower}")
    tower.load_state_dict(found)
    return tower.eval().requires_grad_(False)


def _all_words(known: Tensor, vocabulary: str, path: Path) -> Tensor:
    """All of CLIP's tokens ``(49408, d_t)`` from N known ones ``(N, d_t)``, whose ids are JSON; the others are zero."""
    whole = known.new_zeros(_VOCABULARY, *known.shape[1:])
    try:
        whole[torch.tensor(json.loads(vocabulary))] = known
    except (ValueError, TypeError, IndexError, RuntimeError) as error:
        raise UserError(f"{path}: is damaged (its vocabulary does not fit); fetch it again") from error
    return whole


def tokenizer_of(tower: Any) -> Any:
    """CLIP's tokenizer, padding to the tower's context: a call gives token ids, ``encode`` those of words alone."""
    from open_clip import SimpleTokenizer

    return SimpleTokenizer(context_length=tower.context_length)


def is_quick(architecture: dict[str, Any]) -> bool:
    """Whether the tower computes QuickGELU."""
    return bool(architecture.get("quick_gelu", False))


def architecture_of(tower: str) -> dict[str, Any]:
    """open_clip's model config of a name or of a JSON file, checked to be a CLIP text transformer with CLIP's words."""
    import open_clip

    if tower.endswith(".json"):
        try:
            content = json.loads(local(tower).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"text.tower {tower}: is no readable JSON ({error}); give an open_clip config") from error
        config = content.get("model_cfg", content) if isinstance(content, dict) else {}
    else:
        config = None if ":" in tower else open_clip.get_model_config(tower)  # "hf-hub:..." would go online
        if config is None:
            near = difflib.get_close_matches(tower, open_clip.list_models(), 3, cutoff=0.3)
            raise UserError(f"text.tower {tower}: open_clip has no such model; near it are {', '.join(near) or 'none'}")
    try:
        text = open_clip.CLIPTextCfg(**config["text_cfg"])
        foreign = text.hf_model_name or text.hf_tokenizer_name or text.vocab_size != _VOCABULARY
        usable = not foreign and text.pool_type == "argmax" and not (text.no_causal_mask or text.embed_cls)
        usable = usable and isinstance(config["embed_dim"], int)
    except (KeyError, TypeError):
        usable = False
    if not usable:
        raise UserError(f"text.tower {tower}: must be a causal text transformer with CLIP's words; choose such a tower")
    return dict(config)


def weights_of(config: TextConfig, architecture: dict[str, Any]) -> Path:
    """The local file of ``text.weights``; refuses one that is known to be of the other activation."""
    import open_clip

    tower, weights = config.tower, config.weights
    if entry := open_clip.get_pretrained_cfg(tower, weights):
        _check_activation(tower, architecture, bool(entry.get("quick_gelu", False)))
        repo, _, file = entry.get("hf_hub", "").rpartition("/")
        if not repo:
            raise UserError(f"text.weights {weights}: is not on the hub; fetch {entry.get('url')} and give its path")
        return download(repo, [file] if file else ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
    if weights.startswith("hub:"):
        _check_activation(tower, architecture, native_quick_gelu(weights))
    elif not local(weights).is_file():
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(tower)[:5]) or "none"
        raise UserError(f"text.weights {weights}: neither a file, hub:OWNER/REPO/FILE, nor a tag of {tower} ({tags})")
    return resolve(weights, tower, "text.weights")


def _check_activation(tower: str, architecture: dict[str, Any], native: bool | None) -> None:
    """Refuse GELU weights in a QuickGELU tower and the reverse; None: not known."""
    quick = is_quick(architecture)
    if native is None or native == quick:
        return
    right = tower.removesuffix("-quickgelu") if quick else f"{tower}-quickgelu"
    advice = f"set quick_gelu {str(native).lower()} in it" if tower.endswith(".json") else f"set it to {right}"
    kinds = ("GELU", "QuickGELU")
    raise UserError(f"text.tower {tower}: has {kinds[quick]}, its weights were trained with {kinds[native]}; {advice}")
