"""Cost of ranking and metrics beside the similarity product they need, in time and memory.

The default is the size of Market-1501 with the width of three concatenated 768-wide modalities. Features are drawn as
clusters, one per identity, with a shift per camera; a sixth of the gallery are distractors of no query's identity.
"""

import argparse
import multiprocessing
import tracemalloc
from pathlib import Path

import numpy as np

from dmpt.retrieval.embeddings import Features, plain
from dmpt.retrieval.metrics import Metrics, evaluate
from dmpt.retrieval.protocols import Labels
from dmpt.retrieval.scores import _chunk_rows, blocks
from goals import goal, machine, median_ratio, seconds, status

Data = tuple[Features, Features, Labels, Labels]
Size = tuple[int, int, int]
MARKET: Size = (3368, 15913, 2304)
LARGE: Size = (20_000, 100_000, 2304)
CLEAR = Path("/proc/self/clear_refs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=MARKET[0])
    parser.add_argument("--gallery", type=int, default=MARKET[1])
    parser.add_argument("--width", type=int, default=MARKET[2])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--large", action="store_true", help="also run 20k x 100k (1.3 GB in all, a minute or two)")
    args = parser.parse_args()
    size = (args.queries, args.gallery, args.width)

    data = clusters(size)
    query, gallery = map(plain, data[:2])
    chunk = _chunk_rows(len(gallery))

    def product() -> None:
        for _ in blocks(query, gallery, chunk, match_copies=False):
            pass

    timed = median_ratio(lambda: market(data), product, args.repeats)
    metrics = market(data)
    _, extra, how = alone(size)
    print(machine())
    print(f"{'queries x gallery x width':36}{' x '.join(map(str, size))}")
    print(f"{'mAP, rank-1, mINP of the drawn data':36}{metrics.mAP:.1f}, {metrics.rank1:.1f}, {metrics.mINP:.1f} %")
    print(f"{'queries per chunk':36}{chunk}")
    print(f"{'product alone, median':36}{timed.b:.3f} s")
    print(f"{'evaluate, median':36}{timed.a:.3f} s")
    print(f"{'extra memory':36}{extra / 1e9:.3f} GB ({how})")
    rows = _chunk_rows(LARGE[1])
    predicted = rows * LARGE[1] * np.dtype(np.float32).itemsize / 1e9
    print(f"{'20k x 100k, predicted chunk':36}{predicted:.3f} GB, {rows} queries")
    if args.large:
        took, large_extra, how = alone(LARGE)
        print(f"{'20k x 100k, evaluate once':36}{took:.1f} s")
        print(f"{'20k x 100k, extra memory':36}{large_extra / 1e9:.3f} GB ({how})")
    goal("ranking_time_per_product_time", timed.ratio - 1, 0.3)
    goal("ranking_extra_memory_gb", extra / 1e9, 1.0)
    goal("ranking_predicted_chunk_gb_20k_100k", predicted, 1.0)
    if args.large:
        goal("ranking_extra_memory_gb_20k_100k", large_extra / 1e9, 1.0)


def market(data: Data) -> Metrics:
    """Evaluate under the rule of Market-1501."""
    return evaluate(*data, "same_camera")


def clusters(size: Size) -> Data:
    """Unit features in clusters, with Market-1501's share of identities (750 of 15913), six cameras, distractors."""
    queries, items, width = size
    rng = np.random.default_rng(0)
    identities, distractors = max(1, items * 750 // MARKET[1]), items // 6
    centres = rng.standard_normal((identities, width), dtype=np.float32)
    shifts = 0.6 * rng.standard_normal((6, width), dtype=np.float32)

    def draw(count: int, unknown: int) -> tuple[Features, Labels]:
        pids = rng.integers(1, identities + 1, count)
        pids[:unknown] = 0
        cameras = rng.integers(0, 6, count)
        features = np.empty((count, width), dtype=np.float32)
        for row, pid, camera in zip(features, pids, cameras, strict=True):
            rng.standard_normal(out=row, dtype=np.float32)
            row *= 3.5
            row += shifts[camera]
            if pid:
                row += centres[pid - 1]
            row /= np.linalg.norm(row)
        return features, Labels(pids, cameras)

    query, query_labels = draw(queries, 0)
    gallery, gallery_labels = draw(items, distractors)
    return query, gallery, query_labels, gallery_labels


def alone(size: Size) -> tuple[float, int, str]:
    """``cost`` in a fresh process, where no earlier call has left buffers behind."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(cost, (size,))


def cost(size: Size) -> tuple[float, int, str]:
    """Seconds of one evaluation, the bytes it takes beside the features, and how those were measured."""
    data = clusters(size)
    try:
        CLEAR.write_text("5")  # Linux: forget the peak so far
        before = status("VmRSS")
        took = seconds(lambda: market(data))
        return took, status("VmHWM") - before, "peak resident memory"
    except OSError:
        tracemalloc.start()
        took = seconds(lambda: market(data))
        return took, tracemalloc.get_traced_memory()[1], "peak of numpy's allocations"


if __name__ == "__main__":
    main()
