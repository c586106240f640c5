"""``dmpt demo``: the method from end to end, on any machine, without a download.

A small synthetic world, a tiny CLIP that comes with the package, and three rows: frozen features, the paper's DMPT, and
what we advise. Then a page that shows what came of it, and a gallery of the persons that training never saw.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dmpt.base.errors import UserError
from dmpt.base.terminal import console, print_table, track
from dmpt.demo.own_files import clear, remember
from dmpt.embed.embedder import load
from dmpt.evaluation.evaluate import evaluate
from dmpt.report.pages import report
from dmpt.runtime.torch import native_bf16
from dmpt.settings.config import Config
from dmpt.settings.shipped import settings_of
from dmpt.settings.values import from_dict, nest
from dmpt.synthetic.cached import CAMERAS, world
from dmpt.training.train import fit
from dmpt.training.trainer import Trainer

_ROWS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "frozen": (
        ["tiny"],
        {"semantic.length": 0, "modality.length": 0, "bind.depth": 0, "text.loss": "off", "train.epochs": 0},
    ),
    "DMPT": (["tiny"], {}),
    "advised": (["tiny", "decoupled"], {}),
}
"""What is compared: files of ``configs/``, and what is changed in them."""
_GALLERY = "gallery.lance"
_PAGE = "report.html"
_NEXT = (
    "dmpt train --config own --data.root DIR --out runs/own",
    "dmpt embed DIR --model runs/own --out own.lance",
    "# or the paper's design, on its data",
    "dmpt train --config rgbnt201 --data.root DIR --out runs/rgbnt201",
    "dmpt evaluate runs/rgbnt201 --data.root DIR",
    "# or other worlds, and the tiny CLIP of this demo",
    "dmpt synth worlds/vehicles --object vehicle",
    "dmpt train --config tiny --data.root worlds/vehicles --data.layout msvr310 --out runs/vehicles",
)
"""What to type next."""
_INTRO = (
    "Drawn persons, photographed in visible, near-infrared and thermal light by cameras that differ; by day, at dusk "
    "and by night. A small CLIP sees them. DMPT trains prompts for it, and what we advise trains low-rank updates. "
    "Everything here was rendered and trained on this machine just now: a check that the method works, not a result of "
    "the field."
)


@dataclass(frozen=True)
class _Scale:
    """How much is shown."""

    train_ids: int  # to learn from
    test_ids: int  # to find
    epochs: int


_FULL, _QUICK = _Scale(150, 60, 6), _Scale(60, 40, 4)


def _configure(root: Path, row: str, epochs: int, change: Mapping[str, Any] | None = None) -> Config:
    """Settings of a row of the table."""
    files, own = _ROWS[row]
    here = {"data.root": str(root), "data.workers": 0, "train.epochs": epochs}
    return from_dict(nest(settings_of({"config": files}, "demo") | here | dict(change or {}) | own))


def demo(out: Path, quick: bool = False, seed: int = 0) -> None:
    """Render a world, train on it, compare, and write ``report.html``.

    Args:
        out: folder to write; what an earlier demo wrote there is deleted first.
        quick: a smaller world and fewer epochs.
        seed: of training.

    Raises:
        UserError: there is something else in ``out``, or a file cannot be written.
    """
    clear(out)
    try:
        _show(out, _QUICK if quick else _FULL, seed)
    finally:
        remember(out, {_PAGE, _GALLERY, *_ROWS})


def _show(out: Path, scale: _Scale, seed: int) -> None:
    root = world(train_ids=scale.train_ids, test_ids=scale.test_ids)
    console.print(
        f"{scale.train_ids} drawn persons to learn from, {scale.test_ids} others to find, {CAMERAS} cameras; "
        f"pictures in {root}"
    )
    recipe = {
        "train.seed": seed,
        "train.precision": "bf16" if native_bf16(torch.cuda.is_available()) else "fp32",
        # 15 or more are held out, which carry a threshold for a false match rate of 1 %.
        **{"train.select": "val", "train.val_share": 0.25, "train.eval_every": scale.epochs},
    }
    runs = []
    for number, name in enumerate(_ROWS, start=1):
        console.print(f"\n{number} of {len(_ROWS)}: {name}", style="bold")
        run = out / name
        fit(Trainer(_configure(root, name, scale.epochs, recipe), run))
        evaluation = replace(evaluate(run), name=name)
        evaluation.save()
        runs.append(evaluation)
    page = out / _PAGE
    console.print("\ndrawing the report")
    report(runs, page, intro=_INTRO, commands=_NEXT)
    searchable = _embed(root, out)
    print_table(
        f"{scale.test_ids} persons that training never saw, protocol same_camera",
        ["", "mAP", "rank-1", "trained parameters"],
        [[run.name, f"{run.metrics.mAP:.1f}", f"{run.metrics.rank1:.1f}", f"{run.trained:,}"] for run in runs],
    )
    print(f"\nLook at {page}. {searchable}\n\nWith your own data:", *(f"  {line}" for line in _NEXT), sep="\n")


def _embed(root: Path, out: Path) -> str:
    """The gallery of the test persons, and what to say of it."""
    try:
        from dmpt.gallery.done import commit
        from dmpt.gallery.shards import embed_shard, plan
        from dmpt.gallery.sources import read_source
    except UserError as error:  # the extra is not installed
        return f"To search these persons, {error}; then run the demo again."
    gallery, model = out / _GALLERY, out / "advised"
    embedder = load(model)
    shards = plan(read_source(root, layout="rgbnt201", split="gallery"), gallery)
    for shard in track(shards, "embedding", len(shards)):
        embed_shard(embedder, shard)
    commit(gallery)
    return f"Search these persons:\n  dmpt serve {model} --gallery {gallery}"
