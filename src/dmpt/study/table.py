"""Tables, plots and provenance of a study, from its kept results alone."""

import csv
import io
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dmpt.errors import UserError
from dmpt.files import write_text
from dmpt.statistics import DRAWS, Comparison, bootstrap, holm
from dmpt.study.definition import GRID, Row, Study
from dmpt.study.plan import best
from dmpt.study.plot import Line, strips
from dmpt.study.results import MEASURES, Result, check_row_of, comparable, difference, read_all

MISSING = (("mean of the six missing cases", "mean"), ("mismatched subsets", "any_to_any", "mismatched"))
PLANNED = {"train.lr", "train.seed", "train.eval_every"}
"""What ``dmpt.study.plan`` sets for each run, whatever the base."""
TOWER = {"backbone.name", "backbone.weights"}
"""What a row changes that has weights of its own."""
SPLITS = {"test": "the test split", "validation": "identities held out from training, the test split unseen"}
NOTES = (
    "Numbers are percent on {split}: the mean over training seeds ± standard deviation (lowest to highest "
    "seed); every seed is in table.csv. Difference: mAP minus that of the reference, percentage points, with its 95 % "
    "interval: a paired bootstrap ({draws:,} draws) over identities and training seeds, gallery fixed. p: two-sided, "
    "Holm-corrected over the rows of this table; the interval is not corrected. With one seed it says nothing about "
    "seeds. Seconds per epoch: the median, on the machine that provenance.json names."
)


@dataclass(frozen=True)
class Group:
    """A row and its seeds.

    Attributes:
        row: of the study.
        change: the settings in which it differs from the base on these data, as dotted keys.
        results: one per seed, in ascending order.
    """

    row: Row
    change: dict[str, Any]
    results: tuple[Result, ...]

    @property
    def name(self) -> str:
        """Of its row."""
        return self.row.name

    def values(self, *keys: str) -> list[float]:
        """A number of each seed, by its path in ``metrics.json``; empty where a seed has none."""
        found: list[Any] = [result.numbers for result in self.results]
        for key in keys:
            found = [content.get(key) if isinstance(content, dict) else None for content in found]
        return [] if None in found else [float(value) for value in found]


def write(study: Study, results: Path) -> Path:
    """Write ``table.md``, ``table.csv``, ``provenance.json`` and a plot for each data set that has results.

    Args:
        study: gives caption, order and reference.
        results: its results, a folder for each data set.

    Returns:
        ``table.md``.

    Raises:
        UserError: there are no results, or they are damaged or of different data.
    """
    text = [f"# {study.name}: {study.caption}\n", f"Mirrors: {study.mirrors}. Written by `dmpt study {study.name}`.\n"]
    lines: list[dict[str, Any]] = []
    provenance: dict[str, Any] = {}
    for folder in sorted(path for path in results.glob("*") if path.is_dir()):
        found = read_all(folder)
        groups = _groups(study, folder.name, found)
        if not groups:
            continue
        reference = next((g for name in study.reference for g in groups if g.name == name), None)
        compared = _compare(groups, reference)
        text += _section(study, folder, groups, reference, compared)
        lines += [line for group in groups for line in _csv_lines(folder.name, group, compared.get(group.name))]
        provenance[folder.name] = [_origin(result) for result in found]
        plot = strips(
            f"{study.name} on {folder.name}",
            [Line(g.name, g.values("mAP"), g.values("study", "seconds_per_epoch")) for g in groups],
        )
        write_text(results / f"{folder.name}.svg", plot)
    if not lines:
        raise UserError(f"{results}: no finished run of {study.name} yet; run dmpt study {study.name} without --table")
    write_text(results / "table.md", "\n".join([*text, NOTES.format(split=SPLITS[study.split], draws=DRAWS), ""]))
    write_text(results / "table.csv", _csv(lines))
    write_text(results / "provenance.json", json.dumps(provenance, indent=1) + "\n")
    return results / "table.md"


