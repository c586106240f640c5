"""The parts of ``gpu.py`` that say whether it is right: on a GPU, in every precision, killed and resumed."""

import copy
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from safetensors.torch import load_file
from torch import Tensor

from dmpt.adapter.folder import metadata_of
from dmpt.data.layouts import DATASETS
from dmpt.embed.extract import PRECISIONS
from dmpt.extensions import assemble
from dmpt.method.network import DMPT
from dmpt.settings.config import BackboneConfig
from dmpt.settings.shipped import folder
from dmpt.towers.image import build_vit
from dmpt.training.log import read_log
from dmpt.training.trainer import Trainer
from gpu_bench import Bench
from models import Precision, network

# --- configs ----------------------------------------------------------------------------------------------------------

STEPS = 20
BATCH = {"train.ids": 4, "train.instances": 2}
"""Of every config; its own 64 or 128 samples would take minutes, and more memory than many cards have."""


def configs(bench: Bench) -> None:
    """Every shipped config trains, and is evaluated behind its last step.

    Its tower, picture size, modalities, losses and learning rate are its own. Reduced are the batch (4 identities x 2
    samples), the length (20 steps, the whole schedule in them) and the data (drawn, in a layout that can be drawn).
    """
    names = sorted(path.stem for path in folder().glob("*.yaml"))
    runs = [(name, precision) for precision in bench.precisions for name in names]
    towers, found = Towers(), bench.found.setdefault("runs", {})
    for name, precision in runs:
        label = f"{name} {precision}"
        if bench.late:
            found[label] = {"state": "not reached"}
            continue
        try:
            found[label] = {"state": "trained", **train(bench, name, precision, towers)}
            print("{:26}loss {first:7.3f} ->{last:7.3f}{seconds:8.3f} s a step".format(label, **found[label]))
        except Exception as error:
            found[label] = {"state": "failed", "why": f"{type(error).__name__}: {error}"}
            bench.broken.append(f"{label}: {type(error).__name__}: {error}")
            print(f"{label:26}FAILED {type(error).__name__}: {error}")
        bench.free()
    trained = [own for own in found.values() if own["state"] == "trained"]
    if left := [label for label, own in found.items() if own["state"] == "not reached"]:
        print(f"not reached in time: {', '.join(left)}")
    bench.goal("configs_trained", len(trained), len(runs), at_most=False)
    bench.goal("configs_whose_loss_fell", sum(own["last"] < own["first"] for own in trained), len(trained), False)


class Unsaved(Trainer):
    """Leaves nothing but its log: ``resume`` is the part that saves."""

    def _save(self) -> None:
        """Nothing."""

    def _save_adapter(self, which: str) -> None:
        """Nothing."""


class Towers:
    """Random towers, each drawn once: for a ViT-B timm takes seconds."""

    def __init__(self) -> None:
        self.drawn: dict[str, Any] = {}

    def __call__(self, config: BackboneConfig, size: tuple[int, int]) -> Any:
        """As ``build_vit``."""
        key = f"{config} {size}"
        if key not in self.drawn:
            with torch.random.fork_rng(devices=[]):  # what is drawn after it is the same whether it was there or not
                self.drawn[key] = build_vit(config, size)
        return copy.deepcopy(self.drawn[key])


def train(bench: Bench, name: str, precision: Precision, towers: Towers) -> dict[str, Any]:
    """Train one config; mean loss of the first and the last quarter, and what else its log says.

    Raises:
        ValueError: nothing moved, or something is not where it belongs.
    """
    shipped = bench.config(name, BATCH)
    kind = shipped.data.object or DATASETS[shipped.data.layout].object
    changes = {
        "data.root": str(bench.world(kind)),
        "data.layout": {"person": "rgbnt201", "vehicle": "msvr310"}[kind],  # those in which worlds are drawn
        "data.workers": 0,
        "train.epochs": 1 if bench.smoke else STEPS // 4,  # of 4 batches each
        "train.eval_every": STEPS,
        "train.select": "test",
        "train.precision": precision,
    }
    out = bench.scratch / f"{name}-{precision}"
    with redirect_stderr(StringIO()):  # what a run says of itself; its errors are raised
        with patch.object(assemble, "build_vit", towers):
            trainer = Unsaved(bench.config(name, BATCH | changes), out)
        before = {own: p.detach().clone() for own, p in trainer.trained.items()}
        trainer.fit()
    steps = [line for line in read_log(out) if "losses" in line]
    state = [t for moments in trainer.optimizer.state.values() for key, t in moments.items() if key != "step"]
    tensors = [*trainer.network.parameters(), *trainer.network.buffers(), *state]
    if away := {str(t.device) for t in tensors if t.device.type != bench.device}:
        raise ValueError(f"tensors on {', '.join(sorted(away))}")
    moved = sum(not torch.equal(before[own], p) for own, p in trainer.trained.items())
    losses, quarter = [line["loss"] for line in steps], len(steps) // 4
    if not moved or len({*losses}) == 1:
        raise ValueError(f"{len(steps)} steps moved {moved} of {len(before)} tensors; losses are {losses}")
    assert trainer.validated is not None
    return {
        "steps": len(steps),
        "first": statistics.mean(losses[:quarter]),
        "last": statistics.mean(losses[-quarter:]),
        "moved": f"{moved} of {len(before)} tensors",
        "skipped": sum(line["grad_norm"] == 0 for line in steps),  # fp16: the scale was too large
        "seconds": [line["step_seconds"] for line in read_log(out) if "step_seconds" in line][-1],
        "mAP": trainer.validated.mAP,
    }


