"""``dmpt params``: what is trained and what is in memory, component by component. No weights are needed."""

import re
from collections import Counter
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dmpt.extensions.assemble import build_backbone, build_network
from dmpt.method.modalities import MODALITY_COUNT
from dmpt.settings.config import BindConfig, Config, LoraConfig, SemanticConfig, TextConfig
from dmpt.settings.rules import check
from dmpt.towers.image import build_vit
from dmpt.towers.phrases import text_file
from dmpt.towers.text import architecture_of

_COMPONENTS = {
    r"backbone\..*\.own\.\d\.(query|value|whole)\.": "low-rank updates of each modality",
    r"backbone\..*\.(query|value|whole)\.": "low-rank updates, shared",
    r"backbone\.": "backbone, one copy for three streams",
    r"projection\.": "image projection",
    r"prompts\.semantic\.": "semantic prompts S",
    r"prompts\.modality\.map\.": "modality prompts: mapping P",
    r"prompts\.modality\.words": "modality prompts: words",
    r"(bind|exchanges)\..*\.external\.": "bind: external interaction",
    r"(bind|exchanges)\..*\.internal\.\d\.norm\.": "bind: LayerNorm of SA",
    r"(bind|exchanges)\..*\.internal\.\d\.(qkv|proj)\.": "bind: internal interaction SA",
    r"readout\.": "linear probe",
    r"also\.shared\.project": "shared part: projections",
    r"also\.shared\.(mean|variance)": "shared part: standardisation",
    r"heads\..*\.norm\.": "heads: batch norm",
    r"heads\..*\.classifier\.": "heads: classifiers",
    r"identity_text": "identity tokens of the text loss",
}


def count_parameters(config: Config, ids: int) -> dict[str, Any]:
    """Components and totals.

    The paper's ratio is trained / (three towers with projection + trained): it counts a tower per stream.

    Args:
        config: the settings.
        ids: number of training identities.

    Returns:
        ``components`` (each with ``name``, ``shape``, ``count``, ``trained``), ``trained``, ``in_memory``, ``towers``
        and ``paper_ratio`` in percent.

    Raises:
        UserError: settings contradict each other, or a text file that is needed is missing.
    """
    check(config)
    vit, info = build_vit(config.backbone, config.data.size, load=False)
    # Read only where it counts: what is a text file's may be gone where nothing needs it.
    text_width = _text_width(config.text) if config.modality.worded or config.text.loss == "identity" else 0
    width = text_width if config.modality.worded else config.modality.width
    tower = sum(p.numel() for p in vit.parameters()) + (0 if info.projection is None else info.projection.numel())
    with torch.device("meta"):
        words = torch.empty(MODALITY_COUNT, config.modality.length, width)
        network, _ = build_network(config, build_backbone(config, vit), info, ids, words)
        if config.text.loss == "identity":
            tokens = torch.empty(MODALITY_COUNT, ids, config.text.tokens, text_width)
            network.add_module("identity_text", nn.ParameterList([tokens]))
    floating = (buffer for buffer in network.named_buffers() if buffer[1].is_floating_point())
    groups: dict[tuple[str, bool], list[Tensor]] = {}
    for name, tensor in (*network.named_parameters(), *floating):
        what = next(label for pattern, label in _COMPONENTS.items() if re.match(pattern, name))
        groups.setdefault((what, tensor.requires_grad), []).append(tensor)
    components: list[dict[str, Any]] = [
        {"name": what, "shape": _shapes(group), "count": sum(t.numel() for t in group), "trained": trained}
        for (what, trained), group in groups.items()
    ]
    trained = sum(c["count"] for c in components if c["trained"])
    towers = 3 * tower
    return {
        "components": components,
        "trained": trained,
        "in_memory": sum(c["count"] for c in components),
        "towers": towers,
        "paper_ratio": 100 * trained / (towers + trained),
    }


def _text_width(config: TextConfig) -> int:
    """Of the words: those of the ready file, which need not be CLIP's, else the tower's."""
    if config.file is not None:
        return next(iter(text_file(config).words.values())).shape[1]
    return int(architecture_of(config.tower)["text_cfg"].get("width", 512))


def _lora_instead(config: Config) -> Config:
    """The same heads, losses and recipe on a tower tuned by LoRA, without prompts and interaction."""
    return replace(
        config,
        backbone=replace(config.backbone, tune="lora"),
        lora=LoraConfig(),
        semantic=SemanticConfig(length=0),
        modality=replace(config.modality, length=0),
        bind=BindConfig(depth=0),
        feature="cls",
        missing=replace(config.missing, absent="nothing"),
    )


def equal_lora_rank(config: Config, ids: int, instead: Config | None = None) -> int:
    """The rank at which LoRA trains as many parameters as the settings do, or nearly.

    Args:
        config: settings to be matched.
        ids: number of training identities.
        instead: settings tuned by LoRA, of any rank; None = the same heads and losses, without prompts and interaction.

    Raises:
        UserError: settings contradict each other.
    """
    lora = instead or _lora_instead(config)
    ranks = (replace(lora, lora=replace(lora.lora, rank=rank)) for rank in (1, 2))
    wanted, one, two = (int(count_parameters(each, ids)["trained"]) for each in (config, *ranks))
    return max(1, 1 + round((wanted - one) / (two - one)))


def _shapes(group: list[Tensor]) -> str:
    """``12 x (768, 512), 12 x (768,)``; of many different shapes the three that hold most."""
    counted = Counter(tuple(t.shape) for t in group)
    largest = sorted(counted, key=lambda s: -counted[s] * torch.Size(s).numel())
    shown = [f"{counted[s]} x {tuple(s)}" if counted[s] > 1 else f"{tuple(s)}" for s in largest[:3]]
    return ", ".join(shown) + (", ..." if len(largest) > 3 else "")
