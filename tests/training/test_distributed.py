"""Several processes, several trainers, and threads: nothing is trained twice, and two processes are one."""

import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from dmpt.adapter.folder import load_card
from dmpt.base.errors import UserError
from dmpt.evaluation.evaluate import evaluate
from dmpt.training.trainer import Trainer
from runs import (
    fit,
    flags,
    log,
    processes_of,
    same_in_two_processes,
    same_state,
    same_up_to_rounding,
    settings,
    torchrun,
)


@pytest.mark.long
def test_two_processes_do_what_one_does(data: Path, tmp_path: Path) -> None:
    same_in_two_processes(settings(data, epochs=2), tmp_path, rtol=2e-3, atol=2e-5)
    one, two = (evaluate(tmp_path / name) for name in ("one", "two"))
    assert [record.name for record in one.query] == [record.name for record in two.query]
    found, expected = one.metrics.average_precision, two.metrics.average_precision
    assert found == pytest.approx(expected, abs=1e-3, nan_ok=True)


@pytest.mark.long
def test_a_run_goes_on_in_more_and_in_fewer_processes(data: Path, tmp_path: Path) -> None:
    out, flat = tmp_path / "changing", {"warmup": 0.0, "final": 1.0}  # a plan does not move its learning rate
    fit(settings(data, epochs=1, **flat), out)
    command = torchrun("train", *flags(settings(data, epochs=2, **flat)), f"--out={out}", "--resume")
    finished = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr.count("number of processes was 1, now it is 2: equal up to rounding") == 1
    assert processes_of(out) == 2
    fit(settings(data, epochs=3, **flat), out, resume=True, replan=True)
    assert [event["number of processes"] for event in load_card(out / "last").history] == [[1, 2], [2, 1]]
    fit(settings(data, epochs=3, **flat), tmp_path / "whole")
    same_up_to_rounding(tmp_path / "whole", out, rtol=2e-3, atol=2e-5)


def started(command: list[str], out: Path, steps: int) -> subprocess.Popen[str]:
    """The command, running, once the run has so many steps behind it."""
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 120
    while not (out / "metrics.jsonl").exists() or sum("losses" in line for line in log_of(out)) < steps:
        assert running.poll() is None, running.stderr and running.stderr.read()
        assert time.monotonic() < until
        time.sleep(0.02)
    return running


def log_of(out: Path) -> list[str]:
    return (out / "metrics.jsonl").read_text().splitlines()


def ranks_of(launcher: int) -> list[int]:
    """The training processes of a launcher, the first of which writes."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    found = {}
    for child in children:
        place = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        ranks = [part for part in place if part.startswith(b"RANK=")]
        if ranks:
            found[int(ranks[0].removeprefix(b"RANK="))] = int(child)
    assert sorted(found) == [0, 1]
    return [found[0], found[1]]


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_ends_the_run_which_resumes_exactly(data: Path, tmp_path: Path, rank: int) -> None:
    config = settings(data, epochs=12)
    unbroken, killed = tmp_path / "unbroken", tmp_path / "killed"
    finished = subprocess.run(torchrun("train", *flags(config), f"--out={unbroken}"), capture_output=True, timeout=300)
    assert finished.returncode == 0, finished.stderr
    command = torchrun("train", *flags(config), f"--out={killed}", "--resume")
    running = started(command, killed, steps=9)
    os.kill(ranks_of(running.pid)[rank], signal.SIGKILL)
    assert running.wait(timeout=120) != 0
    assert not same_state(killed, unbroken)
    resumed = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert resumed.returncode == 0, resumed.stderr
    assert "going on after step" in resumed.stderr
    assert processes_of(killed) == processes_of(unbroken) == 2
    assert same_state(killed, unbroken)
    assert log(killed) == log(unbroken)


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def test_torchrun_restarts_what_was_killed_and_it_goes_on_exactly(data: Path, tmp_path: Path) -> None:
    config = settings(data, epochs=12)
    unbroken, killed = tmp_path / "unbroken", tmp_path / "killed"
    finished = subprocess.run(torchrun("train", *flags(config), f"--out={unbroken}"), capture_output=True, timeout=300)
    assert finished.returncode == 0, finished.stderr
    command = torchrun("train", *flags(config), f"--out={killed}", "--resume", restarts=1)
    running = started(command, killed, steps=9)
    os.kill(ranks_of(running.pid)[1], signal.SIGKILL)
    _, said = running.communicate(timeout=300)
    assert running.returncode == 0, said
    assert "going on after step" in said
    assert same_state(killed, unbroken)


def test_a_second_trainer_of_a_folder_is_refused_from_the_first_ones_opening_on(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = Trainer(settings(data), out)
    for resume in (False, True):
        with pytest.raises(UserError, match=r"another process is training there|is in use"):
            Trainer(settings(data), out, resume)
    first.fit()
    steps = log(out)
    with pytest.raises(UserError, match="is in use"):
        Trainer(settings(data), out)
    second = Trainer(settings(data), out, resume=True)  # the first has ended
    second.fit()
    assert log(out) == steps
    with pytest.raises(UserError, match="has ended"):
        first.fit()


def test_a_trainer_that_is_closed_or_fails_to_open_lets_others_in(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    Trainer(settings(data), out).close()
    with pytest.raises(UserError, match="cannot resume"):
        Trainer(settings(data, lr=0.5), out, resume=True)
    fit(settings(data), out, resume=True)
    assert json.loads((out / "last" / "config.json").read_text())["metrics"]["step"] > 0


def test_a_trainer_is_opened_in_one_thread_and_trains_in_another(data: Path, tmp_path: Path) -> None:
    opened = Trainer(settings(data), tmp_path / "run")
    thread = threading.Thread(target=opened.fit)
    thread.start()
    thread.join(timeout=120)
    assert not thread.is_alive()
    Trainer(settings(data), tmp_path / "run", resume=True).close()  # the folder is free


def test_it_trains_outside_the_main_thread(data: Path, tmp_path: Path) -> None:
    """As in a notebook's helper, an HTTP worker, or a trial of Ray."""
    failed: list[BaseException] = []

    def work() -> None:
        try:
            fit(settings(data), tmp_path / "thread")
        except BaseException as error:
            failed.append(error)

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(timeout=120)
    assert not thread.is_alive()
    assert failed == []
    assert signal.getsignal(signal.SIGINT) is before
    fit(settings(data), tmp_path / "main")
    assert same_state(tmp_path / "thread", tmp_path / "main")
