"""Exported files against torch: samples per second, and the share of what one large product reaches.

python benchmarks/export.py [--quick] [--repeats N] [--models tiny ViT-B/16]

Models: package:tiny, and ViT-B/16 at 256x128 with the paper's prompts and random weights, which cost what trained ones
do. Batches of 1 and 16 complete samples of noise. All that runs one model takes turns, in one process, on as many
threads as torch has. int8 is ONNX Runtime's dynamic form, of which OpenVINO reads the same file; a batch of it is run
sample by sample, as dmpt does, and beside it at once. Then low-rank updates of modalities, as small products beside one
tower and as three towers: size and time. Run it alone on the machine. Where OpenVINO is not installed its goals are
missed.
"""

import argparse
import copy
import math
import os
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from dmpt.adapter.files import adapter_folder
from dmpt.adapter.folder import load_card, network_of
from dmpt.base.errors import UserError
from dmpt.export.cost import quantise
from dmpt.export.graph import Graph, write_onnx
from dmpt.extensions.lora import add_lora, fold_lora, merge_lora
from dmpt.method.network import DMPT
from dmpt.runtime import onnx
from dmpt.runtime.exported import Exported, GraphEncoder, load, write
from dmpt.runtime.runtime import Encode
from dmpt.runtime.torch import PRECISIONS, Encoder
from dmpt.settings.config import Config, DataConfig, LoraConfig
from dmpt.settings.modalities import MODALITIES
from goals import goal, machine, rounds
from models import Case, network

HALF = (0.5, 0.5, 0.5)
GOALS = {("ONNX Runtime fp32", "torch fp32"): 1.0, ("OpenVINO bf16", "torch bf16"): 1.2}
"""How many times as fast, at least."""


@dataclass(frozen=True)
class Model:
    """What is exported: a network with its low-rank updates beside the tower, and its pictures."""

    name: str
    network: DMPT
    data: DataConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--models", nargs="+", default=["tiny", "ViT-B/16"], choices=["tiny", "ViT-B/16"])
    parser.add_argument("--quick", action="store_true", help="smoke test: a small ViT, once")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))  # the others go by it
    repeats, batches = (1, (1, 2)) if args.quick else (args.repeats, (1, 16))
    print(f"{machine()}, {torch.get_num_threads()} threads; medians of {repeats}")
    found: dict[tuple[str, str, float], list[float]] = {}
    shares: list[tuple[str, float, float]] = []
    for name in ["ViT-B/16"] if args.quick else args.models:
        model = tiny() if name == "tiny" else random_model(args.quick)
        with tempfile.TemporaryDirectory() as folder:
            ways = runtimes(model, Path(folder))
            for batch in batches:
                times = timed(model, ways, batch, repeats, 512 if args.quick else 4096)
                for (fast, slow), least in GOALS.items():
                    ratios = [0.0]  # where it is not installed
                    if fast in times:
                        ratios = sorted(a / b for a, b in zip(times[slow], times[fast], strict=True))
                        print(f"{fast} / {slow}: {ratios[0]:.2f} to {ratios[-1]:.2f}")
                    found[f"{fast} {name} {batch}", slow, least] = ratios
        shares.append((name, *updates(tiny() if name == "tiny" else with_updates(args.quick), batches, repeats)))
    for (fast, slow, least), ratios in found.items():
        what = f"export_{fast}_times_as_fast_as_{slow}".replace(" ", "_")
        goal(what, statistics.median(ratios), least, at_most=False)
    for name, time, size in shares:
        goal(f"export_{name}_small_products_time_of_three_towers", time, 1.1)
        goal(f"export_{name}_small_products_size_of_three_towers", size, 0.6)


def tiny() -> Model:
    """The one that ships."""
    folder = adapter_folder(Path("package:tiny"))
    card = load_card(folder)
    return Model("tiny", network_of(folder, card, merge=False)[0], card.config.data)


def config_of(quick: bool) -> Config:
    case = (
        Case("vit_tiny_patch16_224", (64, 32), 1)
        if quick
        else Case("vit_base_patch16_clip_quickgelu_224", (256, 128), 1)
    )
    config = case.dmpt()
    return replace(config, data=replace(config.data, mean=HALF, std=HALF))


def random_model(quick: bool) -> Model:
    config = config_of(quick)
    return Model("ViT-B/16", network(config).eval(), config.data)


