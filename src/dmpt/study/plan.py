"""Which runs a study takes, which of them are there, and which learning rates came out best."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from dmpt.base.errors import UserError
from dmpt.evaluation.missing import parse
from dmpt.settings.config import Config
from dmpt.settings.values import dotted
from dmpt.study.definition import MOST, RANK, TRIAL, Row, Split, Study, slug
from dmpt.study.reading import KNOWN
from dmpt.study.results import Kept, Result, backbone_name, content_of, run_name
from dmpt.study.rows import runnable


@dataclass(frozen=True)
class Task:
    """A run to be. One on validation identities does not read the test split."""

    data: str  # name of the data
    row: str  # name of the row
    config: Config  # its settings
    out: Path  # its run folder
    missing: bool = False  # whether it is also tested with modalities missing
    tested: str = ""  # folder of other data, whose test split is tested; empty = that of its own data
    fingerprint: str = ""  # of all the data, all splits; empty = not looked at
    backbone: str | None = None  # sha256 of the weights; None = not looked at, or random
    jobs: int = 1  # how many runs share the machine
    gpu: str | None = None  # that it is to see, as ``CUDA_VISIBLE_DEVICES`` names it; None = there is no choice

    @property
    def place(self) -> Path:
        """Data, row and run, as folders."""
        return Path(self.data) / slug(self.row) / run_name(dotted(self.config))

    @property
    def split(self) -> Split:
        """What it is measured on."""
        return "validation" if self.config.train.select == "val" else "test"

    @cached_property
    def content(self) -> dict[str, Any]:
        """Its settings, as far as they say which numbers come out, but the seed."""
        return content_of(dotted(self.config))

    def same_run(self, other: "Task") -> bool:
        """Whether another task is this run under another name."""
        return self.config.train.seed == other.config.train.seed and self.content == other.content

    def accepts(self, result: Result) -> bool:
        """Whether it is a seed of this run, whoever asked for it."""
        lacking = self.missing and "missing" not in result.numbers
        return not lacking and result.is_run_of(self.content, self.fingerprint, self.backbone)

    def find(self, results: Sequence[Result]) -> Result | None:
        """The result of this run; None where there is none."""
        return next((r for r in results if r.seed == self.config.train.seed and self.accepts(r)), None)


@dataclass(frozen=True)
class Plan:
    """A study on its data."""

    study: Study
    data: str  # name of the data
    rows: list[tuple[Row, Config]]  # what the data can run, with settings
    left_out: list[str]  # why other rows are not, a line each
    seeds: tuple[int, ...]  # of training; also in each row's settings
    out: Path = Path()  # run folders go below it
    fingerprint: str = ""  # of the data, all splits; empty = not looked at
    backbones: Mapping[str, str] = field(default_factory=dict)  # sha256 of weights, as far as they are known
    jobs: int = 1  # how many runs share the machine
    tested: str = ""  # folder of the data that are tested, where they are others than those trained on

    @property
    def trials(self) -> list[Task]:
        """The runs that try learning rates, on validation identities."""
        return [self._task(row, config, "validation", TRIAL, lr) for row, config in self.rows for lr in row.lr]

    def tests(self, chosen: Mapping[str, float]) -> list[Task]:
        """The runs of the table; those of rows that wait for their learning rate are left out."""
        return [
            self._task(row, config, self.study.split, seed, chosen.get(row.name, config.train.lr))
            for row, config in self.rows
            for seed in self.seeds
            if not row.lr or row.name in chosen
        ]

    def tried(self, results: Sequence[Result]) -> dict[str, list[Result]]:
        """What was found for the learning rates of each row that has a grid, in its order, as far as it was run."""
        found: dict[str, list[Result]] = {row.name: [] for row, _ in self.rows if row.lr}
        for task in self.trials:
            if (result := task.find(results)) is not None:
                found[task.row].append(result)
        return found

    def chosen(self, results: Sequence[Result]) -> dict[str, float]:
        """Learning rates by row, as far as all of a row's grid has been run."""
        whole = {row.name: len(row.lr) for row, _ in self.rows}
        return {row: best(done).lr for row, done in self.tried(results).items() if len(done) == whole[row]}

    def found(self, results: Sequence[Result]) -> dict[str, list[Result]]:
        """Results of each row that has any, of whatever seed, by ascending seeds; not what diverged or was tried."""
        tests = replace(self, seeds=self.seeds[:1]).tests(self.chosen(results))
        shown = [result for result in results if result.seed != TRIAL and not result.diverged]
        seeds = {task.row: [result for result in shown if task.accepts(result)] for task in tests}
        return {row: sorted(own, key=lambda result: result.seed) for row, own in seeds.items() if own}

    def _task(self, row: Row, config: Config, split: Split, seed: int, lr: float) -> Task:
        train = replace(config.train, seed=seed, lr=lr)
        if split == "validation":  # some training identities are held out and looked at once, after the last epoch
            train = replace(train, select="val", eval_every=max(1, train.epochs))
        config = replace(config, train=train)
        missing, backbone = self.study.missing and split == "test", self.backbones.get(backbone_name(config))
        tested = self.tested if split == "test" else ""
        task = Task(self.data, row.name, config, self.out, missing, tested, self.fingerprint, backbone, self.jobs)
        return replace(task, out=self.out / task.place)


