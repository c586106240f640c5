"""Where weights come from: a local file, the package's own, or the Hugging Face hub's, kept for offline use."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm

from dmpt.base.errors import UserError
from dmpt.towers.packaged import local


def resolve(weights: str, timm_name: str, setting: str = "backbone.weights") -> Path:
    """The local file that a setting means, downloaded once if need be.

    Args:
        weights: ``hub``, timm's own of ``timm_name``; ``hub:OWNER/REPO/FILE``, ``package:FILE`` or a local path.
        timm_name: timm's name of the tower.
        setting: its name, for errors.

    Raises:
        UserError: no such file, here or on the hub; no network and not cached.
    """
    if weights == "hub":
        entry = pretrained_cfg(timm_name)
        if not (entry and entry.hf_hub_id):
            raise UserError(f"backbone.name {timm_name}: has no file on the hub; set backbone.weights to a local file")
        return download(entry.hf_hub_id, [entry.hf_hub_filename or "model.safetensors"])
    if weights.startswith("hub:"):
        owner, _, rest = weights.removeprefix("hub:").partition("/")
        repo, _, file = rest.partition("/")
        if not (owner and repo and file):
            raise UserError(f"{setting} {weights}: must read hub:OWNER/REPO/FILE")
        return download(f"{owner}/{repo}", [file])
    path = local(weights)
    if not path.is_file():
        what = "is a folder, not a weights file" if path.is_dir() else "no such weights file"
        raise UserError(f"{setting} {path}: {what}; give a local file, hub, or hub:OWNER/REPO/FILE")
    return path


def pretrained_cfg(timm_name: str) -> Any:
    """What timm records of a name's pretrained weights (of its default tag, if it has none); None if there is none."""
    try:
        return timm.get_pretrained_cfg(timm_name)
    except RuntimeError:  # the architecture exists, the tag does not
        return None


def download(repo: str, files: Sequence[str]) -> Path:
    """The first of ``files`` that the hub's repository has: from the local cache if there, so offline works.

    Raises:
        UserError: in neither place; says how to bring it here by hand.
    """
    from huggingface_hub import errors, hf_hub_download

    reason = ""
    for file, cached in [*((file, True) for file in files), *((file, False) for file in files)]:
        try:
            return Path(hf_hub_download(repo, file, local_files_only=cached))
        except Exception as error:  # network, server, disk, licence: all end in the same advice
            reason = type(error).__name__
            absent = isinstance(error, errors.EntryNotFoundError) and not isinstance(error, FileNotFoundError)
            if not (cached or absent):
                break
    raise UserError(
        f"weights {files[0]} of {repo}: not in the local cache and not downloaded ({reason}); "
        f"fetch https://huggingface.co/{repo}/resolve/main/{files[0]} elsewhere and give its path"
    )


def native_quick_gelu(weights: str) -> bool | None:
    """Whether CLIP weights of the hub, ``hub:OWNER/REPO/FILE``, were trained with QuickGELU; None where nobody says.

    open_clip's list of repositories knows best, then timm's notes, then open_clip's tags where all towers of a tag
    agree (timm lacks the note on some that open_clip has under another repository).
    """
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained

    repo = "/".join(weights.removeprefix("hub:").split("/")[:2])
    if repo.startswith("openai/clip-"):  # in transformers' names, which open_clip does not list
        return True
    cfgs = [(tag, get_pretrained_cfg(model, tag)) for model, tag in list_pretrained()]
    listed = [(tag, cfg.get("hf_hub", "").strip("/"), bool(cfg.get("quick_gelu"))) for tag, cfg in cfgs]
    name = repo.removeprefix("timm/")
    entry = pretrained_cfg(name) if repo.startswith("timm/") else None
    for flags in (
        {quick for _, at, quick in listed if at == repo},
        {True for note in (entry and entry.notes) or () if "QuickGELU" in note},
        {quick for tag, _, quick in listed if entry and tag == entry.tag},
    ):
        if len(flags) == 1:
            return flags.pop()
    return None
