"""CMC, and what training logged."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from dmpt.evaluation.evaluate import Evaluation
from dmpt.pages.charts import Axis, Series, axis, lines
from dmpt.pages.frame import Section, render
from dmpt.training.log import read_log

_RANKS = 20
_POINTS = 150
"""Of a drawn loss curve: each is the mean of as many steps as needed."""
_TERMS = {"ce": "cross-entropy", "metric": "metric loss", "triplet": "metric loss", "centre": "centre", "text": "text"}
_Points = dict[str, list[tuple[float, float]]]
"""A value at some steps, by what it is of."""


def section(runs: Sequence[Evaluation]) -> Section:
    """CMC and losses; of a single run every term of the loss, and how its best checkpoint was found."""
    single = len(runs) == 1
    chosen = _selection(runs[0]) if single else None
    body = render("report/curves.html", cmc=_cmc(runs), losses=_losses(runs), selection=chosen, single=single)
    return Section("curves", "Curves", body)


def _losses(runs: Sequence[Evaluation]) -> Markup | None:
    """Total loss over the steps of training, of a single run also its terms; None where nothing was trained."""
    single = len(runs) == 1
    values: _Points = {}
    for run in runs:
        steps = [line for line in read_log(run.run) if "loss" in line]
        values["total" if single else run.name] = [(line["step"], line["loss"]) for line in steps]
        for line in steps if single else ():
            for name, value in line.get("losses", {}).items():
                values.setdefault(_TERMS.get(name, name), []).append((line["step"], value))
    label = "loss" if single else "total loss"
    return _over_steps(values, label, f"{label.capitalize()} over training steps")


def _selection(run: Evaluation) -> Markup | None:
    """The mAP that training measured on the way; None where it did not."""
    values: _Points = defaultdict(list)
    for line in read_log(run.run):
        for split, name in (("val", "validation identities"), ("test", "test split")):
            if isinstance(line.get(split), dict):
                values[name].append((line["step"], line[split]["mAP"]))
    return _over_steps(values, "mAP, %", "mAP during training")


def _cmc(runs: Sequence[Evaluation]) -> Markup:
    """Share of queries with a match among the first k, k to 20, a line per run."""
    ranks = range(1, _RANKS + 1)
    series = [Series(run.name, ranks, run.metrics.cmc[:_RANKS]) for run in runs]
    low = min(min(s.y) for s in series)
    across = Axis("rank k", 1, _RANKS, (1, 5, 10, 15, 20))
    alt = "CMC curves. " + "; ".join(
        f"{s.name}: rank 1 {s.y[0]:.1f} %, rank 5 {s.y[4]:.1f} %, rank 10 {s.y[9]:.1f} %" for s in series
    )
    return lines(series, across, axis("queries with a match, %", min(low, 99), 100), alt)


def _over_steps(values: _Points, label: str, alt: str) -> Markup | None:
    series = [_thinned(name, points, i) for i, (name, points) in enumerate(values.items()) if points]
    if not series:
        return None
    low, high = (f(v for s in series for v in s.y) for f in (min, max))
    last = max(max(s.x) for s in series)
    said = "; ".join(f"{s.name}: from {s.y[0]:.3g} to {s.y[-1]:.3g}" for s in series)
    return lines(series, axis("training step", 0, last), axis(label, min(0, low), high), f"{alt}. {said}")


def _thinned(name: str, points: Sequence[tuple[float, float]], colour: int) -> Series:
    """At most ``_POINTS`` points, each the mean of neighbours."""
    array = np.array(points, dtype=float)
    parts = np.array_split(array, min(_POINTS, len(array)))
    means = np.array([part.mean(axis=0) for part in parts])
    return Series(name, means[:, 0].tolist(), means[:, 1].tolist(), colour)
