"""``dmpt reproduce``: train one cell of the paper's tables, evaluate it, and set the numbers side by side."""

import json
from pathlib import Path
from typing import Any

from dmpt.base.files import write_text
from dmpt.evaluation.conditions import Conditions
from dmpt.evaluation.evaluate import evaluate
from dmpt.paper.cells import PRINTED, find, settings
from dmpt.paper.published import other_data
from dmpt.settings.config import Config
from dmpt.settings.values import difference, dotted
from dmpt.training.trainer import Trainer

_UNPRINTED = ("data.root", "data.workers", "train.seed", "train.save_every", "train.tensorboard")
"""Settings that are free: the paper prints no seed, and the others change no number."""


def _deviations(name: str, config: Config) -> list[str]:
    """Settings that differ from the cell's, one line each."""
    changed = difference(dotted(settings(find(name))), dotted(config), _UNPRINTED)
    return [f"{key}: {printed} -> {asked}" for key, (printed, asked) in changed.items()]


def compare(name: str, config: Config, out: Path, trainer: Trainer, skip_broken: bool = False) -> dict[str, Any]:
    """Evaluate a finished run of a cell; write ``metrics.json`` and ``reproduction.json`` into its folder.

    Args:
        name: of the cell.
        config: the settings that were asked for.
        out: the run's folder.
        trainer: opened on that folder, and so proof that it was trained with these settings and data.
        skip_broken: leave out test samples with unreadable images.

    Returns:
        ``ours``, ``paper`` and ``difference`` in percent, what deviates from the paper, and where ours come from.

    Raises:
        UserError: the data or the folder are not as they must be.
    """
    cell, data, weights = find(name), config.data, config.backbone.weights
    here = Conditions(root=data.root, workers=data.workers, weights=weights, skip_broken=skip_broken)
    evaluation = evaluate(out, here)
    evaluation.save()
    result = evaluation.to_dict()
    changed = _deviations(name, config)
    found = {"train": len(trainer.data.records), "query": result["queries"], "gallery": result["gallery"]}
    changed += other_data(data.layout, found)
    if skipped := len({*trainer.data.skipped, *result["skipped"]}):  # what is no sample is in both
        changed.append(f"other data: {skipped} missing or broken files left out")
    for event in trainer.progress.history:  # such a run is not these settings from their start
        changed += [f"from step {event['step']} on: {what}" for what in event if what != "step"]
    ours = {key: result[key] for key in PRINTED}
    reproduction = {
        "cell": name,
        "where": cell.where,
        "ours": ours,
        "paper": cell.paper,
        "difference": {key: ours[key] - printed for key, printed in cell.paper.items()},
        "deviations": changed,
        **{key: result[key] for key in ("protocol", "queries", "valid_queries", "gallery", "provenance")},
    }
    write_text(out / "reproduction.json", json.dumps(reproduction, indent=2) + "\n")
    return reproduction
