"""Where prompts and class token look: attention of the last frozen block, laid over the pictures."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from dmpt.data.loader import test_set
from dmpt.data.records import Record
from dmpt.embed.attention import attention
from dmpt.evaluation.evaluate import Evaluation
from dmpt.method.network import DMPT
from dmpt.pages.frame import Section, render
from dmpt.pages.pictures import SPECTRA, Pixels, lying, spectra_of, stacked, thumbnails
from dmpt.report.embedding import spread
from dmpt.settings.config import Config
from dmpt.settings.modalities import MODALITIES

_HEAT = np.array([[40, 11, 84], [101, 21, 110], [159, 42, 99], [212, 72, 66], [245, 125, 21], [252, 255, 164]], float)
"""From little to much attention; the lightness grows evenly, so that it reads without colours too."""
_EXAMPLES = 4
"""Test samples that are shown."""


@dataclass(frozen=True)
class _Gaze:
    """Attention of some samples, the mean over attention heads, by kind of token; NaN where a modality is absent.

    ``maps`` is of the looking token, the mean over its kind, to each patch ``(M, B, rows, columns)``, M modalities in
    use; what it gives to other tokens is missing from the sum. ``cls`` is the share of the class token's attention
    that each kind draws, ``(M, B)``; they sum to 1.
    """

    maps: dict[str, NDArray[np.float32]]
    cls: dict[str, NDArray[np.float32]]
    counts: dict[str, int]  # tokens of each kind


def _gaze(network: DMPT, records: Sequence[Record], config: Config) -> _Gaze:
    """Attention of the last block for a few samples; mean and std of ``config.data`` are set."""
    network.float()  # as LoRA's updates and the interaction are, whatever the tower was kept in; it stays so
    data, backbone = config.data, network.backbone
    batch = test_set(records, data).batch(0, range(len(records)))
    parameter = next(network.parameters())
    with torch.inference_mode(), torch.autocast(parameter.device.type, enabled=False):
        seen = attention(network, batch.images.to(parameter.device), batch.present.to(parameter.device))[1]
        used = [MODALITIES.index(m) for m in data.modalities]
        looked = seen[used].float().mean(dim=2).cpu().numpy()
        looked[~batch.present[used].numpy()] = np.nan  # what stands in its place is no picture
    ends = {"class token": 1, "registers": backbone.leading - 1}
    if network.prompts is not None:
        ends |= {"modality prompts": config.modality.length, "semantic prompts": config.semantic.length}
    ends["patches"] = looked.shape[-1] - sum(ends.values())
    kinds, start = {}, 0
    for kind, count in ends.items():
        if count:
            kinds[kind] = slice(start, start + count)
        start += count
    grid = [side // patch for side, patch in zip(data.size, backbone.vit.patch_embed.patch_size, strict=True)]
    lookers = [kind for kind in ("modality prompts", "semantic prompts", "class token") if kind in kinds]
    patches = kinds["patches"]
    return _Gaze(
        maps={k: looked[:, :, kinds[k], patches].mean(axis=2).reshape(*looked.shape[:2], *grid) for k in lookers},
        cls={kind: looked[:, :, 0, where].sum(axis=-1) for kind, where in kinds.items()},
        counts={kind: where.stop - where.start for kind, where in kinds.items()},
    )


def _overlay(image: Pixels, weights: NDArray[np.float32], top: float) -> Pixels:
    """The picture ``(H, W, 3)`` in grey under its map ``(rows, columns)``; ``top`` and all above it are lightest."""
    height, width = image.shape[:2]
    scaled = np.minimum(weights / np.float32(top), 1)
    smooth = np.asarray(Image.fromarray(scaled).resize((width, height), Image.Resampling.BILINEAR))
    steps = np.linspace(0, 1, len(_HEAT))
    colour = np.stack([np.interp(smooth, steps, _HEAT[:, channel]) for channel in range(3)], axis=-1)
    grey = image.mean(axis=-1, keepdims=True)
    mixed: Pixels = np.rint(0.5 * grey + 0.5 * colour).astype(np.uint8)
    return mixed


def _examples(run: Evaluation, count: int) -> list[Record]:
    """The first of the fullest gallery samples of identities that are asked for, spread evenly over the numbers."""
    first: dict[int, Record] = {}
    asked = {record.pid for record in run.query}  # distractors, all of one number, are not
    for record in sorted(run.gallery, key=lambda record: -len(record.paths)):
        if record.pid in asked:
            first.setdefault(record.pid, record)
    pids = sorted(first)
    return [first[pids[place]] for place in spread(len(pids), count)]


def section(run: Evaluation) -> Section:
    """Overlays of some test samples, and the class token's shares as a table."""
    opened, records = run.opened, _examples(run, _EXAMPLES)
    data, seen = opened.data, _gaze(opened.network, records, opened.card.config)
    ratios = {kind: values / values.mean(axis=(-2, -1), keepdims=True) for kind, values in seen.maps.items()}
    # Single patches may attract nearly all attention; one scale for all maps that lets the rest be seen.
    top = max(2.0, float(np.nanpercentile(np.stack(list(ratios.values())), 98)))
    blocks = []
    for number, record in enumerate(records):
        pictures = thumbnails(record, data)
        columns = {"picture": pictures}
        for kind, weights in ratios.items():
            maps = zip(pictures, weights[:, number], strict=True)
            columns[kind] = [p if np.isnan(w).any() else _overlay(p, w, top) for p, w in maps]
        title = f"identity {record.pid}, camera {record.camera}"
        alt = f"{title}, {spectra_of(record, data)}"
        labels = {"picture": data.modalities}
        stacks = [(kind, stacked(images, f"{kind}, {alt}", labels.get(kind, ()))) for kind, images in columns.items()]
        blocks.append((title, stacks))
    body = render(
        "report/attention.html",
        wide=lying(data),
        blocks=blocks,
        colours=_HEAT.astype(int).tolist(),
        top=top,
        header=["class token looks at (tokens)", *(f"{SPECTRA[m]}, %" for m in data.modalities), "even look, %"],
        shares=_shares(seen),
    )
    who = "the class token looks" if opened.network.prompts is None else "the prompts look"
    return Section("attention", f"Where {who}", body)


def _shares(seen: _Gaze) -> list[list[str]]:
    """What the class token looks at, by spectrum, against what an even look would give."""
    total, rows = sum(seen.counts.values()), []
    for kind, share in seen.cls.items():
        values = ["–" if np.isnan(own).all() else f"{100 * np.nanmean(own):.1f}" for own in share]
        rows.append([f"{kind} ({seen.counts[kind]})", *values, f"{100 * seen.counts[kind] / total:.1f}"])
    return rows