def runtimes(model: Model, folder: Path) -> dict[str, Encode]:
    """Everything that runs it."""
    ways: dict[str, Encode] = {}
    for precision in ("fp32", "bf16"):
        own = copy.deepcopy(model.network)
        merge_lora(own.backbone)
        own.backbone.keep_in(PRECISIONS[precision])
        ways[f"torch {precision}"] = Encoder(own, PRECISIONS[precision])
    exact = exported(model, folder / "fp32.onnx", fold_lora)
    coarse = folder / "int8.onnx"
    quantise(exact, folder / "graph.onnx")
    write((folder / "graph.onnx").read_bytes(), replace(facts(model), precision="int8"), coarse)
    for path in (exact, coarse):
        print(f"{model.name}, {path.stem}: {path.stat().st_size / 1e6:.1f} MB")
    ways["ONNX Runtime fp32"] = load(exact, None, "onnx").encode
    ways["ONNX Runtime int8"] = load(coarse, None, "onnx").encode
    own = replace(facts(model), precision="int8")
    ways["ONNX Runtime int8, batch"] = GraphEncoder(own, onnx.session(coarse, "int8", own.shapes))
    for name, path, precision in (("bf16", exact, "bf16"), ("fp32", exact, "fp32"), ("int8", coarse, None)):
        try:
            ways[f"OpenVINO {name}"] = load(path, precision, "openvino").encode
        except UserError as error:
            print(f"OpenVINO {name}: {error}")
    return ways


def facts(model: Model) -> Exported:
    return Exported("0" * 64, None, model.data, MODALITIES, "normalised", "fp32", "person", "", 0.0)  # type: ignore[arg-type]


def exported(model: Model, path: Path, fold: Callable[..., None]) -> Path:
    """Its file, with the updates of modalities as ``fold`` makes them."""
    own = copy.deepcopy(model.network)
    fold(own.backbone)
    write_onnx(Graph(own, model.data, MODALITIES, "normalised"), model.data.size, path)
    write(path.read_bytes(), facts(model), path)
    return path


def noise(model: Model, batch: int) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    images = np.random.default_rng(0).normal(size=(3, batch, 3, *model.data.size)).astype(np.float32)
    return images, np.ones((3, batch), np.bool_)


def timed(model: Model, ways: Mapping[str, Encode], batch: int, repeats: int, width: int) -> dict[str, list[float]]:
    """Seconds of each way, printed as samples per second and as the share of one large product's."""
    images, present = noise(model, batch)
    flops = products(ways["torch fp32"], images[:, :1], present[:, :1])
    calls = max(1, 16 // batch)

    def run(encode: Encode) -> Callable[[], object]:
        return lambda: [encode(images, present) for _ in range(calls)]

    variants: dict[str, Callable[[], object]] = {name: run(encode) for name, encode in ways.items()}
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        one, two = (torch.randn(width, width).to(dtype) for _ in range(2))
        variants[f"one product {precision}"] = partial(torch.matmul, one, two)
    times = rounds(variants, repeats)
    print(f"\n{model.name}, {'x'.join(map(str, model.data.size))}, batches of {batch}")
    for name in ways:
        each = [calls * batch / taken for taken in times[name]]
        said = f"{name:28}{statistics.median(each):10.2f} samples/s ({min(each):.2f} to {max(each):.2f})"
        if (peak := f"one product {name[-4:]}") in times:
            own = [rate * flops / (2 * width**3 / taken) for rate, taken in zip(each, times[peak], strict=True)]
            said += f"{100 * statistics.median(own):8.1f} % of the product's FLOP/s"
        print(said)
    return times


def products(encode: Encode, images: np.ndarray, present: np.ndarray) -> float:  # type: ignore[type-arg]
    """FLOPs of the matrix products of one sample."""
    with FlopCounterMode(display=False) as counter:
        encode(images, present)
    return float(counter.get_total_flops())


def with_updates(quick: bool) -> Model:
    """ViT-B/16 with the updates that we advise."""
    config = config_of(quick)
    made = network(config)
    add_lora(made.backbone, LoraConfig("all", rank=16, rank_per_modality=8), made.backbone.depth // 3)
    return Model("ViT-B/16", made.eval(), config.data)


def updates(model: Model, batches: Sequence[int], repeats: int) -> tuple[float, float]:
    """Time and size of small products, as shares of those of three towers; the worst time counts."""
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        small, large = (
            exported(model, Path(folder) / name, fold) for name, fold in (("a.onnx", fold_lora), ("b.onnx", merge_lora))
        )
        sizes = [path.stat().st_size for path in (small, large)]
        said = f"small products {sizes[0] / 1e6:.1f} MB, three towers {sizes[1] / 1e6:.1f} MB"
        print(f"\n{model.name}, updates of modalities: {said}")
        for runtime, precision in (("onnx", "fp32"), ("openvino", "bf16")):
            try:
                ways = [load(path, precision, runtime).encode for path in (small, large)]  # type: ignore[arg-type]
            except UserError as error:
                print(f"{runtime}: {error}")
                ratios.append(math.inf)
                continue
            for batch in batches:
                images, present = noise(model, batch)
                calls = {name: partial(one, images, present) for name, one in zip("ab", ways, strict=True)}
                times = rounds(calls, repeats)
                own = sorted(a / b for a, b in zip(times["a"], times["b"], strict=True))
                middle = statistics.median(own)
                each = " and ".join(f"{1000 * statistics.median(times[name]):.1f}" for name in "ab")
                said = f"{each} ms, {middle:.3f} ({own[0]:.3f} to {own[-1]:.3f})"
                print(f"{runtime} {precision}, batches of {batch}: {said}")
                ratios.append(middle)
    return max(ratios), sizes[0] / sizes[1]


if __name__ == "__main__":
    main()
