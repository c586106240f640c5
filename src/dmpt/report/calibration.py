"""What scores mean: the DET curve, where mates and strangers lie, and thresholds, of ``calibration.json``."""

import numpy as np
from markupsafe import Markup

from dmpt.adapter.calibration import Calibration, load
from dmpt.base.errors import UserError
from dmpt.evaluation.evaluate import Evaluation
from dmpt.pages.charts import Axis, Series, axis, lines
from dmpt.pages.frame import Section, render
from dmpt.pages.pictures import SPECTRA
from dmpt.retrieval.calibration import RATES
from dmpt.retrieval.rates import Rates

_WHOSE = {
    "val": "identities that training held out",
    "test": "identities of the test split",
    "train": "identities of training, so that strangers may pass more often",
    "all": "identities",
}


def section(run: Evaluation) -> Section:
    """Of the adapter's calibration; where there is none, how to come by one."""
    found, problem = None, ""
    try:
        found = load(run.opened.folder)
    except UserError as error:  # the page has more to say
        problem = str(error)
    charts = {} if found is None else {"det": _det(found), "histogram": _histogram(found.tables[0])}
    body = render(
        "report/calibration.html",
        found=found,
        problem=problem,
        pairs=run.verification,
        whose=_WHOSE,
        rates=RATES,
        tables=[] if found is None else [(_name(table), table, _limits(table)) for table in found.tables],
        **charts,
    )
    return Section("sure", "How sure", body)


def _name(table: Rates) -> str:
    return " + ".join(SPECTRA[name] for name in table.common) or "nothing (shared parts)"


def _limits(table: Rates) -> list[tuple[str, str] | None]:
    """Threshold and TAR for each rate, as text; None where the identities do not carry it."""
    by_rate = {limit.fmr: limit for limit in table.thresholds}
    found = [by_rate.get(rate) for rate in RATES]
    return [None if limit is None else (f"{limit.threshold:.4f}", f"{100 * limit.tar:.1f} %") for limit in found]


def _det(calibration: Calibration) -> Markup:
    """FNMR over FMR, a line for each set of common modalities; FMR evenly in its logarithm."""
    series = []
    for table in calibration.tables:
        curve = table.curve
        fmr = [100 * table.rate(above) for above in curve.strangers]
        fnmr = [100 * (1 - above / table.mates) for above in curve.mates]
        series.append(Series(_name(table), fmr, fnmr))
    least = 10.0 ** np.floor(np.log10(min(min(one.x) for one in series)) + 1e-9)
    ticks = tuple(tick for tick in (0.001, 0.01, 0.1, 1.0, 10.0, 100.0) if tick >= least * 0.999)
    across = Axis("FMR, % of strangers that pass", ticks[0], 100, ticks, log=True)
    said = "; ".join(f"{_name(table)}: equal error rate {100 * table.eer:.1f} %" for table in calibration.tables)
    return lines(series, across, Axis("FNMR, % of mates that do not", 0, 100, (0, 25, 50, 75, 100)), f"DET. {said}")


def _histogram(table: Rates) -> Markup:
    """Shares of the scores of strangers and of mates, of one set; with the threshold for FMR 1 %, or the next."""
    bins = table.histogram
    edges = np.linspace(bins.low, bins.high, len(bins.strangers) + 1)
    middle = ((edges[1:] + edges[:-1]) / 2).tolist()
    shares = {
        name: [100 * count / sum(counts) for count in counts]
        for name, counts in (("strangers", bins.strangers), ("mates", bins.mates))
    }
    series = [Series(name, middle, values) for name, values in shares.items()]
    top = max(max(values) for values in shares.values())
    if (limit := table.usual) is not None:
        series.append(Series(f"threshold for FMR {100 * limit.fmr:g} %", [limit.threshold] * 2, [0, top]))
    alt = (
        f"Scores of {table.strangers} pairs of strangers and {table.mates} of mates, {bins.low:.3f} to {bins.high:.3f}"
    )
    across = axis(f"score over {_name(table)}", bins.low, bins.high)
    return lines(series, across, axis("share of the pairs, %", 0, top), alt)
