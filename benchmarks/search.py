"""Exact search against what it cannot do without: a plain pass over the vectors, and the matrix product alone.

python benchmarks/search.py [--quick] [--rows N] [--repeats N]

Goals are for 100k items of 3 x 768, complete, in memory maps as beside a gallery. Where faiss is installed, it searches
the same vectors in its flat index.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dmpt.retrieval.embeddings import Embeddings, Features, unit
from dmpt.retrieval.search import Rows, Vectors, search
from goals import goal, machine, rounds, table

K = 20
CAMERAS = 6


def drawn(count: int, width: int, seed: int, lacking: float = 0.0) -> Embeddings:
    """Items in identities of 20; each modality lacks with the probability ``lacking``, not all of an item."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((max(1, count // 20), 3, width), np.float32)
    features = rng.standard_normal((count, 3, width), np.float32)
    for start in range(0, count, 4096):  # in pieces, since the whole is large
        part = features[start : start + 4096]
        part *= 0.65
        part += centres[rng.integers(0, len(centres), len(part))]
    present = rng.random((count, 3)) >= lacking
    present[np.arange(count), rng.integers(0, 3, count)] = True
    features *= present[:, :, None]
    flat = features.reshape(count, -1)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    return Embeddings(features, present, unit(rng.standard_normal((count, width), np.float32)))


def mapped(items: Embeddings, folder: Path) -> Vectors:
    """As a gallery keeps them: in files, rows of one set of modalities together."""
    folder.mkdir()
    parts = []
    for code in np.unique(items.codes):
        rows = np.flatnonzero(items.codes == code)
        files = []
        for name, values in (("flat", items.flat), ("space", items.common_space)):
            np.save(folder / f"{name}{code}.npy", values[rows])
            files.append(np.load(folder / f"{name}{code}.npy", mmap_mode="r"))
        squares = np.einsum("nmd,nmd->nm", items.features[rows], items.features[rows])
        parts.append(Rows(*files, squares, rows, int(code)))
    return Vectors(parts)


def spread(times: dict[str, list[float]], name: str, other: str) -> float:
    """Median over the rounds of a time / another, printed with its quartiles."""
    ratios = [a / b for a, b in zip(times[name], times[other], strict=True)]
    if len(ratios) > 1:
        low, _, high = statistics.quantiles(ratios, n=4)
        print(f"  {name} / {other}: {statistics.median(ratios):.3f}, quartiles {low:.3f} to {high:.3f}")
    return statistics.median(ratios)


def faiss_index(flat: Features) -> Callable[[Features], object] | None:
    """The search of a flat index of faiss; None where it is not installed."""
    try:
        import faiss
    except ImportError:
        return None
    index = faiss.IndexFlatIP(flat.shape[1])
    index.add(flat)
    return lambda query: index.search(query, K)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--repeats", type=int, default=15)
    asked = parser.parse_args()
    rows, width, repeats = (3000, 32, 3) if asked.quick else (asked.rows, asked.width, asked.repeats)
    print(f"{rows} items of 3 x {width}, top {K}; {machine()}")
    with tempfile.TemporaryDirectory() as folder:
        measured(Path(folder), rows, width, repeats)


def measured(folder: Path, rows: int, width: int, repeats: int) -> None:
    whole = mapped(drawn(rows, width, 0), folder / "whole")
    lacking = mapped(drawn(rows, width, 1, 0.3), folder / "lacking")
    one, many = drawn(1, width, 2), drawn(64, width, 3)
    many_lacking = drawn(64, width, 4, 0.3)
    flat = whole.parts[0].flat
    camera: npt.NDArray[np.bool_] = np.random.default_rng(5).integers(0, CAMERAS, rows) == 0
    most = ~camera
    product = np.empty((64, rows), np.float32)
    found = {
        "one query": lambda: search(one, whole, K),
        "a plain pass over the vectors": lambda: flat @ one.flat[0],
        "one query, of one camera": lambda: search(one, whole, K, camera),
        "one query, of all cameras but one": lambda: search(one, whole, K, most),
        "64 queries": lambda: search(many, whole, K),
        "the matrix product alone": lambda: np.matmul(many.flat, flat.T, out=product),
        "64 queries, of one camera": lambda: search(many, whole, K, camera),
        "64 queries, of all cameras but one": lambda: search(many, whole, K, most),
        "one query, modalities missing": lambda: search(one, lacking, K),
        "64 queries, modalities missing on both sides": lambda: search(many_lacking, lacking, K),
    }
    index = faiss_index(flat)
    if index is None:
        print("faiss is not installed: not compared")
    else:
        found |= {"faiss, one query": lambda: index(one.flat), "faiss, 64 queries": lambda: index(many.flat)}
    times = rounds(found, repeats)
    table(times)
    ratio = {
        "one query / a plain pass": spread(times, "one query", "a plain pass over the vectors"),
        "64 queries / the product": spread(times, "64 queries", "the matrix product alone"),
    }
    for name in ("one query", "64 queries"):
        for which in ("of one camera", "of all cameras but one"):
            ratio[f"{name}, {which} / all"] = spread(times, f"{name}, {which}", name)
    ratio["one query, mixed / complete"] = spread(times, "one query, modalities missing", "one query")
    several = "64 queries, modalities missing on both sides"
    ratio["64 queries, mixed / complete"] = spread(times, several, "64 queries")
    limits = (1.25, 1.25, 1.1, 1.1, 1.1, 1.1, 1.8, 1.8)
    for (name, value), limit in zip(ratio.items(), limits, strict=True):
        goal(name, value, limit)
    if index is not None:
        for name in ("one query", "64 queries"):
            goal(f"throughput / faiss flat's, {name}", spread(times, f"faiss, {name}", name), 1.0, at_most=False)


if __name__ == "__main__":
    main()
