"""What prompt tuning saves beside full fine-tuning of a plain tower: step time, optimiser state, peak memory.

Fine-tuning has the same heads and losses and no prompts or interaction; its master weights are float32. ``shared``
trains one tower for the three modalities, ``three`` a tower for each, as the paper's peers do. The shared one runs on
our attention and on timm's own two: those near the fastest are timed in full, and the fastest counts. Peak memory is
all of it (weights, gradients, optimiser, activations, images, what the allocator wastes): by how much the resident
memory of a fresh process grows at its peak, from before the model is built to after the second optimiser step.
"""

import argparse
import multiprocessing
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from goals import beside, goal, machine, rounds, status, table
from models import PATHS, Case, Step, three_towers, trainee

LARGE = Case("vit_base_patch16_clip_quickgelu_224", (256, 128), 8, "fp32")
SMALL = Case("vit_small_patch14_dinov2", (112, 56), 64, "bf16")
CASES = {"large": (LARGE,), "small": (SMALL,), "both": (LARGE, SMALL)}
QUICK = Case("vit_tiny_patch16_224", (64, 32), 4, "bf16")
CLAIM = 0.935
SHARED, THREE = "full fine-tuning, shared", "full fine-tuning, three"
KINDS: dict[str, Callable[[Case], Step]] = {
    "DMPT": lambda case: Step(case, trainee(case.dmpt())),
    SHARED: lambda case: Step(case, trainee(case.plain("full"))),
    THREE: lambda case: Step(case, three_towers(case.plain("full"))),
}


class Memory(NamedTuple):
    """Bytes of one kind of training."""

    weights: int
    gradients: int
    optimizer: int
    peak: int

    @property
    def state(self) -> int:
        """What training adds to the weights before any image is seen."""
        return self.gradients + self.optimizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--case", choices=CASES, default="both", help="ViT-B/16 in fp32, ViT-S/14 in bf16, or both")
    parser.add_argument("--quick", action="store_true", help="smoke test: one round of a ViT-Ti/16 at 64x32")
    args = parser.parse_args()
    print(machine())
    results = [run(case, 1 if args.quick else args.repeats) for case in ((QUICK,) if args.quick else CASES[args.case])]
    print()
    for case, times, memory in results:
        verdict(case, memory)
        steps = beside(times, "DMPT", [name for name in times if name.startswith(SHARED)])
        small = case is SMALL
        goal(f"step_per_shared_{case.name}_{case.precision}", steps, 0.8 if small else 0.75)
        if not small:
            goal(f"state_per_shared_{case.name}", memory["DMPT"].state / memory[SHARED].state, 0.22)
            goal(f"state_per_three_{case.name}", memory["DMPT"].state / memory[THREE].state, 0.08)


def run(case: Case, repeats: int) -> tuple[Case, dict[str, list[float]], dict[str, Memory]]:
    """Measure and print one case."""
    print(f"\n{case}")
    memory = {}
    print(f"{'MB':40}{'weights':>10}{'gradients':>11}{'optimiser':>11}{'rest':>10}{'peak':>10}")
    for name in KINDS:
        with multiprocessing.get_context("spawn").Pool(1) as pool:  # no earlier model has left buffers behind
            memory[name] = m = pool.apply(measure, (case, name))
        rest = m.peak - sum(m[:3])
        print(f"{name:40}{m[0] / 1e6:10.0f}{m[1] / 1e6:11.0f}{m[2] / 1e6:11.0f}{rest / 1e6:10.0f}{m.peak / 1e6:10.0f}")
    dmpt, shared, three = (build(case) for build in KINDS.values())

    paths = {f"{SHARED}, {path}": partial(shared.on, path) for path in PATHS}
    print("step, median of 2")
    first = rounds(paths, 2)
    table(first)
    fastest = min(min(taken) for taken in first.values())
    near = {name: paths[name] for name, taken in first.items() if min(taken) < 1.5 * fastest}
    print(f"step, medians of {repeats}")
    times = rounds({"DMPT": dmpt, **near, THREE: three}, repeats)
    table(times)
    return case, times, memory


def measure(case: Case, name: str) -> Memory:
    """Run two steps in a fresh process and count."""
    before = status("VmRSS")
    step = KINDS[name](case)
    step()
    step.backward()
    gradients = sum(p.grad.nbytes for p in step.trained if p.grad is not None)
    step.optimizer.step()
    tensors = [t for state in step.optimizer.state.values() for t in state.values()]
    optimizer = sum(t.nbytes for t in tensors)
    # Adam: two moments and a step count per tensor, float32.
    numbers = sum(p.numel() for p in step.trained)
    assert (gradients, optimizer) == (4 * numbers, 8 * numbers + 4 * len(step.trained))
    weights = sum(p.nbytes for p in step.model.parameters())
    return Memory(weights, gradients, optimizer, status("VmHWM") - before)


def verdict(case: Case, memory: dict[str, Memory]) -> None:
    """Print what share of memory is really saved, beside the paper's claim."""
    saved = {
        f"{what}, {name.split(', ')[1]}": 1 - count(memory["DMPT"]) / count(memory[name])
        for what, count in (("gradients + optimiser", lambda m: m.state), ("peak", lambda m: m.peak))
        for name in (SHARED, THREE)
    }
    print(f"{case}, saved by DMPT")
    print("VERDICT paper 'saved up to 93.5 % of training memory':", "; ".join(judge(*what) for what in saved.items()))


def judge(what: str, saved: float) -> str:
    """One part of the verdict."""
    return f"{what} {saved:.1%} ({'holds' if saved >= CLAIM else 'within a point' if saved >= CLAIM - 0.01 else 'no'})"


if __name__ == "__main__":
    main()
