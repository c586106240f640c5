"""The parts of ``gpu.py`` that say how fast it is: a step, a forward pass, and what feeds them."""

import copy
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dmpt.data.loader import Batch, SampleDataset, train_batches
from dmpt.data.transforms import TrainTransform
from dmpt.method.network import DMPT
from dmpt.runtime.torch import PRECISIONS
from goals import beside, cores, rounds
from gpu_bench import Bench
from loading import HALF, write
from models import PATHS, Case, Precision, Step, network, plain, tower, trainee

SAMPLES = 64
Times = Mapping[str, list[float]]


def medians(bench: Bench, times: Times) -> None:
    """Print and keep median and spread of each callable, in seconds."""
    for name, taken in times.items():
        low, _, high = statistics.quantiles(taken, n=4) if len(taken) > 1 else taken * 3
        own = {"median": statistics.median(taken), "quartiles": [low, high], "rounds": len(taken)}
        bench.found.setdefault("seconds", {})[name] = own
        print(f"{name:60}{1e3 * own['median']:10.2f} ms, quartiles {1e3 * low:.2f} to {1e3 * high:.2f}")


# --- step -------------------------------------------------------------------------------------------------------------

FULL = "full fine-tuning"


def step(bench: Bench) -> None:
    """A step of rgbnt201.yaml in bf16 beside full fine-tuning under the same losses, the faster of two attentions."""
    times = bench.fitting(8 if bench.smoke else SAMPLES, partial(steps, bench))
    medians(bench, times)
    ratio = beside(times, "DMPT", [name for name in times if name.startswith(FULL)])
    bench.found["step_per_full"] = ratio
    bench.goal(f"step_per_full_{bench.found['samples']}_samples_bf16", ratio, 0.7)


def steps(bench: Bench, samples: int) -> Times:
    """Memory of both kinds, one after the other; then times, in turns."""
    config = bench.config("rgbnt201", {"train.precision": "bf16"})
    case, kinds = bench.case(config, samples), {}
    bench.found["samples"] = samples
    for name, own in {"DMPT": config, FULL: plain(config, "full")}.items():
        before = torch.cuda.memory_allocated() if bench.device == "cuda" else 0
        kinds[name] = Step(case, trainee(own, tower(own, bench.towers)))
        twice = [bench.timed(kinds[name])] * 2  # the optimiser's state is there in the second
        if bench.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        for call in twice:
            call()
        if bench.device == "cuda":
            peak = torch.cuda.max_memory_allocated() - before
            bench.found.setdefault("peak_bytes", {})[name] = peak
            print(f"{name:60}{peak / 1e6:10.0f} MB at the peak")
    dmpt, full = kinds.values()
    assert [term.name for term in dmpt.objective.terms] == [term.name for term in full.objective.terms]
    bench.found["losses"] = [term.name for term in dmpt.objective.terms]

    # Without fusing, attention keeps its weights for backward: on a GPU nobody trains so.
    fused = {f"{FULL}, {path}": bench.timed(partial(full.on, path)) for path in PATHS if path != "timm unfused"}
    return rounds({"DMPT": bench.timed(dmpt), **fused}, 1 if bench.smoke else 15, warm=1 if bench.smoke else 3)


# --- forward ----------------------------------------------------------------------------------------------------------

PRODUCTS = 4
"""Matrix products in a row, so that starting them costs nothing beside them."""


def forward(bench: Bench) -> None:
    """Samples per second from pictures on the device to features, as evaluation computes them, in each precision."""
    for precision in bench.precisions:
        bench.fitting(2 if bench.smoke else SAMPLES, partial(rate, bench, precision))


def rate(bench: Bench, precision: Precision, samples: int) -> None:
    """One precision: the network and the plain tower, and large matrix products between them."""
    config = bench.config("rgbnt201", {"train.precision": precision})
    case, frozen = bench.case(config, samples), tower(config, bench.towers)
    model, alone = network(config, frozen).eval(), network(plain(config, "frozen"), frozen).eval()
    images = case.images()
    work = {name: flops(own, images[:, :1]) * samples for name, own in (("DMPT", model), ("plain tower", alone))}
    for own in (model, alone):
        own.to(bench.device)
    with torch.inference_mode():
        prompts = model.bake()
    variants: dict[str, Callable[[], object]] = {"DMPT": partial(run, model, case, images, baked=prompts)}
    if precision == "bf16":  # the one that the goal is of: where its time goes
        variants["plain tower"] = partial(run, alone, case, images)
        quick = copy.deepcopy(alone)
        for module in quick.backbone.vit.modules():  # autocast has a GPU's layer norms in fp32; without, in bf16
            if hasattr(module, "_fast_norm"):
                module._fast_norm = True
        variants["plain tower, layer norms in bf16"] = partial(run, quick, case, images)
        work["plain tower, layer norms in bf16"] = work["plain tower"]
    side = 512 if bench.smoke else 8192
    matrix = torch.randn(side, side, device=bench.device, dtype=PRECISIONS[precision])
    product = f"{PRODUCTS} products of {side} x {side}"
    work[product] = PRODUCTS * 2 * side**3
    variants[product] = partial(multiply, matrix)
    calls = {f"{name}, {precision}": bench.timed(call) for name, call in variants.items()}
    times = rounds(calls, 1 if bench.smoke else 15 if precision == "bf16" else 5, warm=1 if bench.smoke else 3)
    medians(bench, times)
    for name in list(variants)[:-1]:
        share = 1 / beside(times, f"{name}, {precision}", [f"{product}, {precision}"]) * work[name] / work[product]
        seconds = statistics.median(times[f"{name}, {precision}"])
        bench.found.setdefault("forward", {})[f"{name}, {precision}"] = {
            "samples": samples,
            "samples_per_second": samples / seconds,
            "flops_per_second": work[name] / seconds,
            "share_of_matrix_peak": share,
        }
        print(f"{f'{name}, {precision}':60}{samples / seconds:10.0f} samples/s, {share:.2f} of the matrix peak")
    if precision == "bf16":
        own = bench.found["forward"]["DMPT, bf16"]["share_of_matrix_peak"]
        bench.goal("forward_share_of_matrix_peak_bf16", own, 0.5, at_most=False)


