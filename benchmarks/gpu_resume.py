"""The part of ``gpu.py`` that kills training in its middle, resumes it, and compares bit for bit."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from dmpt.adapter.folder import metadata_of
from gpu_bench import BATCH, Bench
from models import Precision

DETERMINISTIC = """
import torch
from dmpt.cli import main
torch.use_deterministic_algorithms(True, warn_only=True)
main()
"""
WORKSPACE = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
RUNGS: dict[str, tuple[Mapping[str, str], tuple[str, ...]]] = {
    "as it is": ({}, ("-m", "dmpt")),
    "CUBLAS_WORKSPACE_CONFIG=:4096:8": (WORKSPACE, ("-m", "dmpt")),
    "the same and torch.use_deterministic_algorithms": (WORKSPACE, ("-c", DETERMINISTIC)),
}
"""What is tried, one after the other, until two unbroken runs give the same bits: environment, and how dmpt starts."""


def resume(bench: Bench) -> None:
    """Two unbroken runs of configs/tiny.yaml, and one that is killed in its middle and resumed."""
    left: list[Precision] = ["fp32"] if bench.device == "cpu" else ["fp16", "fp32"]
    bench.world("person")
    for rung in RUNGS:
        tried = climb(bench, rung, left)
        for precision, one in tried.items():
            assert 0 < one["killed after step"] < one["steps"]
            bench.found.setdefault(precision, {})[rung] = one
            print(
                f"{precision}, {rung}: of {one['tensors']} tensors two unbroken runs differ in {one['unbroken differ']}"
                f", killed after step {one['killed after step']} of {one['steps']} and resumed in {one['differ']}"
            )
            for line in one["not deterministic"]:
                print(f"  {line}")
        exact = [precision for precision in left if not tried[precision]["unbroken differ"]]
        for precision in exact:
            bench.must(f"resumed_differs_{precision}", tried[precision]["differ"], 0)
        left = [precision for precision in left if precision not in exact]
        if not left:
            return
    bench.broken += [f"two unbroken runs differ in {precision} whatever is set" for precision in left]


def climb(bench: Bench, rung: str, precisions: list[Precision]) -> dict[Precision, dict[str, Any]]:
    """Run the three of each precision beside each other, resume the killed ones, and compare."""
    outs = {
        (precision, kind): bench.scratch / f"resume-{precision}-{list(RUNGS).index(rung)}-{kind}"
        for precision in precisions
        for kind in ("one", "other", "killed")
    }
    with children() as start:
        running = {key: start(*child(bench, rung, out, key[0])) for key, out in outs.items()}
        while any(process.poll() is None for process in running.values()):
            for (precision, kind), process in running.items():
                if kind == "killed" and (outs[precision, kind] / "state.safetensors").exists():
                    process.kill()  # on some step behind the first that was saved
            time.sleep(0.005)
        for key, process in running.items():
            ended(process, outs[key], -9 if key[1] == "killed" else 0)
        after = {precision: saved_step(outs[precision, "killed"]) for precision in precisions}
        again = {p: start(*child(bench, rung, outs[p, "killed"], p, resumed=True)) for p in precisions}
        for precision, process in again.items():
            process.wait()
            ended(process, outs[precision, "killed"], 0)
    return {
        p: {"killed after step": after[p], **compared(*(outs[p, kind] for kind in ("one", "other", "killed")))}
        for p in precisions
    }


def saved_step(out: Path) -> int:
    """How far a run had come when it saved its state."""
    return int(json.loads(metadata_of(out / "state.safetensors")["progress"])["step"])


def child(
    bench: Bench, rung: str, out: Path, precision: Precision, resumed: bool = False
) -> tuple[list[str], dict[str, str], Path]:
    """Command, environment and log of a run."""
    environment, how = RUNGS[rung]
    settings: dict[str, Any] = {
        "data.root": bench.world("person"),
        "data.workers": 0 if bench.smoke else 2,
        "train.precision": precision,
        "train.epochs": 3 if bench.smoke else 10,  # of 4 batches each
        "train.save_every": 2,
        **BATCH,
    }
    if bench.smoke:
        settings |= {"backbone.blocks": 2, "data.size": [64, 32]}
    flags = [f"--{key}={value}" for key, value in settings.items()]
    command = [sys.executable, *how, "train", "--config", "tiny", f"--out={out}", *flags]
    return command + ["--resume"] * resumed, dict(environment), out.with_suffix(".resumed" if resumed else ".log")


@contextmanager
def children() -> Iterator[Any]:
    """Starts processes; none outlives the block."""
    started: list[subprocess.Popen[bytes]] = []

    def start(command: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
        with log.open("wb") as file:
            started.append(subprocess.Popen(command, env=os.environ | environment, stdout=file, stderr=file))
        return started[-1]

    try:
        yield start
    finally:
        for process in started:
            process.kill()
            process.wait()


def ended(process: "subprocess.Popen[bytes]", out: Path, code: int) -> None:
    """Refuse another end than the expected one.

    Raises:
        RuntimeError: with the last line that the run said.
    """
    if process.returncode != code:
        logs = [path for path in (out.with_suffix(".resumed"), out.with_suffix(".log")) if path.exists()]
        said = (logs[0].read_text(errors="replace").strip() or "nothing").splitlines()[-1]
        raise RuntimeError(f"run {out.name} ended with {process.returncode}, not {code}; it said: {said}")


def compared(one: Path, other: Path, resumed: Path) -> dict[str, Any]:
    """State and adapter of three runs, bit for bit."""
    first, second, third = (
        load_file(out / "state.safetensors") | load_file(out / "last" / "adapter.safetensors")
        for out in (one, other, resumed)
    )
    assert first.keys() == second.keys() == third.keys()
    warned = re.findall(r"[^\n]*determinis[^\n]*", one.with_suffix(".log").read_text(errors="replace"))
    return {
        "tensors": len(first),
        "steps": saved_step(one),
        "unbroken differ": sum(not torch.equal(first[name], second[name]) for name in first),
        "differ": sum(not torch.equal(first[name], third[name]) for name in first),
        "largest difference": max(float((first[n].double() - third[n].double()).abs().max()) for n in first),
        "not deterministic": sorted({line.strip().split(": ", 1)[-1] for line in warned}),
    }
