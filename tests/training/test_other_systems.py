"""Machines that know less: no locks, nothing of POSIX."""

import errno
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from runs import fit, flags, log, settings

WINDOWS = """
import json, os, signal, sys
for name in ("resource", "fcntl", "pwd", "grp", "termios", "tty", "pty"):
    sys.modules[name] = None
for module, names in (
    (signal, ("SIGHUP", "SIGKILL", "SIGALRM", "SIGUSR1", "pthread_sigmask", "setitimer")),
    (os, ("fork", "getuid", "geteuid", "fchmod", "chown", "killpg", "setsid", "sched_getaffinity", "statvfs")),
):
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
from dmpt.cli import VERBS, _verb, main
for verb in VERBS:
    _verb(verb)
for arguments in json.loads(sys.argv[1]):
    main(arguments)
"""
"""The command line where what only POSIX has is missing: all that can be tried of Windows on another system."""


def test_training_and_evaluation_need_nothing_that_only_posix_has(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    commands = json.dumps([["train", *flags(settings(data, epochs=1)), f"--out={out}"], ["evaluate", str(out)]])
    done = subprocess.run([sys.executable, "-c", WINDOWS, commands], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (out / "metrics.json").exists()
    epochs = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines() if "epoch_seconds" in line]
    assert [line["peak_memory_bytes"] for line in epochs] == [None]


def test_a_run_where_there_are_no_locks_says_so_once(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def unknown(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unknown)
    fit(settings(data, epochs=1), tmp_path / "run")
    assert capfd.readouterr().err.count("where there are no locks: a second run in it would go unnoticed") == 1
    assert log(tmp_path / "run")
