"""Where prompts and class token look: attention of the last frozen block, laid over the pictures."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dmpt.data.loader import test_set
from dmpt.data.records import Record
from dmpt.embed.attention import Gaze, gaze
from dmpt.evaluation.evaluate import Evaluation
from dmpt.method.network import DMPT
from dmpt.pages.frame import Section, render
from dmpt.pages.pictures import SPECTRA, Pixels, lying, spectra_of, stacked, thumbnails
from dmpt.report.embedding import spread
from dmpt.settings.config import Config

_HEAT = np.array([[40, 11, 84], [101, 21, 110], [159, 42, 99], [212, 72, 66], [245, 125, 21], [252, 255, 164]], float)
"""From little to much attention; the lightness grows evenly, so that it reads without colours too."""
_EXAMPLES = 4
"""Test samples that are shown."""


def _gaze(network: DMPT, records: Sequence[Record], config: Config) -> Gaze:
    """Of a few samples; mean and std of ``config.data`` are set."""
    network.float()  # as LoRA's updates and the interaction are, whatever the tower was kept in; it stays so
    batch = test_set(records, config.data).batch(0, range(len(records)))
    return gaze(network, batch.images, batch.present, config)


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
    ratios = seen.ratios
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


def _shares(seen: Gaze) -> list[list[str]]:
    """What the class token looks at, by spectrum, against what an even look would give."""
    total, rows = sum(seen.counts.values()), []
    for kind, share in seen.cls.items():
        values = ["–" if np.isnan(own).all() else f"{100 * np.nanmean(own):.1f}" for own in share]
        rows.append([f"{kind} ({seen.counts[kind]})", *values, f"{100 * seen.counts[kind] / total:.1f}"])
    return rows
