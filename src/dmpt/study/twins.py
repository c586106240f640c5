"""The base of most studies is one and the same run: what another study has made is taken over, not run again."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dmpt.base.files import write_text
from dmpt.data.records import same_data
from dmpt.settings.saved import CONFIG
from dmpt.settings.values import dotted
from dmpt.study.one_run import Task
from dmpt.study.plan import backbone_hash
from dmpt.study.results import METRICS, QUERIES, Result, difference, read_all


def take_over(tasks: Sequence[Task], results: Path) -> list[Task]:
    """Keep for a task what another study found with the same settings, data and weights.

    Args:
        tasks: without a result.
        results: of all studies, a folder each.

    Returns:
        The tasks that are left.
    """
    left = []
    for task, twin in _pairs(tasks, results):
        if twin is None:
            left.append(task)
        else:
            _copy(twin, task, results)
    return left


def with_twins(tasks: Sequence[Task], results: Path) -> list[Task]:
    """Those of the tasks that ``take_over`` would find; where data were not looked at, by their settings alone."""
    return [task for task, twin in _pairs(tasks, results) if twin is not None]


def _pairs(tasks: Sequence[Task], results: Path) -> list[tuple[Task, Result | None]]:
    """Each task, and what another study has of it."""
    if not tasks:
        return []
    found = [result for folder in sorted(results.glob("*")) if folder.is_dir() for result in read_all(folder)]
    return [(task, next((result for result in found if _same(result, task)), None)) for task in tasks]


def _same(result: Result, task: Task) -> bool:
    said = result.numbers["study"]
    return (
        not task.timed
        and (said["kind"], said["data"]) == (task.kind, task.data)
        and (not task.fingerprint or _same_inputs(said, task))
        and ("missing" in result.numbers or not task.missing or task.kind == "choice")
        and difference(result.config, dotted(task.config)) is None
    )


def _same_inputs(said: Mapping[str, Any], task: Task) -> bool:
    weights = backbone_hash(task.config)
    return same_data(said["data_fingerprint"], task.fingerprint) and weights in (None, said["backbone_sha256"])


def _copy(twin: Result, task: Task, results: Path) -> None:
    """The files of a result under another row's name; ``metrics.json`` comes last, as always."""
    for name in (CONFIG, QUERIES):
        write_text(task.kept / name, (twin.folder / name).read_text(encoding="utf-8"))
    study = {**twin.numbers["study"], "data": task.data, "row": task.row}
    study["taken_from"] = twin.folder.relative_to(results).as_posix()
    write_text(task.kept / METRICS, json.dumps({**twin.numbers, "study": study}, indent=1) + "\n")