def grid_lines(study: Study, folder: Path) -> list[str]:
    """What each learning rate of the study came to on validation identities, a line per row."""
    found = [result for result in read_all(folder) if result.chooses]
    lines = []
    for row in study.rows:
        tried = sorted((r for r in found if r.slug == row.slug and r.lr in row.lr), key=lambda result: result.lr)
        for result in tried:
            check_row_of(result, row.changes(folder.name) | study.choice.change)
        if not tried:
            continue
        won = best(tried)
        if len(tried) < GRID:
            lines.append(f"{row.name}: {len(tried)} of {GRID} learning rates tried, so none is chosen yet")
            continue
        edge = "" if won not in (tried[0], tried[-1]) else ", at the grid's edge"
        grid = ", ".join(f"{result.lr:g}: {result.numbers['mAP']:.1f}" for result in tried)
        lines.append(f"{row.name}: validation mAP by learning rate {grid}; chosen {won.lr:g}{edge} (seed {won.seed})")
    return lines


def _groups(study: Study, data: str, found: Sequence[Result]) -> list[Group]:
    """Rows that have been tested, in the order of the study."""
    groups = []
    for row in study.rows:
        own = [result for result in found if result.slug == row.slug and not result.chooses]
        if own:
            groups.append(Group(row, row.changes(data), tuple(sorted(own, key=lambda result: result.seed))))
    _check_alike(groups)
    return groups


def _check_alike(groups: Sequence[Group]) -> None:
    """Refuse to compare what was made from different data, weights or bases, and to average different settings.

    Raises:
        UserError: names the first that differs.
    """
    seen: dict[str, tuple[Any, Result]] = {}  # of everything that its row does not change: the first, and whose it is
    for group in groups:
        for result in group.results:
            check_row_of(result, group.change)
            differs = difference(group.results[0].config, result.config, {"train.seed"})
            if differs is not None:
                _refuse_mix(group.results[0], result, *differs)
            base = {k: v for k, v in comparable(result.config).items() if k not in group.change.keys() | PLANNED}
            base["data_fingerprint"] = result.numbers["study"]["data_fingerprint"]
            # random weights are drawn anew for each seed
            if result.config["backbone.weights"] != "random" and not TOWER & group.change.keys():
                base["backbone_sha256"] = result.numbers["study"]["backbone_sha256"]
            for key, now in base.items():
                before, first = seen.setdefault(key, (now, result))
                if before != now:
                    _refuse_mix(first, result, key, before, now)


def _refuse_mix(first: Result, other: Result, key: str, before: Any, now: Any) -> None:
    raise UserError(
        f"{other.folder}: {key} is {now}, but {before} in {first.folder}, of the same table; remove "
        "one of them and run again, or keep them apart by another --results"
    )


def _compare(groups: Sequence[Group], reference: Group | None) -> dict[str, tuple[Comparison, float]]:
    """Each row against the reference, with its corrected p."""
    if reference is None:
        return {}
    pids, first = _queries(reference, None)
    others = [group for group in groups if group is not reference]
    found = [bootstrap(first, _queries(group, pids)[1], pids) for group in others]
    corrected = holm([comparison.p for comparison in found])
    return {g.name: (c, p) for g, c, p in zip(others, found, corrected, strict=True)}


def _queries(group: Group, expected: Any) -> tuple[Any, Any]:
    """Identities ``(Q,)`` and average precision ``(seeds, Q)``."""
    rows = []
    for result in group.results:
        pids, values = result.queries()
        if expected is not None and not np.array_equal(pids, expected):
            raise UserError(
                f"{result.folder}: was tested on other queries than {group.results[0].folder} or the reference; see "
                "which is damaged, remove its folder and run again"
            )
        expected = pids
        rows.append(values)
    return expected, np.stack(rows)