@torch.inference_mode()
def run(model: DMPT, case: Case, images: Tensor, baked: Any = None) -> None:
    """As ``dmpt.embed.extract`` does."""
    with case.autocast():
        model.embed(images, baked=baked)


def multiply(matrix: Tensor) -> None:
    """The products of a matrix with itself, each into memory of its own."""
    for _ in range(PRODUCTS):
        torch.mm(matrix, matrix)


@torch.inference_mode()
def flops(model: DMPT, images: Tensor) -> int:
    """Of the matrix products of a forward pass with constant prompts, counted on the CPU: fused kernels hide theirs."""
    copied = copy.deepcopy(model).float().cpu()
    prompts = copied.bake()
    with FlopCounterMode(display=False) as counter:
        copied.embed(images.cpu(), baked=prompts)
    return int(counter.get_total_flops())


# --- loader -----------------------------------------------------------------------------------------------------------

WINDOW = 2.0
"""Seconds that each number of loader processes is watched."""
MOST = 32
"""Loader processes that are tried, where there are as many cores."""
KEEPS_UP = 0.95
"""Share of a step's own rate, of noise without a loader, at which it counts as fed."""


def loader(bench: Bench) -> None:
    """Samples per second that loader processes bring, and that a step of rgbnt201.yaml takes, alone and fed by them."""
    bench.fitting(4 if bench.smoke else SAMPLES, partial(feed, bench))


def feed(bench: Bench, samples: int) -> None:
    """Batches of so many samples: the step alone, loader processes alone, and the step fed by as many as it needs."""
    config = bench.config("rgbnt201", {"train.precision": "bf16"})
    own = Step(bench.case(config, samples), trainee(config, tower(config, bench.towers)))
    times = rounds({"step on noise": bench.timed(own)}, 1 if bench.smoke else 10, warm=1 if bench.smoke else 3)
    medians(bench, times)
    alone = samples / statistics.median(times["step on noise"])
    records = write(bench.scratch / f"pictures-{samples}", config.data.size, samples)
    dataset = SampleDataset(records, TrainTransform(config.data, HALF, HALF, 0), config.data.black_and_white)

    def step_on(batch: Batch) -> None:
        own.images = batch.images.to(bench.device, non_blocking=True)
        own()

    brought = {}
    most = min(cores(), 2 if bench.smoke else MOST)
    for workers in sorted({*(2**n for n in range(most.bit_length()) if 2**n <= most), 0, most}):
        brought[workers] = samples * pace(bench, dataset, workers, lambda batch: None)
        print(f"{f'{workers} loader processes':60}{brought[workers]:10.0f} samples/s")
    enough = [workers for workers, rate in brought.items() if rate >= alone]
    chosen = enough[0] if enough else max(brought, key=brought.__getitem__)
    fed = samples * pace(bench, dataset, chosen, step_on)
    said = f"bring as much from {chosen} on" if enough else f"do not bring as much, {chosen} bring most"
    print(f"a step alone takes {alone:.0f} samples/s; loader processes {said}; fed by these it takes {fed:.0f}")
    bench.found |= {
        "samples": samples,
        "step_samples_per_second": alone,
        "loader_samples_per_second": {str(workers): rate for workers, rate in brought.items()},
        "workers": chosen,
        "fed_samples_per_second": fed,
    }
    bench.goal("step_fed_by_loader_per_step_alone", fed / alone, KEEPS_UP, at_most=False)


def pace(bench: Bench, dataset: SampleDataset, workers: int, use: Callable[[Batch], None]) -> float:
    """Batches per second that arrive and are used; those that were loaded while the first one came do not count."""
    epoch = [range(len(dataset))] * 100_000
    window = 0.2 if bench.smoke else WINDOW
    with closing(train_batches(dataset, epoch, 0, workers=workers)) as batches:
        for batch in islice(batches, max(1, 2 * workers)):
            use(batch)
        bench.wait()
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < window:
            use(next(batches))
            count += 1
        bench.wait()
        return count / (time.perf_counter() - start)
