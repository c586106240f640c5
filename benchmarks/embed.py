"""What of ``dmpt embed`` is the model's own work, and which share of the processor the model uses.

python benchmarks/embed.py [--quick] [--repeats N]

Pictures are drawn persons of the model's size, JPEGs of quality 90, in a temporary folder and so in the page cache. The
whole is what the command does once the model is loaded: read, decode, embed, write a shard, commit. The model's own
time is that of the same batches, decoded before. Its FLOPs are those of the matrix products that PyTorch counts,
beside one large product of the same precision. All run in turns, in one process. Run it alone on the machine.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import dmpt
from dmpt.adapter.folder import Card
from dmpt.base.memory import keep_freed_memory
from dmpt.data.images import read_record
from dmpt.embed.embedder import Embedder
from dmpt.gallery.done import commit
from dmpt.gallery.shards import embed_shard, plan
from dmpt.gallery.sources import Source, read_source
from dmpt.runtime.torch import PRECISIONS, runtime_of
from dmpt.settings.modalities import MODALITIES
from dmpt.synthetic.world import World
from goals import goal, machine, rounds, table
from models import IDS, ON_CPU, Case, Precision, network

HALF = (0.5, 0.5, 0.5)
SHARE = {"ViT-B/16": 0.85, "tiny": 0.75}
"""Of the model's own time in the whole, at least."""
OF_PEAK = {"fp32": 0.75, "bf16": 0.45}
"""Of the FLOPs per second of a large product, at least."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="smoke test: the tiny model and a small ViT, once")
    args = parser.parse_args()
    keep_freed_memory()  # as the command does
    repeats = 1 if args.quick else args.repeats
    print(f"{machine()}, {torch.get_num_threads()} threads; medians of {repeats}")
    tower, size = (
        ("vit_tiny_patch16_224", (64, 32)) if args.quick else ("vit_base_patch16_clip_quickgelu_224", (256, 128))
    )
    samples, batch = (8, 4) if args.quick else (32, 8)
    tiny = 16 if args.quick else 512
    shares, peaks, flops = {}, {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for precision in ON_CPU:
            large, small = random_model(tower, size, precision), dmpt.load("package:tiny", precision=precision)
            for name, model, number, at_once in (("ViT-B/16", large, samples, batch), ("tiny", small, tiny, 64)):
                print(f"\n{name}, {model.data.size}, {number} samples, batches of {at_once}, {precision}")
                home = Path(folder) / f"{name.replace('/', '')} {precision}"
                source = write(home, model.data.size, number)
                if precision == "fp32":  # in which they can be counted
                    flops[name] = products(model)
                share, rate = measured(model, source, home, at_once, repeats, 512 if args.quick else 4096)
                shares[f"{name}_{precision}"] = share, SHARE[name]
                if name != "tiny":
                    peaks[f"{name}_{precision}"] = rate * flops[name], OF_PEAK[precision]
    for name, (share, least) in shares.items():
        goal(f"embed_models_share_of_time_{name}", share, least, at_most=False)
    for name, (of_peak, least) in peaks.items():
        goal(f"embed_models_share_of_gemm_peak_{name}", of_peak, least, at_most=False)


def random_model(tower: str, size: tuple[int, int], precision: Precision) -> Embedder:
    """The method on a tower with random weights, which cost what trained ones do."""
    config = Case(tower, size, 1, precision).dmpt()
    made = network(config)
    config = replace(config, data=replace(config.data, mean=HALF, std=HALF))
    return Embedder(runtime_of(made, Card(config, IDS, None, "person"), precision, "0" * 64))


def write(folder: Path, size: tuple[int, int], number: int) -> Source:
    """Draw samples of a size and save them."""
    world = World(size=size)
    for index in range(number):
        shot = world.shoot(index // 4 + 1, index % 4 + 1, 0)
        for modality in MODALITIES:
            path = folder / "in" / modality / f"{index:06d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(getattr(shot, modality)).convert("RGB").save(path, quality=90)
    return read_source(folder / "in")


def measured(
    model: Embedder, source: Source, folder: Path, batch: int, repeats: int, width: int
) -> tuple[float, float]:
    """The model's share of the time of all, and the samples that it does in the time of a FLOP of a large product."""
    batches, numbers = list(decoded(model, source, batch)), count()

    def whole() -> None:
        out = folder / f"{next(numbers)}.lance"
        for shard in plan(source, out, 1, batch):
            embed_shard(model, shard)
        commit(out)

    def alone() -> None:
        for images, present in batches:
            model.encode(images, present)

    one, two = (torch.randn(width, width).to(PRECISIONS[model.precision]) for _ in range(2))
    variants: dict[str, Callable[[], object]] = {
        "whole": whole,
        "the model alone": alone,
        "one product": lambda: one @ two,
    }
    times = rounds(variants, repeats)
    table(times)
    print(f"{'samples per second, whole':60}{len(source.samples) / statistics.median(times['whole']):10.1f}")
    share = ratio(times["the model alone"], times["whole"])
    rate = ratio(times["one product"], times["the model alone"]) * len(source.samples) / (2 * width**3)
    return share, rate


def products(model: Embedder) -> float:
    """FLOPs of the matrix products of one sample."""
    images = torch.zeros(len(MODALITIES), 1, 3, *model.data.size)
    with FlopCounterMode(display=False) as counter:
        model.encode(images, torch.ones(len(MODALITIES), 1, dtype=torch.bool))
    return float(counter.get_total_flops())


def decoded(model: Embedder, source: Source, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """What the model takes, as ``dmpt embed`` makes it."""
    for start in range(0, len(source.samples), batch):
        samples = source.samples[start : start + batch]
        images = torch.zeros(len(MODALITIES), len(samples), 3, *model.data.size)
        for row, sample in enumerate(samples):
            pixels = read_record(sample.record, model.value_range)
            model.transform(pixels, {name: images[m, row] for m, name in enumerate(MODALITIES)})
        yield images, torch.ones(images.shape[:2], dtype=torch.bool)


def ratio(first: Sequence[float], second: Sequence[float]) -> float:
    """Median over the rounds, printed with its lowest and highest."""
    found = sorted(a / b for a, b in zip(first, second, strict=True))
    print(f"{'ratio, lowest to highest':60}{found[0]:10.3f} to {found[-1]:.3f}")
    return statistics.median(found)


if __name__ == "__main__":
    main()
