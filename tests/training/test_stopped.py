"""Training that is told to end: it has saved, says so, and goes on to the same end."""

import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dmpt.base.stopping import SIGNALS
from dmpt.settings.config import Config
from runs import dmpt, fit, flags, log, same_state, settings, torchrun, toy, with_

pytestmark = [pytest.mark.long, pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    data = toy(tmp_path_factory.mktemp("data"))
    return with_(settings(data, epochs=30, save_every=1000), data={"workers": 2})


@pytest.fixture(scope="module")
def whole(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    fit(config, out)
    return out


def begun(out: Path) -> bool:
    """Whether the run has a few steps behind it, of some hundred."""
    return (out / "metrics.jsonl").exists() and (out / "metrics.jsonl").read_text().count("\n") >= 3


def heeding() -> None:
    """In a new process: a shell starts background jobs with Ctrl-C ignored, and they hand that on."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def told(command: list[str], out: Path, number: signal.Signals, everyone: bool) -> tuple[int, str]:
    """Exit code of a command that is told to end in the middle, and what it said."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=heeding)
    until = time.monotonic() + 120
    while not begun(out):
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < until
        time.sleep(0.02)
    (os.killpg if everyone else os.kill)(process.pid, number)
    _, said = process.communicate(timeout=120)
    with pytest.raises(ProcessLookupError):  # nor is a loader process left
        os.killpg(process.pid, 0)
    return process.returncode, said


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_saves_and_the_run_goes_on(
    config: Config, whole: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """The terminal tells the loader processes too."""
    out = tmp_path / "run"
    command = ["train", *flags(config), f"--out={out}"]
    code, said = told([sys.executable, "-m", "dmpt", *command], out, number, everyone=True)
    assert code == 128 + number
    assert said.splitlines()[-1].endswith("saved; go on with the same command and --resume")
    assert "Traceback" not in said
    assert not same_state(out, whole)
    again = dmpt(*command, "--resume")
    assert again.returncode == 0, again.stderr
    assert same_state(out, whole)
    assert log(out) == log(whole)


def test_a_terminal_that_closes_saves(config: Config, whole: Path, tmp_path: Path) -> None:
    """Nobody can be told so any more, and the bar cannot be drawn."""
    out = tmp_path / "run"
    command = ["train", *flags(config), f"--out={out}"]
    pid, terminal = pty.fork()
    if pid == 0:
        heeding()
        os.execv(sys.executable, [sys.executable, "-m", "dmpt", *command])
    until = time.monotonic() + 120
    while not begun(out) and time.monotonic() < until:
        if select.select([terminal], [], [], 0.02)[0]:
            os.read(terminal, 1 << 16)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 128 + signal.SIGHUP
    again = dmpt(*command, "--resume")
    assert "going on after step" in again.stderr
    assert same_state(out, whole)


@pytest.mark.parametrize(("number", "everyone"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_all_processes_stop_after_the_same_step(
    config: Config, tmp_path: Path, number: signal.Signals, everyone: bool
) -> None:
    """A terminal tells everyone, and torchrun passes on what it is told."""
    config = with_(config, train={"epochs": 12}, data={"workers": 0})
    subprocess.run(torchrun("train", *flags(config), f"--out={tmp_path / 'whole'}"), timeout=300, check=True)
    out = tmp_path / "run"
    command = torchrun("train", *flags(config), f"--out={out}", "--resume")
    code, said = told(command, out, number, everyone)
    assert code != 0
    assert said.count("saved; go on with the same command and --resume") == 1, said
    assert not same_state(out, tmp_path / "whole")
    again = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert "going on after step" in again.stderr
    assert same_state(out, tmp_path / "whole")
