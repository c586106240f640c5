"""Tables, plots and provenance of a study, from its kept results alone."""

import csv
import io
import json
import statistics
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dmpt.base.errors import UserError
from dmpt.base.files import write_text
from dmpt.paper.cells import cell_on
from dmpt.retrieval.metrics import MEASURES
from dmpt.retrieval.statistics import DRAWS, Comparison
from dmpt.study.definition import Study
from dmpt.study.groups import Group, compare
from dmpt.study.plan import Plan, asked, best
from dmpt.study.plot import Line, strips, time_map
from dmpt.study.results import ENDING, Result, read
from dmpt.study.squares import Square, squares
from dmpt.study.squares import picture as square_picture

_MISSING = (("mean of the missing cases", "mean"), ("mismatched subsets", "any_to_any", "mismatched"))
_MIXED = ("mixed galleries", "any_to_any", "mixed")
_PAIRS = {
    "strangers' cosine": (("verification", "strangers"), ".3f"),
    "TAR at FMR 1 %": (("verification", "tar", "1"), ".1f"),
    "FMR where 1 % is asked": (("threshold", "achieved", "fmr"), ".2f"),
    "DIR at FPIR 10 %": (("threshold", "dir", "10"), ".1f"),
}
_SPLITS = {"test": "the test split", "validation": "identities held out from training, the test split unseen"}
_NOTES = (
    "Numbers are percent on {split}: the mean over training seeds ± standard deviation (lowest to highest "
    "seed); every seed is in table.csv. Difference: mAP minus that of the reference, percentage points, with its 95 % "
    "interval: a paired bootstrap ({draws:,} draws) over identities and training seeds, gallery fixed. p: two-sided, "
    "Holm-corrected over the rows of this table; the interval is not corrected. With one seed it says nothing about "
    "seeds, and with three that differ much it is too small (docs/study.md). Seconds per step, where they are "
    "known: the fastest tenth of the training steps, on the machine that provenance.json names; nothing where a result "
    "was taken over from another study."
)


def write(study: Study, results: Path) -> Path:
    """Write ``table.md``, ``table.csv``, ``provenance.json`` and a plot for each data set that has results.

    Args:
        study: gives caption, order and reference.
        results: its results, a file for each data set; the tables are written beside them.

    Returns:
        ``table.md``.

    Raises:
        UserError: there are no results, or they are damaged.
    """
    text = [f"# {study.name}: {study.caption}\n", f"Mirrors: {study.mirrors}. Written by `dmpt study {study.name}`.\n"]
    lines: list[dict[str, Any]] = []
    provenance: dict[str, Any] = {}
    for path in sorted(results.glob(f"*{ENDING}")):
        data, kept = path.name.removesuffix(ENDING), read(path)
        plan = asked(study, data, kept)
        found = plan.found(kept.results)
        printed = {row.name: cell_on(row.paper, data) if row.paper else None for row in study.rows}
        groups = [Group(name, cell, found[name]) for name, cell in printed.items() if name in found]
        if not groups:
            continue
        reference = next((g for name in study.reference for g in groups if g.name == name), None)
        pairs = [(reference, group) for group in groups if reference is not None and group is not reference]
        compared = {group.name: difference for (_, group), difference in zip(pairs, compare(pairs), strict=True)}
        text += _section(plan, kept.results, groups, reference, compared)
        lines += [line for group in groups for line in _csv_lines(data, group, compared.get(group.name))]
        shown = [*chain(*found.values(), *plan.tried(kept.results).values())]
        provenance[data] = [_origin(result) for result in kept.results if any(result is one for one in shown)]
        plotted = [Line(group.name, group.values("mAP"), group.seconds()) for group in groups]
        write_text(results / f"{data}.svg", strips(f"{study.name} on {data}", plotted))
        if drawn := squares(study.any_to_any, groups):
            write_text(results / f"{data}-any-to-any.svg", square_picture(f"{study.name} on {data}", drawn))
            text += _any_to_any(study, data, drawn)
        if study.timed and any(line.seconds for line in plotted):
            write_text(results / f"{data}-time.svg", time_map(f"{study.name} on {data}", plotted))
            text.append(_picture(study, f"{data}, mAP against time", f"{data}-time.svg"))
    if not lines:
        raise UserError(f"{results}: no finished run of {study.name} yet; run dmpt study {study.name} without --table")
    write_text(results / "table.md", "\n".join([*text, _NOTES.format(split=_SPLITS[study.split], draws=DRAWS), ""]))
    write_text(results / "table.csv", _csv(lines))
    write_text(results / "provenance.json", json.dumps(provenance, indent=1) + "\n")
    return results / "table.md"


