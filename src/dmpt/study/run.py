"""``dmpt study NAME``: run what is missing, then write the tables."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from dmpt.base.errors import UserError
from dmpt.base.terminal import console
from dmpt.settings.config import Config
from dmpt.settings.saved import CONFIG, read_settings
from dmpt.settings.values import difference
from dmpt.study import board
from dmpt.study.data import Data, World
from dmpt.study.definition import EQUAL, RANK, Study
from dmpt.study.one_run import found_in
from dmpt.study.plan import Plan, Task, estimate, hashes, make
from dmpt.study.results import ENDING, Kept, Result, content_of, keep, read, settings_to_keep
from dmpt.study.table import grid_lines, write


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
    tested: Path | None = None,
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
        tested: folder of other data, whose test split is tested.
        launch: how a run is started.

    Returns:
        The table.

    Raises:
        UserError: settings, data or folders are not as they must be, or runs failed.
    """
    options: dict[str, Any] = {"seeds": seeds or study.seeds, "only": rows, "out": out}
    make(study, data.name, base, **options)  # settings are refused before a world is rendered
    base = _with_data(data, base, tested)
    elsewhere = str(tested.absolute()) if tested else "" if data.tested is None else _drawn(data.tested)
    plan = replace(make(study, data.name, base, **options), tested=elsewhere)
    backbones = hashes(config for _, config in plan.rows)  # and before a run is started, that the weights are there
    plan = replace(plan, backbones=backbones, fingerprint=_fingerprint(base, elsewhere), jobs=jobs)
    for line in plan.left_out:
        console.print(f"left out: {line}")
    place = _Place(study, results, data.name)
    for task in [*plan.trials, *plan.tests(plan.chosen(place.own))]:
        if task.find(place.own) is None:
            _check_folder(task)
    place.ask(plan, base)
    there = sum(task.find(place.own) is not None for task in plan.tests(plan.chosen(place.own)))
    failures = _run(plan, place, plan.trials, there, "trying learning rates", launch)
    for line in grid_lines(plan, place.own):
        console.print(line)
    tests = plan.tests(plan.chosen(place.own))
    failures += _run(plan, place, tests, len(plan.trials), study.name, launch)
    ended = [(task, task.find(place.own)) for task in tests]
    failures += [f"{task.place.as_posix()}: {r.numbers['diverged']}" for task, r in ended if r and r.diverged]
    if failures:
        with suppress(UserError):  # when none is there
            write(study, results)
        raise UserError(f"{len(failures)} of the runs failed, the others are kept; the first: {failures[0]}")
    return write(study, results)


def dry_run(plan: Plan, results: Path) -> list[str]:
    """What there is to do, a line per run, and how long it may take. Data and weights are not looked at."""
    place = _Place(plan.study, results, plan.data)
    there = [*place.own, *place.others]
    chosen = plan.chosen(there)
    tasks = [*plan.trials, *plan.tests(chosen)]
    found = [(task.find(place.own), task.find(place.others)) for task in tasks]
    states = ["done  " if own else "taken " if other else "to run" for own, other in found]
    pending = [row.name for row, _ in plan.rows if row.lr and row.name not in chosen]
    lines = [f"{state}  {task.place.as_posix()}" for state, task in zip(states, tasks, strict=True)]
    lines += [
        f"to run  {plan.data}, {name}, seed {seed}, once its learning rate is chosen"
        for name in pending
        for seed in plan.seeds
    ]
    later = [task for task in plan.tests(dict.fromkeys(pending, 1.0)) if task.row in pending]
    waiting = [task for task, state in zip(tasks, states, strict=True) if state == "to run"] + later
    seconds = estimate(waiting, there)
    cost = "no run has finished yet, so nothing is known of the time"
    if seconds is not None:
        cost = f"about {seconds / 3600:.2f} hours one after the other, by the runs that are there, without evaluation"
    if "taken " in states:
        lines.append("taken: over from another study, where data and weights are the same")
    return [*lines, *(f"left out: {line}" for line in plan.left_out), f"{len(waiting)} runs; {cost}"]


