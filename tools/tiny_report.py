"""What the tiny CLIP knows of worlds that its training never saw, and the page that says so."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dmpt.base.errors import UserError
from dmpt.base.files import write_atomically, write_text
from dmpt.retrieval.metrics import evaluate
from dmpt.retrieval.protocols import Labels
from dmpt.settings.config import BackboneConfig
from dmpt.towers.image import TowerInfo, build_vit
from dmpt.towers.phrases import OBJECTS, PROMPTS
from tiny_data import HELD_OUT, MODALITIES, SIZE, captions, shoot
from tiny_model import NAME, OVERRIDES, TEMPLATES, VIT, TinyCLIP, Words

COLOURS = (
    "black",
    "white",
    "grey",
    "red",
    "orange",
    "yellow",
    "green",
    "blue",
    "navy",
    "purple",
    "pink",
    "brown",
    "beige",
)
WAYS = 16
_PROTOCOL = "same_camera"

Report = dict[str, Any]


def measure(folder: Path, model: TinyCLIP, words: Words, ids: int) -> Report:
    """Zero-shot accuracies and frozen retrieval in percent, of the files as they ship.

    Args:
        folder: where the files are.
        model: gives the text tower.
        words: its vocabulary.
        ids: identities of each held-out world.

    Raises:
        UserError: a file does not load.
    """
    model.eval()
    side = max(SIZE) // 16
    tower = BackboneConfig(name=NAME, weights=str(folder / VIT), grid=(side, side), overrides=OVERRIDES)
    random = BackboneConfig(name=NAME, weights="random", overrides=OVERRIDES)
    vit, info = build_vit(tower, SIZE)
    torch.manual_seed(0)
    untrained = build_vit(random, SIZE)

    @torch.no_grad()
    def text(texts: Sequence[str]) -> Tensor:
        return F.normalize(model.encode_text(words(texts)), dim=-1)

    report: Report = {"ids": ids, "ways": min(WAYS, ids), "zero_shot": {}, "retrieval": {}}
    prompts = text(PROMPTS)
    assert info.projection is not None
    for thing, seed in HELD_OUT.items():
        pictures, items = shoot(thing, seed, ids, per_camera=2)
        features = {m: encode(vit, info, pictures[m]) for m in MODALITIES}
        pids = np.array([item.pid for item in items])
        rows: dict[str, dict[str, float]] = {}
        for number, modality in enumerate(MODALITIES):
            image = F.normalize(features[modality] @ info.projection.T, dim=-1)
            own = captions(thing, seed, ids, modality)
            template = TEMPLATES[modality][0]
            full = text([template.format(caption) for caption in own])
            best = (image @ prompts.T).argmax(dim=1)
            pair = (image @ prompts[2 * number : 2 * number + 2].T).argmax(dim=1)
            rows[modality] = {
                "caption": _choice(image, full, own, pids, report["ways"]),
                "object": _percent(pair == OBJECTS.index(thing)),
                "spectrum": _percent(best // len(OBJECTS) == number),
            }
            if modality == "rgb":
                rows[modality]["colour"], report.setdefault("colours", {})[thing] = _colour(image, own, pids, text)
        report["zero_shot"][thing] = rows
        labels = Labels(pids, np.array([item.camera for item in items]))
        report["retrieval"][thing] = {
            "trained": _retrieval(features, labels),
            "untrained": _retrieval({m: encode(*untrained, pictures[m]) for m in MODALITIES}, labels),
        }
    return report


@torch.no_grad()
def encode(vit: Any, info: TowerInfo, pictures: Any) -> Tensor:
    """Class tokens after the final norm, ``(N, D)``, of uint8 ``(N, H, W, 3)``."""
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (info.mean, info.std))
    batches: Any = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    return torch.cat([vit((batch / 255 - mean) / std) for batch in batches.split(64)])


def _choice(image: Tensor, text: Tensor, own: list[str], pids: Any, ways: int) -> float:
    """Share of pictures whose caption scores above those of ``ways - 1`` others with other words."""
    draw, right = np.random.default_rng(0), []
    for feature, pid in zip(image, pids, strict=True):
        others = [i for i, caption in enumerate(own) if caption != own[pid]]
        if not others:
            raise UserError(f"all {len(own)} held-out captions read {own[pid]!r}; raise --held-out")
        chosen = draw.choice(others, min(ways - 1, len(others)), replace=False)
        scores = text @ feature
        right.append(bool(scores[pid] > scores[chosen].max()))
    return _percent(torch.tensor(right))


def _colour(image: Tensor, own: list[str], pids: Any, text: Any) -> tuple[float, int]:
    """Share of pictures whose first colour word scores highest in its place, and how many colours compete."""
    first = [re.search(rf"\b({'|'.join(COLOURS)})\b", caption) for caption in own]
    known = sorted({match[1] for match in first if match})
    right = []
    for pid, match in enumerate(first):
        if match and len(known) > 1:
            texts = [f"a photo of a {own[pid][: match.start()]}{colour}{own[pid][match.end() :]}" for colour in known]
            best = (image[torch.from_numpy(pids == pid)] @ text(texts).T).argmax(dim=1)
            right.append(best == known.index(match[1]))
    return (_percent(torch.cat(right)) if right else float("nan")), len(known)


def _retrieval(features: dict[str, Tensor], labels: Labels) -> dict[str, dict[str, float]]:
    """Frozen mAP and rank-1 of each spectrum and of the three side by side."""
    sets = {**features, "all three": torch.cat(list(features.values()), dim=1)}
    result = {}
    for name, raw in sets.items():
        unit = F.normalize(raw, dim=1).numpy()
        metrics = evaluate(unit, unit, labels, labels, _PROTOCOL)
        result[name] = {"mAP": metrics.mAP, "rank1": metrics.rank1}
    return result


def _percent(right: Tensor) -> float:
    return float(right.float().mean()) * 100


def write(folder: Path, about: dict[str, Any], report: Report) -> None:
    """Write ``tiny_clip.md`` and, where matplotlib is installed, the loss curve beside it.

    Raises:
        UserError: they cannot be written.
    """
    curve = about["curve"]
    picture = _draw(folder / "images" / "tiny_clip_loss.svg", curve)
    points = [curve[round(i * (len(curve) - 1) / 11)] for i in range(12)] if len(curve) > 12 else curve
    ways, colours = report["ways"], report["colours"]
    zero_shot = [
        [
            f"{thing}, {modality.upper()}",
            *(f"{row[key]:.1f}" for key in ("caption", "object", "spectrum")),
            f"{row['colour']:.1f} (of {colours[thing]})" if "colour" in row else "",
        ]
        for thing, rows in report["zero_shot"].items()
        for modality, row in rows.items()
    ]
    retrieval = [
        [f"{thing}, {which}", *(f"{n['mAP']:.1f} / {n['rank1']:.1f}" for n in numbers.values())]
        for thing, both in report["retrieval"].items()
        for which, numbers in both.items()
    ]
    sizes = about["parameters"]
    lines = [
        "# The tiny CLIP",
        "",
        "A CLIP small enough to ship, so that the demo and the tests have a backbone that has learned something. Its",
        "pictures are drawn by `dmpt.synthetic`, in worlds whose seeds no demo and no test uses; nothing in it comes",
        "from anyone else's pictures or weights. It loads as every CLIP does, by the settings of `configs/tiny.yaml`.",
        "This page is written by the command below.",
        "",
        "## How it was made",
        "",
        "```",
        about["command"],
        "```",
        "",
        *_table(
            ["", ""],
            [
                ["commit", str(about["commit"])],
                ["torch, timm", f"{about['torch']}, {about['timm']}"],
                ["seed", str(about["settings"]["seed"])],
                ["pictures", f"{about['pictures']}, {about['infrared_share']:.1%} of them NIR or TIR"],
                ["epochs, steps", f"{about['epochs']}, {about['steps']}"],
                ["batch, peak learning rate", f"{about['settings']['batch']}, {about['settings']['lr']:g}"],
                ["precision, threads", f"{about['settings']['precision']}, {about['threads']}"],
                ["training time", f"{about['minutes']} min"],
                ["image tower", f"timm `{about['name']}` with {about['overrides']}, {sizes['image']} parameters"],
                ["text tower", f"open_clip's, {sizes['text']} parameters, {len(about['vocabulary'])} of CLIP's words"],
                *([f"sha256 of {file}", digest] for file, digest in about["sha256"].items()),
            ],
        ),
        "",
        "The text file holds what the text tower says of the paper's prompts, all that training needs of it; the tower",
        "itself is for `text.loss: identity`. Both towers ship in half precision.",
        "",
        "## Loss",
        "",
        *([f"![loss]({picture.relative_to(folder).as_posix()})", ""] if picture else []),
        *_table(["step", "loss"], [[str(step), f"{loss:.3f}"] for step, loss in points]),
        "",
        "## Zero-shot, in percent",
        "",
        f"On {report['ids']} identities of a held-out world each, 4 cameras, two pictures by each. *Caption*: the own",
        f"among {ways} with different words, chance {100 / ways:.1f}. *Object*: person or vehicle, by the paper's",
        "prompts of that spectrum. *Spectrum*: the prompt that fits best among all six names the right one of three.",
        "*Colour*: the first colour word of the caption among all that occur.",
        "",
        *_table(["", "caption", "object", "spectrum", "colour"], zero_shot),
        "",
        "## Frozen retrieval, mAP / rank-1 in percent",
        "",
        "The same pictures by the class token after the final norm, each picture once as query, what the query's own",
        "camera saw of the identity ignored. *Untrained*: the same tower with random weights.",
        "",
        *_table(["", "RGB", "NIR", "TIR", "all three"], retrieval),
    ]
    write_text(folder / "tiny_clip.md", "\n".join(lines) + "\n")


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows]]


def _draw(path: Path, curve: list[tuple[int, float]]) -> Path | None:
    """The loss curve as SVG; None without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot(*zip(*curve, strict=True))
    axes.set(xlabel="step", ylabel="loss")
    axes.spines[["top", "right"]].set_visible(False)

    def save(temporary: Path) -> None:
        figure.savefig(temporary, format="svg", metadata={"Date": None})

    write_atomically(path, save)
    return path
