"""Samples decoded, augmented and put into batches per second and core, beside how the field's code does it.

That is ``Image.open(path).convert("RGB")``, torchvision's transforms v1 picture by picture, and PyTorch's collation.
Sources are drawn persons, saved as three-channel JPEGs of quality 90 in a temporary folder and so in the page cache: it
is not the disk that is measured. They are trained on at 256x128 and stored at three sizes: that one, at which resizing
costs nothing; Market-1501's; and a larger one. Both variants run in this process on one thread, in turns; then in a
loader process each, from which batches travel to the trainer through shared memory.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision import transforms as v1

from dmpt.data.loader import SampleDataset, train_batches
from dmpt.data.records import Record
from dmpt.data.transforms import TrainTransform
from dmpt.settings.config import DataConfig
from dmpt.settings.modalities import MODALITIES
from dmpt.synthetic.world import World
from goals import goal, machine, rounds

HALF = (0.5, 0.5, 0.5)
SIZE = (256, 128)
STORED = ((256, 128), (128, 64), (300, 140))
BATCH, CORES = 64, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="smoke test: two samples, once")
    args = parser.parse_args()
    count, repeats = (2, 1) if args.quick else (BATCH, args.repeats)
    torch.set_num_threads(1)
    print(f"{machine()}, Pillow {Image.__version__}; medians of {repeats}")
    print(f"{'stored as':12}{'loaded':20}{'samples/s, peers':>20}{'ours':>8}{'ratio':>8}{f'{CORES} cores feed':>16}")
    measured = {}
    with tempfile.TemporaryDirectory() as folder:
        for size in STORED:
            stored = f"{size[0]}x{size[1]}"
            peers, ours = datasets(write(Path(folder) / stored, size, count))
            for where, times in (
                ("in this process", here(peers, ours, repeats)),
                ("by a loader process", sent(peers, ours, repeats)),
            ):
                ratio = statistics.median(a / b for a, b in zip(*times, strict=True))
                theirs, own = (count / statistics.median(taken) for taken in times)
                steps = f"{CORES * own / BATCH:.0f} steps/s"
                print(f"{stored:12}{where:20}{theirs:20.0f}{own:8.0f}{ratio:8.2f}{steps:>16}")
                measured[stored, where] = ratio
    for (stored, where), ratio in measured.items():
        if where == "in this process":
            goal(f"samples_per_second_per_peers_{stored}", ratio, 1.5, at_most=False)


class Peers(Dataset[list[Tensor]]):
    """Samples as the field's code loads them."""

    def __init__(self, records: list[Record], data: DataConfig) -> None:
        self.records = records
        self.transform = v1.Compose(
            [
                v1.Resize(data.size, interpolation=v1.InterpolationMode.BICUBIC),
                v1.RandomHorizontalFlip(data.flip),
                v1.Pad(data.pad),
                v1.RandomCrop(data.size),
                v1.ToTensor(),
                v1.Normalize(HALF, HALF),
                v1.RandomErasing(data.erasing, value="random"),
            ]
        )

    def __getitem__(self, index: int) -> list[Tensor]:
        paths = self.records[index].paths
        return [self.transform(Image.open(paths[modality]).convert("RGB")) for modality in MODALITIES]


def write(folder: Path, size: tuple[int, int], count: int) -> list[Record]:
    """Draw samples of a size and save them."""
    folder.mkdir()
    world, records = World(size=size), []
    for index in range(count):
        pid, camera = index // 4 + 1, index % 4 + 1
        shot = world.shoot(pid, camera, 0)
        paths = {modality: folder / f"{index}_{modality}.jpg" for modality in MODALITIES}
        for modality, path in paths.items():
            Image.fromarray(getattr(shot, modality)).convert("RGB").save(path, quality=90)
        records.append(Record(paths, pid, camera))
    return records


def datasets(records: list[Record]) -> tuple[Peers, SampleDataset]:
    """The peers' way and ours to load the same files."""
    data = DataConfig(size=SIZE)
    return Peers(records, data), SampleDataset(records, TrainTransform(data, HALF, HALF, 0), data.value_range)


def here(peers: Peers, ours: SampleDataset, repeats: int) -> tuple[list[float], list[float]]:
    """Seconds per batch of both, in this process."""
    indices = range(len(ours))
    variants: dict[str, Callable[[], object]] = {
        "peers": lambda: default_collate([peers[index] for index in indices]),
        "ours": lambda: ours.batch(0, indices),
    }
    times = rounds(variants, repeats)
    return times["peers"], times["ours"]


def sent(peers: Peers, ours: SampleDataset, repeats: int, batches: int = 5) -> tuple[list[float], list[float]]:
    """Seconds per batch of both, as they arrive from a loader process."""
    keys = [range(len(ours))] * batches
    times: tuple[list[float], list[float]] = ([], [])
    for epoch in range(repeats):
        times[0].append(pace(DataLoader(peers, batch_sampler=keys, num_workers=1)))
        times[1].append(pace(train_batches(ours, keys, epoch, workers=1)))
    return times


def pace(batches: Iterable[object]) -> float:
    """Seconds from batch to batch; the first, which waits for the process to start, does not count."""
    iterator = iter(batches)
    next(iterator)
    start = time.perf_counter()
    count = sum(1 for _ in iterator)
    return (time.perf_counter() - start) / count


if __name__ == "__main__":
    main()
