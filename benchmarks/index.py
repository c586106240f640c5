"""Search with an index against exact search: how many of the ten nearest it finds, and in what share of the time.

python benchmarks/index.py [--quick] [--ids N] [--repeats N]

Goals are for 50k identities of 20 items, 3 x 256 wide, mates' cosine about 0.7, one query at a time.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dmpt.gallery.changes import add
from dmpt.gallery.index import load_index, make_index
from dmpt.gallery.schema import Model
from dmpt.gallery.store import Gallery, create_gallery
from dmpt.gallery.vectors import mapped
from dmpt.retrieval.embeddings import Embeddings, Features, unit
from dmpt.retrieval.search import search
from goals import goal, machine, seconds

WIDTH, ITEMS, COSINE, K = 256, 20, 0.7, 10
WHOLE = np.ones(3, np.bool_)


def drawn(centres: Features, owners: npt.NDArray[np.int64], seed: int, present: npt.NDArray[np.bool_]) -> Embeddings:
    """An item of each of these identities; ``present`` are the modalities of all, (3,)."""
    noise = np.random.default_rng(seed).standard_normal((len(owners) * 3, WIDTH), np.float32)
    features = np.sqrt(COSINE) * centres[owners] + np.sqrt(1 - COSINE) * unit(noise).reshape(-1, 3, WIDTH)
    features = (features * present[:, None]).astype(np.float32).reshape(len(owners), -1)
    return Embeddings(unit(features).reshape(-1, 3, WIDTH), np.repeat(present[None], len(owners), axis=0))


def filled(path: Path, centres: Features) -> Gallery:
    model = Model("a" * 64, "fp32", {}, WIDTH)
    gallery = create_gallery(path / "g.lance", model)
    owners = np.repeat(np.arange(len(centres)), ITEMS)
    for start in range(0, len(owners), 100_000):
        own = owners[start : start + 100_000]
        add(gallery, model, drawn(centres, own, start + 1, WHOLE), [f"{start + row:09}" for row in range(len(own))])
    return gallery


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--ids", type=int, default=50_000)
    parser.add_argument("--queries", type=int, default=60)
    asked = parser.parse_args()
    ids, count = (100, 10) if asked.quick else (asked.ids, asked.queries)
    print(f"{ids} identities of {ITEMS} items, 3 x {WIDTH}; {machine()}")
    rng = np.random.default_rng(0)
    centres = unit(rng.standard_normal((ids * 3, WIDTH), np.float32)).reshape(ids, 3, WIDTH)
    with tempfile.TemporaryDirectory() as folder:
        gallery = filled(Path(folder), centres)
        found = mapped(gallery)
        took = seconds(lambda: make_index(gallery))
        index = load_index(gallery, found)
        print(
            f"index made in {took:.0f} s: {index.probes} lists of each feature, recall {index.recall:.3f} on the table"
        )
        owners = rng.integers(0, ids, count)
        for name, present in {"complete": WHOLE, "of one modality": WHOLE & (np.arange(3) == 2)}.items():
            query = drawn(centres, owners, 7, present)
            recalls, ratios, shares = [], [], []
            for row in range(count):
                one = query[row : row + 1]
                search(one, found.vectors, K, found.counted)  # both read what is in memory
                exact = search(one, found.vectors, K, found.counted).positions
                both = [
                    seconds(lambda one=one: search(one, found.vectors, K, index.candidates(one))),  # type: ignore[misc]
                    seconds(lambda one=one: search(one, found.vectors, K, found.counted)),  # type: ignore[misc]
                ]
                candidates = index.candidates(one)
                recalls.append(float(candidates[exact[0]].mean()))
                shares.append(candidates.sum() / len(gallery))
                ratios.append(both[0] / both[1])
            low, middle, high = statistics.quantiles(ratios, n=4)
            print(
                f"  {name}: time / exact {middle:.3f}, quartiles {low:.3f} to {high:.3f}; {np.mean(shares):.4f} of rows"
            )
            goal(f"recall@{K}, queries {name}", float(np.mean(recalls)), 0.98, at_most=False)
            goal(f"time / exact, queries {name}", middle, 0.2)


if __name__ == "__main__":
    main()
