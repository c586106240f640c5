"""What a gallery costs: adds in batches of 1 and 1000, opening 100,000 samples, committing 1,000 shards.

Adds are of vectors as ViT-B/16 gives them, three of 768 numbers. What opening and committing cost does not depend on
the width: there vectors are narrow.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
from lance.fragment import LanceFragment

from dmpt.gallery.changes import add
from dmpt.gallery.done import Done, commit, shards_folder
from dmpt.gallery.rows import to_batch
from dmpt.gallery.schema import Model
from dmpt.gallery.store import Gallery, create_gallery, open_gallery
from dmpt.retrieval.embeddings import Embeddings, unit
from goals import goal, machine, seconds

NARROW, WIDE = 8, 768


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smoke test")
    quick = parser.parse_args().quick
    singles, thousands, rows, shards = (3, 1, 2_000, 10) if quick else (100, 20, 100_000, 1_000)
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        gallery = create_gallery(root / "adds.lance", model(WIDE))
        for size, repeats in ((1_000, thousands), (1, singles)):
            times = adds(gallery, size, repeats)
            rate = size * len(times) / sum(times)
            print(f"{f'adds of {size}, samples/s (slowest add)':60}{rate:10.0f} ({max(times):.3f} s)")
        path = full(root / "full.lance", rows)
        opened = [seconds(lambda: len(open_gallery(path))) for _ in range(9)]
        print(f"{f'opening {rows} samples, s (slowest)':60}{statistics.median(opened):10.4f} ({max(opened):.4f})")
        labels = seconds(lambda: open_gallery(path).read(["key", "pid", "camera"]))
        print(f"{'and reading all keys and labels, s':60}{labels:10.4f}")
        out = done_shards(root / "shards.lance", shards)
        committed = seconds(lambda: commit(out))
        assert len(open_gallery(out)) == 16 * shards
        print(f"{f'committing {shards} shards, s':60}{committed:10.3f}")
        goal("open_100k_s", max(opened), 1)
        goal("commit_1000_shards_s", committed, 10)


def model(width: int) -> Model:
    """Of a model that nobody trained."""
    return Model("0" * 64, "fp32", {"modalities": ["rgb", "nir", "tir"]}, width)


def items(count: int, width: int, seed: int) -> Embeddings:
    draw = np.random.default_rng(seed).standard_normal((count, 3 * width), np.float32)
    return Embeddings(unit(draw).reshape(count, 3, width), np.ones((count, 3), np.bool_))


def adds(gallery: Gallery, size: int, repeats: int) -> list[float]:
    """Seconds of each add of so many new samples."""
    vectors = items(size, WIDE, 0)

    def one(number: int) -> float:
        keys = [f"{size}/{number}/{row}.jpg" for row in range(size)]
        return seconds(lambda: add(gallery, gallery.model, vectors, keys, camera=["1"] * size))

    return [one(number) for number in range(repeats)]


def full(path: Path, rows: int) -> Path:
    """A gallery of so many samples, of ten adds."""
    gallery = create_gallery(path, model(NARROW))
    for number in range(10):
        keys = [f"{number}/{row}.jpg" for row in range(rows // 10)]
        pids = [str(row % 1000) for row in range(rows // 10)]
        add(gallery, gallery.model, items(len(keys), NARROW, number), keys, pid=pids, camera=pids)
    return path


def done_shards(out: Path, count: int) -> Path:
    """A gallery, empty, and beside it so many shards of 16 samples that wait for their commit."""
    gallery, folder = create_gallery(out, model(NARROW)), shards_folder(out)
    for index in range(count):
        keys = [f"{index}/{row}.jpg" for row in range(16)]
        batch = to_batch(gallery.model, items(16, NARROW, index), keys)
        table = pa.Table.from_batches([batch], schema=gallery.schema)
        fragment = LanceFragment.create(str(folder / f"{index:05d}"), table, schema=gallery.schema).to_json()
        metadata, columns = gallery.model.metadata(), gallery.schema.names
        done = Done(index, count, "listing", metadata, columns, 16, 0, fragment, [])
        done.write(folder / f"{index:05d}.json")
    return out


if __name__ == "__main__":
    main()
