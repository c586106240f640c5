"""The parts of ``gpu.py`` that say whether it is right in every precision: shipped configs, and forms of prompts."""

import copy
import statistics
from contextlib import redirect_stderr
from io import StringIO
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor

from dmpt.data.layouts import DATASETS
from dmpt.extensions import assemble
from dmpt.method.network import DMPT
from dmpt.runtime.torch import PRECISIONS
from dmpt.settings.shipped import folder
from dmpt.training.log import read_log
from dmpt.training.trainer import Trainer
from gpu_bench import BATCH, Bench
from models import Precision, autocast, network, tower

# --- configs ----------------------------------------------------------------------------------------------------------

STEPS = 20


def configs(bench: Bench) -> None:
    """Every shipped config trains, and is evaluated behind its last step.

    Its tower, picture size, modalities, losses and learning rate are its own. Reduced are the batch (4 identities x 2
    samples), the length (20 steps, the whole schedule in them) and the data (drawn, in a layout that can be drawn).
    """
    names = sorted(path.stem for path in folder().glob("*.yaml"))
    runs = [(name, precision) for precision in bench.precisions for name in names]
    found = bench.found.setdefault("runs", {})
    for name, precision in runs:
        label = f"{name} {precision}"
        if bench.late:
            found[label] = {"state": "not reached"}
            continue
        try:
            found[label] = {"state": "trained", **train(bench, name, precision)}
            print("{:26}loss {first:7.3f} ->{last:7.3f}{seconds:8.3f} s a step".format(label, **found[label]))
        except Exception as error:
            found[label] = {"state": "failed", "why": bench.said(error)}
            print(f"{label:26}FAILED {bench.said(error)}")
        bench.free()
    trained, failed = ([own for own in found.values() if own["state"] == state] for state in ("trained", "failed"))
    if failed:
        bench.broken.append(f"{len(failed)} of {len(runs)} runs, the first with {failed[0]['why']}")
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


def train(bench: Bench, name: str, precision: Precision) -> dict[str, Any]:
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
        with patch.object(assemble, "build_vit", bench.towers):
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
    assert trainer.progress.best is not None
    return {
        "steps": len(steps),
        "first": statistics.mean(losses[:quarter]),
        "last": statistics.mean(losses[-quarter:]),
        "moved": f"{moved} of {len(before)} tensors",
        "skipped": sum(line["grad_norm"] == 0 for line in steps),  # fp16: the scale was too large
        "seconds": [line["step_seconds"] for line in read_log(out) if "step_seconds" in line][-1],
        "mAP": trainer.progress.best,
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
    reference = network(config, tower(config, bench.towers))
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


def look(model: DMPT, images: Tensor, precision: Precision, form: str) -> Look:
    """One pass forward and backward."""
    model.form = form  # type: ignore[assignment]
    model.zero_grad()
    with autocast(images.device.type, precision):
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
    with autocast(images.device.type, precision):
        return model(images, baked=prompts).features.x.cpu().double()


def apart(a: Tensor, b: Tensor) -> float:
    """How far, as a share of the second's length."""
    return float((a - b).norm() / b.norm())
