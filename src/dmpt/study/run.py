"""``dmpt study NAME``: run what is missing, then write the tables."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from dmpt.base.errors import UserError
from dmpt.base.terminal import console
from dmpt.settings.config import Config
from dmpt.study import board
from dmpt.study.data import Data
from dmpt.study.definition import Study
from dmpt.study.one_run import Task
from dmpt.study.plan import Plan, backbone_hash, estimate, make, open_tasks
from dmpt.study.results import read, read_all
from dmpt.study.table import grid_lines, write
from dmpt.study.twins import take_over, with_twins


def study(
    study: Study,
    data: Data,
    base: Config,
    *,
    out: Path,
    results: Path,
    seeds: int | None = None,
    rows: Sequence[str] = (),
    jobs: int = 1,
    launch: board.Launch = board.launch,
) -> Path:
    """Run what is missing and write table, plot and provenance.

    Args:
        study: what to run.
        data: what it runs on.
        base: the data's settings, as the user changed them.
        out: run folders go below it.
        results: results and tables go below it.
        seeds: training seeds; None = the study's number.
        rows: names of rows to run; empty = all.
        jobs: processes at most.
        launch: how a run is started.

    Returns:
        The table.

    Raises:
        UserError: settings, data or folders are not as they must be, or runs failed.
    """

    def planned(base: Config) -> Plan:
        return make(study, data.name, base, seeds=seeds or study.seeds, only=rows, out=out, results=results)

    planned(base)  # settings are refused before a world is rendered
    base = _with_data(data, base)
    backbone_hash(base)  # and before a run is started, that the weights are there
    plan = replace(planned(base), fingerprint=_fingerprint(base), jobs=jobs)
    for line in plan.left_out:
        console.print(f"left out: {line}")
    tested = sum(read(task.kept) is not None for task in plan.tests(plan.chosen()))
    failures = _run(plan, plan.choices(), tested, "choosing learning rates", launch)
    chosen = plan.chosen()
    for line in grid_lines(study, plan.data, read_all(plan.results / plan.data)):
        console.print(line)
    failures += _run(plan, plan.tests(chosen), len(plan.choices()), study.name, launch)
    if failures:
        with suppress(UserError):  # when none is there
            write(study, results)
        raise UserError(f"{len(failures)} of the runs failed, the others are kept; the first: {failures[0]}")
    return write(study, results)


def dry_run(plan: Plan) -> list[str]:
    """What there is to do, a line per run, and how long it may take. Data and weights are not looked at.

    Raises:
        UserError: a result or run folder was made with other settings.
    """
    chosen = plan.chosen()
    tasks = [*plan.choices(), *plan.tests(chosen)]
    waiting = open_tasks(tasks)
    taken = with_twins(waiting, plan.results.parent)
    waiting = [task for task in waiting if task not in taken]
    pending = [row.name for row, _ in plan.rows if row.lr and row.name not in chosen]
    states = ["to run" if task in waiting else "taken " if task in taken else "done  " for task in tasks]
    lines = [f"{state}  {task.kept.relative_to(plan.results)}" for state, task in zip(states, tasks, strict=True)]
    lines += [
        f"to run  {plan.data}, {name}, seed {seed}, once its learning rate is chosen"
        for name in pending
        for seed in plan.seeds
    ]
    later = [task for task in plan.tests(dict.fromkeys(pending, 1.0)) if task.row in pending]
    seconds = estimate([*waiting, *later], plan.results.parent)
    cost = "no run has finished yet, so nothing is known of the time"
    if seconds is not None:
        cost = f"about {seconds / 3600:.2f} hours one after the other, by the runs that are there, without evaluation"
    if taken:
        lines.append("taken: over from another study, where data and weights are the same")
    return [*lines, *(f"left out: {line}" for line in plan.left_out), f"{len(waiting) + len(later)} runs; {cost}"]


def _run(plan: Plan, tasks: Sequence[Task], before: int, what: str, launch: board.Launch) -> list[str]:
    """Run what is missing of these tasks; the board counts ``before`` other runs of the study as there, too."""
    waiting = take_over(open_tasks(tasks), plan.results.parent)
    there = len(tasks) - len(waiting)
    if tasks:
        console.print(f"{what}: {there} of {len(tasks)} runs are there")
    total = len(plan.choices()) + len(plan.rows) * len(plan.seeds)
    return board.execute(waiting, plan.jobs, what, launch, before + there, total) if waiting else []


def _with_data(data: Data, base: Config) -> Config:
    """The base with its data set in place: rendered where it is a world, else given."""
    if data.world is not None and base.data.root is None:
        from dmpt.synthetic.cached import world

        base = replace(base, data=replace(base.data, root=str(world(**data.world))))
    lacking = {"data.root": base.data.root is None, "backbone.weights": base.backbone.weights == "hub"}
    for setting in data.asks:
        if lacking.get(setting):
            raise UserError(f"{data.name} is your own: give --{setting}")
    return base


def _fingerprint(base: Config) -> str:
    """Of all splits."""
    from dmpt.data.layouts import load_dataset
    from dmpt.data.records import fingerprint

    assert base.data.root is not None
    found = load_dataset(base.data.layout, base.data.root, base.data)
    both = found.query if found.query is found.gallery else [*found.query, *found.gallery]
    return fingerprint([*found.train, *both])
