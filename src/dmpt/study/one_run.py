"""One run of a study, in a process of its own: ``python -m dmpt.study.one_run``, its task on standard input."""

import json
import os
import signal
import statistics
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dmpt.base.errors import Diverged, UserError
from dmpt.base.stopping import Interrupted, stoppable
from dmpt.settings.config import Config
from dmpt.settings.values import from_dict
from dmpt.training.log import read_log

if TYPE_CHECKING:
    from dmpt.training.trainer import Trainer

PATIENCE = 60.0
"""Seconds in which a run whose study is gone should have saved; then it is interrupted again, which ends it unsaved."""


@dataclass(frozen=True)
class Task:
    """What a run is to do.

    Attributes:
        data: name of the data.
        row: name of the row.
        kind: ``choice``: of a learning rate; of the table, ``test`` or ``validation``. Choice and validation hold out
            training identities and do not read the test split.
        config: its settings.
        out: its run folder.
        kept: where its result goes.
        missing: whether it is also tested with modalities missing.
        timed: whether its time is what the study is about, so that another study's run is no substitute.
        fingerprint: of all the data, all splits.
        jobs: how many runs share the machine.
        gpu: the one that it is to see, as ``CUDA_VISIBLE_DEVICES`` names it; None = there is no choice.
        parent: process that waits for it; None = none does.
    """

    data: str
    row: str
    kind: Literal["choice", "test", "validation"]
    config: Config
    out: Path
    kept: Path
    missing: bool = False
    timed: bool = False
    fingerprint: str = ""
    jobs: int = 1
    gpu: str | None = None
    parent: int | None = None

    def to_json(self) -> str:
        """For another process."""
        return json.dumps({**asdict(self), "out": str(self.out), "kept": str(self.kept)})

    @classmethod
    def from_json(cls, text: str) -> "Task":
        """The task of ``to_json``."""
        content = json.loads(text)
        content |= {"config": from_dict(content["config"]), "out": Path(content["out"]), "kept": Path(content["kept"])}
        return cls(**content)


def work(task: Task) -> None:
    """Train, going on where an earlier attempt was stopped; evaluate; keep the result.

    Raises:
        UserError: as ``dmpt train`` and ``dmpt evaluate``.
    """
    from dmpt.evaluation.evaluate import PRIVATE
    from dmpt.retrieval.metrics import MEASURES
    from dmpt.study.results import keep
    from dmpt.training.trainer import Trainer

    trainer = Trainer(task.config, task.out, resume=True)
    lost = None
    try:
        trainer.fit()
    except Diverged as error:
        if task.kind != "choice":
            raise
        lost = str(error)  # against the other learning rates; it need not be tried again
    log = read_log(task.out)
    if lost is None:
        numbers, per_query, where = _measure(task, trainer)
    else:
        numbers, per_query = {**dict.fromkeys(MEASURES, 0.0), "diverged": lost}, {"pids": [], "average_precision": []}
        where = _origin(task, trainer)
    peaks = [line["peak_memory_bytes"] for line in log if line.get("peak_memory_bytes")]  # Windows tells none
    seconds = [line["epoch_seconds"] for line in log if "epoch_seconds" in line]
    trained = trainer.network.trained_count if task.config.train.epochs else 0
    study = {
        "data": task.data,
        "row": task.row,
        "kind": task.kind,
        "trained": trained,
        "seconds_per_epoch": statistics.median(seconds) if seconds else None,
        "seconds_per_step": min((line["step_seconds"] for line in log if "step_seconds" in line), default=None),
        "peak_memory_bytes": max(peaks, default=None),
        "jobs": task.jobs,
        "data_fingerprint": task.fingerprint,
        "backbone_sha256": trainer.model.tower.sha256,
    }
    where = {key: value for key, value in where.items() if key not in PRIVATE}
    keep(task.kept, trainer.config, {**numbers, "study": study, "provenance": where}, per_query)


def _measure(task: Task, trainer: "Trainer") -> tuple[dict[str, Any], dict[str, list[Any]], dict[str, Any]]:
    """The numbers of a trained run, those of each query, and where they come from."""
    from dmpt.data.records import labels_of
    from dmpt.evaluation.evaluate import by_query, evaluate
    from dmpt.evaluation.opened import Conditions

    if task.kind != "test":
        assert trainer.data.evaluated is not None
        found = trainer.validated or trainer.validate()  # a finished run that is opened again has not looked yet
        return found.to_dict(), by_query(found, labels_of(trainer.data.evaluated[0])), _origin(task, trainer)
    root = {"root": task.config.data.root}
    evaluation = evaluate(task.out, Conditions(root), without="all" if task.missing else None)
    evaluation.save()
    numbers = evaluation.to_dict()
    return numbers, by_query(evaluation.metrics, evaluation.seen.query_labels), numbers.pop("provenance")


def _origin(task: Task, trainer: "Trainer") -> dict[str, Any]:
    """Where numbers on validation identities come from."""
    from dmpt.base.environment import environment

    return {"step": trainer.progress.step, "seed": task.config.train.seed, **environment()}


def _stop_with(parent: int) -> None:
    """Save and leave when the process that started this one is gone, however and however early it went.

    Raises:
        Interrupted: it is gone already.
    """
    if os.getppid() != parent:
        raise Interrupted(signal.SIGTERM)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        while True:  # what is being imported or freed just then may swallow one
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(PATIENCE)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    """Run the task on standard input; exit code 2 with one line for what the user can mend, 143 when stopped."""
    task = Task.from_json(sys.stdin.read())
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the study's way to stop it, whatever the study was started with
    try:
        with stoppable():
            if task.parent is not None:
                _stop_with(task.parent)
            work(task)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from None
    except Interrupted as error:
        raise SystemExit(128 + error.number) from None


if __name__ == "__main__":
    main()
