"""``dmpt demo``: the method from end to end, on any machine, without a download.

A small synthetic world, a tiny CLIP that comes with the package, and three rows of the paper's argument: frozen
features, semantic prompts alone, full DMPT. Then a page that shows what came of it.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dmpt.base.terminal import console, print_table
from dmpt.demo.own_files import clear, remember
from dmpt.evaluation.evaluate import evaluate
from dmpt.report.pages import report
from dmpt.settings.config import Config
from dmpt.settings.shipped import folder, read_config
from dmpt.synthetic.cached import CAMERAS, world
from dmpt.training.trainer import Trainer

_ALONE = {"modality.length": 0, "bind.depth": 0, "text.loss": "off"}
_ROWS: dict[str, dict[str, Any]] = {
    "frozen": {**_ALONE, "semantic.length": 0, "train.epochs": 0},
    "semantic prompts": _ALONE,
    "DMPT": {},
}
"""What is compared, by what its settings change: nothing trained; the paper's S alone; all of it."""
_PAGE = "report.html"
_NEXT = (
    "dmpt train --config rgbnt201 --data.root DIR --out runs/rgbnt201",
    "dmpt evaluate runs/rgbnt201 --data.root DIR",
    "# or with our changes to the design",
    "dmpt train --config rgbnt201 --config dmpt+ --data.root DIR --out runs/rgbnt201_plus",
    "# or other worlds, and the tiny CLIP of this demo",
    "dmpt synth worlds/vehicles --object vehicle",
    "dmpt train --config tiny --data.root worlds/vehicles --data.layout msvr310 --out runs/vehicles",
)
"""What to type next."""
_INTRO = (
    "Drawn persons, photographed in visible, near-infrared and thermal light by cameras that differ; by day, at dusk "
    "and by night. A small frozen CLIP sees them, and DMPT trains prompts for it. Everything here was rendered and "
    "trained on this machine just now: a check that the method works, not a result of the field."
)


@dataclass(frozen=True)
class _Scale:
    """How much is shown."""

    train_ids: int  # to learn from
    test_ids: int  # to find
    epochs: int


_FULL, _QUICK = _Scale(150, 100, 10), _Scale(48, 40, 4)


def _configure(root: Path, row: str, epochs: int, seed: int = 0) -> Config:
    """Settings of a row of the table: those of ``configs/tiny.yaml``, with parts of the method left out."""
    own = {"data.root": str(root), "data.workers": 0, "train.epochs": epochs, "train.seed": seed}
    return read_config(folder() / "tiny.yaml", own | _ROWS[row])


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
        remember(out, {_PAGE, *map(_folder, _ROWS)})


def _folder(row: str) -> str:
    return row.replace(" ", "-")


def _show(out: Path, scale: _Scale, seed: int) -> None:
    root = world(train_ids=scale.train_ids, test_ids=scale.test_ids)
    console.print(
        f"{scale.train_ids} drawn persons to learn from, {scale.test_ids} others to find, {CAMERAS} cameras; "
        f"pictures in {root}"
    )
    runs = []
    for number, name in enumerate(_ROWS, start=1):
        console.print(f"\n{number} of {len(_ROWS)}: {name}", style="bold")
        run = out / _folder(name)
        Trainer(_configure(root, name, scale.epochs, seed), run).fit()
        evaluation = replace(evaluate(run), name=name)
        evaluation.save()
        runs.append(evaluation)
    page = out / _PAGE
    console.print("\ndrawing the report")
    report(runs, page, intro=_INTRO, commands=_NEXT)
    print_table(
        f"{scale.test_ids} persons that training never saw, protocol same_camera",
        ["", "mAP", "rank-1", "trained parameters"],
        [[run.name, f"{run.metrics.mAP:.1f}", f"{run.metrics.rank1:.1f}", f"{run.trained:,}"] for run in runs],
    )
    print(f"\nLook at {page}. With your own data:", *(f"  {line}" for line in _NEXT), sep="\n")
