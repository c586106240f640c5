"""Runs in processes of their own, some at a time, and one board that shows them all."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
import yaml
from rich.progress import TaskID

from dmpt.base.errors import UserError
from dmpt.base.files import write_text
from dmpt.base.terminal import bar, console
from dmpt.settings.values import dotted, nest
from dmpt.study.one_run import settings_file
from dmpt.study.plan import Task
from dmpt.study.results import Result
from dmpt.training.log import LOG

_POLL = 0.5
_TAIL = 4096
_KILLED = ", mostly for want of memory: give fewer --jobs, or less in a batch"
_GPUS = "CUDA_VISIBLE_DEVICES"
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_RUN = "import sys; sys.path[:] = filter(None, sys.path); from dmpt.study.one_run import main; main()"
"""Not with -m, which would also look for modules where the user happens to be."""


class Process(Protocol):
    """What the board needs of a running task; ``subprocess.Popen`` has it."""

    def poll(self) -> int | None:
        """Exit code; None while it runs."""

    def send_signal(self, sig: int, /) -> None:
        """Interrupt it."""

    def wait(self) -> int:
        """Exit code, when it has ended."""


Launch = Callable[[Task], Process]
_Finish = Callable[[Task], Result]


def log_of(task: Task) -> Path:
    """What the run says."""
    return task.out.with_name(f"{task.out.name}.log")


def launch(task: Task) -> "subprocess.Popen[bytes]":
    """Start a run. What the terminal signals reaches this process alone, which passes it on."""
    write_text(settings_file(task.out), yaml.safe_dump(nest(dotted(task.config)), sort_keys=False))
    threads = max(1, (os.cpu_count() or 1) // task.jobs)
    # One of them set by the user means that number for all: torch would take the larger.
    asked = next((os.environ[name] for name in _THREADS if name in os.environ), str(threads))
    environment = dict.fromkeys(_THREADS, asked) | os.environ
    if task.gpu is not None:
        environment[_GPUS] = task.gpu
    with log_of(task).open("a", encoding="utf-8") as log:
        return subprocess.Popen(
            [sys.executable, "-c", _RUN, str(task.out), str(os.getpid()), task.tested, *["missing"] * task.missing],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )


def _gpus() -> list[str]:
    """The GPUs that runs can be spread over, as the environment names them."""
    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get(_GPUS, "").split(",") if name.strip()]
    return named[:count] or [str(number) for number in range(count)]


def execute(
    tasks: Sequence[Task], jobs: int, what: str, launch: Launch, finish: _Finish, there: int, total: int
) -> list[str]:
    """Run the tasks, each on the GPU that has fewest; a failure does not keep the others from running.

    Args:
        tasks: in this order.
        jobs: processes at most.
        what: these runs are, for the board.
        launch: how a task is started.
        finish: keeps the result of a task that has ended well.
        there: runs of the same study that come before these.
        total: of the study.

    Returns:
        A line for each failure.

    Raises:
        KeyboardInterrupt: after every running task has saved and ended.
    """
    waiting, running, failures = list(tasks), dict[TaskID, tuple[Task, Process]](), list[str]()
    known = _gpus()
    with bar() as board:
        overall = board.add_task(what, completed=there, total=total, note="")
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    busy = Counter(task.gpu for task, _ in running.values())
                    task = replace(waiting.pop(0), gpu=min(known, key=busy.__getitem__, default=None))
                    row = board.add_task(f"  {_name(task)}", total=max(1, task.config.train.epochs), note="")
                    running[row] = task, launch(task)
                for row, (task, process) in list(running.items()):
                    code = process.poll()
                    epoch, note = _standing(task)
                    board.update(row, completed=epoch, note=note)
                    if code is None:
                        continue
                    del running[row]
                    board.remove_task(row)
                    board.advance(overall)
                    done = there + len(tasks) - len(waiting) - len(running)
                    code, said = _ended(task, code, finish)
                    console.print(f"{done} of {total}: {_name(task)}: {said}")
                    if code:
                        failures.append(f"{_name(task)}: {said}")
                if running:
                    time.sleep(_POLL)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                console.print("stopping: each run saves first; the same command goes on later")
            for _, process in running.values():
                process.send_signal(signal.SIGTERM)  # Ctrl-C may be ignored here, in the background, and so there
            for _, process in running.values():
                process.wait()
            raise
    return failures


def _name(task: Task) -> str:
    return f"{task.data}, {task.row}, {task.place.name.replace('-', ' ', 1)}"


def _standing(task: Task) -> tuple[int, str]:
    """Epochs done and the last loss, from the end of the run's log."""
    try:
        with (task.out / LOG).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return 0, "starting"
    for line in reversed(lines):
        try:
            content = json.loads(line)
        except ValueError:
            continue  # cut off, or being written
        if "loss" in content:
            return int(content["epoch"]), f"step {content['step']}, loss {content['loss']:.3f}"
    return 0, "starting"


def _ended(task: Task, code: int, finish: _Finish) -> tuple[int, str]:
    """Its exit code, not 0 where nothing is kept, and what became of it: its numbers, or the last line it said."""
    if code == 0:
        try:
            result = finish(task)
        except UserError as error:
            return 2, f"error: {error}"
        if result.diverged:
            return 0, f"diverged: {result.numbers['diverged']}"
        seconds = result.study["seconds_per_epoch"]
        time_said = "" if seconds is None else f", {seconds:.1f} s per epoch"
        return 0, f"mAP {result.numbers['mAP']:.1f}, rank-1 {result.numbers['rank1']:.1f}{time_said}"
    try:
        lines = log_of(task).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        lines = []
    if code < 0:  # it had no time to say why
        said = f"killed by signal {-code}{_KILLED if code == -signal.SIGKILL else ''}"
    else:
        said = lines[-1] if lines else f"ended with exit code {code}"
    return code, f"{said} ({log_of(task)})"