def make(study: Study, data: str, base: Config, *, seeds: int, only: Sequence[str], out: Path) -> Plan:
    """The plan of a study, before the data are looked at.

    Args:
        study: what to run.
        data: name of the data.
        base: their settings; ``train.seed`` is the first of so many ``seeds``.
        seeds: how many.
        only: names of rows; empty = all.
        out: run folders go below it.
    """
    rows, left_out = runnable(study, data, dotted(base), only)
    if seeds > MOST or base.train.seed + seeds > 2**63:
        raise UserError(f"--seeds {seeds} from seed {base.train.seed} on; give at most {MOST}, all below 2^63")
    numbers = tuple(range(base.train.seed, base.train.seed + seeds))
    if TRIAL in numbers:
        raise UserError(f"seed {TRIAL} is the one that learning rates are tried with; give another --train.seed")
    if base.train.select != "last":
        raise UserError(f"train.select is {base.train.select}; a study tests the last epoch, set it to last")
    if study.missing:  # refused before anything is trained
        for _, config in rows:
            parse("all", config.data.modalities)
    return Plan(study, data, rows, left_out, numbers, out)


def asked(study: Study, data: str, kept: Kept) -> Plan:
    """The plan of what a study was asked for last on some data, from what is kept alone."""
    ranks = {row.name: {**row.change, RANK: kept.ranks[row.name]} for row in study.rows if row.name in kept.ranks}
    study = replace(study, rows=tuple(replace(row, change=ranks.get(row.name, row.change)) for row in study.rows))
    rows, left_out = runnable(study, data, KNOWN | kept.base) if kept.base else ([], [])
    return Plan(study, data, rows, left_out, (0,), fingerprint=kept.data, backbones=kept.backbones)


def best(results: Sequence[Result]) -> Result:
    """Highest validation mAP; of equal ones the lowest learning rate."""
    return min(results, key=lambda result: (-result.numbers["mAP"], result.lr))


def estimate(tasks: Sequence[Task], results: Sequence[Result]) -> float | None:
    """Seconds that the tasks will take, by what runs of their row, else all runs, on their data took; None = unknown.

    Evaluation and start are not counted.
    """
    known: dict[str | None, list[float]] = {}
    for result in results:
        seconds = result.study["seconds_per_epoch"]
        if seconds is not None:
            for row in (result.row, None):
                known.setdefault(row, []).append(seconds)
    total = 0.0
    for task in tasks:
        seen = known.get(task.row) or known.get(None)
        if seen is None and task.config.train.epochs:
            return None
        total += task.config.train.epochs * (statistics.median(seen) if seen else 0.0)
    return total


def hashes(configs: Iterable[Config]) -> dict[str, str]:
    """sha256 of each backbone's file, by ``backbone_name``; random weights have none."""
    from dmpt.base.files import sha256
    from dmpt.towers.hub import resolve

    files = {backbone_name(config): config.backbone for config in configs if config.backbone.weights != "random"}
    return {name: sha256(resolve(backbone.weights, backbone.name)) for name, backbone in files.items()}