def _section(
    study: Study,
    folder: Path,
    groups: Sequence[Group],
    reference: Group | None,
    compared: Mapping[str, tuple[Comparison, float]],
) -> list[str]:
    shown = MISSING if study.missing else ()  # a result taken over from another study may have them all the same
    extra = [m for m in shown if any(g.values("missing", *m[1:], "mAP") for g in groups)]
    header = ["", "mAP", "rank-1", *(f"mAP, {name}" for name, *_ in extra), "trained parameters", "s / epoch"]
    header += ["difference [95 %]", "p (Holm)", "learning rate", "seeds"]
    rows = []
    for group in groups:
        comparison = compared.get(group.name)
        seconds = group.values("study", "seconds_per_epoch")
        rows.append(
            [
                group.name,
                _spread(group.values("mAP")),
                _spread(group.values("rank1")),
                *(_spread(group.values("missing", *keys, "mAP")) for _, *keys in extra),
                f"{group.results[0].numbers['study']['trained']:,}",
                f"{statistics.median(seconds):.1f}" if seconds else "",
                *_compared(comparison, group is reference),
                ", ".join(sorted({f"{r.lr:g}" for r in group.results if r.config["train.epochs"]})),
                ", ".join(str(r.seed) for r in group.results),
            ]
        )
    some = groups[0].results[0]
    first = some.numbers
    tried = len({json.dumps([r.slug, r.lr]) for r in read_all(folder)})
    epochs = sorted({r.config["train.epochs"] for g in groups for r in g.results} - {0})
    said = [
        f"{some.config['backbone.name']}; epochs {', '.join(map(str, epochs)) or 'none'}; {first['queries']} queries "
        f"({first['valid_queries']} valid), gallery {first['gallery']}, protocol {first['protocol']}.",
        f"Rows and learning rates of this study on this data: {tried}.",
    ]
    absent = [row.name for row in study.rows if row.name not in [g.name for g in groups]]
    if absent:
        said.append(f"Without results here: {'; '.join(absent)}.")
    said += grid_lines(study, folder)
    bar = ["---", *("---:" for _ in header[1:])]
    table = [f"| {' | '.join(cells)} |" for cells in (header, bar, *rows)]
    table[1] = table[1].replace(" ", "")
    return [
        f"## {folder.name}\n",
        *table,
        "",
        *(f"- {line}" for line in said),
        "",
        f"![{folder.name}]({folder.name}.svg)\n",
    ]


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    if len(values) == 1:
        return f"{values[0]:.1f}"
    mean, sd = statistics.mean(values), statistics.stdev(values)
    return f"{mean:.1f} ± {sd:.1f} ({min(values):.1f} to {max(values):.1f})"


def _compared(comparison: tuple[Comparison, float] | None, reference: bool) -> list[str]:
    if comparison is None:
        return ["reference" if reference else "", ""]
    found, p = comparison
    return [f"{found.difference:+.1f} [{found.low:+.1f}, {found.high:+.1f}]", f"{p:.4f}" if p >= 0.001 else "< 0.001"]


def _csv_lines(data: str, group: Group, comparison: tuple[Comparison, float] | None) -> list[dict[str, Any]]:
    """A line for each seed; what holds for the row is repeated."""
    values = group.values("mAP")
    row: dict[str, Any] = {
        "mAP_mean": statistics.mean(values),
        "mAP_sd": statistics.stdev(values) if len(values) > 1 else None,
        "mAP_min": min(values),
        "mAP_max": max(values),
    }
    names = ("difference", "low", "high", "p", "p_holm")
    numbers: tuple[float | None, ...] = (None,) * len(names)
    if comparison is not None:
        found, corrected = comparison
        numbers = found.difference, found.low, found.high, found.p, corrected
    row |= dict(zip(names, numbers, strict=True))
    lines = []
    for result in group.results:
        study, without = result.numbers["study"], result.numbers.get("missing", {})
        lines.append(
            {
                "data": data,
                "row": group.name,
                "seed": result.seed,
                "lr": result.lr,
                "epochs": result.config["train.epochs"],
                **{key: result.numbers[key] for key in MEASURES},
                "mAP_missing_mean": without.get("mean", {}).get("mAP"),
                "trained": study["trained"],
                "seconds_per_epoch": study["seconds_per_epoch"],
                "peak_memory_bytes": study["peak_memory_bytes"],
                **row,
            }
        )
    return lines


def _csv(lines: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {k: round(v, 4) if isinstance(v, float) and k != "lr" else v for k, v in line.items()} for line in lines
    )
    return text.getvalue()


def _origin(result: Result) -> dict[str, Any]:
    """Where one run's numbers come from."""
    study = result.numbers["study"]
    keys = ("data_fingerprint", "backbone_sha256", "jobs")
    return {
        "row": result.row,
        "kind": study["kind"],
        "lr": result.lr,
        **{key: study[key] for key in keys},
        **result.numbers["provenance"],
    }