# --- forms ------------------------------------------------------------------------------------------------------------

CLOSE = {"fp32": 1e-4, "bf16": 3e-2, "fp16": 5e-3}
"""Length of the difference / length of what it is compared with; a CPU has 7e-7, 9e-3 and 1e-3."""
TF32 = 2e-3
"""The same of fp32 on a GPU beside a CPU: torch lets cuDNN multiply with 10 bits, and patches are embedded so."""
SCALE = 2.0**10
"""Of a loss in fp16, whose gradients would vanish; a power of two changes no digit."""


class Look(NamedTuple):
    """Features of a batch and the gradient of a sum of them, on the CPU."""

    features: Tensor
    gradient: Tensor


def forms(bench: Bench) -> None:
    """Two samples through rgbnt201.yaml's network, in both forms, baked, and on the CPU in fp32."""
    config = bench.config("rgbnt201", {})
    case = bench.case(config, 2)
    draw = torch.Generator().manual_seed(0)
    reference = network(config)
    with torch.no_grad():
        for parameter in reference.trained().values():  # what starts at zero would hide what stands before it
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.02)
    images = case.images()
    on_cpu = evaluated(reference, images.cpu(), "fp32")
    for precision in bench.precisions:
        model = copy.deepcopy(reference).to(bench.device)
        model.backbone.keep_in(PRECISIONS[precision])
        prefix, token = (look(model, images, precision, form) for form in ("prefix", "token"))
        baked = evaluated(model, images, precision)
        found = bench.found[precision] = {
            "prefix_from_token_features": apart(prefix.features, token.features),
            "prefix_from_token_gradients": apart(prefix.gradient, token.gradient),
            "baked_from_unbaked_features": apart(baked, prefix.features),
            "baked_from_fp32_on_the_cpu": apart(baked, on_cpu),
        }
        for what, difference in found.items():
            limit = max(CLOSE[precision], TF32) if what.endswith("cpu") else CLOSE[precision]
            bench.must(f"{what}_{precision}", difference, limit)


def cast(images: Tensor, precision: Precision) -> torch.autocast:
    """As training and evaluation do."""
    return torch.autocast(images.device.type, PRECISIONS[precision], enabled=precision != "fp32")


def look(model: DMPT, images: Tensor, precision: Precision, form: str) -> Look:
    """One pass forward and backward."""
    model.form = form  # type: ignore[assignment]
    model.zero_grad()
    with cast(images, precision):
        features = model(images).features.x
    direction = torch.randn(features.shape, generator=torch.Generator().manual_seed(1)).to(features)
    scale = SCALE if precision == "fp16" else 1.0
    ((features * direction).sum() * scale).backward()
    gradients = [p.grad.flatten() / scale for p in model.trained().values() if p.grad is not None]
    return Look(features.detach().cpu().double(), torch.cat(gradients).cpu().double())


@torch.inference_mode()
def evaluated(model: DMPT, images: Tensor, precision: Precision) -> Tensor:
    """Features with baked prompts, as evaluation computes them."""
    model.form = "prefix"
    prompts = model.bake()
    with cast(images, precision):
        return model(images, baked=prompts).features.x.cpu().double()


def apart(a: Tensor, b: Tensor) -> float:
    """How far, as a share of the second's length."""
    return float((a - b).norm() / b.norm())


# --- resume -----------------------------------------------------------------------------------------------------------

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
