"""A process of its own, for tests: writes or reads a gallery, and says each line what it did.

python worker.py add g.lance NAME COUNT     adds COUNT batches, numbered on from what NAME has; a line for each, when it
                                            is acknowledged
python worker.py read g.lance               looks until its standard input ends; a line for each look
"""

import sys
import threading
from collections import Counter
from itertools import count
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from dmpt.gallery.changes import add
from dmpt.gallery.rows import to_embeddings
from dmpt.gallery.store import Gallery, open_gallery
from drawn import drawn, model

ROWS = 5
"""Of a batch: of these the first has a key that all writers share."""


def keys_of(name: str, batch: int) -> list[str]:
    return ["shared", *(f"{name}-{batch:06d}-{row}" for row in range(1, ROWS))]


def batches_of(gallery: Gallery, name: str) -> dict[int, int]:
    """How many rows of a writer's own each of its batches has; whatever else must hold is checked."""
    table = gallery.read()
    keys = table.column("key").to_pylist()
    twice = [key for key, number in Counter(keys).items() if number > 1]
    assert not twice, twice
    features = to_embeddings(table).features  # every vector is whole
    found: Counter[int] = Counter()
    for key, vector in zip(keys, features, strict=True):
        if key.startswith(f"{name}-"):
            batch, row = map(int, key.split("-")[1:])
            assert np.allclose(vector, drawn(ROWS, seed=batch).features[row], rtol=1e-6), key
            found[batch] += 1
    return dict(found)


def write(path: str, name: str, number: int) -> None:
    gallery = open_gallery(path)
    start = max(batches_of(gallery, name), default=-1)  # the last one once more: an add may be repeated
    for batch in range(max(0, start), max(0, start) + number):
        add(gallery, model(), drawn(ROWS, seed=batch), keys_of(name, batch))
        print(batch, flush=True)


def read(path: str) -> None:
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    last = 0
    for look in count():
        gallery = open_gallery(path)
        assert gallery.version >= last
        last = gallery.version
        for name in ("a", "b"):
            rows = batches_of(gallery, name)
            assert set(rows.values()) <= {ROWS - 1}  # whole batches
            assert sorted(rows) == list(range(len(rows)))  # and none is lacking between
        print(look, flush=True)
        if ended.wait(0.2):
            return


if __name__ == "__main__":
    if sys.argv[1] == "add":
        write(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        read(sys.argv[2])