class _Place:
    """Where a study keeps what it finds on some data (``own``), and what there is beside it (``others``)."""

    def __init__(self, study: Study, results: Path, data: str):
        self.path = results / f"{data}{ENDING}"
        self.own = read(self.path).results
        # Other studies' runs shared the machine otherwise.
        beside = [] if study.timed else sorted(results.parent.glob(f"*/{data}{ENDING}"))
        self.others = [
            result.as_of(taken_from="/".join([path.parent.name, data, *result.place]))
            for path in beside
            if path != self.path
            for result in read(path).results
        ]

    def ask(self, plan: Plan, base: Config) -> None:
        """Say in the file what its table is to show."""
        before, now = read(self.path), settings_to_keep(base)
        differs = difference(content_of(before.base), content_of(now)) if before.base else {}
        for key, (was, is_now) in differs.items():
            console.print(
                f"{self.path}: {key} was {was}, now it is {is_now}; what was found with the former stays there"
            )
        ranks = {row.name: c.lora.rank for row, c in plan.rows if row.changes(plan.data).get(RANK) == EQUAL}
        known = Kept() if differs else before
        backbones, ranks = {**known.backbones, **plan.backbones}, {**known.ranks, **ranks}
        self.own = keep(self.path, base=now, data=plan.fingerprint, backbones=backbones, ranks=ranks).results

    def take(self, tasks: Sequence[Task]) -> list[Task]:
        """Keep what was found elsewhere, under the names that it has here; returns the tasks that are left."""
        found = [(task, task.find(self.others)) for task in tasks if task.find(self.own) is None]
        self._add([_named(result, task) for task, result in found if result is not None])
        left: list[Task] = []
        for task in (task for task, result in found if result is None):
            if not any(task.same_run(other) for other in left):  # of two rows
                left.append(task)
        return left

    def finish(self, task: Task) -> Result:
        """Keep what a run has found."""
        numbers, per_query = found_in(task.out)
        numbers["study"] |= {"jobs": task.jobs, "data_fingerprint": task.fingerprint}
        result = _named(Result(settings_to_keep(task.config), numbers, per_query), task)
        self._add([result])
        return result

    def _add(self, found: Sequence[Result]) -> None:
        if found:
            self.own = keep(self.path, found).results


def _named(result: Result, task: Task) -> Result:
    return result.as_of(data=task.data, row=task.row, kind=task.split)


def _run(plan: Plan, place: _Place, tasks: Sequence[Task], before: int, what: str, launch: board.Launch) -> list[str]:
    """Run what is missing of these tasks; the board counts ``before`` other runs of the study as there, too."""
    waiting = place.take(tasks)
    there = len(tasks) - len(waiting)
    if tasks:
        console.print(f"{what}: {there} of {len(tasks)} runs are there")
    total = len(plan.trials) + len(plan.rows) * len(plan.seeds)
    return board.execute(waiting, plan.jobs, what, launch, place.finish, before + there, total) if waiting else []


def _check_folder(task: Task) -> None:
    """Refuse to go on with a run of other settings.

    Raises:
        UserError: names the first that differs.
    """
    if not (task.out / CONFIG).is_file():
        return
    began = content_of(read_settings(task.out))
    measured = {key for key, value in task.content.items() if value == "auto"}  # what was measured stands there by now
    for key, (was, now) in difference(began, task.content, measured).items():
        raise UserError(
            f"{task.out}: {key} was {was}, now it is {now}; go on with what it began with, give another --out, or "
            "remove this folder"
        )


def _with_data(data: Data, base: Config, tested: Path | None = None) -> Config:
    """The base with its data set in place: rendered where it is a world, else given."""
    if data.world is not None and base.data.root is None:
        base = replace(base, data=replace(base.data, root=_drawn(data.world)))
    lacking = {
        "data.root": base.data.root is None,
        "backbone.weights": base.backbone.weights == "hub",
        "tested": tested is None,
    }
    for setting in data.asks:
        if lacking.get(setting):
            raise UserError(f"{data.name} is your own: give --{setting}")
    return base


def _drawn(world: World) -> str:
    """The folder of a drawn world."""
    from dmpt.synthetic.cached import world as cached

    return str(cached(**vars(world)))


def _fingerprint(base: Config, tested: str = "") -> str:
    """Of all splits; where other data are ``tested``, of what is trained on and of theirs."""
    from dmpt.data.layouts import load_dataset
    from dmpt.data.records import fingerprint

    assert base.data.root is not None
    found = load_dataset(base.data.layout, base.data.root, base.data)
    test = load_dataset(base.data.layout, tested, base.data) if tested else found
    both = test.query if test.query is test.gallery else [*test.query, *test.gallery]
    return fingerprint([*found.train, *both])