def grid_lines(plan: Plan, results: Sequence[Result]) -> list[str]:
    """What each learning rate of the study came to on validation identities, a line per row."""
    lines = []
    grids = {row.name: len(row.lr) for row, _ in plan.rows}
    for row, found in plan.tried(results).items():
        if not found:
            continue
        tried, won = sorted(found, key=lambda result: result.lr), best(found)
        if len(tried) < grids[row]:
            lines.append(f"{row}: {len(tried)} of {grids[row]} learning rates tried, so none is chosen yet")
            continue
        edge = "" if won not in (tried[0], tried[-1]) else ", at the grid's edge"
        grid = ", ".join(f"{r.lr:g}: {'diverged' if r.diverged else format(r.numbers['mAP'], '.1f')}" for r in tried)
        lines.append(f"{row}: validation mAP by learning rate {grid}; chosen {won.lr:g}{edge} (seed {won.seed})")
    return lines


def _pairs(study: Study, groups: Sequence[Group]) -> list[str]:
    """The pairs of rows that the study names, as a table of its own, with its own correction."""
    by_name = {group.name: group for group in groups}
    pairs = [(by_name[a], by_name[b]) for a, b in study.pairs if a in by_name and b in by_name]
    rows = [
        [after.name, before.name, *_compared(comparison)]
        for (before, after), comparison in zip(pairs, compare(pairs), strict=True)
    ]
    header = ["", "against", "difference [95 %]", "p (Holm, of these pairs)"]
    return [*_markdown(header, rows, left=2), ""] if rows else []


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """A table, of which the first columns are text."""
    bar = ["---" if number < left else "---:" for number in range(len(header))]
    lines = [[cell.replace("|", "\\|") for cell in cells] for cells in (header, *rows)]
    first, *others = (f"| {' | '.join(cells)} |" for cells in lines)
    return [first, f"|{'|'.join(bar)}|", *others]


def _section(
    plan: Plan,
    results: Sequence[Result],
    groups: Sequence[Group],
    reference: Group | None,
    compared: Mapping[str, tuple[Comparison, float]],
) -> list[str]:
    """What ``table.md`` says of some data."""
    study, data = plan.study, plan.data
    shown: list[tuple[str, ...]] = [*_MISSING] if study.missing else []  # another study's result may have them, too
    shown += [_MIXED] if study.any_to_any else []
    extra = [m for m in shown if any(g.values("missing", *m[1:], "mAP") for g in groups)]
    printed = {group.name: group.cell for group in groups if group.cell is not None}
    timed = any(group.seconds() for group in groups)
    pairs = {name: own for name, own in _PAIRS.items() if any(group.values(*own[0]) for group in groups)}
    header = [
        "",
        "mAP",
        "rank-1",
        *(f"mAP, {name}" for name, *_ in extra),
        *["mAP in the paper"] * bool(printed),
        *pairs,
    ]
    header += ["trained parameters", *["s / step"] * timed, "difference [95 %]", "p (Holm)", "learning rate", "seeds"]
    rows, alone = [], ("", "reference")
    for group in groups:
        seconds = group.seconds()
        rows.append(
            [
                group.name,
                _spread(group.values("mAP")),
                _spread(group.values("rank1")),
                *(_spread(group.values("missing", *keys, "mAP")) for _, *keys in extra),
                *[f"{group.cell.paper['mAP']:.1f}" if group.cell else ""] * bool(printed),
                *(_mean(group.values(*keys), digits) for keys, digits in pairs.values()),
                f"{group.results[0].study['trained']:,}",
                *[f"{min(seconds):.3f}" if seconds else ""] * timed,
                *(_compared(compared[group.name]) if group.name in compared else (alone[group is reference], "")),
                ", ".join(sorted({f"{r.lr:g}" for r in group.results if r.config["train.epochs"]})),
                ", ".join(str(r.seed) for r in group.results),
            ]
        )
    some = groups[0].results[0]
    first = some.numbers
    tried = len({(result.row, result.lr) for result in results})
    epochs = sorted({r.config["train.epochs"] for g in groups for r in g.results} - {0})
    said = [
        f"{some.config['backbone.name']}; epochs {', '.join(map(str, epochs)) or 'none'}; {first['queries']} queries "
        f"({first['valid_queries']} valid), gallery {first['gallery']}, protocol {first['protocol']}.",
        f"Rows and learning rates of this study on this data: {tried}.",
    ]
    if printed:
        places = [f"{name}: {cell.where}" for name, cell in printed.items()]
        configs = sorted({cell.config for cell in printed.values()})
        said.append(f"In the paper: of {', '.join(configs)} (`dmpt reproduce --list`). {'; '.join(places)}.")
    absent = [row.name for row in study.rows if row.name not in [g.name for g in groups]]
    if absent:
        said.append(f"Without results here: {'; '.join(absent)}.")
    said += grid_lines(plan, results)
    return [
        f"## {data}\n",
        *_markdown(header, rows),
        "",
        *_pairs(study, groups),
        *(f"- {line}" for line in said),
        "",
        _picture(study, data, f"{data}.svg"),
    ]


