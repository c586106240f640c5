"""CMC, and what training logged."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup

from dmpt.pages.charts import Axis, Series, axis, lines
from dmpt.report.measured import Measured
from dmpt.training.log import read_log

RANKS = 20
POINTS = 150
"""Of a drawn loss curve: each is the mean of as many steps as needed."""
TERMS = {"ce": "cross-entropy", "metric": "metric loss", "triplet": "metric loss", "centre": "centre", "text": "text"}


def cmc(runs: Sequence[Measured]) -> Markup:
    """Share of queries with a match among the first k, k to 20, a line per run."""
    ranks = range(1, RANKS + 1)
    series = [Series(run.name, ranks, run.metrics.cmc[:RANKS]) for run in runs]
    low = min(min(s.y) for s in series)
    across = Axis("rank k", 1, RANKS, (1, 5, 10, 15, 20))
    alt = "CMC curves. " + "; ".join(
        f"{s.name}: rank 1 {s.y[0]:.1f} %, rank 5 {s.y[4]:.1f} %, rank 10 {s.y[9]:.1f} %" for s in series
    )
    return lines(series, across, axis("queries with a match, %", min(low, 99), 100), alt)


def losses(run: Path) -> Markup | None:
    """Total loss and its terms over the steps of training; None where nothing was trained."""
    steps = [line for line in read_log(run) if "loss" in line]
    if not steps:
        return None
    values: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for line in steps:
        values["total"].append((line["step"], line["loss"]))
        for name, value in line.get("losses", {}).items():
            values[TERMS.get(name, name)].append((line["step"], value))
    return _over_steps(values, "loss", "Loss over training steps")


def total_losses(runs: dict[str, Path]) -> Markup | None:
    """Total loss of several runs; None where none was trained."""
    values = {
        name: [(line["step"], line["loss"]) for line in read_log(path) if "loss" in line] for name, path in runs.items()
    }
    return _over_steps(values, "total loss", "Total loss over training steps")


def selection(run: Path) -> Markup | None:
    """The mAP that training measured on the way; None where it did not."""
    values: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for line in read_log(run):
        for split, name in (("val", "validation identities"), ("test", "test split")):
            if isinstance(line.get(split), dict):
                values[name].append((line["step"], line[split]["mAP"]))
    return _over_steps(values, "mAP, %", "mAP during training")


def _over_steps(values: dict[str, list[tuple[float, float]]], label: str, alt: str) -> Markup | None:
    series = [_thinned(name, points, i) for i, (name, points) in enumerate(values.items()) if points]
    if not series:
        return None
    low, high = (f(v for s in series for v in s.y) for f in (min, max))
    last = max(max(s.x) for s in series)
    said = "; ".join(f"{s.name}: from {s.y[0]:.3g} to {s.y[-1]:.3g}" for s in series)
    return lines(series, axis("training step", 0, last), axis(label, min(0, low), high), f"{alt}. {said}")


def _thinned(name: str, points: Sequence[tuple[float, float]], colour: int) -> Series:
    """At most ``POINTS`` points, each the mean of neighbours."""
    array = np.array(points, dtype=float)
    parts = np.array_split(array, min(POINTS, len(array)))
    means = np.array([part.mean(axis=0) for part in parts])
    return Series(name, means[:, 0].tolist(), means[:, 1].tolist(), colour)
