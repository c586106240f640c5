"""Which runs a study takes, which of them are there, and which learning rates have been chosen."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from dmpt.base.errors import UserError
from dmpt.evaluation.missing import parse
from dmpt.settings.config import Config
from dmpt.settings.values import dotted
from dmpt.study.definition import MOST, Row, Study
from dmpt.study.one_run import Task
from dmpt.study.results import Result, check_inputs_of, check_settings_of, read, read_all
from dmpt.study.rows import config_of, runnable


@dataclass(frozen=True)
class Plan:
    """A study on its data.

    Attributes:
        study: what is run.
        data: name of the data.
        rows: what the data can run, with settings.
        left_out: why other rows are not, a line each.
        seeds: of training; also in each row's settings.
        out: run folders go below it.
        results: results go below it.
        fingerprint: of the data, all splits; empty = not looked at.
        jobs: how many runs share the machine.
    """

    study: Study
    data: str
    rows: list[tuple[Row, Config]]
    left_out: list[str]
    seeds: tuple[int, ...]
    out: Path
    results: Path
    fingerprint: str = ""
    jobs: int = 1

    def choices(self) -> list[Task]:
        """The runs by which learning rates are chosen."""
        return [
            self._task(row, self._choice(config, lr), "choice", f"lr-{lr:g}")
            for row, config in self.rows
            for lr in row.lr
        ]

    def tests(self, chosen: Mapping[str, float]) -> list[Task]:
        """The runs of the table; those of rows that wait for their learning rate are left out."""
        return [
            self._task(row, self._test(config, seed, chosen.get(row.name)), self.study.split, f"seed-{seed}")
            for row, config in self.rows
            for seed in self.seeds
            if not row.lr or row.name in chosen
        ]

    def chosen(self) -> dict[str, float]:
        """Learning rates by row, as far as all of a row's grid has been run."""
        tried: dict[str, list[Result | None]] = {}
        for task in self.choices():
            tried.setdefault(task.row, []).append(read(task.kept))
        whole = {row: [result for result in done if result is not None] for row, done in tried.items()}
        return {row: best(done).lr for row, done in whole.items() if len(done) == len(tried[row])}

    def _test(self, config: Config, seed: int, lr: float | None) -> Config:
        config = _with_train(config, seed=seed, lr=config.train.lr if lr is None else lr)
        return config if self.study.split == "test" else _validated(config)

    def _choice(self, config: Config, lr: float) -> Config:
        choice = self.study.choice
        config = config_of({**dotted(config), **choice.change})
        return _validated(_with_train(config, seed=choice.seed, lr=lr))

    def _task(self, row: Row, config: Config, kind: Any, name: str) -> Task:
        place = Path(self.data) / row.slug / name
        return Task(
            data=self.data,
            row=row.name,
            kind=kind,
            config=config,
            out=self.out / place,
            kept=self.results / place,
            missing=self.study.missing,
            timed=self.study.timed,
            fingerprint=self.fingerprint,
            jobs=self.jobs,
        )


def make(study: Study, data: str, base: Config, *, seeds: int, only: Sequence[str], out: Path, results: Path) -> Plan:
    """The plan of a study, before the data are looked at.

    Args:
        study: what to run.
        data: name of the data.
        base: their settings; ``train.seed`` is the first seed.
        seeds: how many, counted on from it.
        only: names of rows; empty = all.
        out: run folders go below it.
        results: results go below it.

    Raises:
        UserError: settings are not valid, or a seed is the one by which learning rates are chosen.
    """
    rows, left_out = runnable(study, data, dotted(base), only)
    if seeds > MOST or base.train.seed + seeds > 2**63:
        raise UserError(f"--seeds {seeds} from seed {base.train.seed} on; give at most {MOST}, all below 2^63")
    numbers = tuple(range(base.train.seed, base.train.seed + seeds))
    if study.choice.seed in numbers and any(row.lr for row, _ in rows):
        raise UserError(f"seed {study.choice.seed} chooses learning rates in {study.file}; give another --train.seed")
    if base.train.select != "last":
        raise UserError(f"train.select is {base.train.select}; a study tests the last epoch, set it to last")
    if study.missing:  # refused before anything is trained
        for _, config in rows:
            parse("all", config.data.modalities)
    return Plan(study, data, rows, left_out, numbers, out, results)


def best(results: Sequence[Result]) -> Result:
    """Highest validation mAP; of equal ones the lowest learning rate."""
    return min(results, key=lambda result: (-result.numbers["mAP"], result.lr))


def open_tasks(tasks: Sequence[Task]) -> list[Task]:
    """The tasks without a result, after every result and run folder that is there has been compared with its task.

    Raises:
        UserError: one was made with other settings, data or weights.
    """
    waiting = []
    for task in tasks:
        result = read(task.kept)
        check_settings_of(task.kept, task.config)
        check_settings_of(task.out, task.config)
        if result is None:
            waiting.append(task)
        elif task.fingerprint:
            check_inputs_of(result, task.fingerprint, backbone_hash(task.config))
            if task.missing and "missing" not in result.numbers and task.kind == "test":
                raise UserError(
                    f"{task.kept}: was not tested with modalities missing; remove this folder and run again"
                )
    return waiting


def estimate(tasks: Sequence[Task], results: Path) -> float | None:
    """Seconds that the tasks will take, by what finished runs of their row, else of their data, took; None = unknown.

    Evaluation and start are not counted.
    """
    known: dict[tuple[str, str | None], list[float]] = {}
    for result in read_all(results):
        seconds = result.numbers["study"]["seconds_per_epoch"]
        if seconds is not None:
            for row in (result.row, None):
                known.setdefault((result.numbers["study"]["data"], row), []).append(seconds)
    total = 0.0
    for task in tasks:
        seen = known.get((task.data, task.row)) or known.get((task.data, None))
        if seen is None and task.config.train.epochs:
            return None
        total += task.config.train.epochs * (statistics.median(seen) if seen else 0.0)
    return total


def backbone_hash(config: Config) -> str | None:
    """sha256 of the backbone's file; None where the weights are random."""
    return _hash(config.backbone.weights, config.backbone.name)


@cache
def _hash(weights: str, name: str) -> str | None:
    if weights == "random":
        return None
    from dmpt.base.files import sha256
    from dmpt.towers.hub import resolve

    return sha256(resolve(weights, name))


def _validated(config: Config) -> Config:
    """Some training identities are held out and looked at once, after the last epoch."""
    return _with_train(config, select="val", eval_every=max(1, config.train.epochs))


def _with_train(config: Config, **changes: Any) -> Config:
    return replace(config, train=replace(config.train, **changes))