def _any_to_any(study: Study, data: str, found: Sequence[Square]) -> list[str]:
    """What ``table.md`` says of it: a table for each row, and the picture of all."""
    text = ["Any-to-any, mAP: a row is what the query is seen in, a column what the gallery is seen in.\n"]
    for one in found:
        rows = [[name, *(f"{v:.1f}" for v in values)] for name, values in zip(one.subsets, one.values, strict=True)]
        text += [*_markdown([one.name, *one.subsets], rows), ""]
    return [*text, _picture(study, f"{data}, any-to-any", f"{data}-any-to-any.svg")]


def _picture(study: Study, shows: str, file: str) -> str:
    """A picture; where it is not kept, as in a checkout, a reader sees how it is made."""
    return f"![{shows}: a picture that `dmpt study {study.name} --table` draws]({quote(file)})\n"


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    if len(values) == 1:
        return f"{values[0]:.1f}"
    mean, sd = statistics.mean(values), statistics.stdev(values)
    return f"{mean:.1f} ± {sd:.1f} ({min(values):.1f} to {max(values):.1f})"


def _mean(values: Sequence[float], digits: str) -> str:
    return format(statistics.mean(values), digits) if values else ""


def _compared(comparison: tuple[Comparison, float]) -> tuple[str, str]:
    found, p = comparison
    return f"{found.difference:+.1f} [{found.low:+.1f}, {found.high:+.1f}]", f"{p:.4f}" if p >= 0.001 else "< 0.001"


def _csv_lines(data: str, group: Group, comparison: tuple[Comparison, float] | None) -> list[dict[str, Any]]:
    """A line for each seed; what holds for the row is repeated."""
    values = group.values("mAP")
    row: dict[str, Any] = {
        "mAP_mean": statistics.mean(values),
        "mAP_sd": statistics.stdev(values) if len(values) > 1 else None,
        "mAP_min": min(values),
        "mAP_max": max(values),
    }
    found, corrected = comparison or (None, None)
    row |= {key: getattr(found, key, None) for key in ("difference", "low", "high", "p")} | {"p_holm": corrected}
    lines = []
    for result in group.results:
        study, without = result.study, result.numbers.get("missing", {})
        pairs = result.numbers.get("verification")
        timed = {} if "taken_from" in study else study
        lines.append(
            {
                "data": data,
                "row": group.name,
                "seed": result.seed,
                "lr": result.lr,
                "epochs": result.config["train.epochs"],
                **{key: result.numbers[key] for key in MEASURES},
                **({"strangers_cosine": pairs["strangers"], "tar_at_fmr_1": pairs["tar"]["1"]} if pairs else {}),
                **(_thresholds(limits) if (limits := result.numbers.get("threshold")) else {}),
                "mAP_missing_mean": without.get("mean", {}).get("mAP"),
                "mAP_in_paper": group.cell.paper["mAP"] if group.cell else None,
                "trained": study["trained"],
                "seconds_per_epoch": timed.get("seconds_per_epoch"),
                "seconds_per_step": timed.get("seconds_per_step"),
                "peak_memory_bytes": study["peak_memory_bytes"],
                **row,
            }
        )
    return lines


def _thresholds(found: Mapping[str, Any]) -> dict[str, float]:
    """What scores are worth to a threshold, by column."""
    rates = found["achieved"] or {}
    columns = {"fmr_asked_1": "fmr", "fmr_asked_1_low": "low", "fmr_asked_1_high": "high", "tar_asked_1": "tar"}
    own = {name: rates[key] for name, key in columns.items() if key in rates}
    return own | {f"dir_at_fpir_{far}": value for far, value in found["dir"].items()}


def _csv(lines: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(chain(*lines))), lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {k: round(v, 4) if isinstance(v, float) and k != "lr" else v for k, v in line.items()} for line in lines
    )
    return text.getvalue()


def _origin(result: Result) -> dict[str, Any]:
    """Where one run's numbers come from."""
    study = result.study
    keys = ("data_fingerprint", "backbone_sha256", "jobs")
    return {
        "row": result.row,
        "kind": study["kind"],
        "lr": result.lr,
        **{key: study[key] for key in keys},
        **result.numbers["provenance"],
    }
